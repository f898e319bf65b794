// Greeting: one small packet to each peer that was online before us, as soon as the node is up.
//
// To one that was here before, a peer may still send with the session of its previous life: that packet is lost, and the
// next try comes after a second, or after five. A ping through WireGuard (TSMP) sets up the session anew. It costs one
// packet each way; nobody has to answer.
//
// To one that is new, a peer cannot send before it has heard of it and knows a way. A ping below WireGuard (disco) is sent
// until it is answered, and the relay is waited for. No session is set up, because two that begin one at once lose both:
// WireGuard handshakes that cross leave each side with a session that the other does not have, and everything sent is lost
// until WireGuard's next try, 5 s later, or until silence makes one of them start anew, after 15 s.
//
// For the same reason only those are greeted who were online in the first network map (the one who comes later greets),
// and the node says that it runs only when the first have answered: who calls one that was here before in the moment of
// the greeting begins a handshake that crosses ours.
//
// Invariants
//   - At most greet_max peers are greeted, those seen last first; greetAtOnce at a time, and after the first of
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
	"tailscale.com/ipn/ipnlocal"
	"tailscale.com/tailcfg"
	"tailscale.com/types/netmap"
)

const (
	greetHold   = 70 * time.Millisecond // what the node waits for the first answers before it says that it runs
	greetPause  = 10 * time.Millisecond // to the next peer; and to the second disco ping, then twice that, and so on
	greetAtOnce = 32
	greetWait   = 3 * time.Second // for one answer
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
			if n.returns {
				lb.Ping(c, p.ip, tailcfg.PingTSMP, 0)
			} else {
				discoPing(c, lb, p)
			}
		})
	}
	for _, p := range first {
		if !greet(p) {
			return
		}
	}
	within(greetHold, time.Millisecond, func() bool { return len(slots) == 0 })
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

// discoPing pings until the peer has answered: it drops what comes before its control server has told it of us. Then it
// knows where we are, but will have to ask us for the way once more. What it sends meanwhile can come over the relay alone,
// and only once we have been heard there.
func discoPing(ctx context.Context, lb *ipnlocal.LocalBackend, p greetPeer) {
	for pause := greetPause; ctx.Err() == nil; pause *= 2 {
		c, cancel := context.WithTimeout(ctx, pause)
		answer, err := lb.Ping(c, p.ip, tailcfg.PingDisco, 0)
		if err == nil && answer.Err == "" {
			cancel()
			break
		}
		<-c.Done()
		cancel()
	}
	relays := lb.HealthTracker()
	within(greetHold, 2*time.Millisecond, func() bool {
		return p.relay == 0 || ctx.Err() != nil || !relays.GetDERPRegionReceivedTime(p.relay).IsZero()
	})
}

func (n *Node) greeted() {
	if !n.greet.done.Swap(true) {
		n.changed()
	}
}

type greetPeer struct {
	id     tailcfg.NodeID
	ip     netip.Addr
	relay  int // its home DERP region
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
		out = append(out, greetPeer{p.ID(), p.Addresses().At(0).Addr(), p.HomeDERP(), known && online, seen})
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
