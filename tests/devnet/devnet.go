// A whole tailnet on loopback in one value: control server, relay, test API and peers, started and
// stopped in one place.
//
// Invariants: everything listens on 127.0.0.1; close is idempotent, bounded, and leaves no listener
// and no file.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"tailscale.com/envknob"
	"tailscale.com/net/netns"
	"tailscale.com/types/logger"
)

type options struct {
	peers          []peerSpec
	owner          string
	suffix         string
	ephemeralGrace time.Duration
	delay          time.Duration // of a packet from node to node; they then meet at the relay alone
	https          bool          // the tailnet has HTTPS, and an ACME server issues certificates
	funnel         bool          // the tailnet has HTTPS, and connections from the internet come in
	acmeCA         *testCA       // vouches for the ACME server; nil: a new one
	dir            string        // where to make the devnet's directory; empty: as the system has it
	nodeLogs       io.Writer     // nil: none
}

// ready is the line on stdout.
type ready struct {
	ControlURL string                `json:"control_url"`
	AuthKey    string                `json:"auth_key"`
	APIURL     string                `json:"api_url"`
	Owner      string                `json:"owner"`
	Suffix     string                `json:"magic_dns_suffix"`
	Peers      map[string]peerRecord `json:"peers"`
	ACME       *acmeRecord           `json:"acme,omitempty"`
	Funnel     map[uint16]string     `json:"funnel,omitempty"`
	PID        int                   `json:"pid"`
}

type devnet struct {
	tailnet  *tailnet
	listener *faultyListener
	acme     *acmeServer  // nil if the tailnet started without HTTPS
	funnel   *funnelFront // nil without --funnel
	dir      string
	api      *http.Server
	apiURL   string
	authKey  string
	logf     logger.Logf
	stop     context.CancelFunc

	mu       sync.Mutex
	peers    map[string]*peer
	starting map[string]bool
	closed   bool
}

func start(ctx context.Context, o options) (*devnet, error) {
	// The nodes in this process must not bind sockets to an interface (a slow probe without
	// privileges) and must not upload logs.
	netns.SetEnabled(false)
	envknob.SetNoLogsNoSupport()
	if o.delay > 0 {
		envknob.Setenv("TS_DEBUG_NEVER_DIRECT_UDP", "true")
	}

	logf := logger.Logf(logger.Discard)
	if o.nodeLogs != nil {
		logf = func(format string, a ...any) { fmt.Fprintf(o.nodeLogs, format+"\n", a...) }
	}
	lifetime, stop := context.WithCancel(context.Background())
	d := &devnet{
		tailnet:  newTailnet(o.suffix, o.owner, o.ephemeralGrace),
		logf:     logf,
		stop:     stop,
		peers:    map[string]*peer{},
		starting: map[string]bool{},
	}
	if err := d.startAll(ctx, lifetime, o); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (d *devnet) startAll(ctx, lifetime context.Context, o options) (err error) {
	if d.dir, err = os.MkdirTemp(o.dir, "tailbone-devnet-"); err != nil {
		return fmt.Errorf("no directory for the devnet: %w", err)
	}
	relays, err := startRelay(lifetime, d.logf, o.delay)
	if err != nil {
		return err
	}
	if d.listener, err = newFaultyListener(); err != nil {
		return err
	}
	control := newControl(lifetime, d.tailnet, d.listener, relays)
	acmeReady := make(chan error, 1)
	d.tailnet.config.HTTPS = o.https || o.funnel
	if o.https {
		d.acme = &acmeServer{dir: d.dir, ca: o.acmeCA, logs: o.nodeLogs}
		control.publish = d.acme.publish
		go func() { acmeReady <- d.acme.start(ctx) }() // takes as long as the peers
	} else {
		acmeReady <- nil
	}
	if err := d.listener.serve(control.handler); err != nil {
		return errors.Join(err, <-acmeReady)
	}

	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return errors.Join(fmt.Errorf("no port for the test API: %w", err), <-acmeReady)
	}
	d.apiURL = "http://" + ln.Addr().String()
	d.api = &http.Server{Handler: d.routes(), ErrorLog: discardLog}
	go d.api.Serve(ln)

	d.tailnet.mu.Lock()
	d.authKey = d.tailnet.addKey(authKey{reusable: true, anyTags: true}).text()
	d.tailnet.mu.Unlock()

	errs := make(chan error, len(o.peers)+1)
	if o.funnel {
		go func() {
			front, err := startFunnel(ctx, d.tailnet, d.dir, "http://"+d.listener.addr, d.logf)
			d.mu.Lock()
			d.funnel = front
			d.mu.Unlock()
			errs <- err
		}()
	} else {
		errs <- nil
	}
	for _, s := range o.peers {
		go func() {
			_, err := d.addPeer(ctx, s)
			errs <- err
		}()
	}
	for range len(o.peers) + 1 {
		if e := <-errs; e != nil {
			err = e
		}
	}
	return errors.Join(err, <-acmeReady)
}

