// What we change in tsnet's netstack, and why.
//
// Closing. Upstream fault, seen in tailscale.com v1.102.5: netstack.Impl.Close first stops the
// goroutine that sends packets and then resets every endpoint, including those that only wait in
// their last state. The resets go into a queue of 512 packets that nothing empties any more. With
// more endpoints than that, closing hangs for ever. So closed connections are forgotten soon
// (lastStates), and a node with many endpoints waits for them before it closes (drain). Both can go
// when Close resets the endpoints before it stops sending: TestCloseWithManyConnections must then
// pass without them.
//
// For the same reason packets still in the queue are never sent. So a node waits a moment until the
// peers of its connections have acknowledged the end (awaitHeard). Without it they would notice
// only by a timeout of their own.
//
// Memory. tsnet gives each connection buffers of fixed size, 1 MiB for each direction at first and
// up to 8 MiB. A peer that sends and does not read may fill them all, so here many connections have
// small buffers (bufferFor).

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
	lastStates = 1500 * time.Millisecond

	// This many endpoints can be reset at once. Half of the queue, as other packets need room too.
	fewEnough = 256

	drainLimit = 3500 * time.Millisecond

	// Size in bytes of the buffer for each direction of a connection: what it begins with, the
	// least, and what it may grow to while bytes come and go quickly. All buffers together grow to
	// buffersAll at most, unless even the least size takes more.
	firstBuffer = 128 << 10
	leastBuffer = 32 << 10
	mostBuffer  = 1 << 20
	buffersAll  = 32 << 20

	heardLimit  = time.Second // a peer that lost a packet gets it again within that; one that is gone is not waited for
	lastPackets = 50 * time.Millisecond
)

// tuned is a netstack whose options can be set.
type tuned interface {
	SetTransportProtocolOption(tcpip.TransportProtocolNumber, tcpip.SettableTransportProtocolOption) tcpip.Error
}

// tune makes a node's netstack forget closed connections soon, and bounds the buffers of its
// connections.
func (n *Node) tune() *Error {
	ns, ok := n.srv.Sys().Netstack.Get().(*netstack.Impl)
	if !ok {
		return fail(Internal, "the node's netstack is a %T", n.srv.Sys().Netstack.Get())
	}
	if err := shortenLastStates(ns); err != nil {
		return err
	}
	return n.splice.boundBuffers(ns)
}

func shortenLastStates(ns tuned) *Error {
	linger := tcpip.TCPLingerTimeoutOption(lastStates)
	wait := tcpip.TCPTimeWaitTimeoutOption(lastStates)
	for _, o := range []tcpip.SettableTransportProtocolOption{&linger, &wait} {
		if err := ns.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fail(Internal, "the netstack does not take %T: %v", o, err)
		}
	}
	return nil
}

// bufferFor returns how large each buffer of a connection may become with this many connections.
func bufferFor(conns int) int {
	size := mostBuffer
	for size > leastBuffer && size*conns > buffersAll {
		size /= 2
	}
	return size
}

// setBuffers lets no buffer grow beyond most bytes. It does not shrink larger ones of accepted
// connections: the netstack cannot do that for all, so their owner must.
func setBuffers(ns tuned, most int) *Error {
	first := min(firstBuffer, most)
	in := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: first, Max: most}
	out := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: first, Max: most}
	for _, o := range []tcpip.SettableTransportProtocolOption{&in, &out} {
		if err := ns.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fail(Internal, "the netstack does not take %T: %v", o, err)
		}
	}
	return nil
}

// boundBuffers bounds the buffers of the set's connections from now on.
func (set *splices) boundBuffers(ns tuned) *Error {
	set.mu.Lock()
	defer set.mu.Unlock()
	set.netstack, set.buffer = ns, bufferFor(len(set.directs))
	return setBuffers(ns, set.buffer)
}

// rebound fits the buffers to the number of connections. They grow again only at half of the number
// at which they shrank, so that connections that come and go around the limit do not change
// everything each time. The caller holds set.mu.
func (set *splices) rebound() {
	if set.netstack == nil {
		return
	}
	was, conns := set.buffer, len(set.directs)
	set.buffer = max(min(was, bufferFor(conns)), bufferFor(2*conns))
	if set.buffer == was {
		return
	}
	setBuffers(set.netstack, set.buffer) // cannot fail: the netstack took the same options before
	if set.buffer < was {
		for d := range set.directs {
			shrink(d.ep, set.buffer)
		}
	}
}

// shrink makes a connection's buffers small enough. They may grow again by themselves, as far as
// the netstack lets them. Bytes in them stay. Bytes that the peer sends because it was promised
// more room are dropped and sent again.
func shrink(ep tcpip.Endpoint, most int) {
	o := ep.SocketOptions()
	if o.GetReceiveBufferSize() > int64(most) {
		o.SetReceiveBufferSize(int64(most), false)
	}
	if o.GetSendBufferSize() > int64(most) {
		o.SetSendBufferSize(int64(most), false)
	}
}

// drain waits until so few endpoints are left that all can be reset at once. All connections have
// been closed before. The wait is limited, because endpoints whose peers do not answer stay. The
// count is the netstack's own: if a later version lacks it, there is no wait, and close keeps its
// own limit.
func drain(sys *tsd.System) {
	ns, ok := sys.Netstack.Get().(*netstack.Impl)
	if !ok {
		return
	}
	within(drainLimit, 20*time.Millisecond, func() bool { return endpoints(ns) <= fewEnough })
}

// endpoints counts the endpoints that would be reset, including those in their last states.
func endpoints(ns *netstack.Impl) int {
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

// awaitHeard waits until the peers of closed connections have acknowledged the end. A reset is not
// acknowledged: it only gets time to be sent.
func awaitHeard(eps []tcpip.Endpoint) {
	if len(eps) == 0 {
		return
	}
	within(heardLimit, 5*time.Millisecond, func() bool { return !slices.ContainsFunc(eps, unheard) })
	time.Sleep(lastPackets)
}

func unheard(ep tcpip.Endpoint) bool {
	switch tcp.EndpointState(ep.State()) {
	case tcp.StateEstablished, tcp.StateCloseWait, tcp.StateFinWait1, tcp.StateClosing, tcp.StateLastAck:
		return true
	}
	return false
}
