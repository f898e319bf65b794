// Funnel: connections from the internet.
//
// A public ingress node of Tailscale's takes them, connects to our PeerAPI over WireGuard, and asks
// for each one to be handed on (POST /v0/ingress). After our answer the stream is the caller's own,
// TLS included. The ingress node reads nothing but the server name.
//
// tsnet's PeerAPI server would open a TCP port on all addresses of the host
// (peerAPIServer.listen), and serve every peer for as long as it likes. It is left out (tags.txt),
// and we answer ingress requests ourselves. Everything that this needs is public: the packet filter
// asks tstun.Wrapper.PeerAPIPort, the flow arrives at our hook for flows without a listener
// (listen.go), and the host info, in which peers find the port, has hooks of its own.
//
// Invariants
//   - Only a peer with the capability to be an ingress gets further than the head of its request.
//     Nothing that any other peer says in a header is believed.
//   - Without a Funnel listener there is no PeerAPI: the port is closed and not announced.
//   - A head is short, comes within a time limit, and only so many are read at a time. Peers that
//     are no ingress have places of their own, so they delay no ingress.
//   - The serve config announces the open listeners to the control server, and no others. A
//     listener that ends stays in it switched off, as a sign that it will come back: its DNS record
//     is then kept (Hostinfo.WireIngress).
//   - When the tailnet no longer allows Funnel, the listener says so and ends.

package node

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tailscale.com/feature/buildfeatures"
	"tailscale.com/hostinfo"
	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnext"
	"tailscale.com/ipn/ipnlocal"
	"tailscale.com/ipn/ipnstate"
	"tailscale.com/net/tstun"
	"tailscale.com/tailcfg"
	"tailscale.com/types/netmap"
)

const (
	// The port of the PeerAPI. tsnet uses the same where the host gives it none.
	peerAPIPort = 1

	ingressPath        = "/v0/ingress"
	maxIngressHead     = 4 << 10 // bytes
	ingressHeadTimeout = 10 * time.Second

	// How many heads of requests are read at a time.
	maxIngressHeads  = 256
	maxStrangerHeads = 16 // of peers that are no ingress
)

// Funnel has these ports and no others.
var funnelPorts = []uint16{443, 8443, 10000}

// staleAnnouncementTimeout is how long an announcement of an earlier run is kept without a listener
// for it.
var staleAnnouncementTimeout = 15 * time.Second

type funnel struct {
	mu     sync.Mutex
	byPort map[uint16]*listener
	used   map[uint16]bool // ports that had a listener in this run

	announcing sync.Mutex  // held while the serve config is changed
	open       atomic.Bool // whether there is a listener. Read under locks of tsnet
	recheck    chan struct{}

	ingressHeads  chan struct{}
	strangerHeads chan struct{}
	mayIngress    func(*ipnlocal.LocalBackend, netip.Addr) bool // replaced in a test
}

func (f *funnel) init() {
	f.recheck = make(chan struct{}, 1)
	f.ingressHeads = make(chan struct{}, maxIngressHeads)
	f.strangerHeads = make(chan struct{}, maxStrangerHeads)
	f.mayIngress = func(lb *ipnlocal.LocalBackend, peer netip.Addr) bool {
		return lb.PeerCaps(peer).HasCapability(tailcfg.PeerCapabilityIngress)
	}
}

func init() {
	// Sent only while shouldAnnouncePeerAPI says so. tsnet's own server announces itself.
	if !buildfeatures.HasPeerAPIServer {
		hostinfo.RegisterHostinfoNewHook(func(hi *tailcfg.Hostinfo) {
			hi.Services = append(hi.Services,
				tailcfg.Service{Proto: tailcfg.PeerAPI4, Port: peerAPIPort},
				tailcfg.Service{Proto: tailcfg.PeerAPI6, Port: peerAPIPort})
		})
	}
}

// letIngressPass lets new flows to the PeerAPI through the packet filter, as tsnet does for its own
// server. It must be called before the node has peers.
func (f *funnel) letIngressPass(tun *tstun.Wrapper) {
	tun.PeerAPIPort = func(netip.Addr) (uint16, bool) {
		if !f.open.Load() {
			return 0, false // the port is told to pings too
		}
		return peerAPIPort, true
	}
}

// announcePeerAPI tells peers the port of the PeerAPI while there is one. The services in the host
// info are otherwise those of the host, which this build does not collect.
func (f *funnel) announcePeerAPI(h ipnext.Host) {
	if !buildfeatures.HasPeerAPIServer && !buildfeatures.HasPortList {
		h.Hooks().ShouldUploadServices.Set(f.open.Load)
	}
}

