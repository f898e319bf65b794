package node

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"tailscale.com/feature/buildfeatures"
	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnstate"
	"tailscale.com/net/packet"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/wgengine/netstack"
)

func TestListenAndDial(t *testing.T) {
	tn := newTailnet(t)
	check := checkLeaks(t)
	a, b := tn.join("server"), tn.join("client")
	b.awaitPeer("server")
	any := a.listen(":80")
	one := a.listen(fmt.Sprintf("%v:81", a.ip(4)))
	specific := a.listen(fmt.Sprintf("[%v]:80", a.ip(6)))
	for _, addr := range []string{":80", fmt.Sprintf("%v:81", a.ip(4))} {
		if _, err := a.node().Listen([]byte(addr)); err == nil || err.Code != InUse {
			t.Errorf("second listener on %s: %v", addr, err)
		}
	}
	if _, err := a.node().Listen([]byte("100.99.99.99:80")); err == nil || err.Code != Invalid {
		t.Errorf("listener on a foreign address: %v", err)
	}

	for _, try := range []struct {
		to string
		on int
		ip netip.Addr
	}{
		{fmt.Sprintf("%v:80", a.ip(4)), any, a.ip(4)},
		{fmt.Sprintf("[%v]:80", a.ip(6)), specific, a.ip(6)},
		{fmt.Sprintf("%v:81", a.ip(4)), one, a.ip(4)},
		{"server:80", any, a.ip(4)},
		{"SERVER.loop.ts.net.:80", any, a.ip(4)},
	} {
		out := b.dial(try.to)
		in := receive(t, try.on)
		if in.kind != kindAccepted || out.kind != kindDialled {
			t.Errorf("%s: kinds %d, %d", try.to, in.kind, out.kind)
		}
		from := b.ip(4)
		if try.ip.Is6() {
			from = b.ip(6)
		}
		if in.peer.Addr() != from || in.local.Addr() != try.ip || in.peer != out.local || in.local != out.peer {
			t.Errorf("%s: accepted %v -> %v, dialled %v -> %v", try.to, in.peer, in.local, out.local, out.peer)
		}
		out.write([]byte("ping"))
		buf := make([]byte, 10)
		if n, err := in.read(buf, 5*time.Second); err != nil || string(buf[:n]) != "ping" {
			t.Errorf("%s: %q, %v", try.to, buf[:n], err)
		}
		out.close()
		if n, err := in.read(buf, 5*time.Second); err != io.EOF {
			t.Errorf("%s: after a close the other side reads %d, %v", try.to, n, err)
		}
		in.close()
	}

	// Without the specific listener the general one takes over. A closed port refuses.
	unix.Close(specific)
	unix.Close(one)
	waitFor(t, "both listeners to go", func() bool {
		p := &a.node().listeners
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.byAddr) == 1
	})
	out := b.dial(fmt.Sprintf("[%v]:80", a.ip(6)))
	receive(t, any).close()
	out.close()
	fd, err := b.node().Dial([]byte(fmt.Sprintf("%v:81", a.ip(4))), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, f := receiveAny(t, fd, 6*time.Second); f == nil || f.code != Refused {
		t.Errorf("a closed port: %+v", f)
	}
	unix.Close(fd)
	for _, to := range []string{"100.99.99.99:80", "127.0.0.1:80", "nobody:80", "server.example.com:80", "[fe80::1]:80"} {
		fd, err := b.node().Dial([]byte(to), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if _, f := receiveAny(t, fd, 6*time.Second); f == nil || f.code != Unreachable {
			t.Errorf("%s: %+v", to, f)
		}
		unix.Close(fd)
	}
	if _, err := b.node().Dial([]byte("server:80"), 0); err == nil || err.Code != Invalid {
		t.Errorf("no timeout: %v", err)
	}

	// A dial that is closed before it has an answer ends.
	fd, err = b.node().Dial([]byte("server:80"), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)

	// Closing the node is reported to its listeners, after what came before: perhaps the connection
	// of that last dial.
	a.close()
	c, f := receiveAny(t, any, 5*time.Second)
	if c != nil {
		c.close()
		c, f = receiveAny(t, any, 5*time.Second)
	}
	if c != nil || f.code != Closed {
		t.Errorf("the listener of a closed node: %+v, %+v", c, f)
	}
	unix.Close(any)
	b.close()
	check()
}

// The whole path: caller, pump, netstack, WireGuard, netstack, pump, caller.
func TestConnectionEnds(t *testing.T) {
	tn := newTailnet(t)
	check := checkLeaks(t)
	a, b := tn.join("server"), tn.join("client")
	b.awaitPeer("server")
	ln := a.listen(":80")
	to := fmt.Sprintf("%v:80", a.ip(4))
	connect := func() (out, in *testConn) { return b.dial(to), receive(t, ln) }

	t.Run("half closes", func(t *testing.T) {
		out, in := connect()
		out.write([]byte("question"))
		out.shutdown()
		if got, err := in.readAll(5 * time.Second); err != io.EOF || string(got) != "question" {
			t.Errorf("%q, %v", got, err)
		}
		in.write([]byte("answer"))
		in.shutdown()
		got := make([]byte, 20)
		if n, err := out.read(got, 5*time.Second); err != nil || string(got[:n]) != "answer" {
			t.Errorf("%q, %v", got[:n], err)
		}
		waitFor(t, "the connection to go", func() bool { return liveConns.Load() == 0 })
		out.close()
		in.close()
	})

	t.Run("reset", func(t *testing.T) {
		out, in := connect()
		var writing sync.WaitGroup
		writing.Go(func() { out.tryWrite(make([]byte, 32<<20)) }) // more than all buffers hold
		waitFor(t, "the buffers to fill", func() bool {
			var n int
			in.count(&n)
			return n == testBufferBytes
		})
		time.Sleep(100 * time.Millisecond)
		in.close() // with unread bytes: a reset
		if got, err := out.readAll(10 * time.Second); err != unix.ECONNRESET {
			t.Errorf("the other side reads %d bytes and %v", len(got), err)
		}
		writing.Wait()
		out.close()
		waitFor(t, "the connection to go", func() bool { return liveConns.Load() == 0 })
	})

	t.Run("full close with an idle remote", func(t *testing.T) {
		out, in := connect()
		out.shutdown()
		time.Sleep(50 * time.Millisecond)
		out.close()
		waitFor(t, "the client's half to go", func() bool { return firstDialled(&b.node().conns) == nil })
		if _, err := in.read(make([]byte, 1), 5*time.Second); err != io.EOF {
			t.Errorf("the server reads %v", err)
		}
		in.close()
		waitFor(t, "the connection to go", func() bool { return liveConns.Load() == 0 })
	})

	t.Run("16 MiB echo", func(t *testing.T) {
		out, in := connect()
		data := make([]byte, 16<<20)
		rand.New(rand.NewSource(1)).Read(data)
		want := sha256.Sum256(data)
		var writing sync.WaitGroup
		writing.Go(func() {
			buf := make([]byte, 64<<10)
			for {
				n, err := in.read(buf, 10*time.Second)
				if err != nil {
					break
				}
				in.write(buf[:n])
			}
			in.shutdown()
		})
		writing.Go(func() {
			out.write(data)
			out.shutdown()
		})
		h := sha256.New()
		buf := make([]byte, 64<<10)
		for {
			n, err := out.read(buf, 10*time.Second)
			h.Write(buf[:n])
			if err != nil {
				break
			}
		}
		if !bytes.Equal(h.Sum(nil), want[:]) {
			t.Error("the echo differs")
		}
		writing.Wait()
		out.close()
		in.close()
	})

	unix.Close(ln)
	a.close()
	b.close()
	check()
}

// count returns how many bytes can be read.
func (c *testConn) count(n *int) {
	if c.accepted == nil {
		*n, _ = unix.IoctlGetInt(c.fd, unix.TIOCINQ)
		return
	}
	c.accepted.mu.Lock()
	defer c.accepted.mu.Unlock()
	*n = len(c.accepted.in)
}

// closeListener closes a listener and frees what was not taken from it.
func closeListener(fd int) {
	unix.Shutdown(fd, unix.SHUT_RD)
	for {
		msg := make([]byte, 4096)
		n, err := unix.Read(fd, msg)
		if n < headerLen+8 || err != nil {
			break
		}
		if c := sharedTestProgram().take(binary.NativeEndian.Uint64(msg[headerLen:])); c != nil {
			c.close()
		}
	}
	unix.Close(fd)
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited in vain for %s", what)
}

func (m *testNode) awaitPeer(name string) {
	m.t.Helper()
	waitFor(m.t, "the peer "+name, func() bool {
		raw, _ := m.node().Status()
		return strings.Contains(string(raw), `"`+name+".loop.ts.net")
	})
}

// Closing while connections come in. A graceful stop relies on it: no new flow is accepted, and
// every established connection is still delivered.
func TestListenerShutForWriting(t *testing.T) {
	tn := newTailnet(t)
	check := checkLeaks(t)
	a, b := tn.join("server"), tn.join("client")
	b.awaitPeer("server")
	to := fmt.Sprintf("%v:80", a.ip(4))
	ln := a.listen(":80")
	standing := []*testConn{b.dial(to), b.dial(to)}
	if err := unix.Shutdown(ln, unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	for _, out := range standing {
		in := receive(t, ln)
		out.write([]byte("ping"))
		buf := make([]byte, 10)
		if n, err := in.read(buf, 5*time.Second); err != nil || string(buf[:n]) != "ping" {
			t.Errorf("a connection from before: %q, %v", buf[:n], err)
		}
		in.close()
		out.close()
	}
	if _, f := receiveAny(t, ln, 5*time.Second); f == nil || !strings.HasPrefix(f.message, "end of messages") {
		t.Errorf("the listener did not end: %+v", f)
	}
	fd, err := b.node().Dial([]byte(to), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, f := receiveAny(t, fd, 6*time.Second); f == nil || f.code != Refused {
		t.Errorf("a new flow: %+v", f)
	}
	unix.Close(fd)
	unix.Close(ln)
	a.close()
	b.close()
	check()
}

func TestCloseDuringAccept(t *testing.T) {
	tn := newTailnet(t)
	check := checkLeaks(t)
	a, b := tn.join("server"), tn.join("client")
	b.awaitPeer("server")
	ln := a.listen(":80")
	b.dial(fmt.Sprintf("%v:80", a.ip(4))).close()
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if fd, err := b.node().Dial([]byte(fmt.Sprintf("%v:80", a.ip(4))), time.Second); err == nil {
				unix.Close(fd)
			}
			time.Sleep(time.Millisecond)
		}
	}()
	time.Sleep(50 * time.Millisecond)
	a.close()
	close(stop)
	<-done
	unix.Close(ln)
	b.close()
	check()
}

// An accepted connection needs no descriptor, so peers are served even if the process has none
// left.
func TestOutOfDescriptors(t *testing.T) {
	tn := newTailnet(t)
	a, b := tn.join("server"), tn.join("client")
	b.awaitPeer("server")
	ln := a.listen(":80")
	to := fmt.Sprintf("%v:80", a.ip(4))
	b.dial(to).close()
	receive(t, ln).close()
	waitFor(t, "the connection to go", func() bool { return liveConns.Load() == 0 })

	// Dial makes its sockets before that.
	fd, err := b.node().Dial([]byte(to), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	var old unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &old)
	next, derr := unix.Dup(ln)
	if derr != nil {
		t.Fatal(derr)
	}
	held := []int{next}
	unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(next + 1), Max: old.Max})
	for derr == nil {
		if next, derr = unix.Dup(ln); derr == nil {
			held = append(held, next)
		}
	}
	in := receive(t, ln)
	in.write([]byte("x"))
	in.accepted.wait(5*time.Second, func() bool { return len(in.accepted.out) == 0 })
	if n := len(in.accepted.out); n > 0 || in.accepted.end == InboundBroken {
		t.Errorf("with no descriptors left %d bytes are not sent, end %d", n, in.accepted.end)
	}
	in.accepted.mu.Unlock()
	unix.Setrlimit(unix.RLIMIT_NOFILE, &old)
	for _, fd := range held {
		unix.Close(fd)
	}
	unix.Close(fd)
	in.close()
	unix.Close(ln)
}

