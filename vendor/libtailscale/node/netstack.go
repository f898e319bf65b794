// What we change in tsnet's netstack, and why.
//
// When a netstack is closed (tsnet 1.102.5, wgengine/netstack: Close stops its sending goroutine first and then resets
// every endpoint, including those that only wait out their last state), the resets go into a queue of 512 packets that
// nobody empties any more. With more endpoints than that, closing hangs for ever. So closed connections must leave soon,
// and when a node with many is closed, it waits for them first (drain).
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

	heardLimit  = time.Second // a peer that lost a packet gets it again within that; one that is gone is not waited for
	lastPackets = 50 * time.Millisecond
)

func shortenLastStates(sys *tsd.System) *Error {
	ns, ok := sys.Netstack.Get().(*netstack.Impl)
	if !ok {
		return fail(Internal, "the node's netstack is a %T", sys.Netstack.Get())
	}
	linger := tcpip.TCPLingerTimeoutOption(lastStates)
	wait := tcpip.TCPTimeWaitTimeoutOption(lastStates)
	for _, o := range []tcpip.SettableTransportProtocolOption{&linger, &wait} {
		if err := ns.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fail(Internal, "the netstack does not take %T: %v", o, err)
		}
	}
	return nil
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
