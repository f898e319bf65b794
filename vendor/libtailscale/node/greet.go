// First contact: makes a WireGuard session with every peer that may need one, as soon as the node
// is up.
//
// A peer whose handshake is lost before we can answer is silent for 5 s, WireGuard's RekeyTimeout,
// but answers a handshake of ours at once. So we begin a handshake with every peer that is online
// and has no session with us, and begin it again if it does not complete.
// docs/design/first-contact.md shows the packets and explains why this cannot go on crossing the
// peer's own handshakes.
//
// This is no fault of one version but how WireGuard and the control protocol work (seen with
// tailscale.com v1.102.5). This file can go when a node reaches Running only once its peers can
// reach it: TestLostHandshakeOfACaller must then pass without it.
//
// Invariants
//   - No handshake is begun with a peer that has completed one of its own with us. A peer that
//     restarts (it then has another disco key) counts as one that has not.
//   - One that we began counts once the peer has answered through it: it may also have ended with a
//     session that works one way.
//   - A peer that is new to us first gets time for its own handshake. A peer that knows us from an
//     earlier run does not: everything it sends in its old session is lost until it has a new one.
//   - The wait before a new try doubles, so in the end it is longer than any round trip. Of two
//     nodes that both keep these rules, the one with the lower node key waits half as long.
//   - At most GreetMax peers are greeted within peerRetention, at the start those seen last first;
//     greetConcurrency at a time, and after the first of them greetInterval apart.
//   - Peers that do not answer delay the node's start by greetStartDelay at most.

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
	"tailscale.com/wgengine/wgint"
)

const (
	greetStartDelay  = 70 * time.Millisecond // how long the node waits for the first answers before it reports that it runs
	greetInterval    = 10 * time.Millisecond // before the next peer; and before the second disco ping, then twice that, and so on
	greetConcurrency = 32
	discoverTimeout  = 5 * time.Second  // for a peer that does not answer at all
	handshakeTimeout = 15 * time.Second // for one that does, until a handshake completes
	peerRetention    = 9 * time.Minute  // how long WireGuard keeps a peer without traffic

	// The time of a round trip is added to both.
	peerHandshakeWait = 20 * time.Millisecond  // for the peer's own handshake, before we begin one
	firstRetryWait    = 100 * time.Millisecond // for a handshake of ours, before the first new try
)

type greeter struct {
	wake     chan struct{}
	finished atomic.Bool // the first peers were greeted, or are no longer waited for

	mu       sync.Mutex
	changed  []tailcfg.NodeView // peers reported since the last check
	checkAll bool               // check all peers
}

