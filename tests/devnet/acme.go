// An ACME server that issues real certificates: pebble of Let's Encrypt, which asks
// pebble-challtestsrv for the DNS records that nodes have published. Both are processes from
// Debian's package. In front of pebble there is a proxy that counts, and that can be given faults
// as the control server can.
//
// Invariants: everything listens on 127.0.0.1; the processes end with this one, however it ends;
// their files are in the devnet's directory. The proxy speaks TLS, since pebble refuses requests
// that are signed for an http address.
package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	acmeStartLimit = 30 * time.Second // pebble makes RSA keys first
	acmeLife       = 90 * 24 * time.Hour
	acmeAttempts   = 3 // a port that was free may be taken a moment later
)

// acmeRecord is what callers are told about the ACME server.
type acmeRecord struct {
	Directory string `json:"directory"` // for TS_DEBUG_ACME_DIRECTORY_URL
	CAFile    string `json:"ca_file"`   // who vouches for it, for SSL_CERT_FILE
	RootFile  string `json:"root_file"` // who signs what it issues
}

// acmeCounts are the answer of GET /acme.
type acmeCounts struct {
	fault
	Requests     int64 `json:"requests"`
	Orders       int64 `json:"orders"`       // that were accepted
	Certificates int64 `json:"certificates"` // that were fetched
}

type acmeServer struct {
	dir  string
	ca   *testCA
	logs io.Writer

	front    *faultyListener
	client   *http.Client // trusts the ca
	root     string       // file
	dnsURL   string       // of the resolver's management interface
	newOrder string       // path

	mu        sync.Mutex
	processes []*process
	closed    bool

	requests, orders, certificates atomic.Int64
}

func (a *acmeServer) start(ctx context.Context) (err error) {
	pebble, err1 := exec.LookPath("pebble")
	resolver, err2 := exec.LookPath("pebble-challtestsrv")
	if err1 != nil || err2 != nil {
		return errors.New("pebble or pebble-challtestsrv is missing: install Debian's package pebble, as scripts/setup --tests does")
	}
	if a.ca == nil {
		if a.ca, err = newTestCA(filepath.Join(a.dir, "acme-ca.pem")); err != nil {
			return err
		}
	}
	certificate, err := a.ca.issue(a.dir)
	if err != nil {
		return err
	}
	a.client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: a.ca.pool()}}}

	ctx, cancel := context.WithTimeout(ctx, acmeStartLimit)
	defer cancel()
	var target string
	for attempt := 1; ; attempt++ {
		target, err = a.startProcesses(ctx, pebble, resolver)
		if err == nil {
			break
		}
		a.stopProcesses()
		if attempt == acmeAttempts || ctx.Err() != nil {
			return err
		}
	}
	return a.startFront(target, certificate)
}

// startProcesses starts both programs and returns pebble's address once they answer.
func (a *acmeServer) startProcesses(ctx context.Context, pebble, resolver string) (string, error) {
	ports, err := freePorts(4)
	if err != nil {
		return "", err
	}
	address := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", ports[i]) }
	api, management, dns, dnsManagement := address(0), address(1), address(2), address(3)
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress":             api,
		"managementListenAddress":   management,
		"certificate":               filepath.Join(a.dir, "acme-server.pem"),
		"privateKey":                filepath.Join(a.dir, "acme-server.key.pem"),
		"httpPort":                  1, // no challenge but dns-01
		"tlsPort":                   1,
		"certificateValidityPeriod": int(acmeLife.Seconds()),
	}})
	if err != nil {
		return "", err
	}
	file := filepath.Join(a.dir, "pebble.json")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		return "", err
	}
	// No random waits, and a validation for every order.
	env := append(os.Environ(), "PEBBLE_VA_NOSLEEP=1", "PEBBLE_AUTHZREUSE=0")
	if err := a.run(env, resolver, "-management", dnsManagement, "-dns01", dns, "-http01", "", "-https01", "", "-tlsalpn01", ""); err != nil {
		return "", err
	}
	if err := a.run(env, pebble, "-config", file, "-dnsserver", dns); err != nil {
		return "", err
	}

	a.dnsURL = "http://" + dnsManagement
	if _, err := a.awaitAnswer(ctx, a.dnsURL+"/"); err != nil {
		return "", err
	}
	directory, err := a.awaitAnswer(ctx, "https://"+api+"/dir")
	if err != nil {
		return "", err
	}
	var d struct{ NewOrder string }
	if err := json.Unmarshal(directory, &d); err != nil {
		return "", fmt.Errorf("pebble's directory: %w", err)
	}
	u, err := url.Parse(d.NewOrder)
	if err != nil {
		return "", fmt.Errorf("pebble's directory: %w", err)
	}
	a.newOrder = u.Path
	root, err := a.awaitAnswer(ctx, "https://"+management+"/roots/0")
	if err != nil {
		return "", err
	}
	a.root = filepath.Join(a.dir, "acme-root.pem")
	return api, os.WriteFile(a.root, root, 0o600)
}

// freePorts returns ports that are free for TCP and UDP.
func freePorts(count int) (ports []int, err error) {
	for len(ports) < count {
		tcp, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return nil, fmt.Errorf("no free port: %w", err)
		}
		defer tcp.Close() // after the last one, so that all differ
		port := tcp.Addr().(*net.TCPAddr).Port
		udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		if err != nil {
			continue
		}
		defer udp.Close()
		ports = append(ports, port)
	}
	return ports, nil
}

