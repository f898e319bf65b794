// Who is behind an address of the tailnet.
//
// Straight from the backend in this process: two locks and one encoding, no LocalAPI. Only the address counts; tsnet's
// table of proxied local ports is never asked, so a port cannot make one peer look like another.

package node

import (
	"encoding/json"
	"net/netip"
	"strings"

	"tailscale.com/tailcfg"
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
}

type whoisUser struct {
	ID          int64  `json:"id"`
	Login       string `json:"login"`
	DisplayName string `json:"display_name"`
	Picture     string `json:"picture"`
}

// WhoIs answers for an address with or without port.
func (n *Node) WhoIs(addr []byte) ([]byte, *Error) {
	lb, err := n.backend()
	if err != nil {
		return nil, err
	}
	if len(addr) > maxAddr {
		return nil, fail(Invalid, "the address is %d bytes long", len(addr))
	}
	ip, perr := netip.ParseAddr(string(addr))
	if perr != nil {
		ap, perr := netip.ParseAddrPort(string(addr))
		if perr != nil {
			return nil, fail(Invalid, "%q is not an IP address, with or without port", addr)
		}
		ip = ap.Addr()
	}
	if ip.Zone() != "" {
		return nil, fail(Invalid, "%q: tailnet addresses have no zone", addr)
	}
	ip = ip.Unmap()
	nv, up, ok := lb.WhoIs("tcp", netip.AddrPortFrom(ip, 0))
	if !ok {
		return nil, fail(NotFound, "no node of the tailnet has the address %v", ip)
	}
	w := whois{
		Node: whoisNode{
			ID: string(nv.StableID()), Name: fqdn(nv.Name()),
			Addresses: []netip.Addr{}, Tags: []string{}, Sharer: nv.Sharer() != 0, UserID: int64(nv.User()),
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
		return nil, fail(Internal, "%v", merr)
	}
	return b, nil
}

// rawValues drops what is not JSON: a value that cannot be read must not grant anything, nor hide the others.
func rawValues(values []tailcfg.RawMessage) []json.RawMessage {
	out := []json.RawMessage{}
	for _, v := range values {
		if json.Valid([]byte(v)) {
			out = append(out, json.RawMessage(v))
		}
	}
	return out
}

// sameTailnet says whether the node belongs to our tailnet: it is not shared in from another one (its name then has
// that one's suffix, or it has a sharer) and not there only because we shared something out to its user.
func sameTailnet(nv tailcfg.NodeView, suffix string) bool {
	if nv.Sharer() != 0 || nv.Hostinfo().Valid() && nv.Hostinfo().ShareeNode() {
		return false
	}
	return suffix == "" || strings.HasSuffix(fqdn(nv.Name()), "."+suffix)
}
