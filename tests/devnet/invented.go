// Invented peers: nodes that do not run, to measure what a large tailnet costs the nodes that are
// told about it.
//
// Invariants: they stay and never change, so a stream is told about each once, and later changes of
// the tailnet cost nothing for them; each has its own user. Only the owner's nodes are told about
// them (those that join with the printed key): in others they would only take memory.
package main

import (
	"fmt"
	"net/http"
	"net/netip"

	"tailscale.com/net/tsaddr"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// The last addresses and numbers of their ranges. Real nodes count up from one.
const (
	maxInvented       = 1 << 16
	firstInventedNode = 1 << 32
	firstInventedUser = 1 << 32
)

type inventedPeers struct {
	peers    []*tailcfg.Node
	profiles []tailcfg.UserProfile
}

// inventPeers invents peers until there are count of them.
func (t *tailnet) inventPeers(count int) {
	info := (&tailcfg.Hostinfo{OS: "linux", Hostname: "invented", Services: []tailcfg.Service{{Proto: tailcfg.PeerAPI4, Port: 1}}}).View()
	for i := len(t.invented.peers); i < count; i++ {
		v4 := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 127, byte(i >> 8), byte(i)}), 32)
		addrs := []netip.Prefix{v4, netip.PrefixFrom(tsaddr.Tailscale4To6(v4.Addr()), 128)}
		user := tailcfg.UserID(firstInventedUser + i)
		online := true
		t.invented.peers = append(t.invented.peers, &tailcfg.Node{
			ID:                tailcfg.NodeID(firstInventedNode + i),
			StableID:          tailcfg.StableNodeID(fmt.Sprintf("nCROWD%05dCNTRL", i)),
			Name:              fmt.Sprintf("invented-%d.%s.", i, t.suffix),
			User:              user,
			Key:               key.NewNode().Public(),
			KeyExpiry:         t.created.Add(keyLife),
			Machine:           key.NewMachine().Public(),
			DiscoKey:          key.NewDisco().Public(),
			Addresses:         addrs,
			AllowedIPs:        addrs,
			HomeDERP:          1,
			Hostinfo:          info,
			Created:           t.created,
			Cap:               tailcfg.CurrentCapabilityVersion,
			Online:            &online,
			MachineAuthorized: true,
		})
		login := fmt.Sprintf("invented-%d@example.com", i)
		t.invented.profiles = append(t.invented.profiles, tailcfg.UserProfile{ID: user, LoginName: login, DisplayName: displayName(login)})
	}
}

func (d *devnet) postCrowd(r *http.Request) (any, error) {
	var in struct {
		Count int `json:"count"`
	}
	if err := readBody(r, &in); err != nil {
		return nil, err
	}
	return d.locked(func() (any, error) {
		if in.Count < len(d.tailnet.invented.peers) || in.Count > maxInvented {
			return nil, badRequest("count must be between %d, who are there already, and %d", len(d.tailnet.invented.peers), maxInvented)
		}
		d.tailnet.inventPeers(in.Count)
		d.tailnet.touch()
		return in, nil
	})
}
