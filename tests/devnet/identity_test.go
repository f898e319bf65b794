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
	s := mustJoin(t, newNode(t, d, "tailbone", d.authKey))
	r := d.ready()

	awaitWhoIs(t, s, r.Peers["alice"].IP, func(w *apitype.WhoIsResponse) bool {
		return w.UserProfile.LoginName == "alice@example.com" && w.UserProfile.DisplayName == "Alice" &&
			len(w.Node.Tags) == 0 && w.Node.Name == "alice."+suffix+"." && string(w.Node.StableID) == r.Peers["alice"].ID
	})
	var tagged tailcfg.UserID
	awaitWhoIs(t, s, r.Peers["ci"].IP6, func(w *apitype.WhoIsResponse) bool {
		tagged = w.UserProfile.ID
		return w.UserProfile.LoginName == "tagged-devices" && strings.Join(w.Node.Tags, " ") == "tag:ci tag:build" && w.Node.KeyExpiry.IsZero()
	})
	awaitWhoIs(t, s, r.Peers["db"].IP, func(w *apitype.WhoIsResponse) bool {
		return w.UserProfile.ID == tagged && strings.Join(w.Node.Tags, " ") == "tag:db"
	})
	if w := whois(t, s, "100.64.9.9"); w != nil {
		t.Errorf("nobody has 100.64.9.9, but WhoIs says %v", w.Node.Name)
	}
	if n := getNode(t, d, "tailbone"); n.Login != owner || !n.Online || n.Name != "tailbone."+suffix {
		t.Errorf("the node that joined with the printed key is %+v", n)
	}
	waitUntil(t, propagationLimit, func() string {
		if w := whois(t, s, r.Peers["alice"].IP); w == nil || w.Node.Online == nil || !*w.Node.Online {
			return "alice is not online"
		}
		return ""
	})
}

func TestGrantToOne(t *testing.T) {
	d := startDevnet(t, "alice=alice@example.com", "ci=tag:ci")
	s := mustJoin(t, newNode(t, d, "tailbone", d.authKey))
	other := mustJoin(t, newNode(t, d, "other", d.authKey))
	r := d.ready()
	alice, ci := r.Peers["alice"].IP, r.Peers["ci"].IP
	const name = "example.com/cap/tailbone"
	has := func(w *apitype.WhoIsResponse) bool { return w.CapMap.HasCapability(name) }
	hasNot := func(w *apitype.WhoIsResponse) bool { return !w.CapMap.HasCapability(name) }
	awaitWhoIs(t, s, alice, hasNot)

	g := call[grant](t, d, "POST", "/grants", m{"src": "alice", "dst": "tailbone", "caps": m{name: []any{m{"role": "admin"}, "x"}}})
	took := awaitWhoIs(t, s, alice, has)
	t.Logf("grant seen after %v", took)
	w := whois(t, s, alice)
	var role struct{ Role string }
	if v := w.CapMap[name]; len(v) != 2 || json.Unmarshal([]byte(v[0]), &role) != nil || role.Role != "admin" || string(v[1]) != `"x"` {
		t.Errorf("values of the grant: %q", v)
	}
	awaitWhoIs(t, s, ci, hasNot)
	awaitWhoIs(t, other, alice, hasNot)

	// By tag and to everybody, and no longer for the node when the tag goes.
	mustCall(t, d, "POST", "/grants", m{"src": "tag:ci", "dst": "*", "caps": m{name: nil}})
	awaitWhoIs(t, s, ci, has)
	awaitWhoIs(t, other, ci, has)
	mustCall(t, d, "POST", "/nodes/ci/tags", m{"tags": []string{"tag:other"}})
	awaitWhoIs(t, s, ci, hasNot)

	mustCall(t, d, "DELETE", "/grants/"+jsonInt(g.ID), nil)
	awaitWhoIs(t, s, alice, hasNot)
	mustCall(t, d, "POST", "/grants", m{"src": "alice@example.com", "dst": "tailbone", "caps": m{name: nil}})
	awaitWhoIs(t, s, alice, has)
	mustCall(t, d, "DELETE", "/grants", nil)
	awaitWhoIs(t, s, alice, hasNot)
}