// noteChanges records what a notification of the backend says about peers that may have to be
// greeted. It runs under the backend's lock.
func (g *greeter) noteChanges(nt *ipn.Notify) {
	g.mu.Lock()
	for _, p := range nt.PeersChanged {
		g.changed = append(g.changed, p.View())
	}
	g.checkAll = g.checkAll || nt.SelfChange != nil
	for _, p := range nt.PeerChangedPatch {
		g.checkAll = g.checkAll || p.DiscoKey != nil || p.Online != nil && *p.Online
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
	peers, all := g.changed, g.checkAll
	g.changed, g.checkAll = nil, false
	g.mu.Unlock()
	if all {
		peers = lb.NodeBackend().Peers()
	}
	return peers
}

func (n *Node) greetPeers() {
	defer n.greetingDone()
	if n.cfg.GreetMax == 0 {
		return
	}
	lb, err := n.backend()
	if err != nil {
		return
	}
	var initial []tailcfg.NodeView
	for seen := false; !seen || lb.State() != ipn.Running; {
		if nm := lb.NetMapNoPeers(); nm != nil && !seen {
			initial, seen = lb.NodeBackend().Peers(), true
			continue
		}
		select {
		case <-n.greet.wake:
		case <-n.ctx.Done():
			return
		}
	}
	greeted := greetedPeers{limit: n.cfg.GreetMax}
	first := greeted.takeUngreeted(greetable(initial), time.Now())
	later := first[min(len(first), greetConcurrency):]
	first = first[:len(first)-len(later)]
	slots := make(chan struct{}, greetConcurrency)
	var waitedFor atomic.Int32
	waitedFor.Store(int32(len(first)))
	greet := func(p greetTarget, skipDiscovery bool) bool {
		select {
		case slots <- struct{}{}:
		case <-n.ctx.Done():
			return false
		}
		return n.spawn(func() {
			defer func() { <-slots }()
			n.greetPeer(lb, p, skipDiscovery, func() { waitedFor.Add(-1) })
		})
	}
	for _, p := range first {
		if !greet(p, n.rejoins) {
			return
		}
	}
	pollUntil(greetStartDelay, time.Millisecond, func() bool { return waitedFor.Load() <= 0 })
	n.greetingDone()
	for skipDiscovery := n.rejoins; ; skipDiscovery = false {
		for _, p := range later {
			select {
			case <-time.After(greetInterval):
			case <-n.ctx.Done():
				return
			}
			if !greet(p, skipDiscovery) {
				return
			}
		}
		select {
		case <-n.greet.wake:
		case <-n.ctx.Done():
			return
		}
		later = greeted.takeUngreeted(greetable(n.greet.candidates(lb)), time.Now())
	}
}

// greetedPeers remembers which peers were greeted, so that a peer is greeted once until it
// restarts.
type greetedPeers struct {
	limit     int // of peers greeted within peerRetention
	discoKeys map[tailcfg.NodeID]key.DiscoPublic
	times     []time.Time // when peers were greeted, as far as peerRetention reaches back
}

// takeUngreeted returns the peers that were not greeted yet, and remembers them as greeted.
func (g *greetedPeers) takeUngreeted(peers []greetTarget, now time.Time) []greetTarget {
	g.times = slices.DeleteFunc(g.times, func(t time.Time) bool { return now.Sub(t) >= peerRetention })
	var out []greetTarget
	for _, p := range peers {
		if p.disco.IsZero() || g.discoKeys[p.id] == p.disco {
			continue
		}
		mak.Set(&g.discoKeys, p.id, p.disco)
		if len(g.times) < g.limit {
			g.times = append(g.times, now)
			out = append(out, p)
		}
	}
	return out
}

// greetPeer returns when there is a session with the peer that works both ways, or when
// handshakeTimeout is over. It calls onReachable as soon as the peer can call us without losing its
// first packet, as far as we can tell.
func (n *Node) greetPeer(lb *ipnlocal.LocalBackend, p greetTarget, skipDiscovery bool, onReachable func()) {
	ctx, cancel := context.WithTimeout(n.ctx, handshakeTimeout)
	defer cancel()
	engine := lb.Sys().Engine.Get()
	waitFactor := time.Duration(1)
	if p.key.Less(lb.NodeKey()) {
		waitFactor = 2
	}
	var roundTrip time.Duration
	if skipDiscovery {
		defer onReachable()
	} else {
		var found bool
		roundTrip, found = discoverPath(ctx, lb, p)
		onReachable()
		if !found || awaitContact(ctx, engine, p.key, handshakeCompleted, waitFactor*(peerHandshakeWait+roundTrip)) {
			return
		}
	}
	var answered atomic.Bool
	answers := func(wgint.Peer) bool { return answered.Load() }
	beginHandshake := func() {
		engine.Ping(p.ip, tailcfg.PingTSMP, 0, func(r *ipnstate.PingResult) { answered.Store(answered.Load() || r.Err == "") })
	}
	beginHandshake()
	for wait := waitFactor * (firstRetryWait + roundTrip); !awaitContact(ctx, engine, p.key, answers, wait) && ctx.Err() == nil; wait *= 2 {
		promptCallMeMaybe(lb, p)
		engine.ResetDevicePeer(p.key) // otherwise WireGuard would not begin another handshake for 5 s
		beginHandshake()
	}
}

// promptCallMeMaybe makes the next packet to the peer come with a message that asks it to look for
// a path to us (CallMeMaybe). The peer may have answered at an address that we had in an earlier
// run, and would go on doing so for 6.5 s unless it finds a faster path. magicsock sends that
// message only to a peer that it knows no path to, so it is made to forget the peer.
func promptCallMeMaybe(lb *ipnlocal.LocalBackend, p greetTarget) {
	if peer, _, ok := lb.WhoIsNodeKey(p.key); ok {
		lb.MagicConn().RemovePeer(p.id)
		lb.MagicConn().UpsertPeer(peer)
	}
}

// awaitContact returns true as soon as the contact with the peer is made, and false after nothing
// has come from the peer for the duration quiet.
func awaitContact(ctx context.Context, engine wgengine.Engine, peer key.NodePublic, made func(wgint.Peer) bool, quiet time.Duration) bool {
	var received uint64
	for end := time.Now().Add(quiet); ctx.Err() == nil && time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		p, ok := engine.PeerByKey(peer)
		if !ok {
			continue
		}
		if made(p) {
			return true
		}
		if r := p.RxBytes(); r != received {
			received, end = r, time.Now().Add(quiet)
		}
	}
	return false
}

func handshakeCompleted(p wgint.Peer) bool { return !p.LastHandshake().IsZero() }

// discoverPath pings below WireGuard (disco) until the peer has answered, and returns how long the
// answer took. The peer drops our pings until its control server has told it about us. Once it
// answers it knows where we are, but it will ask us for the path once more. What it sends meanwhile
// can only come over the relay, and only once we have been heard there.
func discoverPath(ctx context.Context, lb *ipnlocal.LocalBackend, p greetTarget) (roundTrip time.Duration, found bool) {
	finding, cancel := context.WithTimeout(ctx, discoverTimeout)
	defer cancel()
	for pause := greetInterval; finding.Err() == nil; pause *= 2 {
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
	pollUntil(greetStartDelay, 2*time.Millisecond, func() bool {
		return p.relay == 0 || ctx.Err() != nil || !relays.GetDERPRegionReceivedTime(p.relay).IsZero()
	})
	return roundTrip, found
}

func (n *Node) greetingDone() {
	if !n.greet.finished.Swap(true) {
		n.changed()
	}
}

// greetTarget is a peer to greet.
type greetTarget struct {
	id     tailcfg.NodeID
	key    key.NodePublic
	disco  key.DiscoPublic
	ip     netip.Addr
	relay  int // its home DERP region
	online bool
	seen   time.Time
}

// greetable returns the peers to greet, best first.
func greetable(peers []tailcfg.NodeView) []greetTarget {
	var out []greetTarget
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
		out = append(out, greetTarget{p.ID(), p.Key(), p.DiscoKey(), p.Addresses().At(0).Addr(), p.HomeDERP(), known && online, seen})
	}
	slices.SortFunc(out, func(a, b greetTarget) int {
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
