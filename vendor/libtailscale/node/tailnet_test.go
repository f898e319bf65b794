// A whole tailnet on loopback for the tests, and the caller's part: what the Rust side does with
// descriptors.

package node

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"tailscale.com/derp/derpserver"
	"tailscale.com/envknob"
	"tailscale.com/net/stun/stuntest"
	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
	"tailscale.com/types/key"
	tslogger "tailscale.com/types/logger"
	"tailscale.com/types/nettype"
)

func TestMain(m *testing.M) {
	envknob.Setenv("TS_DEBUG_USE_DERP_HTTP", "1")
	os.Exit(m.Run())
}

type tailnet struct {
	t        testing.TB
	control  *testcontrol.Server
	url      string
	listener *controlListener
}

// controlListener is the control server's listener. It can be made to vanish with all its
// connections, including those that were upgraded from HTTP, which closing the HTTP server does not
// close.
type controlListener struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func (f *controlListener) Accept() (net.Conn, error) {
	c, err := f.Listener.Accept()
	if err == nil {
		f.mu.Lock()
		f.conns = append(f.conns, c)
		f.mu.Unlock()
	}
	return c, err
}

func (f *controlListener) closeAll() {
	f.Listener.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		c.Close()
	}
	f.conns = nil
}

func newTailnet(t testing.TB, change ...func(*testcontrol.Server)) *tailnet {
	t.Helper()
	sharedTestProgram()
	d := derpserver.New(key.NewNode(), tslogger.Discard)
	derp := httptest.NewServer(derpserver.Handler(d))
	stun, stunStop := stuntest.ServeWithPacketListener(t, nettype.Std{})
	port := netip.MustParseAddrPort(derp.Listener.Addr().String()).Port()
	c := &testcontrol.Server{
		Logf:           tslogger.Discard,
		MagicDNSDomain: "loop.ts.net",
		AllOnline:      true,
		DNSConfig:      &tailcfg.DNSConfig{Proxied: true},
		DERPMap: &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{1: {
			RegionID: 1, RegionCode: "loop", RegionName: "loopback",
			Nodes: []*tailcfg.DERPNode{{
				Name: "1a", RegionID: 1, HostName: "127.0.0.1", IPv4: "127.0.0.1", IPv6: "none",
				DERPPort: int(port), STUNPort: stun.Port, STUNTestIP: "127.0.0.1", InsecureForTests: true,
			}},
		}}},
	}
	for _, f := range change {
		f(c)
	}
	c.HTTPTestServer = httptest.NewUnstartedServer(c)
	fr := &controlListener{Listener: c.HTTPTestServer.Listener}
	c.HTTPTestServer.Listener = fr
	c.HTTPTestServer.Start()
	t.Cleanup(func() {
		fr.closeAll()
		c.HTTPTestServer.Close()
		derp.CloseClientConnections()
		derp.Close()
		d.Close()
		stunStop()
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	})
	return &tailnet{t, c, c.HTTPTestServer.URL, fr}
}

// testNode is a node under test with what its caller would keep.
type testNode struct {
	t          testing.TB
	handle     uint64
	generation *uint64
	watch      int
	lastStatus nodeStatus
	log        *logReader
}

func (tn *tailnet) config(name string) Config {
	return Config{
		Dir: filepath.Join(tn.t.TempDir(), name), Hostname: name, ControlURL: tn.url, LogLevel: "trace", AuthKey: "tskey-test",
	}
}

// make makes a node and starts it.
func (tn *tailnet) make(cfg Config) *testNode {
	tn.t.Helper()
	m := tn.unstarted(cfg)
	if err := m.node().Start(); err != nil {
		tn.t.Fatalf("start: %v", err)
	}
	return m
}

func (tn *tailnet) unstarted(cfg Config) *testNode {
	tn.t.Helper()
	raw, _ := json.Marshal(cfg)
	m := &testNode{t: tn.t, generation: new(uint64), watch: -1, log: newLogReader(tn.t)}
	h, err := New(raw, m.generation, m.log.writeEnd())
	if err != nil {
		tn.t.Fatalf("new: %v", err)
	}
	m.handle = h
	fd, err := m.node().Watch()
	if err != nil {
		tn.t.Fatalf("watch: %v", err)
	}
	m.watch = fd
	tn.t.Cleanup(func() {
		m.close()
		if tn.t.Failed() && testing.Verbose() {
			tn.t.Logf("log of %s:\n%s", cfg.Hostname, m.log.text())
		}
	})
	return m
}

// join makes a node and waits until it is in the tailnet.
func (tn *tailnet) join(name string, change ...func(*Config)) *testNode {
	tn.t.Helper()
	cfg := tn.config(name)
	for _, f := range change {
		f(&cfg)
	}
	m := tn.make(cfg)
	m.await("Running")
	return m
}

