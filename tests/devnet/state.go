// The tailnet as the control server knows it: nodes, users, auth keys, pending logins, grants and
// switches, and the rules for looking them up.
//
// Invariants: everything here is read and written under tailnet.mu; code that changes something
// calls touch before unlocking, which wakes every open map stream. An address or id is never
// reused. join.go decides what a joining node may become, view.go what a node is told.
package main

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"tailscale.com/net/tsaddr"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/util/dnsname"
)

// keyLife is how long a user's node may stay without logging in again: the
// default of a real tailnet. Tagged nodes do not expire there, nor here.
const keyLife = 180 * 24 * time.Hour

// taggedUser owns every tagged node, as in a real tailnet: all of them share one profile, so a
// login never distinguishes two machines.
const taggedUser tailcfg.UserID = 1

type tailnet struct {
	suffix string // MagicDNS suffix without dots at its ends
	owner  string // login that keys and logins fall back to

	mu          sync.Mutex
	changed     chan struct{} // closed and replaced by touch
	nodes       map[tailcfg.NodeID]*node
	users       map[tailcfg.UserID]*user
	keys        map[string]*authKey
	logins      []*pendingLogin
	clients     []*oauthClient
	tokens      map[string]*oauthClient
	grants      []*grant
	accessRules []accessRule // nil: everybody reaches everybody
	invented    inventedPeers
	records     []dnsRecord
	config      config

	lastNode      tailcfg.NodeID
	lastUser      tailcfg.UserID
	lastGrant     int
	expiryTimer   *time.Timer // fires at the next key expiry, see touch
	reapingPaused bool        // nobody is reaped, see pauseReaping
	closed        bool
	created       time.Time
}

// config holds the switches of POST /config.
type config struct {
	RequireApproval bool `json:"require_approval"`
	RequireAuth     bool `json:"require_auth"`
	StrictKeys      bool `json:"strict_keys"`
	KeepExpired     bool `json:"keep_expired"`
	HTTPS           bool `json:"https"`
	Funnel          bool `json:"funnel"`
	// Ports of Funnel, as in the capability that the node gets: "443,8000-8100". Empty: none.
	FunnelPorts      string `json:"funnel_ports"`
	EphemeralGraceMS int64  `json:"ephemeral_grace_ms"`
}

type user struct {
	id      tailcfg.UserID
	login   string
	display string
}

type node struct {
	id            tailcfg.NodeID
	stable        tailcfg.StableNodeID
	host          string // first label of the name, unique in the tailnet
	requestedHost string // host name the node asked for
	v4, v6        netip.Prefix
	machine       key.MachinePublic
	key           key.NodePublic
	disco         key.DiscoPublic
	cap           tailcfg.CapabilityVersion
	hostinfo      *tailcfg.Hostinfo
	endpoints     []netip.AddrPort
	derp          int
	user          tailcfg.UserID // who made the node; hidden while it has tags
	tags          []string
	keyID         string // auth key it came with, "" if by login
	created       time.Time
	expiry        time.Time // zero: never
	approved      bool
	// ephemeral nodes are deleted when they have been away for the grace time.
	ephemeral bool
	streams   int // open map streams: online while above zero
	lastSeen  time.Time
	reapTimer *time.Timer
	sharee    bool
	sharer    tailcfg.UserID
	ownPeer   bool // one of devnet's own peers
	ingress   bool // brings connections from the internet, see funnel.go
}

// grant gives app capabilities to src when it talks to dst. Both are kept as written and matched
// when a node's view is made, so a grant follows its node through renames and changes of tags.
type grant struct {
	ID   int                          `json:"id"`
	Src  string                       `json:"src"`
	Dst  string                       `json:"dst"`
	Caps map[string][]json.RawMessage `json:"caps"`
}

// accessRule lets src open connections to ports of dst. Both are kept as
// written, like a grant's.
type accessRule struct {
	Src   string `json:"src"`
	Dst   string `json:"dst"`
	Ports string `json:"ports"` // as in a policy file: "80,443", "8000-8100" or "*"
}

