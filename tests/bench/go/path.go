// Checks that the path to a server is direct. Over the relay everything is slower, and not what we
// measure.
package main

import (
	"context"
	"fmt"
	"net/netip"

	"tailscale.com/tailcfg"
)

// paths pings the order's server from every node, and returns the nodes that reach it only through
// the relay.
func (c *callers) paths(o order) (any, error) {
	addr, err := netip.ParseAddrPort(o.Request.Addr)
	if err != nil {
		return nil, err
	}
	relayed := []string{}
	for number, n := range c.nodes {
		client, err := n.LocalClient()
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		answer, err := client.Ping(ctx, addr.Addr(), tailcfg.PingDisco)
		cancel()
		switch {
		case err != nil:
			relayed = append(relayed, fmt.Sprintf("%d: %v", number, err))
		case answer.Endpoint == "":
			relayed = append(relayed, fmt.Sprintf("%d: %+v", number, *answer))
		}
	}
	return map[string]any{"relayed": relayed}, nil
}