func (m *testNode) whois(addr string) (whois, *Error) { return m.whoisTo(addr, "") }

func (m *testNode) whoisTo(addr, local string) (whois, *Error) {
	var w whois
	raw, err := m.node().WhoIs([]byte(addr), []byte(local))
	if err == nil {
		if jerr := json.Unmarshal(raw, &w); jerr != nil {
			m.t.Fatalf("%s: %v", raw, jerr)
		}
	}
	return w, err
}

func TestWhoIs(t *testing.T) {
	tn := newTailnet(t)
	tn.control.SetGlobalAppCaps(tailcfg.PeerCapMap{"example.com/cap/admin": {`{"level":3}`, `"x"`}})
	a, b := tn.join("server"), tn.join("client")
	a.awaitPeer("client")
	for _, addr := range []string{b.ip(4).String(), b.ip(4).String() + ":12345", b.ip(6).String(), fmt.Sprintf("[%v]:1", b.ip(6)), "::ffff:" + b.ip(4).String()} {
		w, err := a.whois(addr)
		if err != nil {
			t.Fatalf("%s: %v", addr, err)
		}
		if w.Node.Name != "client.loop.ts.net" || w.Node.ID != b.lastStatus.ID || w.Node.Hostname != "client" || len(w.Node.Addresses) != 2 ||
			w.User.Login != b.lastStatus.Owner || w.User.Login == "" || w.User.ID != w.Node.UserID || !w.SameTailnet || w.Node.Sharer || w.Node.Expired ||
			!strings.HasPrefix(w.Node.Key, "nodekey:") || w.Node.NumericID == 0 {
			t.Errorf("%s: %+v", addr, w)
		}
		if got := fmt.Sprintf("%s", w.Caps["example.com/cap/admin"]); got != `[{"level":3} "x"]` {
			t.Errorf("%s: caps %s", addr, got)
		}
	}
	for _, addr := range []string{"100.99.1.2", "8.8.8.8:53", "127.0.0.1:80", "fd7a::9", "[fd7a:115c:a1e0::99]:80"} {
		if w, err := a.whois(addr); err == nil || err.Code != NotFound {
			t.Errorf("%s: %+v, %v", addr, w, err)
		}
	}
	for _, addr := range []string{"", "client", "100.64.0.1:", "100.64.0.1:99999", "fe80::1%eth0", "100.64.0.1\x00", strings.Repeat("1", 1000)} {
		if _, err := a.whois(addr); err == nil || err.Code != Invalid {
			t.Errorf("%.20q: %v", addr, err)
		}
	}
}

