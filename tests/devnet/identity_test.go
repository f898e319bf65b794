// What a node's WhoIs returns about its callers, and that it does so soon after the test API
// changed it.
package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tailscale.com/client/tailscale/apitype"
	"tailscale.com/ipn"
	"tailscale.com/tailcfg"
	"tailscale.com/tsnet"
	"tailscale.com/wgengine/filter"
)

func TestUserAndTaggedPeers(t *testing.T) {
	d := startDevnet(t, "alice=alice@example.com", "ci=tag:ci,tag:build", "db=tag:db")
	s := up(t, newNode(t, d, "tailbone", d.authKey))
	r := d.ready()

	seen(t, s, r.Peers["alice"].IP, func(w *apitype.WhoIsResponse) bool {
		return w.UserProfile.LoginName == "alice@example.com" && w.UserProfile.DisplayName == "Alice" &&
			len(w.Node.Tags) == 0 && w.Node.Name == "alice."+suffix+"." && string(w.Node.StableID) == r.Peers["alice"].ID
	})
	var tagged tailcfg.UserID
	seen(t, s, r.Peers["ci"].IP6, func(w *apitype.WhoIsResponse) bool {
		tagged = w.UserProfile.ID
		return w.UserProfile.LoginName == "tagged-devices" && strings.Join(w.Node.Tags, " ") == "tag:ci tag:build" && w.Node.KeyExpiry.IsZero()
	})
	seen(t, s, r.Peers["db"].IP, func(w *apitype.WhoIsResponse) bool {
		return w.UserProfile.ID == tagged && strings.Join(w.Node.Tags, " ") == "tag:db"
	})
	if w := whois(t, s, "100.64.9.9"); w != nil {
		t.Errorf("nobody has 100.64.9.9, but WhoIs says %v", w.Node.Name)
	}
	if n := nodeOf(t, d, "tailbone"); n.Login != owner || !n.Online || n.Name != "tailbone."+suffix {
		t.Errorf("the node that joined with the printed key is %+v", n)
	}
	within(t, soon, func() string {
		if w := whois(t, s, r.Peers["alice"].IP); w == nil || w.Node.Online == nil || !*w.Node.Online {
			return "alice is not online"
		}
		return ""
	})
}

func TestGrantToOne(t *testing.T) {
	d := startDevnet(t, "alice=alice@example.com", "ci=tag:ci")
	s := up(t, newNode(t, d, "tailbone", d.authKey))
	other := up(t, newNode(t, d, "other", d.authKey))
	r := d.ready()
	alice, ci := r.Peers["alice"].IP, r.Peers["ci"].IP
	const name = "example.com/cap/tailbone"
	has := func(w *apitype.WhoIsResponse) bool { return w.CapMap.HasCapability(name) }
	hasNot := func(w *apitype.WhoIsResponse) bool { return !w.CapMap.HasCapability(name) }
	seen(t, s, alice, hasNot)

	g := call[grant](t, d, "POST", "/grants", m{"src": "alice", "dst": "tailbone", "caps": m{name: []any{m{"role": "admin"}, "x"}}})
	took := seen(t, s, alice, has)
	t.Logf("grant seen after %v", took)
	w := whois(t, s, alice)
	var role struct{ Role string }
	if v := w.CapMap[name]; len(v) != 2 || json.Unmarshal([]byte(v[0]), &role) != nil || role.Role != "admin" || string(v[1]) != `"x"` {
		t.Errorf("values of the grant: %q", v)
	}
	seen(t, s, ci, hasNot)
	seen(t, other, alice, hasNot)

	// By tag and to everybody, and no longer for the node when the tag goes.
	do(t, d, "POST", "/grants", m{"src": "tag:ci", "dst": "*", "caps": m{name: nil}})
	seen(t, s, ci, has)
	seen(t, other, ci, has)
	do(t, d, "POST", "/nodes/ci/tags", m{"tags": []string{"tag:other"}})
	seen(t, s, ci, hasNot)

	do(t, d, "DELETE", "/grants/"+jsonInt(g.ID), nil)
	seen(t, s, alice, hasNot)
	do(t, d, "POST", "/grants", m{"src": "alice@example.com", "dst": "tailbone", "caps": m{name: nil}})
	seen(t, s, alice, has)
	do(t, d, "DELETE", "/grants", nil)
	seen(t, s, alice, hasNot)
}

