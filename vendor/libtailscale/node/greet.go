// First contact: a WireGuard session with every peer that may want one, as soon as the node is up.
//
// A peer that calls before we can answer loses its handshake, and WireGuard tries again only after
// 5 s. The peer is silent until then, so nothing tells us; but it answers a handshake of ours at
// once. So we begin one with every peer that is online and that we have no session with.
//
// Two handshakes that cross lose both: each side answers the other's, forgets its own, and is left
// with a session that the other does not have. A second try of ours cannot cross, because the peer
// has just answered the first one and begins none for 5 s. So a handshake that does not complete
// is begun anew. docs/design/first-contact.md has the packets.
//
// Invariants
//   - No handshake is begun with a peer that has completed one with us. A peer that restarts (its
//     disco key is another one) counts as one that has not.
//   - A peer that is new to us first gets time for its own handshake. A peer that knows us from
//     an earlier run does not: all that it sends with its old session is lost until it has a new one.
//   - The wait before a new try doubles, so in the end it is longer than any round trip. Of two
//     nodes that both keep these rules, the one with the lower node key waits half as long.
//   - At most GreetMax peers are met within greetMemory, at the start those seen last first;
//     greetAtOnce at a time, and after the first of them greetPause apart.
//   - The node's start is held up by peers that do not answer for no longer than greetHold.

package node

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnlocal"
	"tailscale.com/ipn/ipnstate"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/util/mak"
	"tailscale.com/wgengine"
)

const (
	greetHold   = 70 * time.Millisecond // what the node waits for the first answers before it says that it runs
	greetPause  = 10 * time.Millisecond // to the next peer; and to the second disco ping, then twice that, and so on
	greetAtOnce = 32
	greetFind   = 5 * time.Second  // for a peer that does not answer at all
	greetWait   = 15 * time.Second // for one that does, until a handshake completes
	greetMemory = 9 * time.Minute  // how long WireGuard keeps a peer that nobody talks to

	// Both get the time of a round trip on top.
	ownHandshake = 20 * time.Millisecond  // for the peer's own handshake, before we begin one
	newHandshake = 100 * time.Millisecond // for a handshake of ours, before the first new try
)

type greeter struct {
	wake chan struct{}
	done atomic.Bool // or not waited for

	mu      sync.Mutex
	changed []tailcfg.NodeView // peers as they came in since the last look
	all     bool               // look at all peers
}