// ListenFunnel opens a listener for connections from the internet.
func (n *Node) ListenFunnel(port uint32) (int, *Error) {
	if port > 0xffff || !slices.Contains(funnelPorts, uint16(port)) {
		return -1, errorf(Invalid, "cannot listen on port %d of Funnel: it has the ports 443, 8443 and 10000 alone", port)
	}
	if !callbacksSet() {
		return -1, errorf(BadState, "the program has not set its callbacks for connections (tailscale_set_callbacks)")
	}
	lb, err := n.backend()
	if err != nil {
		return -1, err
	}
	if err := funnelAccess(lb.NetMapNoPeers(), uint16(port)); err != nil {
		return -1, err
	}
	l, programFD, err := n.newListener(netip.AddrPortFrom(netip.Addr{}, uint16(port)))
	if err != nil {
		return -1, err
	}
	l.funnel = true
	if err := n.addFunnel(l); err != nil {
		l.discard(programFD)
		return -1, err
	}
	if err := n.announceFunnel(lb, true); err != nil {
		n.removeFunnel(l)
		l.discard(programFD)
		return -1, err
	}
	if !n.spawn(l.awaitClose) {
		n.removeFunnel(l)
		l.discard(programFD)
		return -1, errClosed
	}
	return programFD, nil
}

// funnelAccess reports what the tailnet lacks for Funnel on this port.
func funnelAccess(nm *netmap.NetworkMap, port uint16) *Error {
	if nm == nil || !nm.SelfNode.Valid() {
		return errorf(BadState, "the node is not on the tailnet yet")
	}
	self := nm.SelfNode
	if !self.HasCap(tailcfg.CapabilityHTTPS) || len(nm.DNS.CertDomains) == 0 {
		return errorf(NoHTTPS, "HTTPS is not enabled in the tailnet, and Funnel needs it")
	}
	if !self.HasCap(tailcfg.NodeAttrFunnel) {
		return errorf(NoFunnel, "the tailnet's policy does not give this node the attribute \"funnel\"")
	}
	caps := &ipnstate.PeerStatus{CapMap: self.CapMap().AsMap()}
	if err := ipn.CheckFunnelPort(port, caps); err != nil {
		return errorf(FunnelPort, "the tailnet does not let this node use Funnel there: %v", err)
	}
	return nil
}

