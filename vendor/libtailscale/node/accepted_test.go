// Accepted connections across a whole tailnet, with the program's side in program_test.go.

package node

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/loopback"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// acceptTest is a server and a client whose connections it accepts.
type acceptTest struct {
	t              *testing.T
	server, client *testNode
	listener       int
	to             string
}

func newAcceptTest(t *testing.T) *acceptTest {
	tn := newTailnet(t)
	check := checkLeaks(t)
	s := &acceptTest{t: t, server: tn.join("server"), client: tn.join("client")}
	s.client.awaitPeer("server")
	s.listener = s.server.listen(":80")
	s.to = fmt.Sprintf("%v:80", s.server.ip(4))
	t.Cleanup(func() {
		closeListener(s.listener)
		s.server.close()
		s.client.close()
		check()
		p := sharedTestProgram()
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.all) > 0 {
			t.Errorf("%d connections were not freed", len(p.all))
		}
	})
	return s
}

func (s *acceptTest) connect() (out, in *testConn) {
	out = s.client.dial(s.to)
	return out, receive(s.t, s.listener)
}

// connOf returns the connection of in.
func (s *acceptTest) connOf(in *testConn) *acceptedConn {
	program.mu.RLock()
	defer program.mu.RUnlock()
	return program.conns[in.accepted.id]
}

func (s *acceptTest) awaitFreed(in *testConn) {
	s.t.Helper()
	waitFor(s.t, "the connection to be freed", func() bool {
		in.accepted.mu.Lock()
		defer in.accepted.mu.Unlock()
		return in.accepted.freed
	})
}

func TestEndpointFields(t *testing.T) {
	if !endpointFieldsKnown {
		t.Fatal("gonet.TCPConn has other fields than endpoint.go expects")
	}
	if ep, wq := endpointOf(gonet.NewTCPConn(nil, nil)); ep != nil || wq != nil {
		t.Error("it gives what is not there")
	}
}

func TestAcceptedHalfCloses(t *testing.T) {
	s := newAcceptTest(t)

	// The peer ends first, the program answers afterwards.
	out, in := s.connect()
	out.write([]byte("question"))
	out.shutdown()
	if got, err := in.readAll(5 * time.Second); err != io.EOF || string(got) != "question" {
		t.Errorf("program: %q, %v", got, err)
	}
	in.write([]byte("an"))
	in.write([]byte("swer"))
	in.shutdown()
	if got, err := out.readAll(5 * time.Second); string(got) != "answer" {
		t.Errorf("peer: %q, %v", got, err)
	}
	// Both have ended: it is freed although the program still holds it.
	s.awaitFreed(in)
	out.close()

	// The program ends first.
	out, in = s.connect()
	in.write([]byte("question"))
	in.shutdown()
	if got, err := out.readAll(5 * time.Second); err != io.EOF || string(got) != "question" {
		t.Errorf("peer: %q, %v", got, err)
	}
	out.write([]byte("answer"))
	out.shutdown()
	if got, err := in.readAll(5 * time.Second); err != io.EOF || string(got) != "answer" {
		t.Errorf("program: %q, %v", got, err)
	}
	s.awaitFreed(in)
	out.close()
}

// What the program does during a turn is sent with it: no kick is needed.
func TestAcceptedAnswersInTheTurn(t *testing.T) {
	s := newAcceptTest(t)
	out, in := s.connect()
	in.accepted.mu.Lock()
	in.accepted.serve = func(c *testAcceptedConn) {
		c.out = append(c.out, bytes.ToUpper(c.in)...)
		c.in = nil
	}
	in.accepted.mu.Unlock()
	for range 3 {
		out.write([]byte("ping"))
		b := make([]byte, 10)
		if n, err := out.read(b, 5*time.Second); err != nil || string(b[:n]) != "PING" {
			t.Fatalf("%q, %v", b[:n], err)
		}
	}
	// The same for more than fits into one turn.
	const much = 3*turnBytes + 1
	in.accepted.mu.Lock()
	in.accepted.serve = func(c *testAcceptedConn) { c.out, c.in, c.serve = make([]byte, much), nil, nil }
	in.accepted.mu.Unlock()
	out.write([]byte("more"))
	for got := 0; got < much; {
		n, err := out.read(make([]byte, 64<<10), 5*time.Second)
		if got += n; err != nil {
			t.Fatalf("%d of %d bytes, %v", got, much, err)
		}
	}
	out.close()
	in.close()
}

