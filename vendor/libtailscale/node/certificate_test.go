package node

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
)

// authority is an ACME server that believes everybody. tests/devnet has the tests with a real one.
type authority struct {
	t    *testing.T
	url  string
	root *x509.Certificate
	key  *ecdsa.PrivateKey
	// answer, if set, may answer a request itself, and then returns true. It is called without the
	// lock.
	answer func(w http.ResponseWriter, r *http.Request, payload []byte) bool

	mu       sync.Mutex
	requests int
	orders   []string          // what each replaces
	records  map[string]string // published by the control server
	invalid  string            // why validations fail
	ready    bool
	issued   []byte
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, records: map[string]string{}}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root of the test"}, NotBefore: time.Now().Add(-24 * 365 * time.Hour),
		NotAfter: time.Now().Add(24 * 365 * time.Hour), IsCA: true, BasicConstraintsValid: true, SubjectKeyId: []byte{1, 2, 3},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	a.key = key
	a.root, _ = x509.ParseCertificate(der)
	s := httptest.NewServer(a)
	a.url = s.URL
	t.Cleanup(s.Close)
	t.Setenv("TS_DEBUG_ACME_DIRECTORY_URL", s.URL+"/directory")
	return a
}

// issue makes a certificate for the host, valid until then and for 90 days altogether.
func (a *authority) issue(host string, key any, until time.Time) []byte {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: []string{host}, NotBefore: until.Add(-90 * 24 * time.Hour), NotAfter: until,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.root, key, a.key)
	if err != nil {
		a.t.Error(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func (a *authority) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var signed struct{ Payload string }
	json.NewDecoder(r.Body).Decode(&signed)
	payload, _ := base64.RawURLEncoding.DecodeString(signed.Payload)
	a.mu.Lock()
	a.requests++
	w.Header().Set("Replay-Nonce", fmt.Sprint("nonce", a.requests))
	answer := a.answer
	a.mu.Unlock()
	if answer != nil && answer(w, r, payload) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	reply := func(status int, v map[string]any) {
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(v)
	}
	order := func() map[string]any {
		v := map[string]any{"status": "pending", "authorizations": []string{a.url + "/authorization"}, "finalize": a.url + "/finalize"}
		switch {
		case a.issued != nil:
			v["status"], v["certificate"] = "valid", a.url+"/certificate"
		case a.ready && a.invalid != "":
			v["status"] = "invalid"
		case a.ready:
			v["status"] = "ready"
		}
		w.Header().Set("Location", a.url+"/order")
		return v
	}
	challenge := map[string]any{"type": "dns-01", "url": a.url + "/challenge", "token": "token", "status": "pending"}
	switch r.URL.Path {
	case "/directory":
		reply(200, map[string]any{
			"newNonce": a.url + "/nonce", "newAccount": a.url + "/account", "newOrder": a.url + "/new-order", "renewalInfo": a.url + "/renewal",
		})
	case "/nonce":
	case "/account":
		w.Header().Set("Location", a.url+"/account/1")
		reply(201, map[string]any{"status": "valid"})
	case "/new-order":
		var in struct{ Replaces string }
		json.Unmarshal(payload, &in)
		a.orders = append(a.orders, in.Replaces)
		a.ready, a.issued = false, nil
		reply(201, order())
	case "/order":
		reply(200, order())
	case "/authorization":
		v := map[string]any{"status": "pending", "identifier": map[string]string{"type": "dns", "value": "first.loop.ts.net"}}
		if a.ready && a.invalid != "" {
			v["status"] = "invalid"
			challenge["status"], challenge["error"] = "invalid", map[string]any{"type": "urn:ietf:params:acme:error:dns", "status": 400, "detail": a.invalid}
		}
		v["challenges"] = []any{map[string]any{"type": "tls-alpn-01", "url": a.url + "/never", "token": "token"}, challenge}
		reply(200, v)
	case "/challenge":
		if a.records["_acme-challenge.first.loop.ts.net"] == "" {
			a.t.Error("the validation was asked for before the record was published")
		}
		a.ready = true
		reply(200, challenge)
	case "/finalize":
		var in struct{ CSR string }
		json.Unmarshal(payload, &in)
		der, _ := base64.RawURLEncoding.DecodeString(in.CSR)
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil || len(csr.DNSNames) != 1 {
			a.t.Errorf("request for a certificate: %v", err)
			return
		}
		a.issued = a.issue(csr.DNSNames[0], csr.PublicKey, time.Now().Add(89*24*time.Hour))
		reply(200, order())
	case "/certificate":
		w.Write(a.issued)
	default:
		a.t.Errorf("a request for %s", r.URL.Path)
	}
}

// on answers requests for a path with a problem.
func (a *authority) on(path string, status int, retryAfter, problem, detail string) {
	a.setAnswer(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		if r.URL.Path != path {
			return false
		}
		refuseACME(w, status, retryAfter, problem, detail)
		return true
	})
}