func (m *testNode) node() *Node {
	n, err := Find(m.handle)
	if err != nil {
		m.t.Fatalf("find: %v", err)
	}
	return n
}

func (m *testNode) close() {
	m.t.Helper()
	began := time.Now()
	if err := Close(m.handle); err != nil {
		m.t.Errorf("close: %v", err)
	}
	if d := time.Since(began); d > 2*time.Second {
		m.t.Errorf("close took %v", d)
	}
	said := strings.ReplaceAll(m.log.text(), "panicked: "+wantedPanic, "")
	if i := strings.Index(said, "panicked"); i >= 0 {
		m.t.Errorf("a panic was swallowed: %s", truncate(strings.ReplaceAll(said[i:], "\\n", "\n"), 3000))
	}
	if m.watch >= 0 {
		unix.Close(m.watch)
		m.watch = -1
	}
}

// nextStatus returns the next state from the watch.
func (m *testNode) nextStatus(within time.Duration) (nodeStatus, bool) {
	m.t.Helper()
	b := make([]byte, 64<<10)
	if !readyToRead(m.watch, within) {
		return nodeStatus{}, false
	}
	n, err := unix.Read(m.watch, b)
	if err != nil || n == 0 {
		return nodeStatus{}, false
	}
	var p nodeStatus
	if err := json.Unmarshal(b[:n], &p); err != nil {
		m.t.Fatalf("picture %q: %v", b[:n], err)
	}
	m.lastStatus = p
	return p, true
}

func (m *testNode) awaitStatus(what string, ok func(nodeStatus) bool) nodeStatus {
	m.t.Helper()
	if m.lastStatus.State != "" && ok(m.lastStatus) {
		return m.lastStatus
	}
	end := time.Now().Add(15 * time.Second)
	for time.Now().Before(end) {
		if p, got := m.nextStatus(time.Until(end)); got && ok(p) {
			return p
		}
	}
	m.t.Fatalf("the watch never showed %s; last was %+v", what, m.lastStatus)
	return nodeStatus{}
}

func (m *testNode) await(state string) nodeStatus {
	m.t.Helper()
	return m.awaitStatus("state "+state, func(p nodeStatus) bool {
		return p.State == state && (state != "Running" || len(p.Addresses) == 2)
	})
}

func (m *testNode) ip(v int) netip.Addr {
	for _, a := range m.lastStatus.Addresses {
		if a.Is4() == (v == 4) {
			return a
		}
	}
	m.t.Fatalf("no IPv%d address in %v", v, m.lastStatus.Addresses)
	return netip.Addr{}
}

func (m *testNode) listen(addr string) int {
	m.t.Helper()
	fd, err := m.node().Listen([]byte(addr))
	if err != nil {
		m.t.Fatalf("listen %s: %v", addr, err)
	}
	return fd
}

func (m *testNode) dial(addr string) *testConn {
	m.t.Helper()
	fd, err := m.node().Dial([]byte(addr), 12*time.Second)
	if err != nil {
		m.t.Fatalf("dial %s: %v", addr, err)
	}
	defer unix.Close(fd)
	return receive(m.t, fd)
}

// testConn is the caller's end of a connection, with its head.
type testConn struct {
	t           testing.TB
	fd          int               // of a dialled one
	accepted    *testAcceptedConn // an accepted one
	kind        byte
	peer, local netip.AddrPort
	closed      atomic.Bool
}

type failureReply struct {
	code    Code
	message string
}

func receiveAny(t testing.TB, fd int, within time.Duration) (*testConn, *failureReply) {
	t.Helper()
	if !readyToRead(fd, within) {
		t.Fatal("no message in time")
	}
	msg, oob := make([]byte, 4096), make([]byte, 64)
	n, oobn, _, _, err := unix.Recvmsg(fd, msg, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil || n == 0 {
		return nil, &failureReply{message: fmt.Sprintf("end of messages (%v)", err)}
	}
	if n < headerLen || msg[0] != 1 {
		t.Fatalf("message of %d bytes, version %d", n, msg[0])
	}
	if msg[1] == kindFailure {
		return nil, &failureReply{Code(binary.NativeEndian.Uint16(msg[2:])), string(msg[headerLen:n])}
	}
	addr := func(a, p int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(msg[a:a+16])).Unmap(), binary.NativeEndian.Uint16(msg[p:]))
	}
	c := &testConn{t: t, fd: -1, kind: msg[1], peer: addr(8, 4), local: addr(24, 6)}
	t.Cleanup(c.close)
	if c.kind == kindAccepted || c.kind == kindFunnel {
		if oobn != 0 || n != headerLen+8 {
			t.Fatalf("an accepted connection of %d bytes, %d of control messages", n, oobn)
		}
		if c.accepted = sharedTestProgram().take(binary.NativeEndian.Uint64(msg[headerLen:])); c.accepted == nil {
			c.accepted = &testAcceptedConn{p: sharedTestProgram(), end: InboundBroken, freed: true, changed: make(chan struct{})} // it has ended already
		}
		return c, nil
	}
	cm, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(cm) != 1 {
		t.Fatalf("control messages: %v, %v", cm, err)
	}
	fds, err := unix.ParseUnixRights(&cm[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("rights: %v, %v", fds, err)
	}
	c.fd = fds[0]
	return c, nil
}

