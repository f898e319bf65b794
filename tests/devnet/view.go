// What one node is told about the tailnet, and how to tell it only what changed.
//
// Invariants: a view is a pure function of the tailnet, the node and the time; a node that is not
// approved sees no other and is seen by none. The first message of a stream is complete; later ones
// carry whole peers that changed, the ids of those that left, and any other part that differs.
package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"tailscale.com/tailcfg"
)

// foreignSuffix is the suffix of machines of other tailnets.
const foreignSuffix = "elsewhere.ts.net"

// view is everything a node may know.
type view struct {
	self     *tailcfg.Node
	peers    []*tailcfg.Node // by id
	profiles []tailcfg.UserProfile
	filter   []tailcfg.FilterRule
	dns      *tailcfg.DNSConfig
	invented *inventedPeers // nil for those who do not see it
}

func (t *tailnet) viewOf(n *node, now time.Time) *view {
	v := &view{self: t.nodeMessage(n, now)}
	v.self.CapMap = t.selfCaps()
	online := true
	v.self.Online = &online

	var ingress []string
	users := map[tailcfg.UserID]bool{v.self.User: true}
	for _, p := range t.sorted() {
		if p == n || !p.approved || !n.approved || t.strangers(n, p) {
			continue
		}
		d := t.nodeMessage(p, now)
		t.applySharing(p, d)
		if p.ingress {
			d.UnsignedPeerAPIOnly = true
			ingress = append(ingress, p.v4.String(), p.v6.String())
		}
		v.peers = append(v.peers, d)
		users[d.User] = true
		if d.Sharer != 0 {
			users[d.Sharer] = true
		}
	}
	for id := taggedUser; id <= t.lastUser; id++ {
		if u := t.users[id]; users[id] && u != nil {
			v.profiles = append(v.profiles, tailcfg.UserProfile{ID: u.id, LoginName: u.login, DisplayName: u.display})
		}
	}
	v.filter = t.filterFor(n)
	if ingress != nil {
		v.filter = append(v.filter, ingressRule(n, ingress))
		// A node takes no filter that lets an unsigned peer in.
		for i := range v.filter {
			if slices.Equal(v.filter[i].SrcIPs, []string{"*"}) {
				v.filter[i].SrcIPs = t.addressesOf("*")
			}
		}
	}
	if t.users[n.user].login == t.owner {
		v.invented = &t.invented
	}
	v.dns = &tailcfg.DNSConfig{
		Proxied:     true, // MagicDNS on; there is no resolver for anything else
		Domains:     []string{t.suffix},
		CertDomains: t.certDomainsOf(n),
	}
	return v
}

func (t *tailnet) nodeMessage(n *node, now time.Time) *tailcfg.Node {
	online := n.streams > 0
	addrs := []netip.Prefix{n.v4, n.v6}
	d := &tailcfg.Node{
		ID:                n.id,
		StableID:          n.stable,
		Name:              n.host + "." + t.suffix + ".",
		User:              t.profileOf(n).id,
		Key:               n.key,
		KeyExpiry:         n.expiry,
		Machine:           n.machine,
		DiscoKey:          n.disco,
		Addresses:         addrs,
		AllowedIPs:        addrs,
		Endpoints:         n.endpoints,
		HomeDERP:          n.derp,
		Hostinfo:          n.hostinfo.View(),
		Created:           n.created,
		Cap:               n.cap,
		Tags:              n.tags,
		Online:            &online,
		MachineAuthorized: n.approved,
	}
	if !online && !n.lastSeen.IsZero() {
		seen := n.lastSeen
		d.LastSeen = &seen
	}
	if n.expired(now) {
		d.Expired = true
		// As the real server does: no node is told how to reach it.
		d.Endpoints, d.HomeDERP = nil, 0
	}
	return d
}

// applySharing shows a shared node to the others as a real tailnet would. A sharee is another
// tailnet's machine that may reach a node shared with its user: the real server hides its name. A
// node shared into the tailnet keeps its foreign name and shows who shared it.
func (t *tailnet) applySharing(n *node, d *tailcfg.Node) {
	switch {
	case n.sharee:
		const hidden = "device-of-shared-to-user"
		info := n.hostinfo.Clone()
		info.ShareeNode = true
		info.Hostname = hidden
		d.Hostinfo = info.View()
		d.Name = hidden + "."
	case n.sharer != 0:
		d.Name = n.host + "." + foreignSuffix + "."
		d.Sharer = n.sharer
	}
}

// selfCaps are features that an owner may have switched on for every node: HTTPS certificates and
// Funnel.
func (t *tailnet) selfCaps() tailcfg.NodeCapMap {
	caps := tailcfg.NodeCapMap{
		// There is no router on loopback to ask for a port.
		tailcfg.NodeAttrDisableUPnP: nil,
	}
	if t.config.HTTPS {
		caps[tailcfg.CapabilityHTTPS] = nil
	}
	if t.config.Funnel {
		caps[tailcfg.NodeAttrFunnel] = nil
	}
	if t.config.FunnelPorts != "" {
		caps[tailcfg.CapabilityFunnelPorts+tailcfg.NodeCapability("?ports="+t.config.FunnelPorts)] = nil
	}
	return caps
}