func TestLoginRenamed(t *testing.T) {
	d := startDevnet(t, "alice=alice@example.com", "bob=bob@example.com")
	s := up(t, newNode(t, d, "tailbone", d.authKey))
	ip := d.ready().Peers["alice"].IP
	var before tailcfg.UserID
	seen(t, s, ip, func(w *apitype.WhoIsResponse) bool { before = w.UserProfile.ID; return true })

	do(t, d, "POST", "/nodes/alice/login", m{"login": "alice.doe@example.com", "display_name": "Alice D."})
	took := seen(t, s, ip, func(w *apitype.WhoIsResponse) bool {
		return w.UserProfile.LoginName == "alice.doe@example.com" && w.UserProfile.DisplayName == "Alice D." && w.UserProfile.ID == before
	})
	t.Logf("rename seen after %v", took)

	do(t, d, "POST", "/nodes/alice/login", m{"login": "bob@example.com"})
	seen(t, s, ip, func(w *apitype.WhoIsResponse) bool {
		return w.UserProfile.LoginName == "bob@example.com" && w.UserProfile.ID != before
	})
	do(t, d, "POST", "/nodes/alice/login", m{"login": "carol@example.com", "move": true})
	seen(t, s, ip, func(w *apitype.WhoIsResponse) bool { return w.UserProfile.LoginName == "carol@example.com" })
	seen(t, s, d.ready().Peers["bob"].IP, func(w *apitype.WhoIsResponse) bool { return w.UserProfile.LoginName == "bob@example.com" })
}

func TestTagsChange(t *testing.T) {
	d := startDevnet(t, "alice=alice@example.com")
	s := up(t, newNode(t, d, "tailbone", d.authKey))
	ip := d.ready().Peers["alice"].IP
	seen(t, s, ip, func(w *apitype.WhoIsResponse) bool { return len(w.Node.Tags) == 0 && !w.Node.KeyExpiry.IsZero() })

	do(t, d, "POST", "/nodes/"+ip+"/tags", m{"tags": []string{"tag:web"}})
	seen(t, s, ip, func(w *apitype.WhoIsResponse) bool {
		return len(w.Node.Tags) == 1 && w.UserProfile.LoginName == "tagged-devices" && w.Node.KeyExpiry.IsZero()
	})
	do(t, d, "POST", "/nodes/"+d.ready().Peers["alice"].ID+"/tags", m{"tags": []string{}})
	seen(t, s, ip, func(w *apitype.WhoIsResponse) bool {
		return len(w.Node.Tags) == 0 && w.UserProfile.LoginName == "alice@example.com"
	})
}

func TestExpireAndBack(t *testing.T) {
	d := startDevnet(t, "alice=alice@example.com")
	s := up(t, newNode(t, d, "tailbone", d.authKey))
	ip := d.ready().Peers["alice"].IP
	seen(t, s, ip, func(w *apitype.WhoIsResponse) bool { return !w.Node.Expired })

	do(t, d, "POST", "/nodes/alice/expire", nil)
	seen(t, s, ip, func(w *apitype.WhoIsResponse) bool { return w.Node.Expired })
	if n := nodeOf(t, d, "alice"); !n.Expired {
		t.Errorf("the API does not show alice as expired: %+v", n)
	}
	do(t, d, "POST", "/nodes/alice/unexpire", nil)
	seen(t, s, ip, func(w *apitype.WhoIsResponse) bool { return !w.Node.Expired })

	// At a later time, which is reached without a request.
	do(t, d, "POST", "/nodes/alice/expire", m{"at": time.Now().Add(700 * time.Millisecond)})
	seen(t, s, ip, func(w *apitype.WhoIsResponse) bool { return !w.Node.Expired })
	within(t, 700*time.Millisecond+soon, func() string {
		if w := whois(t, s, ip); w == nil || !w.Node.Expired {
			return "alice is not expired"
		}
		return ""
	})

	// The node itself notices, and comes back by itself.
	do(t, d, "POST", "/nodes/tailbone/expire", nil)
	waitState(t, s, ipn.NeedsLogin)
	do(t, d, "POST", "/nodes/tailbone/unexpire", nil)
	waitState(t, s, ipn.Running)
}

