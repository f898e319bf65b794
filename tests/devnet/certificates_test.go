// HTTPS of the tailnet, with our own node and a real ACME server.
package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	embedded "tailbone.dev/libtailscale/node"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// acmeCA vouches for all ACME servers of these tests: Go reads SSL_CERT_FILE once.
var acmeCA *testCA

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "devnet-test-")
		if err == nil {
			defer os.RemoveAll(dir)
			acmeCA, err = newTestCA(filepath.Join(dir, "ca.pem"))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		os.Setenv("SSL_CERT_FILE", acmeCA.file)
		return m.Run()
	}())
}

// certNode is a node of ours on the devnet.
type certNode struct {
	t      *testing.T
	dir    string
	name   string
	handle uint64
	node   *embedded.Node
}

func startCertNode(t *testing.T, d *devnet, host, dir string) *certNode {
	t.Helper()
	config, err := json.Marshal(map[string]any{
		"dir": dir, "hostname": host, "auth_key": d.authKey, "control_url": d.ready().ControlURL, "log_level": "off",
	})
	if err != nil {
		t.Fatal(err)
	}
	n := &certNode{t: t, dir: dir, name: host + "." + suffix}
	var failed *embedded.Error
	if n.handle, failed = embedded.New(config, nil, -1); failed != nil {
		t.Fatal(failed)
	}
	t.Cleanup(n.close)
	if n.node, failed = embedded.Find(n.handle); failed != nil {
		t.Fatal(failed)
	}
	if failed := n.node.Start(); failed != nil {
		t.Fatal(failed)
	}
	n.awaitStatus(func(s certStatus) bool { return s.State == "Running" })
	return n
}

func (n *certNode) close() {
	if err := embedded.Close(n.handle); err != nil {
		n.t.Error(err)
	}
}

type certStatus struct {
	State       string
	CertDomains []string `json:"cert_domains"`
}

// awaitStatus waits for a message of the node's watch.
func (n *certNode) awaitStatus(accept func(certStatus) bool) {
	n.t.Helper()
	fd, failed := n.node.Watch()
	if failed != nil {
		n.t.Fatal(failed)
	}
	var last []byte
	deadline := time.AfterFunc(10*time.Second, func() { syscall.Shutdown(fd, syscall.SHUT_RDWR) })
	defer syscall.Close(fd)
	defer deadline.Stop()
	for {
		b := receive(fd)
		if b == nil {
			n.t.Fatalf("the watch never shows it; last was %s", last)
		}
		var s certStatus
		if err := json.Unmarshal(b, &s); err != nil {
			n.t.Fatal(err)
		}
		if accept(s) {
			return
		}
		last = b
	}
}

// receive returns the next message, or nil at the end.
func receive(fd int) []byte {
	b := make([]byte, 1<<16)
	for {
		got, err := syscall.Read(fd, b)
		switch {
		case err == syscall.EAGAIN:
			time.Sleep(2 * time.Millisecond)
		case err == syscall.EINTR:
		case err != nil || got == 0:
			return nil
		default:
			return b[:got]
		}
	}
}

type certReply struct {
	Cert, Key, Message string
	Code               embedded.Code
	ACMEStatus         int   `json:"acme_status"`
	RetryAfter         int64 `json:"retry_after"`
}

func (n *certNode) cert(name string, minValidity time.Duration) (r certReply) {
	n.t.Helper()
	fd, failed := n.node.Cert([]byte(name), int64(minValidity.Seconds()))
	if failed != nil {
		n.t.Fatal(failed)
	}
	defer syscall.Close(fd)
	if err := json.Unmarshal(receive(fd), &r); err != nil {
		n.t.Fatal(err)
	}
	return r
}

// mustCert gets a certificate and checks it as a client would.
func (n *certNode) mustCert(d *devnet, minValidity time.Duration) (certReply, *x509.Certificate) {
	n.t.Helper()
	r := n.cert(n.name, minValidity)
	if r.Message != "" {
		n.t.Fatalf("no certificate: %s", r.Message)
	}
	pair, err := tls.X509KeyPair([]byte(r.Cert), []byte(r.Key))
	if err != nil {
		n.t.Fatal(err)
	}
	root, err := os.ReadFile(d.ready().ACME.RootFile)
	if err != nil {
		n.t.Fatal(err)
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(root)
	for _, der := range pair.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			n.t.Fatal(err)
		}
		intermediates.AddCert(c)
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: n.name, Roots: roots, Intermediates: intermediates}); err != nil {
		n.t.Fatal(err)
	}
	if names := pair.Leaf.DNSNames; len(names) != 1 || names[0] != n.name {
		n.t.Errorf("certificate for %v", names)
	}
	return r, pair.Leaf
}

