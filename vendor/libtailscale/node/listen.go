// Listeners on the tailnet: each is a descriptor on which connections arrive.
//
// We do not use tsnet's own listeners but its hook for flows without a listener. The hook gets both
// addresses of a flow, can refuse a flow before its handshake, and needs no goroutine for each
// listener.
//
// Invariants
//   - The most specific listener gets a connection: one for the address before one for the port.
//   - Connections that the caller has not taken yet wait in the listener's backlog (backlog.go);
//     those beyond it are refused with a reset.
//   - An accepted connection needs no descriptor (direct.go).
//   - Shutting the descriptor down for writing refuses new flows. Those whose handshake is in
//     progress or done still arrive; then the descriptor ends.
//   - Closing the descriptor closes the listener. The caller frees the connections that were not
//     taken (tailscale_program in tailscale.h).

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
	queueBytes = 16 << 10 // the kernel doubles it, and counts about 770 bytes for each message

	// How long a handshake that began before the listener stopped may take. tsnet does not report
	// handshakes that fail, so without a limit the wait might never end.
	lastHandshake = 500 * time.Millisecond
)

type ports struct {
	mu  sync.Mutex
	all map[netip.AddrPort]*listener // the zero address stands for all of the node's own
}

type listener struct {
	node    *Node
	at      netip.AddrPort
	end     ours
	backlog backlog
	shaking atomic.Int32 // flows accepted whose connection has not come yet; too high if handshakes failed
}

// Listen opens a listener on addr, which is ":port" or "ip:port".
func (n *Node) Listen(addr []byte) (int, *Error) {
	at, err := parseListen(addr)
	if err != nil {
		return -1, err
	}
	if !programSet() {
		return -1, fail(BadState, "nobody is there to be given connections (tailscale_set_program)")
	}
	lb, err := n.backend()
	if err != nil {
		return -1, err
	}
	if at.Addr().IsValid() {
		if nm := lb.NetMapNoPeers(); nm != nil && nm.GetAddresses().Len() > 0 {
			ip4, ip6 := n.srv.TailscaleIPs()
			if at.Addr() != ip4 && at.Addr() != ip6 {
				return -1, fail(Invalid, "%v is not an address of this node (it has %v and %v)", at.Addr(), ip4, ip6)
			}
		}
	}
	end, theirs, perr := pair(unix.SOCK_SEQPACKET)
	if perr != nil {
		return -1, ioFail("making the listener's sockets", perr)
	}
	end.rc.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, queueBytes) })
	l := &listener{node: n, at: at, end: end}
	if err := n.ports.add(l); err != nil {
		end.f.Close()
		unix.Close(theirs)
		return -1, err
	}
	if !n.spawn(l.awaitClose) {
		n.ports.remove(l)
		end.f.Close()
		unix.Close(theirs)
		return -1, errClosed
	}
	return theirs, nil
}

func parseListen(addr []byte) (netip.AddrPort, *Error) {
	bad := func(why string) (netip.AddrPort, *Error) {
		return netip.AddrPort{}, fail(Invalid, "cannot listen on %q: %s", clip(string(addr), 100), why)
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

func (p *ports) add(l *listener) *Error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all[l.at] != nil {
		return fail(InUse, "port %d is already listened on by this node", l.at.Port())
	}
	if p.all == nil {
		p.all = make(map[netip.AddrPort]*listener)
	}
	p.all[l.at] = l
	return nil
}

func (p *ports) remove(l *listener) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all[l.at] == l {
		delete(p.all, l.at)
	}
}

// closeAll reports to each listener's caller that the node is closed, and closes the listeners.
func (p *ports) closeAll() {
	p.mu.Lock()
	all := p.all
	p.all = nil
	p.mu.Unlock()
	for _, l := range all {
		l.end.trySend(failureMessage(errClosed))
		l.end.f.Close()
	}
}

// awaitClose frees the listener when the caller closes its descriptor.
func (l *listener) awaitClose() {
	l.end.gone()
	l.node.ports.remove(l)
	l.awaitLast()
	l.end.f.Close()
}

// awaitLast waits for the connections in progress when the caller said that it wants no more.
func (l *listener) awaitLast() {
	last := time.Now().Add(lastHandshake)
	for !l.closed() {
		if l.backlog.empty() && (l.shaking.Load() <= 0 || time.Now().After(last)) {
			return
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-l.node.ctx.Done():
			return
		}
	}
}

// closed reports whether the caller has closed its end, rather than only shut it down for writing.
func (l *listener) closed() bool {
	gone := true
	l.end.rc.Control(func(fd uintptr) { gone = hungUp(fd) })
	return gone
}

// flow returns the function that tsnet calls, with its lock held, for each new flow to a port that
// it does not serve itself.
func (p *ports) flow(n *Node) func(src, dst netip.AddrPort) (func(net.Conn), bool) {
	return func(src, dst netip.AddrPort) (func(net.Conn), bool) {
		p.mu.Lock()
		l := p.all[dst]
		if l == nil {
			l = p.all[netip.AddrPortFrom(netip.Addr{}, dst.Port())]
		}
		p.mu.Unlock()
		if l == nil {
			return nil, false
		}
		if !l.at.Addr().IsValid() {
			if ip4, ip6 := n.srv.TailscaleIPs(); dst.Addr() != ip4 && dst.Addr() != ip6 {
				return nil, false
			}
		}
		if l.backlog.full(src.Addr()) {
			n.log.rarely(lvWarn, "connections to port %d are refused: too many wait to be taken (%d, or %d of one peer)",
				dst.Port(), maxPending, maxPendingEach)
			return nil, true // a reset
		}
		l.shaking.Add(1)
		return func(c net.Conn) {
			defer l.shaking.Add(-1)
			l.deliver(c, src, dst)
		}, true
	}
}

// deliver passes an accepted connection to the caller, after those that came before it.
func (l *listener) deliver(c net.Conn, src, dst netip.AddrPort) {
	nc, ok := c.(netConn)
	if !ok {
		l.node.log.rarely(lvError, "a connection is a %T, which cannot be half closed", c)
		c.Close()
		return
	}
	d := l.node.splice.direct(nc, l.node.log)
	if d == nil {
		c.Close()
		return
	}
	head := connHead(kindAccepted, src, dst)
	msg := binary.NativeEndian.AppendUint64(head[:], d.id)
	if !l.backlog.put(&arrival{d: d, from: src.Addr(), msg: msg}, l.announce) {
		d.abort()
	}
}

// announce sends the message about a connection to the caller, waiting for room in the socket.
func (l *listener) announce(a *arrival) {
	if l.end.send(a.msg, nil) != nil {
		a.d.abort()
	}
}
