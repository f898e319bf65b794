// The control server with faults, the proxies, and the API's refusals.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"tailscale.com/client/tailscale/apitype"
	"tailscale.com/envknob"
	"tailscale.com/ipn"
	"tailscale.com/types/key"
)

func jsonInt(i int) string { return fmt.Sprint(i) }

// getKey asks the control server for its key, as a joining node does first.
func getKey(d *devnet, timeout time.Duration) (int, error) {
	c := &http.Client{Timeout: timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := c.Get(d.ready().ControlURL + "/key?v=100")
	if err != nil {
		return 0, err
	}
	res.Body.Close()
	return res.StatusCode, nil
}

func TestAStreamSendsNothingWhileControlFails(t *testing.T) {
	d, err := newFaultyListener()
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(d.reservedFD)
	passable := func(how fault) bool {
		if err := d.setFault(how); err != nil {
			t.Fatal(err)
		}
		return d.mayDeliver(t.Context())
	}
	if !passable(fault{Mode: "ok"}) || !passable(fault{Mode: "fail", Status: 503, Path: "/machine/register"}) {
		t.Error("held up although no fault applies")
	}
	if passable(fault{Mode: "fail", Status: 503}) {
		t.Error("what control fails at is said all the same")
	}
}

func TestControlFaults(t *testing.T) {
	t.Parallel() // with the next: both wait for clients to try again
	d := startDevnet(t, "alice=alice@example.com")
	s := mustJoin(t, newNode(t, d, "tailbone", d.authKey))
	alice := d.ready().Peers["alice"].IP
	url := d.ready().ControlURL
	awaitWhoIs(t, s, alice, func(*apitype.WhoIsResponse) bool { return true })

	// follows proves that a running node hears about changes (again).
	count := 0
	rename := func() string {
		count++
		login := fmt.Sprintf("alice%d@example.com", count)
		mustCall(t, d, "POST", "/nodes/alice/login", m{"login": login})
		return login
	}
	awaitLogin := func(login string) {
		t.Helper()
		waitUntil(t, 15*time.Second, func() string {
			if w := whois(t, s, alice); w == nil || w.UserProfile.LoginName != login {
				return "the node does not hear of " + login
			}
			return ""
		})
	}
	expectUnchanged := func(login string) {
		t.Helper()
		time.Sleep(100 * time.Millisecond)
		if w := whois(t, s, alice); w != nil && w.UserProfile.LoginName == login {
			t.Fatal("the node heard of a change through a control server with a fault")
		}
	}

	mustCall(t, d, "POST", "/control", m{"mode": "hold"})
	if _, err := getKey(d, 150*time.Millisecond); err == nil || !strings.Contains(err.Error(), "deadline") && !strings.Contains(err.Error(), "Timeout") {
		t.Errorf("hold: %v, want a time-out", err)
	}
	login := rename()
	expectUnchanged(login)
	joiner := newNode(t, d, "late", d.authKey)
	t.Cleanup(func() { joiner.Close() })
	if err := joiner.Start(); err != nil {
		t.Fatal(err)
	}
	mustCall(t, d, "POST", "/control", m{"mode": "ok"})
	awaitLogin(login)
	waitState(t, joiner, ipn.Running)

	mustCall(t, d, "POST", "/control", m{"mode": "fail", "status": 503})
	if status, err := getKey(d, time.Second); status != 503 {
		t.Errorf("fail: %d %v, want 503", status, err)
	}
	login = rename()
	expectUnchanged(login)
	mustCall(t, d, "POST", "/control", m{"mode": "ok"})
	awaitLogin(login)

	mustCall(t, d, "POST", "/control", m{"mode": "fail", "path": "/machine/register"})
	if status, err := getKey(d, time.Second); status != 200 {
		t.Errorf("fail of another path: %d %v, want 200", status, err)
	}
	awaitLogin(rename())

	mustCall(t, d, "POST", "/control", m{"mode": "slow", "delay_ms": 200})
	began := time.Now()
	if status, err := getKey(d, 5*time.Second); status != 200 || time.Since(began) < 200*time.Millisecond {
		t.Errorf("slow: %d %v after %v, want 200 after 200 ms", status, err, time.Since(began))
	}
	awaitLogin(rename())
	mustCall(t, d, "POST", "/control", m{"mode": "ok"})

	standing, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer standing.Close()
	if status, err := getKey(d, time.Second); status != 200 { // accepted after standing, so that is accepted
		t.Errorf("before down: %d %v", status, err)
	}
	mustCall(t, d, "POST", "/control", m{"mode": "down"})
	standing.SetReadDeadline(time.Now().Add(propagationLimit))
	if _, err := standing.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("down: a standing connection is not cut (%v)", err)
	}
	if _, err := getKey(d, time.Second); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("down: %v, want connection refused", err)
	}
	if getNode(t, d, "alice").ID == "" {
		t.Error("the API went down with the control server")
	}
	login = rename()
	expectUnchanged(login)
	mustCall(t, d, "POST", "/control", m{"mode": "ok"})
	if got := d.ready().ControlURL; got != url {
		t.Errorf("came back at %s instead of %s", got, url)
	}
	awaitLogin(login)
	if status, err := getKey(d, time.Second); status != 200 {
		t.Errorf("ok again: %d %v", status, err)
	}
}