// The packet filter's answer for an open connection is the one that a new connection would get.
func TestWhoIsAsksThePacketFilter(t *testing.T) {
	tn := newTailnet(t)
	a, b := tn.join("server"), tn.join("client")
	a.awaitPeer("client")
	own4, own6 := netip.AddrPortFrom(a.ip(4), 80).String(), netip.AddrPortFrom(a.ip(6), 80).String()
	from4, from6 := b.ip(4).String(), b.ip(6).String()
	for _, local := range []string{own4, "[::ffff:" + a.ip(4).String() + "]:80"} {
		if w, err := a.whoisTo(from4, local); err != nil || w.Node.ID != b.lastStatus.ID {
			t.Errorf("%s where everything is open: %+v, %v", local, w, err)
		}
	}
	if _, err := a.whoisTo(from6, own6); err != nil {
		t.Errorf("%s where everything is open: %v", own6, err)
	}
	for _, local := range []string{"100.64.0.1", ":80", "100.64.0.1:0", "server:80", "[fe80::1%eth0]:80", strings.Repeat("1", 1000)} {
		if _, err := a.whoisTo(from4, local); err == nil || err.Code != Invalid {
			t.Errorf("local %.20q: %v", local, err)
		}
	}

	// Another port of ours and another peer's address stay open; this port does not.
	rule := func(src string, port uint16) tailcfg.FilterRule {
		return tailcfg.FilterRule{SrcIPs: []string{src}, DstPorts: []tailcfg.NetPortRange{{IP: "*", Ports: tailcfg.PortRange{First: port, Last: port}}}}
	}
	before := atomic.LoadUint64(a.generation)
	mr := &tailcfg.MapResponse{PacketFilters: map[string][]tailcfg.FilterRule{"*": nil, "base": {rule("*", 81), rule(from6, 80)}}}
	if !tn.control.AddRawMapResponse(nodeKey(a), mr) {
		t.Fatal("no poll to answer")
	}
	waitFor(t, "the filter", func() bool { _, err := a.whoisTo(from4, own4); return err != nil })
	if now := atomic.LoadUint64(a.generation); now == before {
		waitFor(t, "the generation", func() bool { return atomic.LoadUint64(a.generation) != before })
	}
	if _, err := a.whoisTo(from4, own4); err.Code != Forbidden || !strings.Contains(err.Message, "client.loop.ts.net") {
		t.Errorf("a port that was closed: %v", err)
	}
	if _, err := a.whoisTo(from4, netip.AddrPortFrom(a.ip(4), 81).String()); err != nil {
		t.Errorf("a port that is open: %v", err)
	}
	if _, err := a.whoisTo(from6, own6); err != nil {
		t.Errorf("an address that is let through: %v", err)
	}
	if _, err := a.whoisTo("100.99.1.2", own4); err == nil || err.Code != NotFound {
		t.Errorf("nobody's address: %v", err)
	}
	if w, err := a.whois(from4); err != nil || w.Node.ID != b.lastStatus.ID {
		t.Errorf("the identity alone: %+v, %v", w, err)
	}
}