// awaitAnswer repeats a GET until it is answered, as long as the processes live.
func (a *acmeServer) awaitAnswer(ctx context.Context, url string) ([]byte, error) {
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return nil, err
		}
		res, err := a.client.Do(req)
		if err == nil {
			defer res.Body.Close()
			return io.ReadAll(io.LimitReader(res.Body, 1<<20))
		}
		a.mu.Lock()
		for _, p := range a.processes {
			select {
			case <-p.ended:
				err = p.why()
				a.mu.Unlock()
				return nil, err
			default:
			}
		}
		a.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the ACME server does not start: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (a *acmeServer) startFront(target string, certificate tls.Certificate) error {
	front, err := newFaultyListener()
	if err != nil {
		return err
	}
	front.tls = &tls.Config{Certificates: []tls.Certificate{certificate}}
	front.refuse = refuseACME
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "https", Host: target})
			r.Out.Host = r.In.Host // pebble's URLs lead back to us
		},
		Transport: a.client.Transport,
		ErrorLog:  discardLog,
		ModifyResponse: func(r *http.Response) error {
			switch {
			case r.StatusCode == http.StatusCreated && r.Request.URL.Path == a.newOrder:
				a.orders.Add(1)
			case r.StatusCode == http.StatusOK && strings.HasPrefix(r.Header.Get("Content-Type"), "application/pem-certificate-chain"):
				a.certificates.Add(1)
			}
			return nil
		},
	}
	faulty := front.withFault(proxy)
	err = front.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.requests.Add(1)
		faulty.ServeHTTP(w, r)
	}))
	if err != nil {
		front.close()
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		front.close()
		return errors.New("the devnet is closing")
	}
	a.front = front
	return nil
}

// refuseACME answers with a problem document, as ACME servers do.
func refuseACME(w http.ResponseWriter, f fault) {
	kind := "serverInternal"
	if f.Status == http.StatusTooManyRequests {
		kind = "rateLimited"
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(f.Status)
	json.NewEncoder(w).Encode(map[string]any{
		"type": "urn:ietf:params:acme:error:" + kind, "detail": "devnet: this server was told to fail", "status": f.Status,
	})
}

// publish hands a record to pebble's resolver.
func (a *acmeServer) publish(ctx context.Context, r dnsRecord) error {
	body, err := json.Marshal(map[string]string{"host": r.Name + ".", "value": r.Value})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.dnsURL+"/set-txt", bytes.NewReader(body))
	if err != nil {
		return err
	}
	res, err := a.client.Do(req)
	if err != nil {
		return err
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the resolver answered %s", res.Status)
	}
	return nil
}

// record returns nil until the server has started.
func (a *acmeServer) record() *acmeRecord {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.front == nil {
		return nil
	}
	return &acmeRecord{Directory: "https://" + a.front.addr + "/dir", CAFile: a.ca.file, RootFile: a.root}
}

func (a *acmeServer) counts() acmeCounts {
	return acmeCounts{a.front.currentFault(), a.requests.Load(), a.orders.Load(), a.certificates.Load()}
}

func (a *acmeServer) close() {
	a.mu.Lock()
	a.closed = true
	front := a.front
	a.mu.Unlock()
	if front != nil {
		front.close()
	}
	a.stopProcesses()
	if a.client != nil {
		a.client.CloseIdleConnections()
	}
}

func (a *acmeServer) stopProcesses() {
	a.mu.Lock()
	all := a.processes
	a.processes = nil
	a.mu.Unlock()
	for _, p := range all {
		p.cmd.Process.Kill()
		<-p.ended
	}
}

// process is a program that ends with this one.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{}
	last  lastBytes
	err   error // valid once ended
}

func (a *acmeServer) run(env []string, program string, args ...string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return errors.New("the devnet is closing")
	}
	p := &process{cmd: exec.Command(program, args...), ended: make(chan struct{})}
	p.cmd.Env, p.cmd.Dir = env, a.dir
	p.cmd.Stdout = &p.last
	if a.logs != nil {
		p.cmd.Stdout = io.MultiWriter(&p.last, a.logs)
	}
	p.cmd.Stderr = p.cmd.Stdout
	// The kernel kills it when the thread ends that has started it. So a thread is kept for it.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
			close(p.ended)
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	a.processes = append(a.processes, p)
	return nil
}

func (p *process) why() error {
	return fmt.Errorf("%s ended: %v: %s", filepath.Base(p.cmd.Path), p.err, p.last.String())
}

// lastBytes keeps the end of what a process wrote.
type lastBytes struct {
	mu   sync.Mutex
	text []byte
}

func (l *lastBytes) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, b...)
	l.text = l.text[max(0, len(l.text)-1000):]
	return len(b), nil
}

func (l *lastBytes) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}

// testCA vouches for servers on this machine's loopback.
type testCA struct {
	file string // its certificate
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newTestCA(file string) (*testCA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "devnet: authority of its servers"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(acmeLife),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &testCA{file, cert, key}, os.WriteFile(file, certificatePEM(der), 0o600)
}

func (c *testCA) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c.cert)
	return pool
}

// issue makes the certificate of the servers on 127.0.0.1 and writes it where pebble reads it.
func (c *testCA) issue(dir string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "devnet: ACME server"},
		NotBefore: c.cert.NotBefore, NotAfter: c.cert.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, key.Public(), c.key)
	if err != nil {
		return tls.Certificate{}, err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return tls.Certificate{}, err
	}
	certPEM := certificatePEM(der)
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
	if err := os.WriteFile(filepath.Join(dir, "acme-server.pem"), certPEM, 0o600); err != nil {
		return tls.Certificate{}, err
	}
	if err := os.WriteFile(filepath.Join(dir, "acme-server.key.pem"), keyPEM, 0o600); err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(certPEM, keyPEM)
}

func certificatePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