// keepOld puts a pair into the state directory that ends then.
func (n *certNode) keepOld(until time.Time) {
	n.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		n.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(9), DNSNames: []string{n.name}, NotBefore: until.Add(-acmeLife), NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, acmeCA.cert, key.Public(), acmeCA.key)
	if err != nil {
		n.t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		n.t.Fatal(err)
	}
	for end, text := range map[string][]byte{".crt": certificatePEM(der), ".key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})} {
		if err := os.WriteFile(filepath.Join(n.dir, "certs", n.name+end), text, 0o600); err != nil {
			n.t.Fatal(err)
		}
	}
}

func startHTTPSDevnet(t *testing.T) *devnet {
	t.Helper()
	d, err := start(t.Context(), options{
		https: true, acmeCA: acmeCA, owner: owner, suffix: suffix, ephemeralGrace: 300 * time.Millisecond, dir: t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	t.Setenv("TS_DEBUG_ACME_DIRECTORY_URL", d.ready().ACME.Directory)
	return d
}

func acmeState(t *testing.T, d *devnet) acmeCounts {
	t.Helper()
	return call[acmeCounts](t, d, "GET", "/acme", nil)
}

const day = 24 * time.Hour

func TestCertificates(t *testing.T) {
	d := startHTTPSDevnet(t)
	dir := t.TempDir()
	n := startCertNode(t, d, "server", dir)
	n.awaitStatus(func(s certStatus) bool { return slices.Equal(s.CertDomains, []string{n.name}) })

	// Without HTTPS, which the watch of a connected node shows without being asked.
	mustCall(t, d, "POST", "/config", map[string]any{"https": false})
	n.awaitStatus(func(s certStatus) bool { return s.CertDomains != nil && len(s.CertDomains) == 0 })
	if r := n.cert(n.name, 0); r.Code != embedded.NoHTTPS || !strings.Contains(r.Message, "HTTPS is not enabled") {
		t.Errorf("without HTTPS: %+v", r)
	}
	mustCall(t, d, "POST", "/config", map[string]any{"https": true})
	n.awaitStatus(func(s certStatus) bool { return len(s.CertDomains) == 1 })
	if r := n.cert("other."+suffix, 0); r.Code != embedded.Invalid || !strings.Contains(r.Message, n.name) {
		t.Errorf("a name that is not the node's: %+v", r)
	}
	if c := acmeState(t, d); c.Requests != 0 {
		t.Errorf("the authority was asked: %+v", c)
	}

	first, leaf := n.mustCert(d, 0)
	if left := time.Until(leaf.NotAfter); left < acmeLife-day {
		t.Errorf("valid for %v", left)
	}
	records := call[struct{ Records []dnsRecord }](t, d, "GET", "/dns", nil).Records
	if len(records) != 1 || records[0].Name != challengePrefix+n.name {
		t.Errorf("records %v", records)
	}

	// A restart orders nothing, whether the authority answers or not.
	before := acmeState(t, d)
	n.close()
	mustCall(t, d, "POST", "/acme", map[string]any{"mode": "down"})
	n = startCertNode(t, d, "server", dir)
	if again, _ := n.mustCert(d, 30*day); again.Cert != first.Cert || again.Key != first.Key {
		t.Error("another pair after a restart")
	}
	// Nor does the authority's absence at a renewal harm the pair.
	n.keepOld(time.Now().Add(10 * day))
	if r := n.cert(n.name, 30*day); r.Code != embedded.Unreachable || !strings.Contains(r.Message, "cannot be reached") {
		t.Errorf("authority down: %+v", r)
	}
	if r := n.cert(n.name, 0); r.Cert == "" {
		t.Errorf("the old pair is gone: %s", r.Message)
	}
	if c := acmeState(t, d); c.Orders != 1 || c.Requests != before.Requests {
		t.Errorf("before %+v, now %+v", before, c)
	}

	// A slow one takes its time. The order renews the pair, because little is left.
	mustCall(t, d, "POST", "/acme", map[string]any{"mode": "slow", "delay_ms": 50})
	if fresh, leaf := n.mustCert(d, 30*day); fresh.Cert == first.Cert || time.Until(leaf.NotAfter) < acmeLife-day {
		t.Errorf("renewed until %v", leaf.NotAfter)
	}
	if c := acmeState(t, d); c.Orders != 2 || c.Certificates != 2 {
		t.Errorf("after a renewal: %+v", c)
	}

	// A limit is told, and kept over restarts without asking again.
	n.keepOld(time.Now().Add(10 * day))
	mustCall(t, d, "POST", "/acme", map[string]any{"mode": "fail", "status": 429, "retry_after": 90, "path": d.acme.newOrder})
	if r := n.cert(n.name, 30*day); r.Code != embedded.ACME || r.ACMEStatus != 429 || r.RetryAfter != 90 {
		t.Errorf("limited: %+v", r)
	}
	before = acmeState(t, d)
	n.close()
	n = startCertNode(t, d, "server", dir)
	if r := n.cert(n.name, 30*day); r.ACMEStatus != 429 || r.RetryAfter < 60 || r.RetryAfter > 90 {
		t.Errorf("still limited: %+v", r)
	}
	if c := acmeState(t, d); c.Requests != before.Requests || c.Orders != 2 {
		t.Errorf("before %+v, now %+v", before, c)
	}
}

// As the real server: a node has records published for its own names, and no other can.
func TestSetDNSIsChecked(t *testing.T) {
	tn := newTailnet(suffix, owner, time.Second)
	tn.config.HTTPS = true
	machine, stranger := key.NewMachine().Public(), key.NewMachine().Public()
	own := tn.addNode(machine, key.NewNode().Public(), &tailcfg.Hostinfo{Hostname: "server"})
	own.approved = true
	good := tailcfg.SetDNSRequest{NodeKey: own.key, Type: "TXT", Name: "_acme-challenge.server." + suffix, Value: "v"}
	if status, words := tn.checkRecord(&good, machine); status != 0 {
		t.Errorf("refused: %d %s", status, words)
	}
	for what, c := range map[string]struct {
		change func(*tailcfg.SetDNSRequest)
		status int
	}{
		"another type":  {func(r *tailcfg.SetDNSRequest) { r.Type = "A" }, 400},
		"no value":      {func(r *tailcfg.SetDNSRequest) { r.Value = "" }, 400},
		"no node":       {func(r *tailcfg.SetDNSRequest) { r.NodeKey = key.NodePublic{} }, 400},
		"unknown node":  {func(r *tailcfg.SetDNSRequest) { r.NodeKey = key.NewNode().Public() }, 403},
		"another name":  {func(r *tailcfg.SetDNSRequest) { r.Name = "_acme-challenge.other." + suffix }, 403},
		"no challenge":  {func(r *tailcfg.SetDNSRequest) { r.Name = "server." + suffix }, 403},
		"a name below":  {func(r *tailcfg.SetDNSRequest) { r.Name = "_acme-challenge.x.server." + suffix }, 403},
		"the whole one": {func(r *tailcfg.SetDNSRequest) { r.Name = "_acme-challenge." + suffix }, 403},
	} {
		r := good
		c.change(&r)
		if status, _ := tn.checkRecord(&r, machine); status != c.status {
			t.Errorf("%s: %d, want %d", what, status, c.status)
		}
	}
	if status, _ := tn.checkRecord(&good, stranger); status != 403 {
		t.Errorf("another machine: %d", status)
	}
	own.expiry = time.Now().Add(-time.Second)
	if status, _ := tn.checkRecord(&good, machine); status != 403 {
		t.Errorf("an expired node: %d", status)
	}
	own.expiry = time.Time{}
	tn.config.HTTPS = false
	if status, _ := tn.checkRecord(&good, machine); status != 403 {
		t.Errorf("without HTTPS: %d", status)
	}
}

func TestTailnetsHaveNoHTTPSByDefault(t *testing.T) {
	d := startDevnet(t)
	if r := d.ready(); r.ACME != nil {
		t.Errorf("an ACME server: %+v", r.ACME)
	}
	if status, out := request(t, d, "GET", "/acme", nil); status != 404 || !bytes.Contains(out, []byte("--https")) {
		t.Errorf("%d %s", status, out)
	}
	d.tailnet.mu.Lock()
	defer d.tailnet.mu.Unlock()
	n := d.tailnet.addNode(key.NewMachine().Public(), key.NewNode().Public(), &tailcfg.Hostinfo{Hostname: "server"})
	n.user = d.tailnet.userOf(owner).id
	if v := d.tailnet.viewOf(n, time.Now()); len(v.dns.CertDomains) != 0 || v.self.CapMap.Contains(tailcfg.CapabilityHTTPS) {
		t.Errorf("%v, %v", v.dns.CertDomains, v.self.CapMap)
	}
}