func TestRawValuesThatAreNotJSON(t *testing.T) {
	if got := rawValues([]tailcfg.RawMessage{`{"a":1}`, `{"a":`, `[]`}); len(got) != 2 {
		t.Errorf("%s", got)
	}
}

// Whatever can alter an answer of WhoIs must increment the generation, after the answer has
// changed.
func TestGeneration(t *testing.T) {
	tn := newTailnet(t)
	a, b := tn.join("server"), tn.join("client")
	a.awaitPeer("client")
	peer := func() *tailcfg.Node { return tn.control.Node(nodeKey(b)) }
	awaitStableGeneration(t, a)

	// send sends the server's node a map response made here, as the test server does not make the
	// incremental kinds.
	send := func(mr *tailcfg.MapResponse) {
		t.Helper()
		if !tn.control.AddRawMapResponse(nodeKey(a), mr) {
			t.Fatal("no poll to answer")
		}
	}
	loginOf := func(login string) []tailcfg.UserProfile {
		return []tailcfg.UserProfile{{ID: peer().User, LoginName: login, DisplayName: login}}
	}
	withCap := func(name tailcfg.PeerCapability) map[string][]tailcfg.FilterRule {
		return map[string][]tailcfg.FilterRule{"grant": {{
			SrcIPs:   []string{"*"},
			CapGrant: []tailcfg.CapGrant{{Dsts: []netip.Prefix{netip.PrefixFrom(a.ip(4), 32)}, CapMap: tailcfg.PeerCapMap{name: {`true`}}}},
		}}}
	}
	clone := func(f func(*tailcfg.Node)) []*tailcfg.Node {
		n := peer().Clone()
		f(n)
		return []*tailcfg.Node{n}
	}
	for _, step := range []struct {
		what string
		mr   *tailcfg.MapResponse
		want func(whois, *Error) bool
	}{
		{"a user profile alone", &tailcfg.MapResponse{UserProfiles: loginOf("renamed@example.com")},
			func(w whois, err *Error) bool { return w.User.Login == "renamed@example.com" }},
		{"a packet filter alone", &tailcfg.MapResponse{PacketFilters: withCap("example.com/cap/one")},
			func(w whois, err *Error) bool { return w.Caps["example.com/cap/one"] != nil }},
		{"another packet filter alone", &tailcfg.MapResponse{PacketFilters: withCap("example.com/cap/two")},
			func(w whois, err *Error) bool {
				return w.Caps["example.com/cap/one"] == nil && w.Caps["example.com/cap/two"] != nil
			}},
		{"a changed peer", &tailcfg.MapResponse{PeersChanged: clone(func(n *tailcfg.Node) { n.Tags = []string{"tag:ci"} })},
			func(w whois, err *Error) bool { return len(w.Node.Tags) == 1 }},
		{"a peer's key expiry by patch", &tailcfg.MapResponse{PeersChangedPatch: []*tailcfg.PeerChange{{NodeID: peer().ID, KeyExpiry: ptr(time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC))}}},
			func(w whois, err *Error) bool { return w.Node.Expired && strings.HasPrefix(w.Node.KeyExpiry, "2001") }},
		{"a removed peer", &tailcfg.MapResponse{PeersRemoved: []tailcfg.NodeID{peer().ID}},
			func(w whois, err *Error) bool { return err != nil && err.Code == NotFound }},
		{"a peer that is back", &tailcfg.MapResponse{PeersChanged: clone(func(*tailcfg.Node) {})},
			func(w whois, err *Error) bool { return err == nil && len(w.Node.Tags) == 0 }},
	} {
		before := atomic.LoadUint64(a.generation)
		addr := b.ip(4).String()
		if w, err := a.whois(addr); step.want(w, err) {
			t.Fatalf("%s: already so", step.what)
		}
		send(step.mr)
		// A caller keeps the answer until the number changes, then asks again. With this alone it
		// must get the new answer, however often the number changes.
		seen := before
		good := false
		end := time.Now().Add(5 * time.Second)
		for !good && time.Now().Before(end) {
			if now := atomic.LoadUint64(a.generation); now != seen {
				seen = now
				w, err := a.whois(addr)
				good = step.want(w, err)
			}
		}
		if !good {
			w, err := a.whois(addr)
			t.Errorf("%s: the generation went %d -> %d; asking now gives the new answer: %v", step.what, before, seen, step.want(w, err))
		}
		awaitStableGeneration(t, a)
	}

	// What does not matter to WhoIs must not change it: otherwise no cache would ever help in a
	// large tailnet.
	before := atomic.LoadUint64(a.generation)
	send(&tailcfg.MapResponse{PeersChangedPatch: []*tailcfg.PeerChange{{NodeID: peer().ID, Online: ptr(false)}}})
	waitFor(t, "the patch", func() bool {
		raw, _ := a.node().Status()
		return strings.Contains(string(raw), `"online":false`)
	})
	if now := atomic.LoadUint64(a.generation); now != before {
		t.Errorf("going offline moved the generation %d -> %d", before, now)
	}
}