func TestEphemeralOutlivesFaults(t *testing.T) {
	t.Parallel()
	d := startDevnet(t)
	s := newNode(t, d, "brief", d.authKey)
	s.Ephemeral = true
	mustJoin(t, s)
	before := getNode(t, d, "brief").ID
	mustCall(t, d, "POST", "/config", m{"ephemeral_grace_ms": 50})
	mustCall(t, d, "POST", "/control", m{"mode": "down"})
	waitUntil(t, propagationLimit, func() string {
		if getNode(t, d, "brief").Online {
			return "still online"
		}
		return ""
	})
	time.Sleep(200 * time.Millisecond) // four times the grace time
	mustCall(t, d, "POST", "/config", m{"ephemeral_grace_ms": 30_000})
	mustCall(t, d, "POST", "/control", m{"mode": "ok"})
	waitUntil(t, 15*time.Second, func() string {
		if !getNode(t, d, "brief").Online {
			return "not back"
		}
		return ""
	})
	if after := getNode(t, d, "brief").ID; after != before {
		t.Errorf("came back as %s instead of %s", after, before)
	}
}

// A ping requested before the peer knows how to reach the other node must not be lost.
func TestPingBeforeThePathIsKnown(t *testing.T) {
	d := startDevnet(t, "alice=alice@example.com")
	mustJoin(t, newNode(t, d, "tailbone", d.authKey))
	alice, ip := d.peers["alice"].node, getNode(t, d, "tailbone").IP
	awaitWhoIs(t, alice, ip, func(w *apitype.WhoIsResponse) bool { return !w.Node.DiscoKey.IsZero() })

	// The node may report its disco key once more, so it is removed until alice has seen that.
	var known key.DiscoPublic
	setDisco := func(k key.DiscoPublic) {
		d.tailnet.mu.Lock()
		defer d.tailnet.mu.Unlock()
		if n := d.tailnet.find("tailbone"); n.disco != k {
			known, n.disco = n.disco, k
			d.tailnet.touch()
		}
	}
	awaitWhoIs(t, alice, ip, func(w *apitype.WhoIsResponse) bool {
		setDisco(key.DiscoPublic{})
		return w.Node.DiscoKey.IsZero()
	})

	answered := make(chan int, 1)
	go func() {
		status, _ := request(t, d, "POST", "/peers/alice/ping", m{"to": "tailbone"})
		answered <- status
	}()
	time.Sleep(100 * time.Millisecond) // the ping is on its way to nowhere
	setDisco(known)
	select {
	case status := <-answered:
		if status != http.StatusOK {
			t.Errorf("status %d", status)
		}
	case <-time.After(9 * time.Second):
		t.Error("no answer")
	}
}

func TestDelay(t *testing.T) {
	t.Cleanup(func() { envknob.Setenv("TS_DEBUG_NEVER_DIRECT_UDP", "") })
	const delay = 30 * time.Millisecond
	d := startSlowDevnet(t, delay, "alice=alice@example.com")
	mustJoin(t, newNode(t, d, "tailbone", d.authKey))
	mustCall(t, d, "POST", "/peers/alice/ping", m{"to": "tailbone"})
	took := call[map[string]any](t, d, "POST", "/peers/alice/ping", m{"to": "tailbone"})["latency_ms"].(float64)
	if there := 2 * float64(delay.Milliseconds()); took < there {
		t.Errorf("there and back in %v ms, want %v at least", took, there)
	}
}

func TestProxyResolvesNames(t *testing.T) {
	d := startDevnet(t, "alice=alice@example.com", "ci=tag:ci")
	s := mustJoin(t, newNode(t, d, "tailbone", d.authKey))
	ln, err := s.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	lc, err := s.LocalClient()
	if err != nil {
		t.Fatal(err)
	}
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, err := lc.WhoIs(r.Context(), r.RemoteAddr)
		if err != nil {
			http.Error(w, err.Error(), 500)
			return
		}
		fmt.Fprint(w, who.UserProfile.LoginName, " ", who.Node.Tags)
	})}
	go web.Serve(ln)
	defer web.Close()

	n := getNode(t, d, "tailbone")
	for peer, want := range map[string]string{"alice": "alice@example.com []", "ci": "tagged-devices [tag:ci]"} {
		// Opens the session, so that no first packet is lost.
		mustCall(t, d, "POST", "/peers/"+peer+"/ping", m{"to": "tailbone"})
		proxy, err := url.Parse(d.ready().Peers[peer].Proxy)
		if err != nil {
			t.Fatal(err)
		}
		if host, _, _ := net.SplitHostPort(proxy.Host); host != "127.0.0.1" {
			t.Errorf("proxy at %s", proxy)
		}
		c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{Proxy: http.ProxyURL(proxy), DisableKeepAlives: true}}
		for _, host := range []string{"tailbone", n.Name, n.Name + ".", n.IP, "[" + n.IP6 + "]"} {
			res, err := c.Get("http://" + host + "/")
			if err != nil {
				t.Errorf("%s to %s: %v", peer, host, err)
				continue
			}
			body, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if string(body) != want {
				t.Errorf("%s to %s: %q, want %q", peer, host, body, want)
			}
		}
		if _, err := c.Get("http://nobody/"); err == nil {
			t.Error("the proxy reached a host that is not there")
		}
	}
}

