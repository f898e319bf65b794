package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"tailscale.com/feature/buildfeatures"
	"tailscale.com/ipn/ipnlocal"
	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
)

// newFunnelTailnet has a server, which may do nothing yet, and a second node. testcontrol lets
// every node be an ingress.
func newFunnelTailnet(t *testing.T) (tn *tailnet, server, other *testNode) {
	tn = newTailnet(t, func(c *testcontrol.Server) { c.DefaultNodeCapabilities = &tailcfg.NodeCapMap{} })
	server, other = tn.join("server"), tn.join("other")
	other.awaitPeer("server")
	return tn, server, other
}

// allow gives the node these capabilities and no others.
func (tn *tailnet) allow(m *testNode, caps ...tailcfg.NodeCapability) {
	tn.t.Helper()
	all := tailcfg.NodeCapMap{}
	for _, c := range caps {
		all[c] = nil
	}
	_, key := m.node().lb.Load().TestOnlyPublicKeys()
	tn.control.SetNodeCapMap(key, all)
	waitFor(tn.t, "the node to know what it may do", func() bool {
		nm := m.node().lb.Load().NetMapNoPeers()
		return nm != nil && !slices.ContainsFunc(wholeFunnel, func(c tailcfg.NodeCapability) bool {
			return nm.SelfNode.HasCap(c) != slices.Contains(caps, c)
		})
	})
}

var wholeFunnel = []tailcfg.NodeCapability{
	tailcfg.CapabilityHTTPS, tailcfg.NodeAttrFunnel, tailcfg.CapabilityFunnelPorts + "?ports=443,8443",
}

// announced is what the control server was told of a node's Funnel.
func (tn *tailnet) announced(m *testNode) (enabled bool, peerAPI uint16) {
	_, key := m.node().lb.Load().TestOnlyPublicKeys()
	hi := tn.control.Node(key).Hostinfo
	for _, s := range hi.Services().All() {
		if s.Proto == tailcfg.PeerAPI4 {
			peerAPI = s.Port
		}
	}
	return hi.IngressEnabled(), peerAPI
}

func (tn *tailnet) awaitAnnounced(m *testNode, enabled bool) {
	tn.t.Helper()
	waitFor(tn.t, fmt.Sprintf("the control server to be told %v", enabled), func() bool {
		on, port := tn.announced(m)
		return on == enabled && (buildfeatures.HasPeerAPIServer || (port == peerAPIPort) == enabled)
	})
}

func (m *testNode) listenFunnel(port uint32) int {
	m.t.Helper()
	fd, err := m.node().ListenFunnel(port)
	if err != nil {
		m.t.Fatalf("listen on port %d of Funnel: %v", port, err)
	}
	return fd
}

// ask sends a request to the PeerAPI of a node and returns the connection and the first answer.
func (m *testNode) ask(of *testNode, head string) (*testConn, string) {
	m.t.Helper()
	c := m.dial(fmt.Sprintf("%v:%d", of.ip(4), peerAPIPort))
	c.write([]byte(head))
	b := make([]byte, 4096)
	n, err := c.read(b, 5*time.Second)
	if err != nil {
		return c, err.Error()
	}
	return c, string(b[:n])
}

func ingressHead(src, target string) string {
	return "POST /v0/ingress HTTP/1.1\r\nHost: peer\r\nTailscale-Ingress-Src: " + src +
		"\r\nTailscale-Ingress-Target: " + target + "\r\n\r\n"
}

const switched = "HTTP/1.1 101 Switching Protocols\r\n\r\n"