// Something that happens while a goroutine works makes it check again, and no second one starts.
func TestAcceptedChecksAgain(t *testing.T) {
	var d acceptedConn
	d.state.Store(connServed)
	d.NotifyEvent(0)
	if s := d.state.Load(); s != connRecheck {
		t.Errorf("state %d", s)
	}
	d.NotifyEvent(0)
	d.state.Store(connFreed)
	d.NotifyEvent(0)
	if s := d.state.Load(); s != connFreed || d.next != nil {
		t.Errorf("state %d", s)
	}
}

func TestAcceptedResetIsNotAnEnd(t *testing.T) {
	s := newAcceptTest(t)
	for _, shut := range []bool{false, true} {
		out, in := s.connect()
		if shut {
			in.shutdown() // must not hide the difference between a reset and an end
		}
		out.write([]byte("half an ans"))
		b := make([]byte, 100)
		if n, err := in.read(b, 5*time.Second); err != nil || n != 11 {
			t.Fatal(n, err)
		}
		// A reset on the wire: the client's endpoint is aborted.
		theirs := firstDialled(&s.client.node().conns)
		ep, _ := endpointOf(theirs.net)
		ep.Abort()
		if n, err := in.read(b, 5*time.Second); err != unix.ECONNRESET {
			t.Errorf("shut %v: after a reset: %d, %v", shut, n, err)
		}
		s.awaitFreed(in)
		out.close()
		waitFor(t, "both ends to go", func() bool { return liveConns.Load() == 0 })
		in.close()
	}
}

// The program has closed and the network is silent: what was written is sent, then the end.
func TestAcceptedFullClose(t *testing.T) {
	s := newAcceptTest(t)
	for name, before := range map[string]func(*testConn){
		"at once":           func(*testConn) {},
		"after a half":      func(c *testConn) { c.shutdown(); time.Sleep(30 * time.Millisecond) },
		"with words unsent": func(c *testConn) { c.write([]byte("last words")) },
	} {
		out, in := s.connect()
		before(in)
		in.close()
		got, err := out.readAll(5 * time.Second)
		if err != io.EOF {
			t.Errorf("%s: the peer must see an end of stream: %v", name, err)
		}
		if name == "with words unsent" && string(got) != "last words" {
			t.Errorf("what was written before the close is lost: %q", got)
		}
		s.awaitFreed(in)
		out.close()
	}
}

// Two connections with both directions full, and at first nothing is read: no byte is lost or mixed
// up, and no direction waits for the other one.
func TestAcceptedFullBothWays(t *testing.T) {
	s := newAcceptTest(t)
	const size, ends = 8 << 20, 4
	piece := func(i int) []byte { return bytes.Repeat([]byte{byte('a' + i)}, 64<<10) }
	var to, from [ends]*testConn
	to[0], from[0] = s.connect()
	to[1], from[1] = s.connect()
	to[2], from[2], to[3], from[3] = from[0], to[0], from[1], to[1]
	var all sync.WaitGroup
	for i, c := range to {
		all.Go(func() {
			for range size / (64 << 10) {
				c.write(piece(i))
			}
			c.shutdown()
		})
	}
	for _, in := range from[:2] {
		waitFor(t, "both directions to fill", func() bool {
			d := s.connOf(in)
			in.accepted.mu.Lock()
			defer in.accepted.mu.Unlock()
			return d.state.Load() == connIdle && len(in.accepted.in) == testBufferBytes && len(in.accepted.out) == testBufferBytes
		})
	}
	for i, c := range from {
		all.Go(func() {
			got, err := c.readAll(20 * time.Second)
			if len(got) != size || !bytes.Equal(got, bytes.Repeat(piece(i), size/(64<<10))) {
				t.Errorf("%d: %d bytes instead of %d, or others, %v", i, len(got), size, err)
			}
		})
	}
	all.Wait()
	s.awaitFreed(from[0])
	s.awaitFreed(from[1])
	to[0].close()
	to[1].close()
}