func TestLoginRenamed(t *testing.T) {
	d := startDevnet(t, "alice=alice@example.com", "bob=bob@example.com")
	s := mustJoin(t, newNode(t, d, "tailbone", d.authKey))
	ip := d.ready().Peers["alice"].IP
	var before tailcfg.UserID
	awaitWhoIs(t, s, ip, func(w *apitype.WhoIsResponse) bool { before = w.UserProfile.ID; return true })

	mustCall(t, d, "POST", "/nodes/alice/login", m{"login": "alice.doe@example.com", "display_name": "Alice D."})
	took := awaitWhoIs(t, s, ip, func(w *apitype.WhoIsResponse) bool {
		return w.UserProfile.LoginName == "alice.doe@example.com" && w.UserProfile.DisplayName == "Alice D." && w.UserProfile.ID == before
	})
	t.Logf("rename seen after %v", took)

	mustCall(t, d, "POST", "/nodes/alice/login", m{"login": "bob@example.com"})
	awaitWhoIs(t, s, ip, func(w *apitype.WhoIsResponse) bool {
		return w.UserProfile.LoginName == "bob@example.com" && w.UserProfile.ID != before
	})
	mustCall(t, d, "POST", "/nodes/alice/login", m{"login": "carol@example.com", "move": true})
	awaitWhoIs(t, s, ip, func(w *apitype.WhoIsResponse) bool { return w.UserProfile.LoginName == "carol@example.com" })
	awaitWhoIs(t, s, d.ready().Peers["bob"].IP, func(w *apitype.WhoIsResponse) bool { return w.UserProfile.LoginName == "bob@example.com" })
}

func TestTagsChange(t *testing.T) {
	d := startDevnet(t, "alice=alice@example.com")
	s := mustJoin(t, newNode(t, d, "tailbone", d.authKey))
	ip := d.ready().Peers["alice"].IP
	awaitWhoIs(t, s, ip, func(w *apitype.WhoIsResponse) bool { return len(w.Node.Tags) == 0 && !w.Node.KeyExpiry.IsZero() })

	mustCall(t, d, "POST", "/nodes/"+ip+"/tags", m{"tags": []string{"tag:web"}})
	awaitWhoIs(t, s, ip, func(w *apitype.WhoIsResponse) bool {
		return len(w.Node.Tags) == 1 && w.UserProfile.LoginName == "tagged-devices" && w.Node.KeyExpiry.IsZero()
	})
	mustCall(t, d, "POST", "/nodes/"+d.ready().Peers["alice"].ID+"/tags", m{"tags": []string{}})
	awaitWhoIs(t, s, ip, func(w *apitype.WhoIsResponse) bool {
		return len(w.Node.Tags) == 0 && w.UserProfile.LoginName == "alice@example.com"
	})
}

func TestExpireAndBack(t *testing.T) {
	d := startDevnet(t, "alice=alice@example.com")
	s := mustJoin(t, newNode(t, d, "tailbone", d.authKey))
	ip := d.ready().Peers["alice"].IP
	awaitWhoIs(t, s, ip, func(w *apitype.WhoIsResponse) bool { return !w.Node.Expired })

	mustCall(t, d, "POST", "/nodes/alice/expire", nil)
	awaitWhoIs(t, s, ip, func(w *apitype.WhoIsResponse) bool { return w.Node.Expired })
	if n := getNode(t, d, "alice"); !n.Expired {
		t.Errorf("the API does not show alice as expired: %+v", n)
	}
	mustCall(t, d, "POST", "/nodes/alice/unexpire", nil)
	awaitWhoIs(t, s, ip, func(w *apitype.WhoIsResponse) bool { return !w.Node.Expired })

	// At a later time, which is reached without a request.
	mustCall(t, d, "POST", "/nodes/alice/expire", m{"at": time.Now().Add(700 * time.Millisecond)})
	awaitWhoIs(t, s, ip, func(w *apitype.WhoIsResponse) bool { return !w.Node.Expired })
	waitUntil(t, 700*time.Millisecond+propagationLimit, func() string {
		if w := whois(t, s, ip); w == nil || !w.Node.Expired {
			return "alice is not expired"
		}
		return ""
	})

	// The node itself notices, and comes back by itself.
	mustCall(t, d, "POST", "/nodes/tailbone/expire", nil)
	waitState(t, s, ipn.NeedsLogin)
	mustCall(t, d, "POST", "/nodes/tailbone/unexpire", nil)
	waitState(t, s, ipn.Running)
}

