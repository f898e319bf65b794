// What a node's WhoIs says of its callers, and that it says so soon after the
// test API changed it.
package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"tailscale.com/client/tailscale/apitype"
	"tailscale.com/ipn"
	"tailscale.com/tailcfg"
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

	// By tag and to everybody, and following the node when the tag goes.
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

	// At a time to come: nobody asks for anything when it is reached.
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
	// The last one: an empty list is easily taken for "no change".
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