// A peer that stops reading must not keep a connection that the program has closed.
func TestAcceptedClosedAndNotRead(t *testing.T) {
	defer func(d time.Duration) { closedTimeout = d }(closedTimeout)
	closedTimeout = 300 * time.Millisecond
	s := newAcceptTest(t)
	out, in := s.connect()
	var writing sync.WaitGroup
	var written atomic.Int64
	writing.Go(func() {
		for { // more than all buffers hold, unless the connection ends
			if in.tryWrite(make([]byte, 64<<10)) != nil {
				return
			}
			written.Add(1)
		}
	})
	last, since := int64(-1), time.Now()
	waitFor(t, "the netstack to be full", func() bool {
		in.accepted.kick() // the netstack notifies only when half of its buffer is free
		if now := written.Load(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > 2*closedTimeout
	})
	if s.connOf(in) == nil {
		t.Error("a slow peer alone must not end a connection")
	}
	in.close()
	s.awaitFreed(in)
	writing.Wait()
	out.close()
}

func TestAcceptedClosedNode(t *testing.T) {
	s := newAcceptTest(t)
	out, in := s.connect()
	if err := Close(s.server.handle); err != nil {
		t.Fatal(err)
	}
	if _, err := in.read(make([]byte, 1), time.Second); err != unix.ECONNRESET {
		t.Errorf("a connection of a closed node reads %v", err)
	}
	s.awaitFreed(in)
	if in.accepted.tryWrite([]byte("x")) != unix.EPIPE {
		t.Error("it can be written to")
	}
	if n, err := out.read(make([]byte, 1), 5*time.Second); n != 0 || err == os.ErrDeadlineExceeded {
		t.Errorf("its peer reads %d, %v", n, err)
	}
	out.close()
}

const wantedPanic = "a panic that this test wants"

// A panic of the program's side, which C code cannot have, stands for one of our own.
func TestAcceptedPanicEndsTheConnection(t *testing.T) {
	s := newAcceptTest(t)
	out, in := s.connect()
	in.accepted.mu.Lock()
	in.accepted.serve = func(c *testAcceptedConn) { c.serve = nil; panic(wantedPanic) }
	in.accepted.mu.Unlock()
	out.write([]byte("x"))
	s.awaitFreed(in)
	waitFor(t, "a word of it in the log", func() bool { return strings.Contains(s.server.log.text(), "panicked: "+wantedPanic) })
	if _, err := out.read(make([]byte, 1), 5*time.Second); err == nil {
		t.Error("the peer is not told")
	}
	out.close()
	// The other connections are still served.
	out, in = s.connect()
	out.write([]byte("fine"))
	if n, err := in.read(make([]byte, 10), 5*time.Second); err != nil || n != 4 {
		t.Error(n, err)
	}
	out.close()
	in.close()
}

// Many connections at once, each echoed in its turns.
func TestAcceptedManyAtOnce(t *testing.T) {
	s := newAcceptTest(t)
	var all sync.WaitGroup
	var ins []*testConn
	for range 50 {
		out, in := s.connect()
		ins = append(ins, in)
		in.accepted.mu.Lock()
		in.accepted.serve = func(c *testAcceptedConn) { c.out, c.in = append(c.out, c.in...), nil }
		in.accepted.mu.Unlock()
		all.Go(func() {
			for i := range 50 {
				want := fmt.Sprintf("%d of %v", i, out.local)
				out.write([]byte(want))
				b := make([]byte, 100)
				if n, err := out.read(b, 10*time.Second); err != nil || string(b[:n]) != want {
					t.Errorf("%q, %v instead of %q", b[:n], err, want)
				}
			}
			out.close()
			in.close()
		})
	}
	all.Wait()
	// Closing is work for the queue too.
	for _, in := range ins {
		s.awaitFreed(in)
	}
	readyQueue.mu.Lock()
	defer readyQueue.mu.Unlock()
	if readyQueue.first != nil || readyQueue.workers > maxWorkers {
		t.Errorf("%d workers, or something left to do", readyQueue.workers)
	}
}

// A node that closes while a connection arrives: the connection is refused, or it is opened once,
// told of its end and freed.
func TestAcceptedWhileTheNodeCloses(t *testing.T) {
	before := liveConns.Load()
	conns := newLocalConns(t)
	ended := func(d *acceptedConn) {
		t.Helper()
		d.conns.wait()
		if s := d.state.Load(); s != connFreed || d.ref == 0 {
			t.Fatalf("state %d, ref %d", s, d.ref)
		}
	}

	// Before the connection is in the set, and between the steps of adding it.
	d := newAcceptedConn(new(connSet), conns.next(), new(logger))
	d.conns.closeAll()
	if d.conns.addAccepted(d) {
		t.Error("a closed set takes a connection")
	}
	d.net.Close()
	d = newAcceptedConn(new(connSet), conns.next(), new(logger))
	d.conns.addAccepted(d)
	d.conns.closeAll()
	readyQueue.mu.Lock()
	early := readyQueue.first != nil || d.state.Load() != connRecheck
	readyQueue.mu.Unlock()
	if early {
		t.Fatal("a connection that the program does not know yet is given a turn")
	}
	d.open()
	ended(d)

	// At any other moment.
	for range 500 {
		set, in := new(connSet), conns.next()
		var both sync.WaitGroup
		both.Go(func() { d = set.accept(in, new(logger)) })
		both.Go(func() { set.closeAll() })
		both.Wait()
		if d != nil {
			ended(d)
		}
		in.Close()
	}
	if n := liveConns.Load(); n != before {
		t.Errorf("%d connections are left", n-before)
	}
	p := sharedTestProgram()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.all) > 0 {
		t.Errorf("%d connections were not freed", len(p.all))
	}
}