func TestDelete(t *testing.T) {
	d := startDevnet(t, "alice=alice@example.com", "bob=bob@example.com")
	s := mustJoin(t, newNode(t, d, "tailbone", d.authKey))
	r := d.ready()
	awaitWhoIs(t, s, r.Peers["alice"].IP, func(*apitype.WhoIsResponse) bool { return true })
	mustCall(t, d, "DELETE", "/nodes/alice", nil)
	awaitUnknown := func(ip string) {
		t.Helper()
		waitUntil(t, propagationLimit, func() string {
			if whois(t, s, ip) != nil {
				return ip + " is still known"
			}
			return ""
		})
	}
	awaitUnknown(r.Peers["alice"].IP)
	if status, out := request(t, d, "GET", "/nodes/alice", nil); status != 404 {
		t.Errorf("GET of a deleted node: %d %s", status, out)
	}
	// The last one, because an empty list is easily taken for "no change".
	mustCall(t, d, "DELETE", "/nodes/bob", nil)
	awaitUnknown(r.Peers["bob"].IP)
}

func TestPeersAtRunTime(t *testing.T) {
	d := startDevnet(t)
	s := mustJoin(t, newNode(t, d, "tailbone", d.authKey))
	p := call[peerRecord](t, d, "POST", "/peers", m{"name": "zoe", "login": "zoe@example.com"})
	awaitWhoIs(t, s, p.IP, func(w *apitype.WhoIsResponse) bool { return w.UserProfile.LoginName == "zoe@example.com" })
	if got := call[m](t, d, "POST", "/peers/zoe/ping", m{"to": "tailbone"}); got["latency_ms"] == nil {
		t.Errorf("ping says %v", got)
	}
	mustCall(t, d, "DELETE", "/peers/zoe", nil)
	waitUntil(t, propagationLimit, func() string {
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
	s := mustJoin(t, newNode(t, d, "tailbone", d.authKey))
	ip := d.ready().Peers["alice"].IP
	ours := func(w *apitype.WhoIsResponse) bool {
		return w.Node.Name == "alice."+suffix+"." && !w.Node.Hostinfo.ShareeNode() && w.Node.Sharer == 0
	}
	awaitWhoIs(t, s, ip, ours)
	mustCall(t, d, "POST", "/nodes/alice/share", m{"sharee": true})
	awaitWhoIs(t, s, ip, func(w *apitype.WhoIsResponse) bool {
		return w.Node.Hostinfo.ShareeNode() && w.Node.Name == "device-of-shared-to-user."
	})
	mustCall(t, d, "POST", "/nodes/alice/share", m{"sharer": "bob@example.com"})
	awaitWhoIs(t, s, ip, func(w *apitype.WhoIsResponse) bool {
		return w.Node.Sharer != 0 && w.Node.Name == "alice.elsewhere.ts.net." && !w.Node.Hostinfo.ShareeNode()
	})
	mustCall(t, d, "POST", "/nodes/alice/share", m{})
	awaitWhoIs(t, s, ip, ours)
}

// Access rules are the nodes' packet filters, so they apply only to new connections.
func TestAccess(t *testing.T) {
	d := startDevnet(t, "alice=alice@example.com")
	s := mustJoin(t, newNode(t, d, "tailbone", d.authKey))
	ip := d.ready().Peers["alice"].IP
	awaitWhoIs(t, s, ip, func(*apitype.WhoIsResponse) bool { return true })
	var own [2]netip.Addr
	own[0], own[1] = s.TailscaleIPs()
	peer := netip.MustParseAddr(ip)
	reaches := func(port uint16) bool {
		f := s.Sys().Engine.Get().GetFilter()
		return f.CheckTCP(peer, own[0], port) == filter.Accept
	}
	awaitOpenPorts := func(want map[uint16]bool) {
		t.Helper()
		waitUntil(t, propagationLimit, func() string {
			for port, open := range want {
				if reaches(port) != open {
					return fmt.Sprintf("port %d open: %v", port, !open)
				}
			}
			return ""
		})
	}
	awaitOpenPorts(map[uint16]bool{80: true, 81: true})
	mustCall(t, d, "POST", "/access", m{"rules": []any{m{"src": "alice", "dst": "tailbone", "ports": "80,8000-8010"}}})
	awaitOpenPorts(map[uint16]bool{80: true, 81: false, 7999: false, 8000: true, 8010: true, 8011: false})
	mustCall(t, d, "POST", "/access", m{"rules": []any{m{"src": "tag:other", "dst": "*", "ports": "*"}, m{"src": "alice@example.com", "dst": "alice", "ports": "*"}}})
	awaitOpenPorts(map[uint16]bool{80: false, 81: false})
	mustCall(t, d, "POST", "/access", m{"rules": []any{m{"src": "*", "dst": "*", "ports": "81"}}})
	awaitOpenPorts(map[uint16]bool{80: false, 81: true})
	mustCall(t, d, "POST", "/access", m{"rules": []any{}})
	awaitOpenPorts(map[uint16]bool{80: false, 81: false})
	mustCall(t, d, "DELETE", "/access", nil)
	awaitOpenPorts(map[uint16]bool{80: true, 81: true})
	for _, in := range []any{nil, m{"rules": []any{m{"src": "nobody", "dst": "*", "ports": "*"}}}, m{"rules": []any{m{"src": "*", "dst": "*", "ports": "0"}}},
		m{"rules": []any{m{"src": "*", "dst": "*", "ports": "90-80"}}}} {
		if status, out := request(t, d, "POST", "/access", in); status != 400 && status != 404 {
			t.Errorf("%v: %d %s", in, status, out)
		}
	}
}

// Invented peers are known to every node that joins, and stay while others come and go.
func TestInventedPeers(t *testing.T) {
	d := startDevnet(t, "alice=alice@example.com")
	s := mustJoin(t, newNode(t, d, "tailbone", d.authKey))
	mustCall(t, d, "POST", "/crowd", m{"count": 3})
	awaitWhoIs(t, s, "100.127.0.2", func(w *apitype.WhoIsResponse) bool { return w.UserProfile.LoginName == "invented-2@example.com" })
	mustCall(t, d, "POST", "/crowd", m{"count": 300})
	late := mustJoin(t, newNode(t, d, "late", d.authKey))
	for _, s := range []*tsnet.Server{s, late} {
		awaitWhoIs(t, s, "100.127.1.43", func(w *apitype.WhoIsResponse) bool { return w.UserProfile.LoginName == "invented-299@example.com" })
		awaitWhoIs(t, s, d.ready().Peers["alice"].IP, func(w *apitype.WhoIsResponse) bool { return w.UserProfile.LoginName == "alice@example.com" })
	}
	mustCall(t, d, "DELETE", "/nodes/late", nil)
	awaitWhoIs(t, s, "100.127.0.0", func(w *apitype.WhoIsResponse) bool { return w.Node.Name == "invented-0."+suffix+"." })
	if status, out := request(t, d, "POST", "/crowd", m{"count": 299}); status != 400 {
		t.Errorf("fewer invented peers: %d %s", status, out)
	}
}
