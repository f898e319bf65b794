// Listeners on the tailnet: each is a descriptor on which connections arrive.
//
// We do not use tsnet's own listeners but its hook for flows without a listener. The hook gets both
// addresses of a flow, can refuse a flow before its handshake, and needs no goroutine for each
// listener.
//
// Invariants
//   - The most specific listener gets a connection: one for the address before one for the port.
//   - Connections that the program has not taken yet wait in the listener's backlog (backlog.go);
//     those beyond it are refused with a reset.
//   - An accepted connection needs no descriptor (accepted.go).
//   - Shutting the descriptor down for writing refuses new flows. Those whose handshake is in
//     progress or done still arrive; then the descriptor ends.
//   - Closing the descriptor closes the listener. The program frees the connections that were not
//     taken (tailscale_callbacks in tailscale.h).

package node

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	socketBufferBytes = 16 << 10 // the kernel doubles it, and counts about 770 bytes for each message

	// How long a handshake that began before the listener stopped may take. tsnet does not report
	// handshakes that fail, so without a limit the wait might never end.
	lastHandshakeTimeout = 500 * time.Millisecond
)

type listeners struct {
	mu     sync.Mutex
	byAddr map[netip.AddrPort]*listener // the zero address stands for all of the node's own
}

type listener struct {
	node        *Node
	addr        netip.AddrPort
	funnel      bool // for connections from the internet (funnel.go)
	socket      socketEnd
	backlog     backlog
	handshaking atomic.Int32 // flows let in whose handshake goes on; too high if handshakes have failed
}

// Listen opens a listener on addr, which is ":port" or "ip:port".
func (n *Node) Listen(addr []byte) (int, *Error) {
	at, err := parseListen(addr)
	if err != nil {
		return -1, err
	}
	if !callbacksSet() {
		return -1, errorf(BadState, "the program has not set its callbacks for connections (tailscale_set_callbacks)")
	}
	lb, err := n.backend()
	if err != nil {
		return -1, err
	}
	if at.Addr().IsValid() {
		if nm := lb.NetMapNoPeers(); nm != nil && nm.GetAddresses().Len() > 0 {
			ip4, ip6 := n.srv.TailscaleIPs()
			if at.Addr() != ip4 && at.Addr() != ip6 {
				return -1, errorf(Invalid, "%v is not an address of this node (it has %v and %v)", at.Addr(), ip4, ip6)
			}
		}
	}
	if at.Port() == peerAPIPort && n.funnel.open.Load() {
		return -1, errorf(InUse, "port %d is where Funnel's connections come to this node", peerAPIPort)
	}
	l, programFD, err := n.newListener(at)
	if err != nil {
		return -1, err
	}
	if err := n.listeners.add(l); err != nil {
		l.discard(programFD)
		return -1, err
	}
	if !n.spawn(l.awaitClose) {
		n.listeners.remove(l)
		l.discard(programFD)
		return -1, errClosed
	}
	return programFD, nil
}

// newListener makes a listener that is in no table yet, and the program's end of its socket.
func (n *Node) newListener(at netip.AddrPort) (*listener, int, *Error) {
	socket, programFD, err := socketPair(unix.SOCK_SEQPACKET)
	if err != nil {
		return nil, -1, ioError("making the listener's sockets", err)
	}
	socket.raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, socketBufferBytes) })
	return &listener{node: n, addr: at, socket: socket}, programFD, nil
}

// discard closes both ends of a listener that was never served.
func (l *listener) discard(programFD int) {
	l.socket.file.Close()
	unix.Close(programFD)
}

// end reports why the listener ends, and closes it.
func (l *listener) end(why *Error) {
	l.socket.trySend(failureMessage(why))
	l.socket.file.Close()
}

func parseListen(addr []byte) (netip.AddrPort, *Error) {
	bad := func(why string) (netip.AddrPort, *Error) {
		return netip.AddrPort{}, errorf(Invalid, "cannot listen on %q: %s", truncate(string(addr), 100), why)
	}
	if len(addr) > maxAddr {
		return bad("too long")
	}
	s := string(addr)
	var ip netip.Addr
	if len(s) > 0 && s[0] == ':' {
		s = "0.0.0.0" + s
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return bad("must be \":port\" or \"address:port\", numbers only")
	}
	if ip = ap.Addr().Unmap(); ip.Zone() != "" {
		return bad("tailnet addresses have no zone")
	}
	if ap.Port() == 0 {
		return bad("port 0 is not allowed, choose one")
	}
	if ip.IsUnspecified() {
		ip = netip.Addr{}
	}
	return netip.AddrPortFrom(ip, ap.Port()), nil
}