func (n *Node) addFunnel(l *listener) *Error {
	f := &n.funnel
	if n.listeners.has(peerAPIPort) {
		return errorf(InUse, "Funnel's connections come to port %d of this node, on which it listens already", peerAPIPort)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	port := l.addr.Port()
	if f.byPort[port] != nil {
		return errorf(InUse, "port %d of Funnel is already listened on by this node", port)
	}
	if f.byPort == nil {
		f.byPort, f.used = make(map[uint16]*listener), make(map[uint16]bool)
	}
	f.byPort[port], f.used[port] = l, true
	f.open.Store(true)
	return nil
}

func (n *Node) removeFunnel(l *listener) {
	f := &n.funnel
	f.mu.Lock()
	known := f.byPort[l.addr.Port()] == l
	if known {
		delete(f.byPort, l.addr.Port())
		f.open.Store(len(f.byPort) > 0)
	}
	f.mu.Unlock()
	if lb := n.lb.Load(); known && lb != nil {
		if err := n.announceFunnel(lb, false); err != nil {
			n.log.printf(levelWarn, "the end of a Funnel listener could not be announced: %s", err.Message)
		}
	}
}

// closeAll is closeAll of listeners, for those of Funnel.
func (f *funnel) closeAll(n *Node) {
	f.mu.Lock()
	all := f.byPort
	f.byPort = nil
	f.open.Store(false)
	f.mu.Unlock()
	if lb := n.lb.Load(); lb != nil && len(all) > 0 {
		n.announceFunnel(lb, false) // the node is leaving: nothing can be done about a failure
	}
	for _, l := range all {
		l.end(errClosed)
	}
}

// announceFunnel makes the serve config say which listeners are open; the backend tells the control
// server. again repeats what is said already, for a listener that has just been opened: the host
// info must then be sent with the PeerAPI's port in it, and the backend sends it only if something
// else in it changes.
func (n *Node) announceFunnel(lb *ipnlocal.LocalBackend, again bool) *Error {
	f := &n.funnel
	f.announcing.Lock()
	defer f.announcing.Unlock()
	nm := lb.NetMapNoPeers()
	if nm == nil || !nm.SelfNode.Valid() || len(nm.DNS.CertDomains) == 0 {
		return nil // nothing is announced without a name
	}
	config := new(ipn.ServeConfig)
	if current := lb.ServeConfig(); current.Valid() {
		config = current.AsStruct()
	}
	wanted := make(map[ipn.HostPort]bool)
	changed, repeated := false, false
	f.mu.Lock()
	for port := range f.used {
		wanted[hostPort(nm, port)] = f.byPort[port] != nil
		for target := range config.AllowFunnel {
			if target != hostPort(nm, port) && strings.HasSuffix(string(target), fmt.Sprintf(":%d", port)) {
				delete(config.AllowFunnel, target) // the node had another name
				changed = true
			}
		}
	}
	f.mu.Unlock()
	set := func() *Error {
		if err := lb.SetServeConfig(config, ""); err != nil {
			return errorf(Internal, "announcing Funnel: %v", err)
		}
		return nil
	}
	for target, on := range wanted {
		if was, known := config.AllowFunnel[target]; known && was == on {
			repeated = repeated || on
			continue
		}
		if config.AllowFunnel == nil {
			config.AllowFunnel = make(map[ipn.HostPort]bool)
		}
		config.AllowFunnel[target], changed = on, true
	}
	if !changed && again && repeated {
		allowed := config.AllowFunnel
		config.AllowFunnel = make(map[ipn.HostPort]bool, len(allowed))
		for target := range allowed {
			config.AllowFunnel[target] = false
		}
		if err := set(); err != nil {
			return err
		}
		config.AllowFunnel, changed = allowed, true
	}
	if !changed {
		return nil
	}
	return set()
}

// withdrawStale removes announcements that no listener of this run has taken over. It returns false
// while it cannot, because the node has not joined yet or its state cannot be written.
func (n *Node) withdrawStale(lb *ipnlocal.LocalBackend) bool {
	f := &n.funnel
	f.announcing.Lock()
	defer f.announcing.Unlock()
	nm := lb.NetMapNoPeers()
	if nm == nil || !nm.SelfNode.Valid() {
		return false
	}
	current := lb.ServeConfig()
	if !current.Valid() || current.AllowFunnel().Len() == 0 {
		return true
	}
	config := current.AsStruct()
	f.mu.Lock()
	for target := range config.AllowFunnel {
		taken := false
		for port := range f.used {
			taken = taken || len(nm.DNS.CertDomains) > 0 && target == hostPort(nm, port)
		}
		if !taken {
			delete(config.AllowFunnel, target)
		}
	}
	f.mu.Unlock()
	if len(config.AllowFunnel) == current.AllowFunnel().Len() {
		return true
	}
	if err := lb.SetServeConfig(config, ""); err != nil {
		n.log.printf(levelWarn, "Funnel listeners of an earlier run are still announced: %v", err)
		return false
	}
	return true
}

func hostPort(nm *netmap.NetworkMap, port uint16) ipn.HostPort {
	return ipn.HostPort(net.JoinHostPort(nm.DNS.CertDomains[0], strconv.Itoa(int(port))))
}

// followFunnel ends the listeners that the tailnet no longer allows, and withdraws announcements of
// an earlier run.
func (n *Node) followFunnel() {
	lb, err := n.backend()
	if err != nil {
		return
	}
	stale := time.After(staleAnnouncementTimeout)
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-stale:
			if !n.withdrawStale(lb) {
				stale = time.After(staleAnnouncementTimeout)
			}
		case <-n.funnel.recheck:
			n.endForbiddenFunnel(lb)
		}
	}
}

// mayHaveChanged asks for a recheck. It never blocks; the backend's lock may be held.
func (f *funnel) mayHaveChanged() {
	if f.open.Load() {
		select {
		case f.recheck <- struct{}{}:
		default:
		}
	}
}

func (n *Node) endForbiddenFunnel(lb *ipnlocal.LocalBackend) {
	nm := lb.NetMapNoPeers()
	n.funnel.mu.Lock()
	all := make([]*listener, 0, len(n.funnel.byPort))
	for _, l := range n.funnel.byPort {
		all = append(all, l)
	}
	n.funnel.mu.Unlock()
	for _, l := range all {
		err := funnelAccess(nm, l.addr.Port())
		if err == nil || err.Code == BadState {
			continue // without a network map nobody reaches the node, and nothing is known
		}
		n.removeFunnel(l)
		l.end(err)
	}
	if err := n.announceFunnel(lb, false); err != nil { // the node may have another name
		n.log.printf(levelWarn, "Funnel listeners could not be announced: %s", err.Message)
	}
}

// acceptIngress takes a flow to the PeerAPI. Its head is read on a goroutine of its own.
func (n *Node) acceptIngress(c net.Conn, peer netip.AddrPort) {
	nc, ok := c.(netConn)
	lb := n.lb.Load()
	if !ok || lb == nil {
		c.Close()
		return
	}
	if ep, _ := endpointOf(nc); ep != nil {
		shrinkBuffers(ep, minBuffer)
	}
	allowed := n.funnel.mayIngress(lb, peer.Addr())
	places := n.funnel.strangerHeads
	if allowed {
		places = n.funnel.ingressHeads
	}
	select {
	case places <- struct{}{}:
	default:
		n.log.printfLimited(levelWarn, "a request of %v to this node's PeerAPI is refused: too many wait (%d)", peer.Addr(), cap(places))
		c.Close()
		return
	}
	if !n.spawn(func() {
		defer func() { <-places }()
		n.serveIngress(nc, lb, allowed)
	}) {
		<-places
		c.Close()
	}
}