func TestDelete(t *testing.T) {
	d := startDevnet(t, "alice=alice@example.com", "bob=bob@example.com")
	s := up(t, newNode(t, d, "tailbone", d.authKey))
	r := d.ready()
	seen(t, s, r.Peers["alice"].IP, func(*apitype.WhoIsResponse) bool { return true })
	do(t, d, "DELETE", "/nodes/alice", nil)
	gone := func(ip string) {
		t.Helper()
		within(t, soon, func() string {
			if whois(t, s, ip) != nil {
				return ip + " is still known"
			}
			return ""
		})
	}
	gone(r.Peers["alice"].IP)
	if status, out := request(t, d, "GET", "/nodes/alice", nil); status != 404 {
		t.Errorf("GET of a deleted node: %d %s", status, out)
	}
	// The last one, because an empty list is easily taken for "no change".
	do(t, d, "DELETE", "/nodes/bob", nil)
	gone(r.Peers["bob"].IP)
}

func TestPeersAtRunTime(t *testing.T) {
	d := startDevnet(t)
	s := up(t, newNode(t, d, "tailbone", d.authKey))
	p := call[peerRecord](t, d, "POST", "/peers", m{"name": "zoe", "login": "zoe@example.com"})
	seen(t, s, p.IP, func(w *apitype.WhoIsResponse) bool { return w.UserProfile.LoginName == "zoe@example.com" })
	if got := call[m](t, d, "POST", "/peers/zoe/ping", m{"to": "tailbone"}); got["latency_ms"] == nil {
		t.Errorf("ping says %v", got)
	}
	do(t, d, "DELETE", "/peers/zoe", nil)
	within(t, soon, func() string {
		if whois(t, s, p.IP) != nil {
			return "zoe is still known"
		}
		return ""
	})
	// Names are free again, addresses are not.
	q := call[peerRecord](t, d, "POST", "/peers", m{"name": "zoe", "tags": []string{"tag:zoe"}})
	if q.Name != "zoe."+suffix || q.IP == p.IP {
		t.Errorf("second zoe: %+v", q)
	}
}

func TestShared(t *testing.T) {
	d := startDevnet(t, "alice=alice@example.com")
	s := up(t, newNode(t, d, "tailbone", d.authKey))
	ip := d.ready().Peers["alice"].IP
	ours := func(w *apitype.WhoIsResponse) bool {
		return w.Node.Name == "alice."+suffix+"." && !w.Node.Hostinfo.ShareeNode() && w.Node.Sharer == 0
	}
	seen(t, s, ip, ours)
	do(t, d, "POST", "/nodes/alice/share", m{"sharee": true})
	seen(t, s, ip, func(w *apitype.WhoIsResponse) bool {
		return w.Node.Hostinfo.ShareeNode() && w.Node.Name == "device-of-shared-to-user."
	})
	do(t, d, "POST", "/nodes/alice/share", m{"sharer": "bob@example.com"})
	seen(t, s, ip, func(w *apitype.WhoIsResponse) bool {
		return w.Node.Sharer != 0 && w.Node.Name == "alice.elsewhere.ts.net." && !w.Node.Hostinfo.ShareeNode()
	})
	do(t, d, "POST", "/nodes/alice/share", m{})
	seen(t, s, ip, ours)
}

