// Greeting: one small packet to each online peer as soon as the node is up.
//
// A peer that sends us its first packet before our endpoints have reached it, or with the session of our previous life,
// loses that packet and tries again after five seconds. A ping from our side sets up the session first. It costs one
// packet each way; nobody has to answer.
//
// Invariants: at most greet_max peers, once each (again only if a peer came online anew, and only in the first
// seconds), greetPause apart and greetAtOnce at a time; those seen last come first.

package node

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnlocal"
	"tailscale.com/tailcfg"
)

const (
	greetPause  = 10 * time.Millisecond
	greetAtOnce = 32
	greetWait   = 3 * time.Second  // for one answer
	greetPhase  = 20 * time.Second // how long after the start new peers are greeted
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
	for lb.State() != ipn.Running {
		select {
		case <-n.greet.wake:
		case <-n.ctx.Done():
			return
		}
	}
	ctx, cancel := context.WithTimeout(n.ctx, greetPhase)
	defer cancel()
	greeted := make(map[tailcfg.NodeID]bool) // false: was offline when last looked at, greet when it comes back
	slots := make(chan struct{}, greetAtOnce)
	left := n.cfg.GreetMax
	for left > 0 {
		for _, p := range greetable(lb, greeted) {
			if left == 0 {
				return
			}
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			left--
			greeted[p.id] = true
			ip := p.ip
			if !n.spawn(func() {
				defer func() { <-slots }()
				c, cancel := context.WithTimeout(n.ctx, greetWait)
				defer cancel()
				lb.Ping(c, ip, tailcfg.PingTSMP, 0)
			}) {
				return
			}
			select {
			case <-time.After(greetPause):
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-n.greet.wake:
		case <-ctx.Done():
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

// greetable gives the peers to greet now, best first, and forgets those that went offline.
func greetable(lb *ipnlocal.LocalBackend, greeted map[tailcfg.NodeID]bool) []greetPeer {
	nm := lb.NetMapWithPeers()
	if nm == nil {
		return nil
	}
	var out []greetPeer
	for _, p := range nm.Peers {
		// Without a word on it the peer may be online; control servers other than Tailscale's do not always say.
		online, known := p.Online().GetOk()
		if known && !online {
			delete(greeted, p.ID())
			continue
		}
		if greeted[p.ID()] || p.Expired() || p.IsJailed() || p.IsWireGuardOnly() || p.UnsignedPeerAPIOnly() || p.Addresses().Len() == 0 {
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
