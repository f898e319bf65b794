// Accepts new connections from a pair of ports that a closed connection still occupies.
//
// A connection that the program closes first stays in TIME_WAIT. A new SYN may open it again at
// once (RFC 1122, 4.2.2.13), as it does on Linux. Upstream fault, seen in gVisor at the version
// that tailscale.com v1.102.5 requires: it does so only for its own listeners, while tsnet accepts
// through a forwarder. There a SYN for such a pair is dropped until the state ends, or is answered
// with a reset if it still waits in the old endpoint's queue at that moment. The peer sees a delay
// of a second or more, or a healthy server that refuses.
//
// So when a SYN arrives for an endpoint in TIME_WAIT, that endpoint is ended before the netstack
// sees the packet. The SYN cannot be an old duplicate, since WireGuard delivers none. An endpoint
// whose last bytes the program has not read yet is left alone.
//
// This file can go when gVisor's TIME_WAIT passes a new SYN on to forwarders:
// TestAPortInTimeWaitIsOpenedAgain must then pass without it.

package node

import (
	"reflect"
	"unsafe"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"tailscale.com/net/packet"
	"tailscale.com/net/tstun"
	"tailscale.com/types/ipproto"
	"tailscale.com/wgengine/filter"
	"tailscale.com/wgengine/netstack"
	"tailscale.com/wgengine/netstack/gro"
)

// The only interface of tsnet's netstack.
const nicID = 1

// The netstack has no method that returns its stack, so we read its private field. If a later
// version has another one, no node starts, and TestStackField fails first.
var stackOffset, stackFieldKnown = func() (uintptr, bool) {
	f, ok := reflect.TypeFor[netstack.Impl]().FieldByName("ipstack")
	return f.Offset, ok && f.Type == reflect.TypeFor[*stack.Stack]()
}()

func stackOf(ns *netstack.Impl) *stack.Stack {
	return *(**stack.Stack)(unsafe.Add(unsafe.Pointer(ns), stackOffset))
}

// endTimeWaitOnSyn must be called before the node has peers.
func endTimeWaitOnSyn(tun *tstun.Wrapper, ns *netstack.Impl) {
	next, st := tun.PostFilterPacketInboundFromWireGuard, stackOf(ns)
	tun.PostFilterPacketInboundFromWireGuard = func(p *packet.Parsed, w *tstun.Wrapper, g *gro.GRO) (filter.Response, *gro.GRO) {
		if p.IPProto == ipproto.TCP && p.IsTCPSyn() {
			endTimeWait(st, p)
		}
		return next(p, w, g)
	}
}

// endTimeWait ends the endpoint that still has the packet's pair of ports.
func endTimeWait(st *stack.Stack, p *packet.Parsed) {
	proto := ipv4.ProtocolNumber
	if p.IPVersion == 6 {
		proto = ipv6.ProtocolNumber
	}
	ep, ok := st.FindTransportEndpoint(proto, tcp.ProtocolNumber, stack.TransportEndpointID{
		LocalPort:     p.Dst.Port(),
		LocalAddress:  tcpip.AddrFromSlice(p.Dst.Addr().AsSlice()),
		RemotePort:    p.Src.Port(),
		RemoteAddress: tcpip.AddrFromSlice(p.Src.Addr().AsSlice()),
	}, nicID).(*tcp.Endpoint)
	if !ok || ep.EndpointState() != tcp.StateTimeWait {
		return
	}
	if unread, err := ep.GetSockOptInt(tcpip.ReceiveQueueSizeOption); err == nil && unread == 0 {
		ep.Abort()
	}
}
