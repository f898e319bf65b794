// The floor, the baseline of all comparisons: net/http on tsnet that answers a constant, with one
// WhoIs for each request if asked. It shows what a Go service on a tailnet costs before it does
// anything.
package main

import (
	"flag"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
)

func floor(args []string) error {
	flags := flag.NewFlagSet("floor", flag.ContinueOnError)
	control := flags.String("control", "", "`URL` of the control server")
	key := flags.String("key", "", "auth key")
	hostname := flags.String("hostname", "floor", "`name` of the node")
	whois := flags.Bool("whois", false, "ask who calls, for each request")
	secured := flags.Bool("tls", false, "serve TLS on port 443, with the node's certificate")
	if err := parse(flags, args); err != nil {
		return err
	}
	n, err := join(*control, *key, *hostname)
	if err != nil {
		return err
	}
	defer n.close()
	client, err := n.LocalClient()
	if err != nil {
		return err
	}
	var listener net.Listener
	if *secured {
		listener, err = n.ListenTLS("tcp", ":443")
	} else {
		listener, err = n.Listen("tcp", ":80")
	}
	if err != nil {
		return err
	}
	bodies := constants(4096)
	handler := func(w http.ResponseWriter, r *http.Request) {
		body := bodies[r.URL.Path]
		if body == nil {
			http.NotFound(w, r)
			return
		}
		if *whois {
			who, err := client.WhoIs(r.Context(), r.RemoteAddr)
			if err != nil || who.UserProfile == nil {
				http.Error(w, "nobody knows you", http.StatusUnauthorized)
				return
			}
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(body)
	}
	go func() {
		if err := http.Serve(listener, http.HandlerFunc(handler)); err != nil {
			fmt.Println(err)
		}
	}()
	if err := say(map[string]any{"ip": n.ip}); err != nil {
		return err
	}
	untilClosed()
	return nil
}

// constants has an answer of N bytes at /N, for N up to most. An answer as long as the other side's
// puts as many bytes on the wire.
func constants(most int) map[string][]byte {
	bodies := map[string][]byte{}
	for size := 2; size <= most; size++ {
		bodies["/"+strconv.Itoa(size)] = []byte(`"` + strings.Repeat("x", size-2) + `"`)
	}
	return bodies
}