// serveIngress reads the head of a request, and passes the connection on or refuses it.
func (n *Node) serveIngress(c netConn, lb *ipnlocal.LocalBackend, allowed bool) {
	stop := context.AfterFunc(n.ctx, func() { c.Close() })
	c.SetDeadline(time.Now().Add(ingressHeadTimeout))
	r, err := readIngressHead(c)
	if err != nil {
		if stop() && errors.Is(err, errBadHead) {
			refuseIngress(c, http.StatusBadRequest, "invalid request")
		}
		c.Close()
		return
	}
	l, src, refusal := n.routeIngress(r, lb, allowed)
	if refusal != nil {
		refuseIngress(c, refusal.status, refusal.message)
		stop()
		c.Close()
		return
	}
	defer l.handshaking.Add(-1)
	_, werr := io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\n\r\n")
	c.SetDeadline(time.Time{})
	if werr != nil || !stop() {
		c.Close()
		return
	}
	local := l.addr
	if ip4, ip6 := n.srv.TailscaleIPs(); src.Addr().Is4() {
		local = netip.AddrPortFrom(ip4, local.Port())
	} else {
		local = netip.AddrPortFrom(ip6, local.Port())
	}
	l.deliver(c, src, local)
}

var errBadHead = errors.New("not the head of a request")

// readIngressHead reads no byte that belongs to what follows the head. An ingress sends none before
// it has our answer, so bytes behind the head are an error, not something to be lost.
func readIngressHead(c net.Conn) (*http.Request, error) {
	head := make([]byte, 0, maxIngressHead)
	for {
		got, err := c.Read(head[len(head):cap(head)])
		head = head[:len(head)+got]
		if end := bytes.Index(head, []byte("\r\n\r\n")); end >= 0 {
			if end+4 != len(head) {
				return nil, errBadHead
			}
			break
		}
		if err != nil {
			return nil, err
		}
		if len(head) == cap(head) {
			return nil, errBadHead
		}
	}
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(head)))
	if err != nil {
		return nil, errBadHead
	}
	return r, nil
}

type ingressRefusal struct {
	status  int
	message string
}

// routeIngress returns the listener that the request is for, counted as one of its handshakes, and
// the caller's address on the internet.
func (n *Node) routeIngress(r *http.Request, lb *ipnlocal.LocalBackend, allowed bool) (*listener, netip.AddrPort, *ingressRefusal) {
	refuse := func(status int, message string) (*listener, netip.AddrPort, *ingressRefusal) {
		return nil, netip.AddrPort{}, &ingressRefusal{status, message}
	}
	if r.URL.Path != ingressPath {
		return refuse(http.StatusNotFound, "unsupported peerapi path")
	}
	if !allowed {
		return refuse(http.StatusForbidden, "denied; no ingress cap")
	}
	if r.Method != http.MethodPost {
		return refuse(http.StatusMethodNotAllowed, "only POST allowed")
	}
	src, err := netip.ParseAddrPort(r.Header.Get("Tailscale-Ingress-Src"))
	if err != nil || src.Addr().Zone() != "" {
		return refuse(http.StatusBadRequest, "Tailscale-Ingress-Src header invalid; want ip:port")
	}
	src = netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
	host, portText, err := net.SplitHostPort(r.Header.Get("Tailscale-Ingress-Target"))
	port, perr := strconv.ParseUint(portText, 10, 16)
	if err != nil || perr != nil {
		return refuse(http.StatusBadRequest, "Tailscale-Ingress-Target header invalid; want host:port")
	}
	nm := lb.NetMapNoPeers()
	own := nm != nil && slices.ContainsFunc(nm.DNS.CertDomains, func(name string) bool {
		return strings.EqualFold(fqdn(host), name)
	})
	n.funnel.mu.Lock()
	defer n.funnel.mu.Unlock()
	l := n.funnel.byPort[uint16(port)]
	if !own || l == nil {
		return refuse(http.StatusForbidden, "denied")
	}
	if l.backlog.full(l.peerOf(src.Addr())) {
		return refuse(http.StatusServiceUnavailable, "too many connections wait to be taken")
	}
	l.handshaking.Add(1)
	return l, src, nil
}

func refuseIngress(c net.Conn, status int, message string) {
	fmt.Fprintf(c, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n"+
		"Content-Length: %d\r\nConnection: close\r\n\r\n%s\n", status, http.StatusText(status), len(message)+1, message)
}
