// What we change in tsnet's netstack, and why.
//
// Closing. Upstream fault, seen in tailscale.com v1.102.5: netstack.Impl.Close first stops the
// goroutine that sends packets and then resets every endpoint, including those that only wait in
// their final state. The resets go into a queue of 512 packets that nothing empties any more. With
// more endpoints than that, closing hangs for ever. So closed connections are forgotten soon
// (finalStateTimeout), and a node with many endpoints waits for them before it closes
// (drainEndpoints). Both can go when Close resets the endpoints before it stops sending:
// TestCloseWithManyConnections must then pass without them.
//
// For the same reason packets still in the queue are never sent. So a node waits a moment until the
// peers of its connections have acknowledged the end (awaitAcks). Without it they would notice
// only by a timeout of their own.
//
// Memory. tsnet gives each connection buffers of fixed size, 1 MiB for each direction at first and
// up to 8 MiB. A peer that sends and does not read may fill them all, so here many connections have
// small buffers (bufferSizeFor).

package node

import (
	"expvar"
	"slices"
	"strconv"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"tailscale.com/tsd"
	"tailscale.com/wgengine/netstack"
)

const (
	// How long an endpoint stays after its last packet, instead of a minute. Long enough for late
	// packets on a tailnet. A later one is answered with a reset, as for any unknown connection.
	finalStateTimeout = 1500 * time.Millisecond

	// This many endpoints can be reset at once. Half of the queue, as other packets need room too.
	maxEndpointsAtClose = 256

	// Twice the time that an endpoint's final state takes. With ackTimeout it leaves a second of
	// closeLimit to whatever else must stop.
	drainTimeout = 2 * finalStateTimeout

	// Size in bytes of the buffer for each direction of a connection: what it begins with, the
	// least, and what it may grow to while bytes come and go quickly. All buffers together grow to
	// maxBuffersTotal at most, unless even the least size takes more.
	initialBuffer   = 128 << 10
	minBuffer       = 32 << 10
	maxBuffer       = 1 << 20
	maxBuffersTotal = 32 << 20

	ackTimeout = time.Second // a peer that lost a packet gets it again within that; one that is gone is not waited for
	resetGrace = 50 * time.Millisecond
)

// optionSetter is the part of a netstack that sets its options.
type optionSetter interface {
	SetTransportProtocolOption(tcpip.TransportProtocolNumber, tcpip.SettableTransportProtocolOption) tcpip.Error
}

// configureNetstack makes a node's netstack forget closed connections soon, and bounds the buffers
// of its connections.
func (n *Node) configureNetstack() *Error {
	ns, ok := n.srv.Sys().Netstack.Get().(*netstack.Impl)
	if !ok {
		return errorf(Internal, "the node's netstack is a %T", n.srv.Sys().Netstack.Get())
	}
	if err := shortenFinalStates(ns); err != nil {
		return err
	}
	return n.conns.limitBuffers(ns)
}

func shortenFinalStates(ns optionSetter) *Error {
	linger := tcpip.TCPLingerTimeoutOption(finalStateTimeout)
	wait := tcpip.TCPTimeWaitTimeoutOption(finalStateTimeout)
	for _, o := range []tcpip.SettableTransportProtocolOption{&linger, &wait} {
		if err := ns.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return errorf(Internal, "the netstack does not take %T: %v", o, err)
		}
	}
	return nil
}

// bufferSizeFor returns how large each buffer of a connection may become with this many
// connections.
func bufferSizeFor(conns int) int {
	size := maxBuffer
	for size > minBuffer && size*conns > maxBuffersTotal {
		size /= 2
	}
	return size
}

// setBufferLimits lets no buffer grow beyond most bytes. It does not shrink larger ones of accepted
// connections: the netstack cannot do that for all, so their owner must.
func setBufferLimits(ns optionSetter, most int) *Error {
	first := min(initialBuffer, most)
	in := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: first, Max: most}
	out := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: first, Max: most}
	for _, o := range []tcpip.SettableTransportProtocolOption{&in, &out} {
		if err := ns.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return errorf(Internal, "the netstack does not take %T: %v", o, err)
		}
	}
	return nil
}

// limitBuffers bounds the buffers of the set's connections from now on.
func (set *connSet) limitBuffers(ns optionSetter) *Error {
	set.mu.Lock()
	defer set.mu.Unlock()
	set.netstack, set.bufferSize = ns, bufferSizeFor(len(set.accepted))
	return setBufferLimits(ns, set.bufferSize)
}

// resizeBuffers fits the buffers to the number of connections. They grow again only at half of the
// number at which they shrank, so that connections that come and go around the limit do not change
// everything each time. The caller holds set.mu.
func (set *connSet) resizeBuffers() {
	if set.netstack == nil {
		return
	}
	was, conns := set.bufferSize, len(set.accepted)
	set.bufferSize = max(min(was, bufferSizeFor(conns)), bufferSizeFor(2*conns))
	if set.bufferSize == was {
		return
	}
	setBufferLimits(set.netstack, set.bufferSize) // cannot fail: the netstack took the same options before
	if set.bufferSize < was {
		for c := range set.accepted {
			shrinkBuffers(c.endpoint, set.bufferSize)
		}
	}
}

// shrinkBuffers makes a connection's buffers small enough. They may grow again by themselves, as
// far as the netstack lets them. Bytes in them stay. Bytes that the peer sends because it was
// promised more room are dropped and sent again.
func shrinkBuffers(ep tcpip.Endpoint, most int) {
	o := ep.SocketOptions()
	if o.GetReceiveBufferSize() > int64(most) {
		o.SetReceiveBufferSize(int64(most), false)
	}
	if o.GetSendBufferSize() > int64(most) {
		o.SetSendBufferSize(int64(most), false)
	}
}

// drainEndpoints waits until so few endpoints are left that all can be reset at once. All
// connections have been closed before. The wait is limited, because endpoints whose peers do not
// answer stay. The count is the netstack's own: if a later version lacks it, there is no wait, and
// close keeps its own limit.
func drainEndpoints(sys *tsd.System) {
	ns, ok := sys.Netstack.Get().(*netstack.Impl)
	if !ok {
		return
	}
	pollUntil(drainTimeout, 20*time.Millisecond, func() bool { return countEndpoints(ns) <= maxEndpointsAtClose })
}

// countEndpoints counts the endpoints that would be reset, including those in their final states.
func countEndpoints(ns *netstack.Impl) int {
	vars, ok := ns.ExpVar().(interface{ Get(string) expvar.Var })
	if !ok {
		return 0
	}
	v := vars.Get("gauge_tcp_current_connected")
	if v == nil {
		return 0
	}
	n, _ := strconv.Atoi(v.String())
	return n
}

// awaitAcks waits until the peers of closed connections have acknowledged the end. A reset is not
// acknowledged: it only gets time to be sent.
func awaitAcks(endpoints []tcpip.Endpoint) {
	if len(endpoints) == 0 {
		return
	}
	pollUntil(ackTimeout, 5*time.Millisecond, func() bool { return !slices.ContainsFunc(endpoints, awaitsAck) })
	time.Sleep(resetGrace)
}

func awaitsAck(ep tcpip.Endpoint) bool {
	switch tcp.EndpointState(ep.State()) {
	case tcp.StateEstablished, tcp.StateCloseWait, tcp.StateFinWait1, tcp.StateClosing, tcp.StateLastAck:
		return true
	}
	return false
}
