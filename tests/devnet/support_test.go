// What the tests share: a devnet in this process, real tsnet nodes on it, and calls of the test
// API. Tests wait for a condition, never for a time to pass; what must happen fast has a time
// limit.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"tailscale.com/client/tailscale/apitype"
	"tailscale.com/ipn"
	"tailscale.com/ipn/store/mem"
	"tailscale.com/tsnet"
	"tailscale.com/types/logger"
)

const (
	owner  = "owner@example.com"
	suffix = "example-devnet.ts.net"
	// propagationLimit limits how long a change may take to reach a node's WhoIs: well above what
	// it takes (milliseconds), since race-checked code on a busy machine is slow.
	propagationLimit = time.Second
)

func startDevnet(t *testing.T, peers ...string) *devnet {
	t.Helper()
	return startSlowDevnet(t, 0, peers...)
}

func startSlowDevnet(t *testing.T, delay time.Duration, peers ...string) *devnet {
	t.Helper()
	return startDevnetWith(t, options{delay: delay}, peers...)
}

func startDevnetWith(t *testing.T, o options, peers ...string) *devnet {
	t.Helper()
	o.owner, o.suffix, o.ephemeralGrace, o.dir = owner, suffix, 300*time.Millisecond, t.TempDir()
	for _, p := range peers {
		spec, err := parsePeer(p)
		if err != nil {
			t.Fatal(err)
		}
		o.peers = append(o.peers, spec)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	d, err := start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	return d
}

// newNode makes a tsnet node that is not started yet.
func newNode(t *testing.T, d *devnet, host, authKey string) *tsnet.Server {
	t.Helper()
	s := &tsnet.Server{
		Dir:        t.TempDir(),
		Store:      memoryStore{new(mem.Store)},
		Hostname:   host,
		ControlURL: d.ready().ControlURL,
		AuthKey:    authKey,
		Logf:       logger.Discard,
		UserLogf:   logger.Discard,
	}
	return s
}

// mustJoin joins a node and closes it when the test ends.
func mustJoin(t *testing.T, s *tsnet.Server) *tsnet.Server {
	t.Helper()
	if err := join(t, s); err != nil {
		t.Fatalf("%s did not join: %v", s.Hostname, err)
	}
	return s
}

func join(t *testing.T, s *tsnet.Server) error {
	t.Helper()
	t.Cleanup(func() { s.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := s.Up(ctx)
	return err
}

func state(t *testing.T, s *tsnet.Server) string {
	t.Helper()
	lc, err := s.LocalClient()
	if err != nil {
		t.Fatal(err)
	}
	st, err := lc.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st.BackendState
}

func authURL(t *testing.T, s *tsnet.Server) string {
	t.Helper()
	lc, err := s.LocalClient()
	if err != nil {
		t.Fatal(err)
	}
	st, err := lc.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st.AuthURL
}

// whois asks node s who has this address: nil if nobody.
func whois(t *testing.T, s *tsnet.Server, ip string) *apitype.WhoIsResponse {
	t.Helper()
	lc, err := s.LocalClient()
	if err != nil {
		t.Fatal(err)
	}
	w, err := lc.WhoIs(t.Context(), ip)
	if err != nil {
		return nil
	}
	return w
}

// waitUntil waits until f returns "", at most d; otherwise it fails with the last text of f.
func waitUntil(t *testing.T, d time.Duration, f func() string) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		problem := f()
		if problem == "" {
			return time.Since(began)
		}
		if time.Since(began) > d {
			t.Fatalf("not within %v: %s", d, problem)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// awaitWhoIs waits until s knows the address and accept returns true for its identity.
func awaitWhoIs(t *testing.T, s *tsnet.Server, ip string, accept func(*apitype.WhoIsResponse) bool) time.Duration {
	t.Helper()
	return waitUntil(t, propagationLimit, func() string {
		w := whois(t, s, ip)
		if w == nil {
			return "WhoIs " + ip + ": unknown"
		}
		if !accept(w) {
			return fmt.Sprintf("WhoIs %s: %s %v expired=%v caps=%v", ip, w.UserProfile.LoginName, w.Node.Tags, w.Node.Expired, w.CapMap)
		}
		return ""
	})
}

func waitState(t *testing.T, s *tsnet.Server, want ipn.State) {
	t.Helper()
	waitUntil(t, 5*time.Second, func() string {
		if got := state(t, s); got != want.String() {
			return "state " + got + ", want " + want.String()
		}
		return ""
	})
}

// call calls the test API and expects success.
func call[T any](t *testing.T, d *devnet, method, path string, in any) T {
	t.Helper()
	status, out := request(t, d, method, path, in)
	if status != http.StatusOK {
		t.Fatalf("%s %s: %d %s", method, path, status, out)
	}
	var v T
	if err := json.Unmarshal(out, &v); err != nil {
		t.Fatalf("%s %s: %v in %s", method, path, err, out)
	}
	return v
}

func mustCall(t *testing.T, d *devnet, method, path string, in any) {
	t.Helper()
	call[map[string]any](t, d, method, path, in)
}

func request(t *testing.T, d *devnet, method, path string, in any) (int, []byte) {
	t.Helper()
	var body io.Reader
	switch in := in.(type) {
	case nil:
	case string:
		body = strings.NewReader(in)
	default:
		b, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, d.apiURL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	out, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, out
}

func getNode(t *testing.T, d *devnet, ref string) nodeRecord {
	t.Helper()
	return call[nodeRecord](t, d, "GET", "/nodes/"+ref, nil)
}

func makeAuthKey(t *testing.T, d *devnet, in map[string]any) string {
	t.Helper()
	return call[map[string]string](t, d, "POST", "/keys", in)["auth_key"]
}

type m = map[string]any