// filterFor lets everybody reach everybody, or those who may reach n by the access rules, and adds
// the grants towards n.
func (t *tailnet) filterFor(n *node) []tailcfg.FilterRule {
	rules := t.accessTo(n)
	for _, g := range t.grants {
		if !t.matches(g.Dst, n) {
			continue
		}
		caps := tailcfg.PeerCapMap{}
		for name, values := range g.Caps {
			raw := make([]tailcfg.RawMessage, len(values))
			for i, v := range values {
				raw[i] = tailcfg.RawMessage(v)
			}
			caps[tailcfg.PeerCapability(name)] = raw
		}
		from := t.sourcesOf(g.Src)
		if from == nil {
			continue
		}
		rules = append(rules, tailcfg.FilterRule{
			SrcIPs:   from,
			CapGrant: []tailcfg.CapGrant{{Dsts: []netip.Prefix{n.v4, n.v6}, CapMap: caps}},
		})
	}
	return rules
}

func (t *tailnet) accessTo(n *node) []tailcfg.FilterRule {
	if t.accessRules == nil {
		return []tailcfg.FilterRule{{
			SrcIPs:   []string{"*"},
			DstPorts: []tailcfg.NetPortRange{{IP: "*", Ports: tailcfg.PortRangeAny}},
		}}
	}
	rules := []tailcfg.FilterRule{}
	for _, a := range t.accessRules {
		from := t.sourcesOf(a.Src)
		ports, err := parsePorts(a.Ports)
		if from == nil || err != nil || !t.matches(a.Dst, n) {
			continue
		}
		var to []tailcfg.NetPortRange
		for _, own := range []netip.Prefix{n.v4, n.v6} {
			for _, p := range ports {
				to = append(to, tailcfg.NetPortRange{IP: own.String(), Ports: p})
			}
		}
		rules = append(rules, tailcfg.FilterRule{SrcIPs: from, DstPorts: to})
	}
	return rules
}

// sourcesOf lists the addresses of the nodes that src means, nil if it means none.
func (t *tailnet) sourcesOf(src string) []string {
	if src == "*" {
		return []string{"*"}
	}
	return t.addressesOf(src)
}

func (t *tailnet) addressesOf(src string) []string {
	var all []string
	for _, p := range t.sorted() {
		if t.matches(src, p) {
			all = append(all, p.v4.String(), p.v6.String())
		}
	}
	return all
}

func parsePorts(s string) ([]tailcfg.PortRange, error) {
	if s == "*" {
		return []tailcfg.PortRange{tailcfg.PortRangeAny}, nil
	}
	var all []tailcfg.PortRange
	for _, part := range strings.Split(s, ",") {
		first, last, ranged := strings.Cut(part, "-")
		if !ranged {
			last = first
		}
		from, err1 := strconv.ParseUint(first, 10, 16)
		to, err2 := strconv.ParseUint(last, 10, 16)
		if err1 != nil || err2 != nil || from == 0 || to < from {
			return nil, fmt.Errorf("%q are no ports: it must look like 80,443, 8000-8100 or *", s)
		}
		all = append(all, tailcfg.PortRange{First: uint16(from), Last: uint16(to)})
	}
	return all, nil
}

// sentState remembers what a stream has sent, as JSON: values with equal JSON are equal to the
// client.
type sentState struct {
	peers    map[tailcfg.NodeID]string
	profiles map[tailcfg.UserID]string
	self     string
	filter   string
	dns      string
	invented int // how many of it
}

// nextMessage returns the message that brings a client from what it was told to v, or nil if
// nothing changed.
func (h *sentState) nextMessage(v *view) *tailcfg.MapResponse {
	m := new(tailcfg.MapResponse)
	first := h.peers == nil
	if first {
		h.peers = map[tailcfg.NodeID]string{}
		h.profiles = map[tailcfg.UserID]string{}
	}
	changed := first

	if storeIfChanged(&h.self, v.self) {
		m.Node, changed = v.self, true
	}
	if storeIfChanged(&h.filter, v.filter) {
		m.PacketFilters, changed = map[string][]tailcfg.FilterRule{"base": v.filter}, true
	}
	if storeIfChanged(&h.dns, v.dns) {
		m.DNSConfig, changed = v.dns, true
	}
	for _, p := range v.profiles {
		if old := h.profiles[p.ID]; storeIfChanged(&old, p) {
			h.profiles[p.ID] = old
			m.UserProfiles, changed = append(m.UserProfiles, p), true
		}
	}

	present := map[tailcfg.NodeID]bool{}
	for _, p := range v.peers {
		present[p.ID] = true
		if old := h.peers[p.ID]; storeIfChanged(&old, p) {
			h.peers[p.ID] = old
			m.PeersChanged, changed = append(m.PeersChanged, p), true
		}
	}
	for id := range h.peers {
		if !present[id] {
			delete(h.peers, id)
			m.PeersRemoved, changed = append(m.PeersRemoved, id), true
		}
	}
	if c := v.invented; c != nil && len(c.peers) > h.invented {
		m.PeersChanged = append(m.PeersChanged, c.peers[h.invented:]...)
		m.UserProfiles = append(m.UserProfiles, c.profiles[h.invented:]...)
		h.invented, changed = len(c.peers), true
	}
	if first {
		m.Peers, m.PeersChanged = m.PeersChanged, nil
	}
	if !changed {
		return nil
	}
	return m
}

// storeIfChanged stores v's JSON and reports whether it is new.
func storeIfChanged(old *string, v any) bool {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own types; cannot fail
	}
	if string(b) == *old {
		return false
	}
	*old = string(b)
	return true
}