// addPeer joins one more peer and waits until it runs.
func (d *devnet) addPeer(ctx context.Context, spec peerSpec) (*peerRecord, error) {
	d.mu.Lock()
	if d.closed || d.starting[spec.Name] || d.peers[spec.Name] != nil {
		d.mu.Unlock()
		return nil, badRequest("there is a peer %s already", spec.Name)
	}
	d.starting[spec.Name] = true
	d.mu.Unlock()

	d.tailnet.mu.Lock()
	key := d.tailnet.addKey(authKey{login: spec.Login, tags: spec.Tags, preauthorized: true, forPeer: true})
	d.tailnet.mu.Unlock()
	p, err := startPeer(ctx, spec, d.dir, "http://"+d.listener.addr, key.text(), d.logf)

	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.starting, spec.Name)
	if err != nil {
		return nil, err
	}
	if d.closed {
		go p.close()
		return nil, fmt.Errorf("the devnet is closing")
	}
	d.peers[spec.Name] = p
	return &p.record, nil
}

// removePeer stops a peer and deletes its node.
func (d *devnet) removePeer(name string) bool {
	d.mu.Lock()
	p := d.peers[name]
	delete(d.peers, name)
	d.mu.Unlock()
	if p == nil {
		return false
	}
	p.close()
	d.tailnet.mu.Lock()
	defer d.tailnet.mu.Unlock()
	if n := d.tailnet.find(p.record.ID); n != nil {
		d.tailnet.deleteNode(n)
	}
	return true
}

func (d *devnet) ready() ready {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := ready{
		ControlURL: "http://" + d.listener.addr,
		AuthKey:    d.authKey,
		APIURL:     d.apiURL,
		Owner:      d.tailnet.owner,
		Suffix:     d.tailnet.suffix,
		Peers:      map[string]peerRecord{},
		PID:        os.Getpid(),
	}
	if d.acme != nil {
		r.ACME = d.acme.record()
	}
	if d.funnel != nil {
		r.Funnel = d.funnel.record()
	}
	for name, p := range d.peers {
		r.Peers[name] = p.record
	}
	return r
}

func (d *devnet) close() {
	d.mu.Lock()
	peers := d.peers
	d.peers = map[string]*peer{}
	funnel, was := d.funnel, d.closed
	d.closed = true
	d.mu.Unlock()
	if was {
		return
	}

	// tsnet may wait up to five seconds for its own parts. What is left of it ends with the
	// process.
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		var all sync.WaitGroup
		for _, p := range peers {
			all.Go(p.close)
		}
		if funnel != nil {
			all.Go(funnel.close)
		}
		all.Wait()
	}()
	select {
	case <-gone:
	case <-time.After(2 * time.Second):
	}

	d.stop()
	d.tailnet.close()
	if d.api != nil {
		d.api.Close()
	}
	if d.listener != nil {
		d.listener.close()
	}
	if d.acme != nil {
		d.acme.close()
	}
	if d.dir != "" {
		os.RemoveAll(d.dir)
	}
}
