// Who is behind an address of the tailnet, and whether that peer may reach an address of ours.
//
// Asked of the backend in this process: two locks and one encoding, no LocalAPI. Only the peer's
// address counts; tsnet's table of proxied local ports is never used, so a port cannot make one
// peer look like another.
//
// tsnet applies the packet filter only to the first packet of a connection. A program that keeps
// connections open asks again here when the generation changes, and gets the answer that a new
// connection would get.

package node

import (
	"encoding/json"
	"net/netip"
	"strings"

	"tailscale.com/ipn/ipnlocal"
	"tailscale.com/tailcfg"
	"tailscale.com/wgengine/filter"
)

const maxAddr = 300

type whois struct {
	Node        whoisNode                    `json:"node"`
	User        whoisUser                    `json:"user"`
	Caps        map[string][]json.RawMessage `json:"caps"`
	SameTailnet bool                         `json:"same_tailnet"`
}

type whoisNode struct {
	ID        string       `json:"id"`
	Name      string       `json:"name"`
	Hostname  string       `json:"hostname"`
	Addresses []netip.Addr `json:"addresses"`
	Tags      []string     `json:"tags"`
	KeyExpiry string       `json:"key_expiry"`
	Expired   bool         `json:"expired"`
	Sharer    bool         `json:"sharer"`
	UserID    int64        `json:"user_id"`
	Key       string       `json:"key"`
	NumericID int64        `json:"numeric_id"`
}

type whoisUser struct {
	ID          int64  `json:"id"`
	Login       string `json:"login"`
	DisplayName string `json:"display_name"`
	Picture     string `json:"picture"`
}

// WhoIs answers for a peer's address, with or without port. If local, an address of ours with a
// port, is not empty, the answer for a peer that the packet filter keeps from connecting to it over
// TCP is Forbidden.
func (n *Node) WhoIs(addr, local []byte) ([]byte, *Error) {
	lb, err := n.backend()
	if err != nil {
		return nil, err
	}
	ip, err := parseIP(addr)
	if err != nil {
		return nil, err
	}
	var to netip.AddrPort
	if len(local) > 0 {
		if to, err = parseLocal(local); err != nil {
			return nil, err
		}
	}
	nv, up, ok := lb.WhoIs("tcp", netip.AddrPortFrom(ip, 0))
	if !ok {
		return nil, errorf(NotFound, "no node of the tailnet has the address %v", ip)
	}
	if to.IsValid() && !mayReach(lb, nv, ip, to) {
		return nil, errorf(Forbidden, "the tailnet's policy does not let %s (%v) reach %v", fqdn(nv.Name()), ip, to)
	}
	w := whois{
		Node: whoisNode{
			ID: string(nv.StableID()), Name: fqdn(nv.Name()),
			Addresses: []netip.Addr{}, Tags: []string{}, Sharer: nv.Sharer() != 0, UserID: int64(nv.User()),
			Key: nv.Key().String(), NumericID: int64(nv.ID()),
		},
		User: whoisUser{ID: int64(up.ID), Login: up.LoginName, DisplayName: up.DisplayName, Picture: up.ProfilePicURL},
		Caps: map[string][]json.RawMessage{},
	}
	if hi := nv.Hostinfo(); hi.Valid() {
		w.Node.Hostname = hi.Hostname()
	}
	for _, p := range nv.Addresses().All() {
		w.Node.Addresses = append(w.Node.Addresses, p.Addr())
	}
	w.Node.Tags = nv.Tags().AppendTo(w.Node.Tags)
	w.Node.KeyExpiry, w.Node.Expired = expiry(nv.KeyExpiry(), nv.Expired())
	for name, values := range lb.PeerCaps(ip) {
		w.Caps[string(name)] = rawValues(values)
	}
	if nm := lb.NetMapNoPeers(); nm != nil {
		w.SameTailnet = sameTailnet(nv, nm.MagicDNSSuffix())
	}
	b, merr := json.Marshal(w)
	if merr != nil {
		return nil, errorf(Internal, "%v", merr)
	}
	return b, nil
}

// mayReach reports whether the packet filter would let a new TCP connection through. A jailed peer
// may answer us but never call.
func mayReach(lb *ipnlocal.LocalBackend, peer tailcfg.NodeView, from netip.Addr, to netip.AddrPort) bool {
	if peer.IsJailed() {
		return false
	}
	f := lb.Sys().Engine.Get().GetFilter()
	return f != nil && f.CheckTCP(from, to.Addr(), to.Port()) == filter.Accept
}

// parseIP parses a tailnet address and ignores the port that may follow it.
func parseIP(addr []byte) (netip.Addr, *Error) {
	if len(addr) > maxAddr {
		return netip.Addr{}, errorf(Invalid, "the address is %d bytes long", len(addr))
	}
	ip, err := netip.ParseAddr(string(addr))
	if err != nil {
		ap, err := netip.ParseAddrPort(string(addr))
		if err != nil {
			return netip.Addr{}, errorf(Invalid, "%q is not an IP address, with or without port", addr)
		}
		ip = ap.Addr()
	}
	if ip.Zone() != "" {
		return netip.Addr{}, errorf(Invalid, "%q: tailnet addresses have no zone", addr)
	}
	return ip.Unmap(), nil
}

func parseLocal(addr []byte) (netip.AddrPort, *Error) {
	if len(addr) > maxAddr {
		return netip.AddrPort{}, errorf(Invalid, "the local address is %d bytes long", len(addr))
	}
	ap, err := netip.ParseAddrPort(string(addr))
	if err != nil || ap.Port() == 0 || ap.Addr().Zone() != "" {
		return netip.AddrPort{}, errorf(Invalid, "%q is not an IP address with a port", addr)
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}

// rawValues drops what is not JSON: a value that cannot be read must neither grant anything nor
// hide the others.
func rawValues(values []tailcfg.RawMessage) []json.RawMessage {
	out := []json.RawMessage{}
	for _, v := range values {
		if json.Valid([]byte(v)) {
			out = append(out, json.RawMessage(v))
		}
	}
	return out
}

// sameTailnet reports whether the node belongs to our tailnet: it is neither shared in from another
// one (its name then has that one's suffix, or it has a sharer), nor visible only because we shared
// something with its user.
func sameTailnet(nv tailcfg.NodeView, suffix string) bool {
	if nv.Sharer() != 0 || nv.Hostinfo().Valid() && nv.Hostinfo().ShareeNode() {
		return false
	}
	return suffix == "" || strings.HasSuffix(fqdn(nv.Name()), "."+suffix)
}
