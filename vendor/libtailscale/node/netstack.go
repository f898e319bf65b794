// What we change in tsnet's netstack, and why.
//
// When a netstack is closed (tsnet 1.102.5, wgengine/netstack: Close stops its sending goroutine first and then resets
// every endpoint, including those that only wait out their last state), the resets go into a queue of 512 packets that
// nobody empties any more. With more endpoints than that, closing hangs for ever. So closed connections must leave soon,
// and when a node with many is closed, it waits for them first (drain).
//
// A connection's buffers are of a fixed size in tsnet: 1 MiB for each direction at first, and up to
// 8 MiB. A peer that sends and does not read may fill them all, so here many connections have small
// ones (bufferFor).
//
// What else is on its way ends in queues as well: so a node waits, a moment, until the peers of its connections have heard
// of their end (awaitHeard). Without it they would learn of it by a timeout of their own.

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
	// How long an endpoint stays after its last packet, in place of a minute. Long enough for the packets of a tailnet
	// that come late; a later one is answered with a reset, as for any unknown connection.
	lastStates = 1500 * time.Millisecond

	// Fewer endpoints than this can be reset at once. Half the queue: other packets need room, too.
	fewEnough = 256

	drainLimit = 3500 * time.Millisecond

	// The buffer of each direction of a connection: what it begins with, and what it may grow to
	// while its bytes come and go quickly. All together grow to no more than buffersAll, unless
	// even the least is more.
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

// tune makes a node's netstack keep closed connections for a short time only, and bounds the
// buffers of its connections.
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

// bufferFor says how large each buffer of a connection may become where there are so many
// connections.
func bufferFor(conns int) int {
	size := mostBuffer
	for size > leastBuffer && size*conns > buffersAll {
		size /= 2
	}
	return size
}

// setBuffers lets no buffer grow beyond most. Those of accepted connections that are larger already
// are for their owner to shrink: the netstack has no way to do it for all.
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

// boundBuffers bounds the buffers of the set's connections from here on.
func (set *splices) boundBuffers(ns tuned) *Error {
	set.mu.Lock()
	defer set.mu.Unlock()
	set.netstack, set.buffer = ns, bufferFor(len(set.directs))
	return setBuffers(ns, set.buffer)
}

// rebound fits the buffers to the number of connections. Larger ones come back late, at half of the
// number at which they went, so that connections that come and go at the bound do not set
// everything anew each time. set.mu is held.
func (set *splices) rebound() {
	if set.netstack == nil {
		return
	}
	was, conns := set.buffer, len(set.directs)
	set.buffer = max(min(was, bufferFor(conns)), bufferFor(2*conns))
	if set.buffer == was {
		return
	}
	setBuffers(set.netstack, set.buffer) // it took the same before
	if set.buffer < was {
		for d := range set.directs {
			shrink(d.ep, set.buffer)
		}
	}
}

// shrink makes a connection's buffers small enough. They may go on to grow by themselves, as far as
// the netstack lets them. What is in them stays, and nothing that the peer was promised room for is
// lost: it is sent again.
func shrink(ep tcpip.Endpoint, most int) {
	o := ep.SocketOptions()
	if o.GetReceiveBufferSize() > int64(most) {
		o.SetReceiveBufferSize(int64(most), false)
	}
	if o.GetSendBufferSize() > int64(most) {
		o.SetSendBufferSize(int64(most), false)
	}
}

// drain waits, if there are many endpoints, until so few are left that they can all be reset at once; not for ever, as
// those whose peers do not answer stay. All connections have been closed. The count is the netstack's own; should a
// later one not have it, nothing is waited for and close keeps its limit all the same.
func drain(sys *tsd.System) {
	ns, ok := sys.Netstack.Get().(*netstack.Impl)
	if !ok {
		return
	}
	within(drainLimit, 20*time.Millisecond, func() bool { return endpoints(ns) <= fewEnough })
}

// endpoints counts those that would be reset, also in their last states.
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

// awaitHeard waits until the peers of closed connections have acknowledged the end. A reset is not acknowledged: it only
// gets time to leave.
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