func ptr[T any](v T) *T { return &v }

// awaitStableGeneration waits until a node's generation stops changing, so that a test sees only
// its own changes.
func awaitStableGeneration(t *testing.T, m *testNode) {
	t.Helper()
	last, since := atomic.LoadUint64(m.generation), time.Now()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if now := atomic.LoadUint64(m.generation); now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) > 150*time.Millisecond {
			return
		}
	}
	t.Fatal("the generation never rests")
}

func nodeKey(m *testNode) key.NodePublic { return m.node().lb.Load().NodeKey() }

// The filter is followed by a log line of tsnet. If that line changes, the check every second must
// still work.
func TestPacketFilterWithoutItsLogLine(t *testing.T) {
	tn := newTailnet(t)
	m := tn.join("server")
	awaitStableGeneration(t, m)
	n := m.node()
	before := atomic.LoadUint64(m.generation)
	engine := n.lb.Load().Sys().Engine.Get()
	f := *engine.GetFilter()
	engine.SetFilter(&f)
	waitFor(t, "the look each second", func() bool { return atomic.LoadUint64(m.generation) != before })
}

// The line that backend_log.go waits for must come, in the expected words, and wake; otherwise only
// the check every second is left.
func TestFilterLogLine(t *testing.T) {
	tn := newTailnet(t)
	m := tn.join("server")
	if !strings.Contains(m.log.text(), "[v1] netmap packet filter: ") {
		t.Error("tsnet no longer announces packet filters as backend_log.go expects")
	}
	n := &Node{filterChanged: make(chan struct{}, 1), log: newLogger(-1, levelOff)}
	n.backendLine("[v1] netmap packet filter: %v filters", 2)
	n.backendLine("[v1] netmap packet filter: %v filters", 2) // must not block
	if len(n.filterChanged) != 1 {
		t.Error("the line wakes nobody")
	}
}

