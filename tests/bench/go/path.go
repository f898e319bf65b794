// Whether the way to a server is a direct one. Over the relay everything is slower, and nothing that we want to know.
package main

import (
	"context"
	"net/netip"

	"tailscale.com/tailcfg"
)

// paths pings the order's server from every node, and says whether all of them reach it without the relay.
func (c *callers) paths(o order) (any, error) {
	addr, err := netip.ParseAddrPort(o.Request.Addr)
	if err != nil {
		return nil, err
	}
	direct := true
	for _, n := range c.nodes {
		client, err := n.LocalClient()
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		answer, err := client.Ping(ctx, addr.Addr(), tailcfg.PingDisco)
		cancel()
		direct = direct && err == nil && answer.Err == "" && answer.Endpoint != ""
	}
	return map[string]any{"direct": direct}, nil
}