func TestFunnelTakesConnectionsFromTheInternet(t *testing.T) {
	tn, server, ingress := newFunnelTailnet(t)
	check := checkLeaks(t)
	tn.allow(server, wholeFunnel...)
	ln, tailnetLn := server.listenFunnel(443), server.listen(":443")
	if _, err := server.node().ListenFunnel(443); err == nil || err.Code != InUse {
		t.Errorf("a second listener: %v", err)
	}
	if _, err := server.node().Listen([]byte(":1")); err == nil || err.Code != InUse {
		t.Errorf("a listener where the ingress connects to: %v", err)
	}
	tn.awaitAnnounced(server, true)

	for src, local := range map[string]netip.Addr{
		"203.0.113.7:4711": server.ip(4), "[2001:db8::7]:4711": server.ip(6), "[::ffff:203.0.113.8]:1": server.ip(4),
	} {
		out, answer := ingress.ask(server, ingressHead(src, "SERVER.loop.ts.net:443"))
		if answer != switched {
			t.Fatalf("%s: %q", src, answer)
		}
		in := receive(t, ln)
		want := netip.MustParseAddrPort(src)
		want = netip.AddrPortFrom(want.Addr().Unmap(), want.Port())
		if in.kind != kindFunnel || in.peer != want || in.local != netip.AddrPortFrom(local, 443) {
			t.Errorf("%s: kind %d, %v -> %v", src, in.kind, in.peer, in.local)
		}
		out.write([]byte("hello"))
		b := make([]byte, 10)
		if n, err := in.read(b, 5*time.Second); err != nil || string(b[:n]) != "hello" {
			t.Errorf("%s: %q, %v", src, b[:n], err)
		}
		in.write([]byte("world"))
		if n, err := out.read(b, 5*time.Second); err != nil || string(b[:n]) != "world" {
			t.Errorf("%s: %q, %v", src, b[:n], err)
		}
		out.close()
		in.close()
	}

	// An ingress may also come over IPv6.
	out := ingress.dial(fmt.Sprintf("[%v]:%d", server.ip(6), peerAPIPort))
	out.write([]byte(ingressHead("203.0.113.7:4711", "server.loop.ts.net:443")))
	in := receive(t, ln)
	if in.peer.Addr() != netip.MustParseAddr("203.0.113.7") || in.local.Addr() != server.ip(4) {
		t.Errorf("over IPv6: %v -> %v", in.peer, in.local)
	}
	out.close()
	in.close()

	// The tailnet's own callers come to the other listener, and are not taken for the internet.
	out = ingress.dial(fmt.Sprintf("%v:443", server.ip(4)))
	in = receive(t, tailnetLn)
	if in.kind != kindAccepted || in.peer.Addr() != ingress.ip(4) {
		t.Errorf("a peer: kind %d, %v", in.kind, in.peer)
	}
	out.close()
	in.close()

	unix.Close(ln)
	tn.awaitAnnounced(server, false)
	awaitRefused(ingress, server)
	unix.Close(tailnetLn)
	server.close()
	ingress.close()
	check()
}

// awaitRefused waits until a node's PeerAPI is closed.
func awaitRefused(from, to *testNode) {
	from.t.Helper()
	waitFor(from.t, "the PeerAPI to close", func() bool {
		fd, err := from.node().Dial(fmt.Appendf(nil, "%v:%d", to.ip(4), peerAPIPort), 2*time.Second)
		if err != nil {
			from.t.Fatal(err)
		}
		defer unix.Close(fd)
		c, f := receiveAny(from.t, fd, 5*time.Second)
		if c != nil {
			c.close()
		}
		return f != nil && f.code == Refused
	})
}

func TestFunnelSaysWhatTheTailnetLacks(t *testing.T) {
	tn, server, ingress := newFunnelTailnet(t)
	for _, try := range []struct {
		caps []tailcfg.NodeCapability
		port uint32
		code Code
		says string
	}{
		{nil, 443, NoHTTPS, "HTTPS is not enabled"},
		{wholeFunnel[:1], 443, NoFunnel, `attribute "funnel"`},
		{wholeFunnel[:2], 443, FunnelPort, "443 is not allowed"},
		{wholeFunnel, 10000, FunnelPort, "allowed ports are: 443,8443"},
		{wholeFunnel, 80, Invalid, "443, 8443 and 10000"},
		{wholeFunnel, 65536 + 443, Invalid, "443, 8443 and 10000"},
	} {
		tn.allow(server, try.caps...)
		fd, err := server.node().ListenFunnel(try.port)
		if err == nil || err.Code != try.code || !strings.Contains(err.Message, try.says) || fd != -1 {
			t.Errorf("%v, port %d: %d, %v", try.caps, try.port, fd, err)
		}
	}
	awaitRefused(ingress, server)

	// A listener ends when it is no longer allowed, and can be opened again when it is.
	for range 2 {
		tn.allow(server, wholeFunnel...)
		ln := server.listenFunnel(8443)
		tn.awaitAnnounced(server, true)
		tn.allow(server, wholeFunnel[0])
		if _, f := receiveAny(t, ln, 5*time.Second); f == nil || f.code != NoFunnel {
			t.Fatalf("after the attribute was taken away: %+v", f)
		}
		if _, f := receiveAny(t, ln, 5*time.Second); f == nil || !strings.Contains(f.message, "end of messages") {
			t.Errorf("after the failure: %+v", f)
		}
		unix.Close(ln)
		tn.awaitAnnounced(server, false)
		awaitRefused(ingress, server)
	}
}