func newTailnet(suffix, owner string, ephemeralGrace time.Duration) *tailnet {
	t := &tailnet{
		suffix:  strings.Trim(suffix, "."),
		owner:   owner,
		changed: make(chan struct{}),
		nodes:   map[tailcfg.NodeID]*node{},
		users:   map[tailcfg.UserID]*user{},
		created: time.Now().UTC().Truncate(time.Second),
		keys:    map[string]*authKey{},
		tokens:  map[string]*oauthClient{},
		config:  config{RequireAuth: true, Funnel: true, FunnelPorts: "443,8443,10000", EphemeralGraceMS: ephemeralGrace.Milliseconds()},
	}
	t.users[taggedUser] = &user{id: taggedUser, login: "tagged-devices", display: "Tagged Devices"}
	t.lastUser = taggedUser
	t.userOf(owner)
	return t
}

// touch wakes all map streams, and arranges to do so again when the next key expires, since that
// changes what others see without a request.
func (t *tailnet) touch() {
	close(t.changed)
	t.changed = make(chan struct{})

	if t.expiryTimer != nil {
		t.expiryTimer.Stop()
	}
	now := time.Now()
	var next time.Time
	for _, n := range t.nodes {
		if n.expiry.After(now) && (next.IsZero() || n.expiry.Before(next)) {
			next = n.expiry
		}
	}
	if !next.IsZero() && !t.closed {
		t.expiryTimer = time.AfterFunc(next.Sub(now)+time.Millisecond, func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.touch()
		})
	}
}

func (t *tailnet) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.expiryTimer != nil {
		t.expiryTimer.Stop()
	}
	for _, n := range t.nodes {
		if n.reapTimer != nil {
			n.reapTimer.Stop()
		}
	}
}

// userOf finds the user with this login or makes one.
func (t *tailnet) userOf(login string) *user {
	for _, u := range t.users {
		if u.login == login {
			return u
		}
	}
	t.lastUser++
	u := &user{id: t.lastUser, login: login, display: displayName(login)}
	t.users[u.id] = u
	return u
}

// displayName makes "Alice Doe" of alice.doe@example.com.
func displayName(login string) string {
	local, _, _ := strings.Cut(login, "@")
	words := strings.FieldsFunc(local, func(r rune) bool { return r == '.' || r == '-' || r == '_' })
	for i, w := range words {
		words[i] = strings.ToUpper(w[:1]) + w[1:]
	}
	return strings.Join(words, " ")
}

// addNode makes a node with a new id, address and name.
func (t *tailnet) addNode(machine key.MachinePublic, nodeKey key.NodePublic, info *tailcfg.Hostinfo) *node {
	t.lastNode++
	id := t.lastNode
	// 100.64.0.0/10 has room for 2^22 nodes; ids count up from one.
	v4 := netip.AddrFrom4([4]byte{100, 64 + byte(id>>16)&63, byte(id >> 8), byte(id)})
	n := &node{
		id:      id,
		stable:  tailcfg.StableNodeID(fmt.Sprintf("n%s%04dCNTRL", randomText(7), id)),
		v4:      netip.PrefixFrom(v4, 32),
		v6:      netip.PrefixFrom(tsaddr.Tailscale4To6(v4), 128),
		machine: machine,
		key:     nodeKey,
		created: time.Now().UTC().Truncate(time.Second),
	}
	t.nodes[id] = n
	t.recordHostinfo(n, info)
	return n
}

// recordHostinfo records what a node reports about itself, including the name that it asks for.
func (t *tailnet) recordHostinfo(n *node, info *tailcfg.Hostinfo) {
	if info == nil {
		return
	}
	n.hostinfo = info.Clone()
	if info.NetInfo != nil && info.NetInfo.PreferredDERP != 0 {
		n.derp = info.NetInfo.PreferredDERP
	}
	want := dnsname.SanitizeHostname(info.Hostname)
	if want == "" {
		want = "node"
	}
	if want != n.requestedHost {
		n.requestedHost = want
		n.host = t.freeHost(want, n)
	}
}

// freeHost numbers a host name that another node already has, as the real
// control server does: host, host-1, host-2, ...
func (t *tailnet) freeHost(want string, self *node) string {
	taken := func(h string) bool {
		for _, n := range t.nodes {
			if n != self && n.host == h {
				return true
			}
		}
		return false
	}
	h := want
	for i := 1; taken(h); i++ {
		h = want + "-" + strconv.Itoa(i)
	}
	return h
}

