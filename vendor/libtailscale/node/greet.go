// First contact: makes a WireGuard session with every peer that may need one, as soon as the node
// is up.
//
// A caller whose handshake is lost before we can answer is silent for 5 s, WireGuard's
// RekeyTimeout, but answers a handshake of ours at once. So we begin a handshake with every online
// peer that we have no session with, and begin it again if it does not complete.
// docs/design/first-contact.md shows the packets and explains why this cannot go on crossing the
// peer's own handshakes.
//
// This is no fault of one version but how WireGuard and the control protocol work (seen with
// tailscale.com v1.102.5). This file can go when a node reaches Running only once its peers can
// reach it: TestLostHandshakeOfACaller must then pass without it.
//
// Invariants
//   - No handshake is begun with a peer that has completed one with us. A peer that restarts (it
//     then has another disco key) counts as one that has not.
//   - A peer that is new to us first gets time for its own handshake. A peer that knows us from an
//     earlier run does not: everything it sends in its old session is lost until it has a new one.
//   - The wait before a new try doubles, so in the end it is longer than any round trip. Of two
//     nodes that both keep these rules, the one with the lower node key waits half as long.
//   - At most GreetMax peers are met within greetMemory, at the start those seen last first;
//     greetAtOnce at a time, and after the first of them greetPause apart.
//   - Peers that do not answer delay the node's start by greetHold at most.

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
	greetHold   = 70 * time.Millisecond // how long the node waits for the first answers before it reports that it runs
	greetPause  = 10 * time.Millisecond // before the next peer; and before the second disco ping, then twice that, and so on
	greetAtOnce = 32
	greetFind   = 5 * time.Second  // for a peer that does not answer at all
	greetWait   = 15 * time.Second // for one that does, until a handshake completes
	greetMemory = 9 * time.Minute  // how long WireGuard keeps a peer without traffic

	// The time of a round trip is added to both.
	ownHandshake = 20 * time.Millisecond  // for the peer's own handshake, before we begin one
	newHandshake = 100 * time.Millisecond // for a handshake of ours, before the first new try
)

type greeter struct {
	wake chan struct{}
	done atomic.Bool // or no longer waited for

	mu      sync.Mutex
	changed []tailcfg.NodeView // peers reported since the last check
	all     bool               // check all peers
}

// noticed records what a notification of the backend says about peers that may have to be met. It
// runs under the backend's lock.
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

// candidates returns the peers to check since the last call.
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

// acquaintances remembers which peers were met, so that a peer is met once until it restarts.
type acquaintances struct {
	most  int // within greetMemory
	disco map[tailcfg.NodeID]key.DiscoPublic
	when  []time.Time
}

// unmet returns the peers that were not met yet, and remembers them as met.
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

// meet returns when there is a session with the peer, or when greetWait is over. It calls ready as
// soon as the peer can call us without losing its first packet, as far as we can tell.
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
		engine.ResetDevicePeer(p.key) // otherwise WireGuard would not begin another handshake for 5 s
		begin()
	}
}

// callMeMaybe makes the next packet to the peer come with a message that asks it to look for a path
// to us (CallMeMaybe). The peer may have answered at an address that we had in an earlier run, and
// would go on doing so for 6.5 s unless it finds a faster path. magicsock sends that message only
// to a peer that it knows no path to, so it is made to forget the peer.
func callMeMaybe(lb *ipnlocal.LocalBackend, p greetPeer) {
	if peer, _, ok := lb.WhoIsNodeKey(p.key); ok {
		lb.MagicConn().RemovePeer(p.id)
		lb.MagicConn().UpsertPeer(peer)
	}
}

// completes returns true as soon as a handshake with the peer has completed, and false after
// nothing has come from the peer for the duration quiet.
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

// findWay pings below WireGuard (disco) until the peer has answered, and returns how long the
// answer took. The peer drops our pings until its control server has told it about us. Once it
// answers it knows where we are, but it will ask us for the path once more. What it sends meanwhile
// can only come over the relay, and only once we have been heard there.
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

// greetable returns the peers to greet, best first.
func greetable(peers []tailcfg.NodeView) []greetPeer {
	var out []greetPeer
	for _, p := range peers {
		// Control servers other than Tailscale's do not always say whether a peer is online, so one
		// of which nothing is known counts as online.
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