func TestMayChangeIdentity(t *testing.T) {
	for what, c := range map[string]struct {
		n    ipn.Notify
		want bool
	}{
		"nothing":           {ipn.Notify{}, true},
		"a patch":           {ipn.Notify{PeerChangedPatch: []*tailcfg.PeerChange{{}}}, false},
		"a patch and more":  {ipn.Notify{PeerChangedPatch: []*tailcfg.PeerChange{{}}, PeersRemoved: []tailcfg.NodeID{1}}, true},
		"engine statistics": {ipn.Notify{Engine: &ipn.EngineStatus{}}, false},
		"a state":           {ipn.Notify{State: ptr(ipn.Stopped)}, true},
	} {
		if got := mayChangeIdentity(&c.n); got != c.want {
			t.Errorf("%s: %v", what, got)
		}
	}
}

// Greeting makes a session with a peer that has had no traffic yet, for a new node and for one that
// comes back.
func TestGreeting(t *testing.T) {
	tn := newTailnet(t)
	a := tn.join("first")
	cfg := tn.config("second")
	cfg.GreetMax = 10
	for i, life := range []string{"new", "back"} {
		b := tn.make(cfg)
		b.await("Running")
		waitFor(t, "a session of the node that is "+life, func() bool {
			return !statusOfPeer(b, "first").LastHandshake.IsZero() && statusOfPeer(a, "second").Active
		})
		awaitDiscoKey(a, i+1)
		b.close()
	}
}

// While the node greets it does not report that it runs.
func TestGreetingHoldsTheStart(t *testing.T) {
	tn := newTailnet(t)
	m := tn.join("only")
	m.node().greet.finished.Store(false)
	if state := m.node().currentStatus(false).State; state != "Starting" {
		t.Errorf("%s while it greets", state)
	}
	m.node().greetingDone()
	m.await("Running")
}

// What takes less time is not WireGuard's own next try, which comes after 5 s. On a busy machine
// everything takes long.
const wireGuardRetry = 4500 * time.Millisecond

