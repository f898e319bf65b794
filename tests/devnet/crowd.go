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
	crowdMax       = 1 << 16
	firstCrowdNode = 1 << 32
	firstCrowdUser = 1 << 32
)

type crowd struct {
	peers []*tailcfg.Node
	users []tailcfg.UserProfile
}

// growCrowd invents peers until there are count of them.
func (t *tailnet) growCrowd(count int) {
	info := (&tailcfg.Hostinfo{OS: "linux", Hostname: "invented", Services: []tailcfg.Service{{Proto: tailcfg.PeerAPI4, Port: 1}}}).View()
	for i := len(t.crowd.peers); i < count; i++ {
		v4 := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 127, byte(i >> 8), byte(i)}), 32)
		addrs := []netip.Prefix{v4, netip.PrefixFrom(tsaddr.Tailscale4To6(v4.Addr()), 128)}
		user := tailcfg.UserID(firstCrowdUser + i)
		online := true
		t.crowd.peers = append(t.crowd.peers, &tailcfg.Node{
			ID:                tailcfg.NodeID(firstCrowdNode + i),
			StableID:          tailcfg.StableNodeID(fmt.Sprintf("nCROWD%05dCNTRL", i)),
			Name:              fmt.Sprintf("invented-%d.%s.", i, t.suffix),
			User:              user,
			Key:               key.NewNode().Public(),
			KeyExpiry:         t.born.Add(keyLife),
			Machine:           key.NewMachine().Public(),
			DiscoKey:          key.NewDisco().Public(),
			Addresses:         addrs,
			AllowedIPs:        addrs,
			HomeDERP:          1,
			Hostinfo:          info,
			Created:           t.born,
			Cap:               tailcfg.CurrentCapabilityVersion,
			Online:            &online,
			MachineAuthorized: true,
		})
		login := fmt.Sprintf("invented-%d@example.com", i)
		t.crowd.users = append(t.crowd.users, tailcfg.UserProfile{ID: user, LoginName: login, DisplayName: displayName(login)})
	}
}

func (d *devnet) postCrowd(r *http.Request) (any, error) {
	var in struct {
		Count int `json:"count"`
	}
	if err := body(r, &in); err != nil {
		return nil, err
	}
	return d.locked(func() (any, error) {
		if in.Count < len(d.net.crowd.peers) || in.Count > crowdMax {
			return nil, bad("count must be between %d, who are there already, and %d", len(d.net.crowd.peers), crowdMax)
		}
		d.net.growCrowd(in.Count)
		d.net.touch()
		return in, nil
	})
}