func TestAPIRefusals(t *testing.T) {
	d := startDevnet(t, "alice=alice@example.com")
	for _, c := range []struct {
		method, path, body string
		status             int
		words              string
	}{
		{"POST", "/nodes/bob/tags", `{"tags":[]}`, 404, `"bob"`},
		{"DELETE", "/nodes/100.64.77.1", "", 404, "100.64.77.1"},
		{"DELETE", "/peers/bob", "", 404, "bob"},
		{"POST", "/peers/bob/ping", `{"to":"alice"}`, 404, "bob"},
		{"POST", "/peers/alice/ping", `{"to":"bob"}`, 404, "bob"},
		{"DELETE", "/keys/k1", "", 404, "k1"},
		{"DELETE", "/grants/7", "", 404, "7"},
		{"POST", "/logins/x/complete", "", 404, "x"},
		{"GET", "/nothing", "", 404, "/nothing"},
		{"POST", "/nodes/alice/tags", `{"tags":["ci"]}`, 400, "tag:"},
		{"POST", "/nodes/alice/tags", `{}`, 400, "empty list"},
		{"POST", "/nodes/alice/tags", `{"tag":["tag:x"]}`, 400, "tag"},
		{"POST", "/nodes/alice/tags", `{"tags":`, 400, "body"},
		{"POST", "/nodes/alice/login", `{"login":"@example.com"}`, 400, "alice@example.com"},
		{"POST", "/nodes/alice/login", ``, 400, "login"},
		{"POST", "/nodes/alice/expire", `{"at":"tomorrow"}`, 400, "at"},
		{"POST", "/nodes/alice/share", `{"sharee":true,"sharer":"b@example.com"}`, 400, "not both"},
		{"POST", "/keys", `{"tags":["x"]}`, 400, "tag"},
		{"POST", "/oauth-clients", `{}`, 400, "tags"},
		{"POST", "/grants", `{"src":"*","dst":"*"}`, 400, "caps"},
		{"POST", "/grants", `{"src":"bob","dst":"*","caps":{"a/b":[]}}`, 404, "bob"},
		{"POST", "/grants", `{"src":"*","dst":"*","caps":{"ab":[]}}`, 400, "ab"},
		{"POST", "/control", `{"mode":"broken"}`, 400, "broken"},
		{"POST", "/control", `{"mode":"slow"}`, 400, "delay_ms"},
		{"POST", "/control", `{"mode":"fail","status":200}`, 400, "200"},
		{"POST", "/config", `{"ephemeral_grace_ms":-1}`, 400, "negative"},
		{"POST", "/peers", `{"name":"Bob","login":"b@example.com"}`, 400, "Bob"},
		{"POST", "/peers", `{"name":"bob"}`, 400, "bob"},
		{"POST", "/peers", `{"name":"alice","login":"a@example.com"}`, 400, "already"},
	} {
		var in any
		if c.body != "" {
			in = c.body
		}
		status, out := request(t, d, c.method, c.path, in)
		if status != c.status || !strings.Contains(string(out), `"error"`) || !strings.Contains(strings.ReplaceAll(string(out), `\"`, `"`), c.words) {
			t.Errorf("%s %s %s: %d %s, want %d and %s", c.method, c.path, c.body, status, out, c.status, c.words)
		}
	}
	if status, out := request(t, d, "GET", "/healthz", nil); status != 200 {
		t.Errorf("healthz: %d %s", status, out)
	}
	if n := getNode(t, d, "alice"); n.Login != "alice@example.com" || len(n.Tags) != 0 {
		t.Errorf("a refused change was made: %+v", n)
	}
}

func TestStartRefusesBadPeer(t *testing.T) {
	for _, s := range []string{"alice", "alice=", "=a@example.com", "alice=@bob", "alice=tag:", "Alice=a@example.com", "a=tag:x,b"} {
		if _, err := parsePeer(s); err == nil {
			t.Errorf("--peer %s was accepted", s)
		}
	}
	d := startDevnet(t)
	d.close()
	d.close()
	if _, err := d.addPeer(context.Background(), peerSpec{Name: "x", Login: "x@example.com"}); err == nil {
		t.Error("a closed devnet took a peer")
	}
}
