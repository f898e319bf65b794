// bench is what scripts/bench measures with. One program, three jobs:
//
//	bench floor   net/http on tsnet that answers a constant, the baseline for Go services
//	bench load    callers with their own nodes, controlled by JSON lines on stdin
//	bench stub    what the program talks to: a backend, an issuer's keys, a token endpoint
//
// Each prints one line of JSON on stdout when it is ready, and ends when its stdin is closed, so
// that none outlives the run.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
)

func main() {
	jobs := map[string]func([]string) error{"floor": floor, "load": load, "stub": stub}
	if len(os.Args) < 2 || jobs[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "bench: one of floor, load, stub is wanted")
		os.Exit(2)
	}
	if err := jobs[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "bench %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

// parse reads flags and refuses further arguments.
func parse(flags *flag.FlagSet, args []string) error {
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	return nil
}

// say prints one line of JSON.
func say(value any) error {
	line, err := json.Marshal(value)
	if err != nil {
		return err
	}
	_, err = fmt.Printf("%s\n", line)
	return err
}

// untilClosed waits for the end of stdin.
func untilClosed() { io.Copy(io.Discard, os.Stdin) }
