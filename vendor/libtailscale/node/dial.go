// Connections to other nodes of the tailnet.
//
// Invariants: only addresses and names of the tailnet are dialled, never this machine's own
// network. The call returns at once. One message arrives on the descriptor, the connection or the
// reason why there is none, and our end is closed. Closing the descriptor before that cancels the
// dial.

package node

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnlocal"
	"tailscale.com/wgengine/netstack"
)

const maxDial = 10 * time.Minute

// Dial connects to addr, an "ip:port" or "name:port". The name is a node's, with or without the
// tailnet's suffix.
func (n *Node) Dial(addr []byte, timeout time.Duration) (int, *Error) {
	host, port, err := parseDial(addr)
	if err != nil {
		return -1, err
	}
	if timeout <= 0 || timeout > maxDial {
		return -1, errorf(Invalid, "timeout_ms: must be between 1 and %d", maxDial.Milliseconds())
	}
	lb, err := n.backend()
	if err != nil {
		return -1, err
	}
	if s := lb.State(); s != ipn.Running {
		return -1, errorf(BadState, "the node cannot dial: its state is %v, not Running", s)
	}
	return n.oneOutcome("dial", timeout, func(ctx context.Context, outcome socketEnd) {
		if err := n.dial(ctx, lb, host, port, outcome); err != nil {
			outcome.trySend(failureMessage(err))
		}
	})
}

func parseDial(addr []byte) (host string, port uint16, err *Error) {
	bad := func(why string) (string, uint16, *Error) {
		return "", 0, errorf(Invalid, "cannot dial %q: %s", truncate(string(addr), 100), why)
	}
	if len(addr) > maxAddr {
		return bad("too long")
	}
	host, p, serr := net.SplitHostPort(string(addr))
	if serr != nil || host == "" {
		return bad("must be \"host:port\"")
	}
	num, serr := strconv.ParseUint(p, 10, 16)
	if serr != nil || num == 0 {
		return bad("the port must be a number from 1 to 65535")
	}
	if err := checkText("host", host, 255); err != nil {
		return bad(err.Message)
	}
	return host, uint16(num), nil
}

func (n *Node) dial(ctx context.Context, lb *ipnlocal.LocalBackend, host string, port uint16, outcome socketEnd) *Error {
	ip, err := resolve(lb, host)
	if err != nil {
		return err
	}
	ns, ok := lb.Sys().Netstack.Get().(*netstack.Impl)
	if !ok {
		return errorf(Internal, "the node has no netstack")
	}
	ip4, ip6 := n.srv.TailscaleIPs()
	from := ip4
	if ip.Is6() {
		from = ip6
	}
	if !from.IsValid() {
		return errorf(Unreachable, "the node has no address to dial %v from", ip)
	}
	to := netip.AddrPortFrom(ip, port)
	c, derr := ns.DialContextTCPWithBind(ctx, from, to)
	if derr != nil {
		return dialError(ctx, to, derr)
	}
	local := netip.AddrPortFrom(from, 0)
	if a, ok := c.LocalAddr().(*net.TCPAddr); ok {
		local = netip.AddrPortFrom(from, a.AddrPort().Port())
	}
	socket, programFD, perr := socketPair(unix.SOCK_STREAM)
	if perr != nil {
		c.Close()
		return ioError("making the connection's sockets", perr)
	}
	if herr := sendDescriptor(outcome, connHeader(kindDialled, to, local), programFD); herr != nil {
		socket.file.Close()
		c.Close()
		return ioError("handing over the connection", herr)
	}
	if !n.conns.startDialled(c, socket) {
		socket.file.Close()
		c.Close()
	}
	return nil
}

// resolve finds the tailnet address of a node.
func resolve(lb *ipnlocal.LocalBackend, host string) (netip.Addr, *Error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		ip = ip.Unmap()
		if _, _, ok := lb.WhoIs("tcp", netip.AddrPortFrom(ip, 0)); ok && ip.Zone() == "" {
			return ip, nil
		}
		return netip.Addr{}, errorf(Unreachable, "no node of the tailnet has the address %v", ip)
	}
	if nm := lb.NetMapWithPeers(); nm != nil {
		want := strings.ToLower(fqdn(host))
		for _, p := range nm.Peers {
			name := strings.ToLower(fqdn(p.Name()))
			short, _, _ := strings.Cut(name, ".")
			if (name == want || short == want && strings.HasSuffix(name, "."+nm.MagicDNSSuffix())) && p.Addresses().Len() > 0 {
				return p.Addresses().At(0).Addr(), nil
			}
		}
	}
	return netip.Addr{}, errorf(Unreachable, "no node of the tailnet is called %q", host)
}

func dialError(ctx context.Context, to netip.AddrPort, err error) *Error {
	if code, ok := contextCode(errors.Join(err, ctx.Err())); ok {
		if code == Timeout {
			return errorf(Timeout, "%v did not answer in time", to)
		}
		return errorf(Canceled, "dialling %v was canceled", to)
	}
	words := err.Error()
	switch {
	case strings.Contains(words, "refused"), strings.Contains(words, "reset"), strings.Contains(words, "aborted"):
		return errorf(Refused, "%v refused the connection", to)
	case strings.Contains(words, "unreachable"), strings.Contains(words, "no route"), strings.Contains(words, "no such"):
		return errorf(Unreachable, "%v cannot be reached: %s", to, words)
	case strings.Contains(words, "timed out"):
		return errorf(Timeout, "%v did not answer in time", to)
	}
	return errorf(Internal, "dialling %v: %s", to, words)
}