func (p *listeners) add(l *listener) *Error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byAddr[l.addr] != nil {
		return errorf(InUse, "port %d is already listened on by this node", l.addr.Port())
	}
	if p.byAddr == nil {
		p.byAddr = make(map[netip.AddrPort]*listener)
	}
	p.byAddr[l.addr] = l
	return nil
}

func (p *listeners) remove(l *listener) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byAddr[l.addr] == l {
		delete(p.byAddr, l.addr)
	}
}

// closeAll reports on each listener's socket that the node is closed, and closes the listeners.
func (p *listeners) closeAll() {
	p.mu.Lock()
	all := p.byAddr
	p.byAddr = nil
	p.mu.Unlock()
	for _, l := range all {
		l.end(errClosed)
	}
}

// has reports whether there is a listener on this port, on any address.
func (p *listeners) has(port uint16) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for at := range p.byAddr {
		if at.Port() == port {
			return true
		}
	}
	return false
}

// awaitClose frees the listener when the program closes its descriptor.
func (l *listener) awaitClose() {
	l.socket.awaitHangup()
	if l.funnel {
		l.node.removeFunnel(l)
	} else {
		l.node.listeners.remove(l)
	}
	l.awaitPending()
	l.socket.file.Close()
}

// awaitPending waits for the connections in progress after the program has refused new ones.
func (l *listener) awaitPending() {
	last := time.Now().Add(lastHandshakeTimeout)
	for !l.closed() {
		if l.backlog.empty() && (l.handshaking.Load() <= 0 || time.Now().After(last)) {
			return
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-l.node.ctx.Done():
			return
		}
	}
}

// closed reports whether the program has closed its end, rather than only shut it down for writing.
func (l *listener) closed() bool {
	gone := true
	l.socket.raw.Control(func(fd uintptr) { gone = hungUp(fd) })
	return gone
}

// acceptHandler returns the function that tsnet calls, with its lock held, for each new flow to a
// port that it does not serve itself.
func (p *listeners) acceptHandler(n *Node) func(src, dst netip.AddrPort) (func(net.Conn), bool) {
	return func(src, dst netip.AddrPort) (func(net.Conn), bool) {
		if dst.Port() == peerAPIPort && n.funnel.open.Load() {
			return func(c net.Conn) { n.acceptIngress(c, src) }, n.isOwn(dst.Addr())
		}
		p.mu.Lock()
		l := p.byAddr[dst]
		if l == nil {
			l = p.byAddr[netip.AddrPortFrom(netip.Addr{}, dst.Port())]
		}
		p.mu.Unlock()
		if l == nil {
			return nil, false
		}
		if !l.addr.Addr().IsValid() && !n.isOwn(dst.Addr()) {
			return nil, false
		}
		if l.backlog.full(src.Addr()) {
			n.log.printfLimited(levelWarn, "connections to port %d are refused: too many wait to be taken (%d, or %d of one peer)",
				dst.Port(), maxPending, maxPendingPerPeer)
			return nil, true // a reset
		}
		l.handshaking.Add(1)
		return func(c net.Conn) {
			defer l.handshaking.Add(-1)
			l.deliver(c, src, dst)
		}, true
	}
}

// peerOf returns what a caller is counted by in the backlog. A node has one address of each kind. A
// host on the internet chooses among those of its network.
func (l *listener) peerOf(ip netip.Addr) netip.Addr {
	if l.funnel && ip.Is6() {
		return netip.PrefixFrom(ip, 64).Masked().Addr()
	}
	return ip
}

// isOwn reports whether this is one of the node's own addresses.
func (n *Node) isOwn(ip netip.Addr) bool {
	ip4, ip6 := n.srv.TailscaleIPs()
	return ip == ip4 || ip == ip6
}

// deliver passes an accepted connection to the program, after those that came before it.
func (l *listener) deliver(c net.Conn, src, dst netip.AddrPort) {
	nc, ok := c.(netConn)
	if !ok {
		l.node.log.printfLimited(levelError, "a connection is a %T, which cannot be half closed", c)
		c.Close()
		return
	}
	conn := l.node.conns.accept(nc, l.node.log)
	if conn == nil {
		c.Close()
		return
	}
	kind := byte(kindAccepted)
	if l.funnel {
		kind = kindFunnel
	}
	head := connHeader(kind, src, dst)
	msg := binary.NativeEndian.AppendUint64(head[:], conn.id)
	if !l.backlog.put(&pendingConn{conn: conn, peer: l.peerOf(src.Addr()), message: msg}, l.announce) {
		conn.abort()
	}
}

// announce sends the message about a connection to the program, waiting for room in the socket.
func (l *listener) announce(a *pendingConn) {
	if l.socket.send(a.message, nil) != nil {
		a.conn.abort()
	}
}
