// A peer that opens connections and resets each as soon as it is established: what a port scanner
// does, or a client that aborts.

package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"reflect"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

// The longest that one call may take.
const maxResetsDuration = time.Minute

// postResets answers when the time is over, with the numbers of connections that were reset and
// that failed.
func (d *devnet) postResets(r *http.Request) (any, error) {
	var in struct {
		To     string `json:"to"`
		Port   uint16 `json:"port"`
		AtOnce int    `json:"at_once"`
		ForMS  int    `json:"for_ms"`
	}
	if err := readBody(r, &in); err != nil {
		return nil, err
	}
	duration := time.Duration(in.ForMS) * time.Millisecond
	if in.Port == 0 || in.AtOnce < 1 || in.AtOnce > 256 || duration <= 0 || duration > maxResetsDuration {
		return nil, badRequest("resets need a port, at_once from 1 to 256, and for_ms up to %d", maxResetsDuration.Milliseconds())
	}
	p, ip, err := d.peerAndTarget(r.PathValue("name"), in.To)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), duration)
	defer cancel()
	var reset, failed atomic.Int64
	var all sync.WaitGroup
	for range in.AtOnce {
		all.Go(func() {
			for ctx.Err() == nil {
				switch err := p.openAndReset(ctx, netip.AddrPortFrom(ip, in.Port)); {
				case err == nil:
					reset.Add(1)
				case ctx.Err() == nil:
					failed.Add(1)
				}
			}
		})
	}
	all.Wait()
	return map[string]any{"reset": reset.Load(), "failed": failed.Load()}, nil
}

// peerAndTarget returns a peer and the address of the node that it is to call.
func (d *devnet) peerAndTarget(from, to string) (*peer, netip.Addr, error) {
	d.mu.Lock()
	p := d.peers[from]
	d.mu.Unlock()
	if p == nil {
		return nil, netip.Addr{}, notFound("peer", from)
	}
	d.tailnet.mu.Lock()
	defer d.tailnet.mu.Unlock()
	n := d.tailnet.find(to)
	if n == nil {
		return nil, netip.Addr{}, notFound("node", to)
	}
	return p, n.v4.Addr(), nil
}

func (p *peer) openAndReset(ctx context.Context, to netip.AddrPort) error {
	c, err := p.node.Dial(ctx, "tcp", to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	ep, err := endpoint(c)
	if err != nil {
		return err
	}
	// Closed with this option, it sends a reset.
	ep.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: true})
	return nil
}

// endpoint returns the netstack's endpoint behind a connection. Its adapter (gonet, in the gVisor
// that tailscale.com v1.102.5 requires) has no SetLinger; this can go when it has.
func endpoint(c net.Conn) (tcpip.Endpoint, error) {
	g, ok := c.(*gonet.TCPConn)
	if !ok {
		return nil, fmt.Errorf("a connection is a %T", c)
	}
	field, ok := reflect.TypeFor[gonet.TCPConn]().FieldByName("ep")
	if !ok || field.Type != reflect.TypeFor[tcpip.Endpoint]() {
		return nil, fmt.Errorf("gonet.TCPConn has no endpoint in a field ep")
	}
	return *(*tcpip.Endpoint)(unsafe.Add(unsafe.Pointer(g), field.Offset)), nil
}