func TestIngressRequestsThatAreRefused(t *testing.T) {
	tn, server, ingress := newFunnelTailnet(t)
	check := checkLeaks(t)
	tn.allow(server, wholeFunnel...)
	f := &server.node().funnel
	var stranger atomic.Bool
	capable := f.mayIngress
	f.mayIngress = func(lb *ipnlocal.LocalBackend, peer netip.Addr) bool { return !stranger.Load() && capable(lb, peer) }
	ln := server.listenFunnel(443)
	good := ingressHead("203.0.113.7:4711", "server.loop.ts.net:443")
	for _, try := range []struct{ head, status string }{
		{strings.Replace(good, "POST", "GET", 1), "405"},
		{strings.Replace(good, "/v0/ingress", "/", 1), "404"},
		{strings.Replace(good, "/v0/ingress", "/v0/env", 1), "404"},
		{ingressHead("", "server.loop.ts.net:443"), "400"},
		{ingressHead("203.0.113.7", "server.loop.ts.net:443"), "400"},
		{ingressHead("[fe80::1%eth0]:1", "server.loop.ts.net:443"), "400"},
		{ingressHead("203.0.113.7:4711", "server.loop.ts.net"), "400"},
		{ingressHead("203.0.113.7:4711", "server.loop.ts.net:70000"), "400"},
		{ingressHead("203.0.113.7:4711", "other.loop.ts.net:443"), "403"},
		{ingressHead("203.0.113.7:4711", "server.loop.ts.net:8443"), "403"},
		{"\x16\x03\x01\r\n\r\n", "400"},
		{good + "\x16\x03\x01", "400"},
		{"POST /v0/ingress HTTP/1.1\r\nX: " + strings.Repeat("x", maxIngressHead), "400"},
	} {
		c, answer := ingress.ask(server, try.head)
		if !strings.HasPrefix(answer, "HTTP/1.1 "+try.status+" ") {
			t.Errorf("%.100q: %q", try.head, answer)
		}
		c.close()
	}

	// A peer that is no ingress is refused whatever it says, and takes no place from one that is.
	stranger.Store(true)
	c, answer := ingress.ask(server, good)
	if !strings.HasPrefix(answer, "HTTP/1.1 403 ") {
		t.Errorf("an ordinary peer: %q", answer)
	}
	c.close()
	waitFor(t, "the places to be free", func() bool { return len(f.strangerHeads) == 0 })
	var silent []*testConn
	for range maxStrangerHeads {
		silent = append(silent, ingress.dial(fmt.Sprintf("%v:%d", server.ip(4), peerAPIPort)))
	}
	waitFor(t, "all places to be taken", func() bool { return len(f.strangerHeads) == maxStrangerHeads })
	c, answer = ingress.ask(server, good)
	if strings.HasPrefix(answer, "HTTP") {
		t.Errorf("one too many: %q", answer)
	}
	c.close()
	stranger.Store(false)
	c, answer = ingress.ask(server, good)
	if answer != switched {
		t.Errorf("an ingress beside silent peers: %q", answer)
	}
	receive(t, ln).close()
	c.close()

	// Closing the node ends them at once.
	server.close()
	if _, f := receiveAny(t, ln, 5*time.Second); f == nil || f.code != Closed {
		t.Errorf("the listener of a closed node: %+v", f)
	}
	for _, c := range silent {
		c.close()
	}
	unix.Close(ln)
	ingress.close()
	check()
}

func TestCallersOnTheInternetAreCountedByTheirNetwork(t *testing.T) {
	for _, try := range []struct {
		funnel   bool
		one, two string
		same     bool
	}{
		{true, "2001:db8::1", "2001:db8::2", true},
		{true, "2001:db8:0:1::1", "2001:db8:0:2::1", false},
		{true, "203.0.113.1", "203.0.113.2", false},
		{false, "fd7a::1", "fd7a::2", false},
	} {
		l := &listener{funnel: try.funnel}
		one, two := l.peerOf(netip.MustParseAddr(try.one)), l.peerOf(netip.MustParseAddr(try.two))
		if (one == two) != try.same {
			t.Errorf("%+v: %v, %v", try, one, two)
		}
	}
}

func TestFunnelIsAnnouncedAgainAfterARestart(t *testing.T) {
	defer func(was time.Duration) { staleAnnouncementTimeout = was }(staleAnnouncementTimeout)
	staleAnnouncementTimeout = 200 * time.Millisecond
	tn := newTailnet(t, func(c *testcontrol.Server) { c.DefaultNodeCapabilities = &tailcfg.NodeCapMap{} })
	cfg := tn.config("server")
	m := tn.make(cfg)
	m.await("Running")
	tn.allow(m, wholeFunnel...)
	lb := m.node().lb.Load()
	ln := m.listenFunnel(443)
	tn.awaitAnnounced(m, true)
	left := lb.ServeConfig().AsStruct() // as a node leaves it that is killed
	left.AllowFunnel["renamed.loop.ts.net:443"] = true
	m.close()
	unix.Close(ln)
	if on := lb.ServeConfig().AllowFunnel().Get("server.loop.ts.net:443"); on {
		t.Error("a closed node has left its announcement")
	}

	m = tn.make(cfg)
	m.await("Running")
	lb = m.node().lb.Load()
	if err := lb.SetServeConfig(left, ""); err != nil {
		t.Fatal(err)
	}
	ln = m.listenFunnel(443)
	tn.awaitAnnounced(m, true)
	if all := lb.ServeConfig().AllowFunnel().AsMap(); len(all) != 1 || !all["server.loop.ts.net:443"] {
		t.Errorf("what is announced: %v", all)
	}
	m.close()
	unix.Close(ln)

	// Without a listener the announcement goes, also if the node joins late.
	staleAnnouncementTimeout = time.Millisecond
	m = tn.make(cfg)
	m.await("Running")
	waitFor(t, "the announcement to go", func() bool {
		return m.node().lb.Load().ServeConfig().AllowFunnel().Len() == 0
	})
	m.close()
}