// deleteNode removes a node: its streams end, its key is unknown, its name is free again.
func (t *tailnet) deleteNode(n *node) {
	if n.reapTimer != nil {
		n.reapTimer.Stop()
	}
	delete(t.nodes, n.id)
	t.touch()
}

// find looks a node up by host name, full name, id or address.
func (t *tailnet) find(ref string) *node {
	ref = strings.ToLower(strings.TrimSuffix(ref, "."))
	for _, n := range t.nodes {
		switch ref {
		case n.host, n.host + "." + t.suffix, strings.ToLower(string(n.stable)),
			strconv.FormatInt(int64(n.id), 10), n.v4.Addr().String(), n.v6.Addr().String():
			return n
		}
	}
	return nil
}

func (t *tailnet) byKey(k key.NodePublic) *node {
	if k.IsZero() {
		return nil
	}
	for _, n := range t.nodes {
		if n.key == k {
			return n
		}
	}
	return nil
}

// matches reports whether a grant's src or dst means this node: "*", a login, a tag, or whatever
// find accepts.
func (t *tailnet) matches(ref string, n *node) bool {
	switch {
	case ref == "*":
		return !n.ingress
	case strings.HasPrefix(ref, "tag:"):
		return slices.Contains(n.tags, ref)
	case strings.Contains(ref, "@"):
		return len(n.tags) == 0 && t.users[n.user].login == ref
	}
	return t.find(ref) == n
}

// profileOf returns the user whom others see behind a node.
func (t *tailnet) profileOf(n *node) *user {
	if len(n.tags) > 0 {
		return t.users[taggedUser]
	}
	return t.users[n.user]
}

// sorted lists the nodes by id, the order in which maps are sent.
func (t *tailnet) sorted() []*node {
	all := make([]*node, 0, len(t.nodes))
	for _, n := range t.nodes {
		all = append(all, n)
	}
	slices.SortFunc(all, func(a, b *node) int { return int(a.id - b.id) })
	return all
}

func (n *node) expired(now time.Time) bool { return !n.expiry.IsZero() && !n.expiry.After(now) }

// streamOpened and streamClosed count a node's open map streams. An ephemeral node that stays
// away for the grace time is deleted.
func (t *tailnet) streamOpened(n *node) {
	n.streams++
	if n.reapTimer != nil {
		n.reapTimer.Stop()
		n.reapTimer = nil
	}
	if n.streams == 1 {
		t.touch()
	}
}

func (t *tailnet) streamClosed(n *node) {
	n.streams--
	if n.streams > 0 || t.nodes[n.id] != n || t.closed {
		return
	}
	n.lastSeen = time.Now().UTC().Truncate(time.Second)
	t.scheduleReaping(n)
	t.touch()
}

func (t *tailnet) scheduleReaping(n *node) {
	if !n.ephemeral || n.streams > 0 || t.reapingPaused {
		return
	}
	if n.reapTimer != nil {
		n.reapTimer.Stop()
	}
	grace := time.Duration(t.config.EphemeralGraceMS) * time.Millisecond
	var self *time.Timer
	self = time.AfterFunc(grace, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if n.reapTimer == self && n.streams == 0 && t.nodes[n.id] == n {
			t.deleteNode(n)
		}
	})
	n.reapTimer = self
}

// pauseReaping stops the clock of absent ephemeral nodes while the control server itself cannot be
// reached; resuming starts it anew.
func (t *tailnet) pauseReaping(pause bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reapingPaused = pause
	for _, n := range t.nodes {
		if n.reapTimer != nil {
			n.reapTimer.Stop()
			n.reapTimer = nil
		}
		t.scheduleReaping(n)
	}
}

// randomText returns letters and digits for ids and secrets.
func randomText(n int) string {
	return rand.Text()[:n]
}

// domainName is the tailnet's name: the owner's organisation.
func (t *tailnet) domainName() string {
	_, domain, _ := strings.Cut(t.owner, "@")
	return domain
}
