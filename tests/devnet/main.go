// devnet is a whole tailnet on loopback, for demonstrations, tests and benchmarks. It prints one
// line of JSON when it is ready and ends with its parent, or on SIGTERM, SIGINT or SIGHUP, leaving
// nothing.
//
// This file is the command line; README.md tells how to use it.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "devnet:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	o, withParent, withStdin, err := parse(args)
	if err != nil {
		return err
	}
	ctx, end := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer end()
	if withParent {
		endWithParent(ctx, end)
	}
	if withStdin {
		endWithStdin(end)
	}

	began := time.Now()
	d, err := start(ctx, o)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer d.close()
	fmt.Fprintf(os.Stderr, "devnet: a test tailnet, listening on 127.0.0.1 alone (control, test API, relay, proxies); ready after %d ms\n",
		time.Since(began).Milliseconds())
	line, err := json.Marshal(d.ready())
	if err != nil {
		return err
	}
	if _, err := fmt.Printf("%s\n", line); err != nil {
		return fmt.Errorf("cannot tell that it is ready: %w", err)
	}
	<-ctx.Done()
	return nil
}

func parse(args []string) (o options, withParent, withStdin bool, err error) {
	fs := flag.NewFlagSet("devnet", flag.ContinueOnError)
	fs.Func("peer", "`NAME=LOGIN` or NAME=tag:X[,tag:Y]; may be given several times", func(s string) error {
		p, err := parsePeer(s)
		o.peers = append(o.peers, p)
		return err
	})
	fs.StringVar(&o.owner, "owner", "owner@example.com", "`login` of nodes that join with the printed auth key")
	fs.StringVar(&o.suffix, "suffix", "example-devnet.ts.net", "MagicDNS `suffix` of the tailnet")
	fs.DurationVar(&o.ephemeralGrace, "ephemeral-grace", 2*time.Second, "`time` after which an absent ephemeral node is deleted")
	fs.DurationVar(&o.delay, "delay", 0, "`time` that a packet takes from node to node, all of them through the relay")
	fs.BoolVar(&o.https, "https", false, "the tailnet has HTTPS, and an ACME server (pebble) issues certificates")
	fs.BoolVar(&o.funnel, "funnel", false, "the tailnet has HTTPS and Funnel, with an ingress node and its public ports on loopback")
	fs.BoolVar(&withParent, "with-parent", true, "end when the process that started this one is gone")
	fs.BoolVar(&withStdin, "with-stdin", false, "end when stdin is closed")
	verbose := fs.Bool("verbose", false, "print the peers' logs on stderr")
	if err = fs.Parse(args); err == flag.ErrHelp {
		os.Exit(0)
	}
	switch {
	case err != nil:
	case fs.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", fs.Arg(0))
	case strings.Trim(o.suffix, ".") == "":
		err = fmt.Errorf("the suffix must not be empty")
	default:
		err = checkLogin(o.owner)
	}
	if *verbose {
		o.nodeLogs = os.Stderr
	}
	return o, withParent, withStdin, err
}