// A caller whose handshake was lost is silent for 5 s. We make contact with it long before that.
func TestLostHandshakeOfACaller(t *testing.T) {
	server, caller := unconnectedPair(t)
	server.listen(":80")
	hears := dropHandshakes(server)
	fd, err := caller.node().Dial([]byte(server.ip(4).String()+":80"), 12*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	hears()
	began := time.Now()
	greet(server, "caller", false)
	receive(t, fd)
	if d := time.Since(began); d > wireGuardRetry {
		t.Errorf("the caller got through after %v", d)
	}
	awaitDiscoKey(caller, 1)
}

// A handshake of ours that is lost is soon begun again by us.
func TestLostHandshakeOfOurs(t *testing.T) {
	server, caller := unconnectedPair(t)
	hears := dropHandshakes(caller)
	greeted := make(chan struct{})
	go func() {
		defer close(greeted)
		greet(server, "caller", true)
	}()
	hears()
	began := time.Now()
	<-greeted
	if d := time.Since(began); d > wireGuardRetry || statusOfPeer(server, "caller").LastHandshake.IsZero() {
		t.Errorf("%v later: %+v", d, statusOfPeer(server, "caller"))
	}
	awaitDiscoKey(caller, 1)
}

// A handshake may end with a session that works one way only. It is begun again until an answer has
// come back through it.
func TestSessionOfOneDirection(t *testing.T) {
	server, caller := unconnectedPair(t)
	tun := server.node().lb.Load().Sys().Tun.Get()
	pongs, hand := 0, tun.OnTSMPPongReceived
	tun.OnTSMPPongReceived = func(r packet.TSMPPongReply) {
		if pongs++; pongs > 1 {
			hand(r)
		}
	}
	greet(server, "caller", true)
	if begun := strings.Count(caller.log.text(), "Received handshake initiation"); pongs < 2 || begun < 2 {
		t.Errorf("greeted after %d answers and %d handshakes", pongs, begun)
	}
	awaitDiscoKey(caller, 1)
}

// A peer that we know a path to is still asked to look for one to us, each time that we begin
// again.
func TestPromptCallMeMaybe(t *testing.T) {
	server, caller := unconnectedPair(t)
	caller.node().lb.Load().MagicConn().SetDebugLoggingEnabled(true)
	calls := func() int { return strings.Count(caller.log.text(), "got call-me-maybe") }
	lb := server.node().lb.Load()
	for _, p := range greetable(lb.NodeBackend().Peers()) {
		discoverPath(t.Context(), lb, p)
		waitFor(t, "a direct way", func() bool { return statusOfPeer(server, "caller").CurAddr != "" })
		before, began := calls(), time.Now()
		promptCallMeMaybe(lb, p)
		lb.Sys().Engine.Get().Ping(p.ip, tailcfg.PingTSMP, 0, func(*ipnstate.PingResult) {})
		waitFor(t, "a call", func() bool { return calls() > before })
		if d := time.Since(began); d > 2*time.Second {
			t.Errorf("called after %v, which magicsock does every 3 s by itself", d)
		}
	}
	awaitDiscoKey(caller, 1)
}

// unconnectedPair makes two nodes that know each other and have no session.
func unconnectedPair(t *testing.T) (server, caller *testNode) {
	tn := newTailnet(t)
	server, caller = tn.join("server"), tn.join("caller")
	for m, name := range map[*testNode]string{server: "caller", caller: "server"} {
		waitFor(t, "the other and its relay", func() bool { return statusOfPeer(m, name).Relay != "" })
	}
	return server, caller
}

// dropHandshakes makes a node drop the handshakes of its peers, as a node does that has not been
// told about them. The function that it returns waits for a dropped one, and makes the node accept
// them again.
func dropHandshakes(m *testNode) (hears func()) {
	lb := m.node().lb.Load()
	engine := lb.Sys().Engine.Get()
	dropped := make(chan struct{}, 1)
	engine.SetPeerConfigFunc(func(key.NodePublic) ([]netip.Prefix, bool) {
		select {
		case dropped <- struct{}{}:
		default:
		}
		return nil, false
	})
	return func() {
		<-dropped
		engine.SetPeerConfigFunc(func(k key.NodePublic) ([]netip.Prefix, bool) {
			n, _, ok := lb.WhoIsNodeKey(k)
			if !ok {
				return nil, false
			}
			return n.Addresses().AsSlice(), true
		})
	}
}

// awaitDiscoKey waits until a node has handled the disco key that comes with a TSMP ping. Upstream
// fault, seen in tailscale.com v1.102.5: a node does not close while it handles one, as
// Direct.Close waits for it under the lock that it needs. The program's builds do not have this
// message (tags.txt: ts_omit_cachenetmap), nor do tests with their tags.
func awaitDiscoKey(m *testNode, times int) {
	if !buildfeatures.HasCacheNetMap {
		return
	}
	waitFor(m.t, "a disco key", func() bool { return strings.Count(m.log.text(), "updating discoKey for") >= times })
}

func greet(m *testNode, name string, skipDiscovery bool) {
	lb := m.node().lb.Load()
	for _, p := range greetable(lb.NodeBackend().Peers()) {
		if p.key == statusOfPeer(m, name).PublicKey {
			m.node().greetPeer(lb, p, skipDiscovery, func() {})
		}
	}
}

// statusOfPeer returns a member's status of a peer; the zero value while it does not know the peer.
func statusOfPeer(m *testNode, name string) ipnstate.PeerStatus {
	lb, err := m.node().backend()
	if err != nil {
		m.t.Fatalf("backend: %v", err)
	}
	for _, p := range lb.Status().Peer {
		if p.DNSName == name+".loop.ts.net." {
			return *p
		}
	}
	return ipnstate.PeerStatus{}
}

// A peer that joins or restarts later is greeted as well: its first handshake may come before the
// control server has told us about it.
func TestGreetingOfNewcomers(t *testing.T) {
	tn := newTailnet(t)
	cfg := tn.config("server")
	cfg.GreetMax = 10
	server := tn.make(cfg)
	server.await("Running")
	cfg = tn.config("newcomer")
	var last time.Time
	for _, life := range []string{"first", "second"} {
		m := tn.make(cfg)
		m.await("Running")
		waitFor(t, "a session in the newcomer's "+life+" life", func() bool { return statusOfPeer(server, "newcomer").LastHandshake.After(last) })
		last = statusOfPeer(server, "newcomer").LastHandshake
		awaitDiscoKey(m, 1)
		m.close()
	}
}

// Only online peers are greeted, and those known to be online come first.
func TestGreetable(t *testing.T) {
	online, offline := true, false
	peer := func(id tailcfg.NodeID, online *bool) tailcfg.NodeView {
		ip := netip.AddrFrom4([4]byte{100, 64, 0, byte(id)})
		return (&tailcfg.Node{ID: id, Online: online, Addresses: []netip.Prefix{netip.PrefixFrom(ip, 32)}}).View()
	}
	var ids []tailcfg.NodeID
	for _, p := range greetable([]tailcfg.NodeView{peer(1, &offline), peer(2, nil), peer(3, &online)}) {
		ids = append(ids, p.id)
	}
	if !slices.Equal(ids, []tailcfg.NodeID{3, 2}) {
		t.Errorf("greeted would be %v", ids)
	}
}

// A peer is greeted once until it restarts, and the number of greetings within a time is limited.
func TestPeersAreGreetedOnce(t *testing.T) {
	peer := func(id tailcfg.NodeID, disco key.DiscoPublic) greetTarget { return greetTarget{id: id, disco: disco} }
	one, two := key.NewDisco().Public(), key.NewDisco().Public()
	a := greetedPeers{limit: 2}
	now := time.Now()
	for i, c := range []struct {
		after   time.Duration
		peer    greetTarget
		greeted bool
	}{
		{0, peer(1, key.DiscoPublic{}), false}, // nobody can reach it yet
		{0, peer(1, one), true},
		{0, peer(1, one), false},
		{0, peer(1, two), true},
		{0, peer(2, one), false}, // too many
		{peerRetention, peer(3, one), true},
	} {
		if greeted := len(a.takeUngreeted([]greetTarget{c.peer}, now.Add(c.after))) == 1; greeted != c.greeted {
			t.Errorf("case %d: %v", i, greeted)
		}
	}
}

func TestQueueField(t *testing.T) {
	if queueOf(new(netstack.Impl)) == nil {
		t.Fatal("netstack.Impl has no link where netstack.go expects it")
	}
}

// More open connections than the netstack's queue has room for resets (see netstack.go).
func TestCloseWithManyConnections(t *testing.T) {
	tn := newTailnet(t)
	check := checkLeaks(t)
	a, b := tn.join("server"), tn.join("client")
	b.awaitPeer("server")
	ln := a.listen(":80")
	many := 700
	if raceEnabled {
		many = 300 // more takes the detector too long
	}
	var ends []*testConn
	var clients []unix.PollFd
	for range many {
		out, in := b.dial(fmt.Sprintf("%v:80", a.ip(4))), receive(t, ln)
		ends = append(ends, in)
		out.closed.Store(true) // closed below
		clients = append(clients, unix.PollFd{Fd: int32(out.fd), Events: unix.POLLIN})
	}
	var theirs sync.WaitGroup
	theirs.Go(func() { // clients that close when their server does
		for open := len(clients); open > 0; {
			if n, err := unix.Poll(clients, 10_000); n == 0 || err != nil && err != unix.EINTR {
				t.Errorf("%d clients see nothing (%v)", open, err)
				return
			}
			for i, c := range clients {
				if c.Fd >= 0 && c.Revents != 0 {
					unix.Close(int(c.Fd))
					clients[i].Fd = -1
					open--
				}
			}
		}
	})
	began := time.Now()
	// Under the race detector on a busy machine this takes longer than Close may. Close then says
	// so in time, and the rest ends in the background; a node that is stuck for good fails check.
	err := Close(a.handle)
	if err != nil && !(raceEnabled && err.Code == Timeout) {
		t.Errorf("close: %v", err)
	}
	t.Logf("closing with %d connections took %v (%v)", len(ends), time.Since(began), err)
	for _, c := range ends {
		if _, err := c.read(make([]byte, 1), time.Second); err != unix.ECONNRESET {
			t.Errorf("an open connection of a closed node reads %v", err)
		}
		c.close()
	}
	theirs.Wait()
	if err := Close(b.handle); err != nil {
		t.Errorf("close of the client: %v", err)
	}
	a.close() // the rest of what the test holds
	b.close()
	unix.Close(ln)
	check()
}