// noticed takes what a notification of the backend says of peers that may want to be met. It runs
// under the backend's lock.
func (g *greeter) noticed(nt *ipn.Notify) {
	g.mu.Lock()
	for _, p := range nt.PeersChanged {
		g.changed = append(g.changed, p.View())
	}
	g.all = g.all || nt.SelfChange != nil
	for _, p := range nt.PeerChangedPatch {
		g.all = g.all || p.DiscoKey != nil || p.Online != nil && *p.Online
	}
	g.mu.Unlock()
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// candidates gives the peers to look at since the last time.
func (g *greeter) candidates(lb *ipnlocal.LocalBackend) []tailcfg.NodeView {
	g.mu.Lock()
	peers, all := g.changed, g.all
	g.changed, g.all = nil, false
	g.mu.Unlock()
	if all {
		peers = lb.NodeBackend().Peers()
	}
	return peers
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
	var before []tailcfg.NodeView
	for seen := false; !seen || lb.State() != ipn.Running; {
		if nm := lb.NetMapNoPeers(); nm != nil && !seen {
			before, seen = lb.NodeBackend().Peers(), true
			continue
		}
		select {
		case <-n.greet.wake:
		case <-n.ctx.Done():
			return
		}
	}
	known := acquaintances{most: n.cfg.GreetMax}
	first := known.unmet(greetable(before), time.Now())
	later := first[min(len(first), greetAtOnce):]
	first = first[:len(first)-len(later)]
	slots := make(chan struct{}, greetAtOnce)
	var waitedFor atomic.Int32
	waitedFor.Store(int32(len(first)))
	greet := func(p greetPeer, atOnce bool) bool {
		select {
		case slots <- struct{}{}:
		case <-n.ctx.Done():
			return false
		}
		return n.spawn(func() {
			defer func() { <-slots }()
			n.meet(lb, p, atOnce, func() { waitedFor.Add(-1) })
		})
	}
	for _, p := range first {
		if !greet(p, n.returns) {
			return
		}
	}
	within(greetHold, time.Millisecond, func() bool { return waitedFor.Load() <= 0 })
	n.greeted()
	for atOnce := n.returns; ; atOnce = false {
		for _, p := range later {
			select {
			case <-time.After(greetPause):
			case <-n.ctx.Done():
				return
			}
			if !greet(p, atOnce) {
				return
			}
		}
		select {
		case <-n.greet.wake:
		case <-n.ctx.Done():
			return
		}
		later = known.unmet(greetable(n.greet.candidates(lb)), time.Now())
	}
}

// acquaintances remembers who was met, so that nobody is met twice in one life of the peer.
type acquaintances struct {
	most  int // within greetMemory
	disco map[tailcfg.NodeID]key.DiscoPublic
	when  []time.Time
}

// unmet picks those who were not met yet, and remembers them as met.
func (a *acquaintances) unmet(peers []greetPeer, now time.Time) []greetPeer {
	a.when = slices.DeleteFunc(a.when, func(t time.Time) bool { return now.Sub(t) >= greetMemory })
	var out []greetPeer
	for _, p := range peers {
		if p.disco.IsZero() || a.disco[p.id] == p.disco {
			continue
		}
		mak.Set(&a.disco, p.id, p.disco)
		if len(a.when) < a.most {
			a.when = append(a.when, now)
			out = append(out, p)
		}
	}
	return out
}

// meet returns when there is a session with the peer, or when greetWait is over. It calls ready
// once the peer can call us without losing its first packet, as far as that can be known.
func (n *Node) meet(lb *ipnlocal.LocalBackend, p greetPeer, atOnce bool, ready func()) {
	ctx, cancel := context.WithTimeout(n.ctx, greetWait)
	defer cancel()
	engine := lb.Sys().Engine.Get()
	turns := time.Duration(1)
	if p.key.Less(lb.NodeKey()) {
		turns = 2
	}
	var roundTrip time.Duration
	if atOnce {
		defer ready()
	} else {
		var found bool
		roundTrip, found = findWay(ctx, lb, p)
		ready()
		if !found || completes(ctx, engine, p.key, turns*(ownHandshake+roundTrip)) {
			return
		}
	}
	begin := func() { engine.Ping(p.ip, tailcfg.PingTSMP, 0, func(*ipnstate.PingResult) {}) }
	begin()
	for wait := turns * (newHandshake + roundTrip); !completes(ctx, engine, p.key, wait) && ctx.Err() == nil; wait *= 2 {
		callMeMaybe(lb, p)
		engine.ResetDevicePeer(p.key) // else WireGuard would not begin another one for 5 s
		begin()
	}
}

// callMeMaybe makes the next packet to the peer come with a message that asks it to look for a way to us
// (CallMeMaybe). It may have answered at an address that we had in an earlier run, and would go on to
// do so for 6.5 s; it changes to one that it finds to be faster. magicsock sends that message to a
// peer that it knows no way to, so it forgets the ways that it knows.
func callMeMaybe(lb *ipnlocal.LocalBackend, p greetPeer) {
	if peer, _, ok := lb.WhoIsNodeKey(p.key); ok {
		lb.MagicConn().RemovePeer(p.id)
		lb.MagicConn().UpsertPeer(peer)
	}
}

// completes reports whether a handshake with the peer has completed, as soon as one has, or when
// nothing has come from the peer for as long as quiet.
func completes(ctx context.Context, engine wgengine.Engine, peer key.NodePublic, quiet time.Duration) bool {
	var received uint64
	for end := time.Now().Add(quiet); ctx.Err() == nil && time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		p, ok := engine.PeerByKey(peer)
		if !ok {
			continue
		}
		if !p.LastHandshake().IsZero() {
			return true
		}
		if r := p.RxBytes(); r != received {
			received, end = r, time.Now().Add(quiet)
		}
	}
	return false
}

// findWay pings below WireGuard (disco) until the peer has answered, and tells how long the answer
// took. The peer drops what comes before its control server has told it of us. Then it knows where
// we are, but will have to ask us for the way once more. What it sends meanwhile can come over the
// relay alone, and only once we have been heard there.
func findWay(ctx context.Context, lb *ipnlocal.LocalBackend, p greetPeer) (roundTrip time.Duration, found bool) {
	finding, cancel := context.WithTimeout(ctx, greetFind)
	defer cancel()
	for pause := greetPause; finding.Err() == nil; pause *= 2 {
		c, cancel := context.WithTimeout(finding, pause)
		answer, err := lb.Ping(c, p.ip, tailcfg.PingDisco, 0)
		if err == nil && answer.Err == "" {
			cancel()
			roundTrip, found = time.Duration(answer.LatencySeconds*float64(time.Second)), true
			break
		}
		<-c.Done()
		cancel()
	}
	relays := lb.HealthTracker()
	within(greetHold, 2*time.Millisecond, func() bool {
		return p.relay == 0 || ctx.Err() != nil || !relays.GetDERPRegionReceivedTime(p.relay).IsZero()
	})
	return roundTrip, found
}

func (n *Node) greeted() {
	if !n.greet.done.Swap(true) {
		n.changed()
	}
}

type greetPeer struct {
	id     tailcfg.NodeID
	key    key.NodePublic
	disco  key.DiscoPublic
	ip     netip.Addr
	relay  int // its home DERP region
	online bool
	seen   time.Time
}

// greetable gives the peers to greet, best first.
func greetable(peers []tailcfg.NodeView) []greetPeer {
	var out []greetPeer
	for _, p := range peers {
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
		out = append(out, greetPeer{p.ID(), p.Key(), p.DiscoKey(), p.Addresses().At(0).Addr(), p.HomeDERP(), known && online, seen})
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