func refuseACME(w http.ResponseWriter, status int, retryAfter, problem, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	if retryAfter != "" {
		w.Header().Set("Retry-After", retryAfter)
	}
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"type": "urn:ietf:params:acme:error:" + problem, "detail": detail, "status": status})
}

func (a *authority) setAnswer(f func(http.ResponseWriter, *http.Request, []byte) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer = f
}

func (a *authority) counts() (requests, orders int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.requests, len(a.orders)
}

// publish is the control server's part.
func (a *authority) publish(r *tailcfg.SetDNSRequest) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.records[r.Name] = r.Value
	return nil
}

func newCertTailnet(t *testing.T, change ...func(*testcontrol.Server)) (*authority, *tailnet) {
	t.Helper()
	a := newAuthority(t)
	return a, newTailnet(t, append([]func(*testcontrol.Server){func(c *testcontrol.Server) { c.OnSetDNS = a.publish }}, change...)...)
}

// certReply is the message that tailscale_cert promises.
type certReply struct {
	Cert, Key, Message string
	Code               Code
	ACMEStatus         int   `json:"acme_status"`
	RetryAfter         int64 `json:"retry_after"`
}

func (m *testNode) startCert(name string, minValidity int64) int {
	m.t.Helper()
	fd, err := m.node().Cert([]byte(name), minValidity)
	if err != nil {
		m.t.Fatalf("cert: %v", err)
	}
	return fd
}

func readCertReply(t testing.TB, fd int) certReply {
	t.Helper()
	defer unix.Close(fd)
	if !readyToRead(fd, 15*time.Second) {
		t.Fatal("no certificate and no failure in time")
	}
	msg := make([]byte, maxCertMessage+1)
	n, err := unix.Read(fd, msg)
	var r certReply
	if err != nil || json.Unmarshal(msg[:n], &r) != nil || (r.Cert == "") == (r.Message == "") || (r.Cert == "") != (r.Key == "") {
		t.Fatalf("message %q (%v)", msg[:max(n, 0)], err)
	}
	if !readyToRead(fd, time.Second) {
		t.Error("the descriptor does not end after its message")
	} else if n, _ := unix.Read(fd, msg); n != 0 {
		t.Errorf("a second message: %q", msg[:n])
	}
	return r
}

func (m *testNode) cert(name string, minValidity int64) certReply {
	m.t.Helper()
	return readCertReply(m.t, m.startCert(name, minValidity))
}

// mustCert gets a certificate and checks it.
func (m *testNode) mustCert(a *authority, name string, minValidity int64) *certPair {
	m.t.Helper()
	r := m.cert(name, minValidity)
	if r.Message != "" {
		m.t.Fatalf("failure %d: %s", r.Code, r.Message)
	}
	p, err := newCertPair(name, []byte(r.Cert), []byte(r.Key))
	if err != nil {
		m.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.root)
	if _, err := p.leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, CurrentTime: p.leaf.NotAfter.Add(-time.Hour)}); err != nil {
		m.t.Fatal(err)
	}
	return p
}

func (r certReply) check(t *testing.T, code Code, status int, words ...string) {
	t.Helper()
	if r.Code != code || r.ACMEStatus != status {
		t.Errorf("code %d, status %d, want %d and %d: %s", r.Code, r.ACMEStatus, code, status, r.Message)
	}
	for _, w := range words {
		if !strings.Contains(r.Message, w) {
			t.Errorf("no %q in the message %q", w, r.Message)
		}
	}
}

const firstName = "first.loop.ts.net"

const day = 24 * 3600

// keep puts a pair into the state directory that ends then.
func (a *authority) keep(m *testNode, host string, until time.Time) {
	a.t.Helper()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	text, _ := encodeKey(key)
	if err := newCertStore(m.node().store, m.node().cfg.Dir).setPair(host, a.issue(host, key.Public(), until), text); err != nil {
		a.t.Fatal(err)
	}
}