func receive(t testing.TB, fd int) *testConn {
	t.Helper()
	c, f := receiveAny(t, fd, 15*time.Second)
	if f != nil {
		t.Fatalf("failure %d: %s", f.code, f.message)
	}
	return c
}

func (c *testConn) close() {
	if !c.closed.Swap(true) {
		if c.accepted != nil {
			c.accepted.close()
			return
		}
		unix.Close(c.fd)
	}
}

func (c *testConn) write(b []byte) {
	c.t.Helper()
	if err := c.tryWrite(b); err != nil {
		c.t.Errorf("write: %v", err)
	}
}

func (c *testConn) tryWrite(b []byte) error {
	if c.accepted != nil {
		return c.accepted.tryWrite(b)
	}
	for len(b) > 0 {
		n, err := unix.SendmsgN(c.fd, b, nil, nil, unix.MSG_NOSIGNAL)
		if err == unix.EAGAIN {
			unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLOUT}}, 1000)
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// read returns the available bytes, io.EOF at an end, and errReset at an abnormal end, as the Rust
// side tells them apart.
func (c *testConn) read(b []byte, within time.Duration) (int, error) {
	if c.accepted != nil {
		return c.accepted.read(b, within)
	}
	if !readyToRead(c.fd, within) {
		return 0, os.ErrDeadlineExceeded
	}
	n, err := unix.Read(c.fd, b)
	switch {
	case err != nil:
		return 0, err
	case n == 0 && hungUp(uintptr(c.fd)):
		return 0, unix.ECONNRESET
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

func (c *testConn) readAll(within time.Duration) ([]byte, error) {
	var all []byte
	b := make([]byte, 32<<10)
	for {
		n, err := c.read(b, within)
		all = append(all, b[:n]...)
		if err != nil {
			return all, err
		}
	}
}

func (c *testConn) shutdown() {
	if c.accepted != nil {
		c.accepted.shutdown()
		return
	}
	unix.Shutdown(c.fd, unix.SHUT_WR)
}

func readyToRead(fd int, within time.Duration) bool {
	end := time.Now().Add(within)
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, int(max(time.Until(end).Milliseconds(), 0)))
		if err == unix.EINTR {
			continue
		}
		return n > 0
	}
}

// logReader reads a node's log lines, as the Rust side does.
type logReader struct {
	t    testing.TB
	w    int
	mu   sync.Mutex
	all  strings.Builder
	done chan struct{}
}

func newLogReader(t testing.TB) *logReader {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	l := &logReader{t: t, w: p[1], done: make(chan struct{})}
	r := os.NewFile(uintptr(p[0]), "log")
	go func() {
		defer close(l.done)
		defer r.Close()
		b := make([]byte, 64<<10)
		for {
			n, err := r.Read(b)
			l.mu.Lock()
			l.all.Write(b[:n])
			l.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return l
}

func (l *logReader) writeEnd() int { return l.w }

func (l *logReader) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

// checkLeaks counts goroutines and descriptors, and returns a check that there are no more of them.
func checkLeaks(t testing.TB) func() {
	t.Helper()
	count := func() (int, int) {
		fds, _ := os.ReadDir("/proc/self/fd")
		readyQueue.mu.Lock()
		defer readyQueue.mu.Unlock()
		return runtime.NumGoroutine() - readyQueue.workers, len(fds)
	}
	g0, f0 := count()
	return func() {
		t.Helper()
		var g, f int
		for end := time.Now().Add(8 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			http.DefaultTransport.(*http.Transport).CloseIdleConnections()
			if g, f = count(); g <= g0 && f <= f0 {
				return
			}
		}
		b := make([]byte, 1<<20)
		b = b[:runtime.Stack(b, true)]
		t.Errorf("left over: goroutines %d -> %d, descriptors %d -> %d\n%s\n%s", g0, g, f0, f, openFiles(), b)
	}
}

func openFiles() string {
	var sb strings.Builder
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, e := range fds {
		to, _ := os.Readlink("/proc/self/fd/" + e.Name())
		fmt.Fprintf(&sb, "%s -> %s\n", e.Name(), to)
	}
	return sb.String()
}

// raceEnabled reports whether the race detector is on, which makes everything larger.
var raceEnabled bool