// localConns makes connections of a netstack without a node.
type localConns struct {
	stack *stack.Stack
	next  func() *gonet.TCPConn // an accepted one, whose other end lives until the test ends
}

func newLocalConns(t *testing.T) localConns {
	sharedTestProgram()
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	t.Cleanup(s.Destroy)
	addr := tcpip.AddrFrom4([4]byte{127, 0, 0, 1})
	const nic = 1
	if err := s.CreateNIC(nic, loopback.New()); err != nil {
		t.Fatal(err)
	}
	at := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: addr.WithPrefix()}
	if err := s.AddProtocolAddress(nic, at, stack.AddressProperties{}); err != nil {
		t.Fatal(err)
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}})
	to := tcpip.FullAddress{NIC: nic, Addr: addr, Port: 80}
	ln, err := gonet.ListenTCP(s, to, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return localConns{s, func() *gonet.TCPConn {
		out, err := gonet.DialTCP(s, to, ipv4.ProtocolNumber)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { out.Close() })
		in, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return in.(*gonet.TCPConn)
	}}
}

func TestBufferSizeFor(t *testing.T) {
	for _, c := range []struct{ conns, size int }{
		{0, maxBuffer}, {1, maxBuffer}, {32, maxBuffer}, {33, maxBuffer / 2}, {256, initialBuffer}, {1024, minBuffer}, {1 << 20, minBuffer},
	} {
		if got := bufferSizeFor(c.conns); got != c.size {
			t.Errorf("%d connections: %d instead of %d", c.conns, got, c.size)
		}
	}
}

// Buffers shrink as connections become many, including those that have grown, and grow again later.
func TestAcceptedBuffersFitTheirNumber(t *testing.T) {
	conns, s := newLocalConns(t), new(connSet)
	if err := s.limitBuffers(conns.stack); err != nil {
		t.Fatal(err)
	}
	sizes := func(d *acceptedConn) (int64, int64) {
		o := d.endpoint.SocketOptions()
		return o.GetReceiveBufferSize(), o.GetSendBufferSize()
	}
	var all []*acceptedConn
	for range 100 {
		d := newAcceptedConn(s, conns.next(), new(logger))
		s.addAccepted(d)
		if in, out := sizes(d); in != initialBuffer || out > initialBuffer {
			t.Fatalf("a connection begins with %d and %d", in, out)
		}
		// As if much data had passed through it.
		d.endpoint.SocketOptions().SetReceiveBufferSize(int64(s.bufferSize), false)
		d.endpoint.SocketOptions().SetSendBufferSize(int64(s.bufferSize), false)
		all = append(all, d)
	}
	var sum int64
	for _, d := range all {
		in, out := sizes(d)
		sum += max(in, out)
	}
	if sum > maxBuffersTotal {
		t.Errorf("%d bytes for %d connections", sum, len(all))
	}
	for _, d := range all {
		d.open()
	}
	s.closeAll()
	s.wait()
	if s.bufferSize != maxBuffer {
		t.Errorf("%d where there is none left", s.bufferSize)
	}
}

// How much a peer may leave unread with us in many connections: more would be a way to fill our
// memory.
func TestAcceptedUnreadIsLimited(t *testing.T) {
	s := newAcceptTest(t)
	var all sync.WaitGroup
	var outs, ins []*testConn
	const conns = 100
	for range conns {
		out, in := s.connect()
		outs, ins = append(outs, out), append(ins, in)
		all.Go(func() { out.tryWrite(make([]byte, 1<<20)) })
	}
	unread := func() (sum int) {
		for _, in := range ins {
			n, err := s.connOf(in).endpoint.GetSockOptInt(tcpip.ReceiveQueueSizeOption)
			if err != nil {
				t.Fatal(err)
			}
			sum += n
		}
		return sum
	}
	last, since := -1, time.Now()
	waitFor(t, "the peers to be stuck", func() bool {
		if now := unread(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > 500*time.Millisecond
	})
	// The first connections keep the buffers that they got when there were few.
	if last == 0 || last > 2*maxBuffersTotal {
		t.Errorf("%d bytes wait in %d connections", last, conns)
	}
	for i := range outs {
		ins[i].close()
		outs[i].close()
	}
	all.Wait()
}
