// Greeting: one small packet to each peer that was online before us, as soon as the node is up.
//
// A peer that sends us its first packet before our endpoints have reached it, or with the session of our previous life,
// loses that packet and tries again after five seconds. A ping from our side sets up the session first. It costs one
// packet each way; nobody has to answer.
//
// Only those are greeted who were online in the first network map: the one who comes later greets. Two nodes that start
// together would otherwise greet each other, and WireGuard handshakes that cross leave each side with a session that the
// other does not have: everything sent is lost until, 15 s later, silence makes one of them start anew.
//
// Invariants: at most greet_max peers, once each, greetPause apart and greetAtOnce at a time; those seen last come first.

package node

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"tailscale.com/ipn"
	"tailscale.com/tailcfg"
	"tailscale.com/types/netmap"
)

const (
	greetPause  = 10 * time.Millisecond
	greetAtOnce = 32
	greetWait   = 3 * time.Second // for one answer
)

type greeter struct{ wake chan struct{} }

func (g *greeter) poke() {
	if g.wake != nil {
		select {
		case g.wake <- struct{}{}:
		default:
		}
	}
}

func (n *Node) greetPeers() {
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
	slots := make(chan struct{}, greetAtOnce)
	for _, p := range before[:min(len(before), n.cfg.GreetMax)] {
		select {
		case slots <- struct{}{}:
		case <-n.ctx.Done():
			return
		}
		if !n.spawn(func() {
			defer func() { <-slots }()
			c, cancel := context.WithTimeout(n.ctx, greetWait)
			defer cancel()
			lb.Ping(c, p.ip, tailcfg.PingTSMP, 0)
		}) {
			return
		}
		select {
		case <-time.After(greetPause):
		case <-n.ctx.Done():
			return
		}
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
