// Greeting: one small packet to each peer that was online before us, as soon as the node is up.
//
// A peer that sends us its first packet before our endpoints have reached it, or with the session of our previous life,
// loses that packet and tries again after a second, or after five. A ping from our side sets up the session first. It
// costs one packet each way; nobody has to answer.
//
// Only those are greeted who were online in the first network map: the one who comes later greets. Two nodes that start
// together would otherwise greet each other, and WireGuard handshakes that cross leave each side with a session that the
// other does not have: everything sent is lost until WireGuard's next try, 5 s later, or until silence makes one of them
// start anew, after 15 s.
//
// For the same reason the node says that it runs only when the first have answered: who calls it in the moment of the
// greeting begins a handshake that crosses ours.
//
// Invariants
//   - At most greet_max peers are greeted, once each, those seen last first; greetAtOnce at a time, and after the first of
//     them greetPause apart.
//   - Nothing is held up by peers that do not answer for longer than greetHold.

package node

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"tailscale.com/ipn"
	"tailscale.com/tailcfg"
	"tailscale.com/types/netmap"
)

const (
	greetHold    = 70 * time.Millisecond // what the node waits for the first answers before it says that it runs
	greetHoldNew = 30 * time.Millisecond // for one that was never here: no peer can have a session with it that is lost
	greetPause   = 10 * time.Millisecond
	greetAtOnce  = 32
	greetWait    = 3 * time.Second // for one answer
)

type greeter struct {
	wake chan struct{}
	done atomic.Bool // or not waited for
}

func (g *greeter) poke() {
	if g.wake != nil {
		select {
		case g.wake <- struct{}{}:
		default:
		}
	}
}

func (n *Node) greetPeers() {
	defer n.greeted()
	if n.cfg.GreetMax == 0 {
		return
	}
	lb, err := n.backend()
	if err != nil {
		return
	}
	var before []greetPeer
	for seen := false; !seen || lb.State() != ipn.Running; {
		if nm := lb.NetMapWithPeers(); nm != nil && !seen {
			before, seen = greetable(nm), true
			continue
		}
		select {
		case <-n.greet.wake:
		case <-n.ctx.Done():
			return
		}
	}
	before = before[:min(len(before), n.cfg.GreetMax)]
	first := before[:min(len(before), greetAtOnce)]
	slots := make(chan struct{}, greetAtOnce)
	greet := func(p greetPeer) bool {
		slots <- struct{}{}
		return n.spawn(func() {
			defer func() { <-slots }()
			c, cancel := context.WithTimeout(n.ctx, greetWait)
			defer cancel()
			lb.Ping(c, p.ip, tailcfg.PingTSMP, 0)
		})
	}
	for _, p := range first {
		if !greet(p) {
			return
		}
	}
	hold := greetHold
	if !n.returns {
		hold = greetHoldNew
	}
	within(hold, time.Millisecond, func() bool { return len(slots) == 0 })
	n.greeted()
	for _, p := range before[len(first):] {
		select {
		case <-time.After(greetPause):
		case <-n.ctx.Done():
			return
		}
		if !greet(p) {
			return
		}
	}
}

func (n *Node) greeted() {
	if !n.greet.done.Swap(true) {
		n.changed()
	}
}

type greetPeer struct {
	id     tailcfg.NodeID
	ip     netip.Addr
	online bool
	seen   time.Time
}

// greetable gives the peers to greet, best first.
func greetable(nm *netmap.NetworkMap) []greetPeer {
	var out []greetPeer
	for _, p := range nm.Peers {
		// Without a word on it the peer may be online; control servers other than Tailscale's do not always say.
		online, known := p.Online().GetOk()
		if known && !online {
			continue
		}
		if p.Expired() || p.IsJailed() || p.IsWireGuardOnly() || p.UnsignedPeerAPIOnly() || p.Addresses().Len() == 0 {
			continue
		}
		seen := p.Created()
		if t, ok := p.LastSeen().GetOk(); ok {
			seen = t
		}
		out = append(out, greetPeer{p.ID(), p.Addresses().At(0).Addr(), known && online, seen})
	}
	slices.SortFunc(out, func(a, b greetPeer) int {
		if a.online != b.online {
			if a.online {
				return -1
			}
			return 1
		}
		return cmp.Or(b.seen.Compare(a.seen), cmp.Compare(a.id, b.id))
	})
	return out
}
