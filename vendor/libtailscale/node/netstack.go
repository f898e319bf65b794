// What we change in tsnet's netstack, and why.
//
// When a netstack is closed (tsnet 1.102.5, wgengine/netstack: Close stops its sending goroutine first and then resets
// every endpoint, including those that only wait out their last state), the resets go into a queue of 512 packets that
// nobody empties any more. With more endpoints than that, closing hangs for ever. So closed connections must leave soon,
// and when a node with many is closed, it waits for them first (drain).

package node

import (
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

// endedNow counts the connections that ended lately: their endpoints may still be there. set.mu is held.
func (set *splices) endedNow(now time.Time) {
	if now.Sub(set.window) > 2*lastStates {
		set.before, set.lately, set.window = 0, 0, now
	} else if now.Sub(set.window) > lastStates {
		set.before, set.lately, set.window = set.lately, 0, now
	}
	set.lately++
}

// drain waits, if there are many endpoints, until those whose peers answer are gone. All connections are closed.
func (set *splices) drain() {
	set.mu.Lock()
	many := len(set.all)
	if time.Since(set.window) <= 2*lastStates {
		many += set.before + set.lately
	}
	set.mu.Unlock()
	if many > fewEnough {
		time.Sleep(lastStates + 300*time.Millisecond)
	}
}