// Access rules are the nodes' packet filters, so they apply only to new connections.
func TestAccess(t *testing.T) {
	d := startDevnet(t, "alice=alice@example.com")
	s := up(t, newNode(t, d, "tailbone", d.authKey))
	ip := d.ready().Peers["alice"].IP
	seen(t, s, ip, func(*apitype.WhoIsResponse) bool { return true })
	var own [2]netip.Addr
	own[0], own[1] = s.TailscaleIPs()
	peer := netip.MustParseAddr(ip)
	reaches := func(port uint16) bool {
		f := s.Sys().Engine.Get().GetFilter()
		return f.CheckTCP(peer, own[0], port) == filter.Accept
	}
	are := func(want map[uint16]bool) {
		t.Helper()
		within(t, soon, func() string {
			for port, open := range want {
				if reaches(port) != open {
					return fmt.Sprintf("port %d open: %v", port, !open)
				}
			}
			return ""
		})
	}
	are(map[uint16]bool{80: true, 81: true})
	do(t, d, "POST", "/access", m{"rules": []any{m{"src": "alice", "dst": "tailbone", "ports": "80,8000-8010"}}})
	are(map[uint16]bool{80: true, 81: false, 7999: false, 8000: true, 8010: true, 8011: false})
	do(t, d, "POST", "/access", m{"rules": []any{m{"src": "tag:other", "dst": "*", "ports": "*"}, m{"src": "alice@example.com", "dst": "alice", "ports": "*"}}})
	are(map[uint16]bool{80: false, 81: false})
	do(t, d, "POST", "/access", m{"rules": []any{m{"src": "*", "dst": "*", "ports": "81"}}})
	are(map[uint16]bool{80: false, 81: true})
	do(t, d, "POST", "/access", m{"rules": []any{}})
	are(map[uint16]bool{80: false, 81: false})
	do(t, d, "DELETE", "/access", nil)
	are(map[uint16]bool{80: true, 81: true})
	for _, in := range []any{nil, m{"rules": []any{m{"src": "nobody", "dst": "*", "ports": "*"}}}, m{"rules": []any{m{"src": "*", "dst": "*", "ports": "0"}}},
		m{"rules": []any{m{"src": "*", "dst": "*", "ports": "90-80"}}}} {
		if status, out := request(t, d, "POST", "/access", in); status != 400 && status != 404 {
			t.Errorf("%v: %d %s", in, status, out)
		}
	}
}

// Invented peers are known to every node that joins, and stay while others come and go.
func TestCrowd(t *testing.T) {
	d := startDevnet(t, "alice=alice@example.com")
	s := up(t, newNode(t, d, "tailbone", d.authKey))
	do(t, d, "POST", "/crowd", m{"count": 3})
	seen(t, s, "100.127.0.2", func(w *apitype.WhoIsResponse) bool { return w.UserProfile.LoginName == "invented-2@example.com" })
	do(t, d, "POST", "/crowd", m{"count": 300})
	late := up(t, newNode(t, d, "late", d.authKey))
	for _, s := range []*tsnet.Server{s, late} {
		seen(t, s, "100.127.1.43", func(w *apitype.WhoIsResponse) bool { return w.UserProfile.LoginName == "invented-299@example.com" })
		seen(t, s, d.ready().Peers["alice"].IP, func(w *apitype.WhoIsResponse) bool { return w.UserProfile.LoginName == "alice@example.com" })
	}
	do(t, d, "DELETE", "/nodes/late", nil)
	seen(t, s, "100.127.0.0", func(w *apitype.WhoIsResponse) bool { return w.Node.Name == "invented-0."+suffix+"." })
	if status, out := request(t, d, "POST", "/crowd", m{"count": 299}); status != 400 {
		t.Errorf("a smaller crowd: %d %s", status, out)
	}
}