// forget removes the record of orders, so that the next one is not refused.
func (m *testNode) forget() {
	m.node().store.WriteState(orderRecordKey(firstName), nil)
}

func TestCertificateIsOrderedOnceAndKept(t *testing.T) {
	a, tn := newCertTailnet(t)
	check := checkLeaks(t)
	cfg := tn.config("first")
	m := tn.make(cfg)
	m.await("Running")
	m.awaitStatus("its names", func(p nodeStatus) bool { return len(p.CertDomains) == 1 && p.CertDomains[0] == firstName })

	var all [3]int
	for i := range all {
		all[i] = m.startCert(firstName+".", 0)
	}
	var first certReply
	for i, fd := range all {
		r := readCertReply(t, fd)
		if r.Message != "" || i > 0 && r != first {
			t.Fatalf("call %d: %+v", i, r)
		}
		first = r
	}
	if _, orders := a.counts(); orders != 1 {
		t.Errorf("%d orders for three calls at once", orders)
	}
	p := m.mustCert(a, strings.ToUpper(firstName[:1])+firstName[1:], 30*day)
	if string(p.chain) != first.Cert {
		t.Error("another certificate")
	}
	for _, name := range []string{firstName + ".crt", firstName + ".key", accountKeyName} {
		if st, err := os.Stat(filepath.Join(cfg.Dir, "certs", name)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
	requests, _ := a.counts()
	m.close()

	// Without the network: even before the node has joined.
	m = tn.make(cfg)
	if r := m.cert(firstName, 30*day); r != first {
		t.Errorf("after a restart: %+v", r)
	}
	m.close()
	if now, _ := a.counts(); now != requests {
		t.Errorf("%d requests after a restart", now-requests)
	}
	check()
}

func TestRenewal(t *testing.T) {
	a, tn := newCertTailnet(t)
	m := tn.join("first")
	a.keep(m, firstName, time.Now().Add(29*24*time.Hour))
	old := m.mustCert(a, firstName, 28*day)
	if _, orders := a.counts(); orders != 0 {
		t.Errorf("%d orders while enough is left", orders)
	}
	fresh := m.mustCert(a, firstName, 30*day)
	if fresh.leaf.NotAfter.Equal(old.leaf.NotAfter) || string(fresh.key) == string(old.key) {
		t.Error("the certificate was not replaced")
	}
	// More than a certificate can have is not asked for.
	m.mustCert(a, firstName, 3650*day)
	if _, orders := a.counts(); orders != 1 || a.orders[0] == "" {
		t.Errorf("orders replace %q, want one that names the old certificate", a.orders)
	}

	// A pair that has ended is given only to those who ask for it.
	a.keep(m, firstName, time.Now().Add(-time.Hour))
	if p := m.mustCert(a, firstName, -day); p.leaf.NotAfter.After(time.Now()) {
		t.Error("another pair than the kept one")
	}
	if p := m.mustCert(a, firstName, 0); p.leaf.NotAfter.Before(time.Now()) {
		t.Error("a certificate that has ended")
	}
	// As is one without its key.
	if err := os.WriteFile(filepath.Join(m.node().cfg.Dir, "certs", firstName+".key"), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.mustCert(a, firstName, 0)
	if _, orders := a.counts(); orders != 3 || a.orders[1] != "" || a.orders[2] != "" {
		t.Errorf("orders replace %q", a.orders)
	}
}

// An authority that does not accept what an order replaces must not end renewals.
func TestRenewalWithoutReplaced(t *testing.T) {
	a, tn := newCertTailnet(t)
	m := tn.join("first")
	a.keep(m, firstName, time.Now().Add(24*time.Hour))
	a.setAnswer(func(w http.ResponseWriter, r *http.Request, payload []byte) bool {
		refuse := r.URL.Path == "/new-order" && strings.Contains(string(payload), "replaces")
		if refuse {
			refuseACME(w, 409, "", "alreadyReplaced", "it has a replacement order")
		}
		return refuse
	})
	m.mustCert(a, firstName, 30*day)
}

func TestRefusedOrders(t *testing.T) {
	a, tn := newCertTailnet(t)
	cfg := tn.config("first")
	m := tn.make(cfg)
	m.await("Running")

	a.on("/new-order", 429, "120", "rateLimited", "too many certificates\nalready")
	r := m.cert(firstName, 0)
	r.check(t, ACME, 429, "127.0.0.1", "429 (rate limit) while ordering the certificate: too many certificates already")
	if r.RetryAfter != 120 {
		t.Errorf("retry after %d", r.RetryAfter)
	}
	// The wait holds without asking again, and after a restart.
	requests, _ := a.counts()
	m.close()
	m = tn.make(cfg)
	m.await("Running")
	r = m.cert(firstName, 0)
	r.check(t, ACME, 429, "waits for", "too many certificates")
	if r.RetryAfter < 100 || r.RetryAfter > 120 {
		t.Errorf("retry after %d", r.RetryAfter)
	}
	if now, _ := a.counts(); now != requests {
		t.Errorf("%d requests during the wait", now-requests)
	}

	for _, c := range []struct {
		path       string
		status     int
		retryAfter string
		want       int64
		words      string
	}{
		{"/account", 429, "", 3600, "registering the account"},
		{"/directory", 503, time.Now().Add(time.Minute).UTC().Format(http.TimeFormat), 60, "fetching the directory"},
		{"/finalize", 403, "", 0, "issuing the certificate"},
	} {
		m.forget()
		a.on(c.path, c.status, c.retryAfter, "unauthorized", "no")
		r := m.cert(firstName, 0)
		r.check(t, ACME, c.status, c.words)
		if r.RetryAfter < c.want-2 || r.RetryAfter > c.want {
			t.Errorf("%s: retry after %d, want %d", c.path, r.RetryAfter, c.want)
		}
	}
	// The last of them was a failed order: the next waits, although the authority did not ask.
	if r := m.cert(firstName, 0); r.RetryAfter < 5 || r.RetryAfter > 10 || r.Code != ACME || r.ACMEStatus != 403 {
		t.Errorf("after a failed order: %+v", r)
	}

	m.forget()
	a.setAnswer(nil)
	a.mu.Lock()
	a.invalid = "NXDOMAIN looking up TXT"
	a.mu.Unlock()
	m.cert(firstName, 0).check(t, ACME, 400, "validating the name", "NXDOMAIN looking up TXT")
	a.mu.Lock()
	a.invalid = ""
	a.mu.Unlock()

	m.forget()
	m.mustCert(a, firstName, 0)
}

// Trouble that passes is no failure: a nonce that was used up, and an error or two of the server.
func TestPassingTrouble(t *testing.T) {
	a, tn := newCertTailnet(t)
	m := tn.join("first")
	nonces, errors := 3, 1
	a.setAnswer(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		switch {
		case r.URL.Path == "/account" && nonces > 0:
			nonces--
			refuseACME(w, 400, "", "badNonce", "used")
		case r.URL.Path == "/new-order" && errors > 0:
			errors--
			http.Error(w, "busy", http.StatusBadGateway)
		default:
			return false
		}
		return true
	})
	m.mustCert(a, firstName, 0)
}

// A node whose state is only in memory must not order at each start either.
func TestWaitOfNodeWithoutState(t *testing.T) {
	a, tn := newCertTailnet(t)
	cfg := tn.config("first")
	cfg.Store, cfg.Ephemeral = "mem:", true
	m := tn.make(cfg)
	m.await("Running")
	a.on("/new-order", 429, "120", "rateLimited", "too many")
	m.cert(firstName, 0).check(t, ACME, 429, "too many")
	requests, _ := a.counts()
	if err := m.node().Logout(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	m.close()
	m = tn.make(cfg)
	m.await("Running")
	m.cert(firstName, 0).check(t, ACME, 429, "waits for")
	if now, _ := a.counts(); now != requests {
		t.Errorf("%d requests during the wait", now-requests)
	}
}

func TestSetDNSRefused(t *testing.T) {
	_, tn := newCertTailnet(t, func(c *testcontrol.Server) {
		c.OnSetDNS = func(*tailcfg.SetDNSRequest) error { return errors.New("the zone is locked") }
	})
	m := tn.join("first")
	m.cert(firstName, 0).check(t, Refused, 0, "control server did not publish", "the zone is locked")
}

func TestUnreachableAuthority(t *testing.T) {
	_, tn := newCertTailnet(t)
	m := tn.join("first")
	t.Setenv("TS_DEBUG_ACME_DIRECTORY_URL", "http://127.0.0.1:1/directory")
	r := m.cert(firstName, 0)
	r.check(t, Unreachable, 0, "127.0.0.1:1 cannot be reached", "refused")

	stranger := httptest.NewUnstartedServer(http.NotFoundHandler())
	stranger.Config.ErrorLog = nil
	stranger.StartTLS()
	t.Cleanup(stranger.Close)
	t.Setenv("TS_DEBUG_ACME_DIRECTORY_URL", stranger.URL)
	m.cert(firstName, 0).check(t, Unreachable, 0, "cannot be reached", "certificate")
}

func TestNamesWithoutCertificate(t *testing.T) {
	a, tn := newCertTailnet(t)
	m := tn.join("first")
	m.cert("second.loop.ts.net", 0).check(t, Invalid, 0, "not a name of this node", firstName)
	for _, bad := range []string{"", "first", "../first.loop.ts.net", "a/b.loop.ts.net", "*.loop.ts.net", "a..b", strings.Repeat("a.", 200) + "b", "a.b\n"} {
		if _, err := m.node().Cert([]byte(bad), 0); err == nil || err.Code != Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := m.node().Cert([]byte(firstName), maxCertValidity+1); err == nil || err.Code != Invalid {
		t.Errorf("too long a validity: %v", err)
	}
	if requests, _ := a.counts(); requests != 0 {
		t.Errorf("%d requests", requests)
	}
}

func TestTailnetWithoutHTTPS(t *testing.T) {
	_, tn := newCertTailnet(t, func(c *testcontrol.Server) { c.DNSConfig = nil })
	m := tn.join("first")
	if d := m.lastStatus.CertDomains; d == nil || len(d) != 0 {
		t.Errorf("cert_domains: %v", d)
	}
	m.cert(firstName, 0).check(t, NoHTTPS, 0, "HTTPS is not enabled in this tailnet", "admin console")
}

func TestCertificateOfANodeThatIsNotRunning(t *testing.T) {
	_, tn := newCertTailnet(t, func(c *testcontrol.Server) { c.RequireAuth = true })
	cfg := tn.config("first")
	cfg.AuthKey = ""
	m := tn.make(cfg)
	m.await("NeedsLogin")
	m.cert(firstName, 0).check(t, BadState, 0, "NeedsLogin")
}

// An authority that takes connections and answers nothing.
func TestSilentAuthority(t *testing.T) {
	a, tn := newCertTailnet(t)
	check := checkLeaks(t)
	m := tn.join("first")
	gone := make(chan string, 10)
	a.setAnswer(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		<-r.Context().Done()
		gone <- r.URL.Path
		return true
	})
	awaitGone := func(what string) {
		t.Helper()
		select {
		case <-gone:
		case <-time.After(5 * time.Second):
			t.Errorf("%s: the request goes on", what)
		}
	}

	before := defaultCertLimits
	t.Cleanup(func() { defaultCertLimits = before })
	defaultCertLimits.request = 100 * time.Millisecond
	m.cert(firstName, 0).check(t, Timeout, 0, "did not answer within 100ms while fetching the directory")
	awaitGone("timeout")
	defaultCertLimits = certLimits{order: 100 * time.Millisecond, request: time.Minute}
	m.cert(firstName, 0).check(t, Timeout, 0, "after 100ms", "fetching the directory")
	awaitGone("deadline")
	defaultCertLimits = before

	fd := m.startCert(firstName, 0)
	a.awaitRequests(3)
	unix.Close(fd)
	awaitGone("closed descriptor")

	fd = m.startCert(firstName, 0)
	waiting := m.startCert(firstName, 0)
	a.awaitRequests(4)
	m.close()
	awaitGone("closed node")
	readCertReply(t, fd).check(t, Closed, 0)
	readCertReply(t, waiting).check(t, Closed, 0)
	check()
}

func (a *authority) awaitRequests(n int) {
	a.t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if requests, _ := a.counts(); requests >= n {
			return
		}
	}
	a.t.Fatal("the authority is not asked")
}

func TestUnusableCertificateState(t *testing.T) {
	a, tn := newCertTailnet(t)
	m := tn.join("first")
	certs := filepath.Join(m.node().cfg.Dir, "certs")
	if err := os.MkdirAll(filepath.Join(certs, firstName+".crt"), 0o700); err != nil {
		t.Fatal(err)
	}
	m.cert(firstName, 0).check(t, IO, 0, "cannot be read")
	os.RemoveAll(certs)
	os.MkdirAll(certs, 0o700)
	os.WriteFile(filepath.Join(certs, accountKeyName), []byte("torn"), 0o600)
	m.cert(firstName, 0).check(t, IO, 0, "ACME account", "remove it")
	if requests, _ := a.counts(); requests != 0 {
		t.Errorf("%d requests without a place to keep the certificate", requests)
	}
}

func TestRecordOfOrders(t *testing.T) {
	began := time.Unix(1_800_000_000, 0)
	at := func(d time.Duration) time.Time { return began.Add(d) }
	failed := certFailuref(ACME, "no").withStatus(403)
	wait := func(r *orderRecord, d time.Duration) time.Duration {
		f := r.refusal(at(d))
		if f == nil {
			return 0
		}
		return time.Duration(*f.RetryAfter) * time.Second
	}

	var r orderRecord
	now := time.Duration(0)
	orders := 0
	for now < 3*time.Hour { // a caller that tries all the time
		if w := wait(&r, now); w > 0 {
			now += w
			continue
		}
		r.begin(at(now))
		r.fail(failed, at(now))
		orders++
		if now < time.Hour && orders > 5 {
			t.Fatalf("%d failed orders within %v", orders, now)
		}
	}
	if orders > 7 {
		t.Errorf("%d failed orders in three hours", orders)
	}
	r.succeed(at(now))
	if w := wait(&r, now); w != 0 {
		t.Errorf("after a certificate: wait %v", w)
	}

	// A wait that was asked for holds until then, but not for ever.
	r = orderRecord{}
	r.fail(certFailuref(ACME, "limit").withStatus(429).withWait(36*time.Hour), at(0))
	if w := wait(&r, time.Hour); w != 35*time.Hour {
		t.Errorf("wait %v", w)
	}
	if w := wait(&r, 36*time.Hour); w != 0 {
		t.Errorf("wait %v at its end", w)
	}
	r.fail(certFailuref(ACME, "limit").withStatus(429).withWait(1000*24*time.Hour), at(0))
	if w := wait(&r, 8*24*time.Hour); w != 0 {
		t.Errorf("wait %v after more than any authority asks for", w)
	}
	// The clock was ahead when it was made.
	if w := wait(&r, -2*time.Hour); w != 0 {
		t.Errorf("wait %v for a record from the future", w)
	}

	// Interrupted ones count; failures without an order do not, unless the authority asks.
	r = orderRecord{}
	r.begin(at(0))
	if r.fail(certFailuref(Canceled, "stopped"), at(1)); wait(&r, time.Second) != 9*time.Second {
		t.Errorf("after an interrupted order: %v", wait(&r, time.Second))
	}
	r = orderRecord{}
	if r.fail(certFailuref(Unreachable, "down"), at(0)) || wait(&r, 0) != 0 {
		t.Error("an authority that is down counts as a failed order")
	}
}

func TestRecordIsForOneDirectory(t *testing.T) {
	m := newTailnet(t).join("first")
	st := m.node().store
	r := orderRecord{Directory: "one", Failures: 3, Last: time.Now().Unix(), Why: "no"}
	if err := r.write(st, firstName); err != nil {
		t.Fatal(err)
	}
	if got := readOrderRecord(st, firstName, "one"); got != r {
		t.Errorf("read %+v", got)
	}
	if got := readOrderRecord(st, firstName, "two"); got != (orderRecord{Directory: "two"}) {
		t.Errorf("for another directory: %+v", got)
	}
	st.WriteState(orderRecordKey(firstName), []byte("torn"))
	if got := readOrderRecord(st, firstName, "one"); got != (orderRecord{Directory: "one"}) {
		t.Errorf("torn: %+v", got)
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for text, want := range map[string]time.Duration{
		"": 0, "0": 0, "-5": 0, "120": 2 * time.Minute, "soon": 0,
		now.Add(time.Hour).UTC().Format(http.TimeFormat):  time.Hour,
		now.Add(-time.Hour).UTC().Format(http.TimeFormat): 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {text}}, now); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

func TestLongestMessage(t *testing.T) {
	msg := certMessage(&certPair{chain: make([]byte, maxCertMessage)}, nil)
	if len(msg) > maxCertMessage || !strings.Contains(string(msg), "too long") {
		t.Errorf("%d bytes: %.100s", len(msg), msg)
	}
}
