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

// accepting is a server and a client whose connections it accepts.
type accepting struct {
	t    *testing.T
	a, b *member
	ln   int
	to   string
}

func newAccepting(t *testing.T) *accepting {
	tn := newTailnet(t)
	check := steady(t)
	s := &accepting{t: t, a: tn.join("server"), b: tn.join("client")}
	s.b.awaitPeer("server")
	s.ln = s.a.listen(":80")
	s.to = fmt.Sprintf("%v:80", s.a.ip(4))
	t.Cleanup(func() {
		closeListener(s.ln)
		s.a.close()
		s.b.close()
		check()
		p := testing_()
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.all) > 0 {
			t.Errorf("%d connections were not freed", len(p.all))
		}
	})
	return s
}

func (s *accepting) connect() (out, in *caller) {
	out = s.b.dial(s.to)
	return out, receive(s.t, s.ln)
}

// ours returns the connection of in.
func (s *accepting) ours(in *caller) *direct {
	program.mu.RLock()
	defer program.mu.RUnlock()
	return program.all[in.direct.id]
}

func (s *accepting) freed(in *caller) {
	s.t.Helper()
	waitFor(s.t, "the connection to be freed", func() bool {
		in.direct.mu.Lock()
		defer in.direct.mu.Unlock()
		return in.direct.freed
	})
}

func TestInside(t *testing.T) {
	if !insideKnown {
		t.Fatal("gonet.TCPConn has other fields than inside.go expects")
	}
	if ep, wq := inside(gonet.NewTCPConn(nil, nil)); ep != nil || wq != nil {
		t.Error("it gives what is not there")
	}
}

func TestDirectHalfCloses(t *testing.T) {
	s := newAccepting(t)

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
	s.freed(in)
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
	s.freed(in)
	out.close()
}

// What the program does during a turn is sent with it: no kick is needed.
func TestDirectAnswersInTheTurn(t *testing.T) {
	s := newAccepting(t)
	out, in := s.connect()
	in.direct.mu.Lock()
	in.direct.serve = func(c *taken) {
		c.out = append(c.out, bytes.ToUpper(c.in)...)
		c.in = nil
	}
	in.direct.mu.Unlock()
	for range 3 {
		out.write([]byte("ping"))
		b := make([]byte, 10)
		if n, err := out.read(b, 5*time.Second); err != nil || string(b[:n]) != "PING" {
			t.Fatalf("%q, %v", b[:n], err)
		}
	}
	// The same for more than fits into one turn.
	const much = 3*turnBuffer + 1
	in.direct.mu.Lock()
	in.direct.serve = func(c *taken) { c.out, c.in, c.serve = make([]byte, much), nil, nil }
	in.direct.mu.Unlock()
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
func TestDirectLooksAgain(t *testing.T) {
	var d direct
	d.state.Store(working)
	d.NotifyEvent(0)
	if s := d.state.Load(); s != again {
		t.Errorf("state %d", s)
	}
	d.NotifyEvent(0)
	d.state.Store(gone)
	d.NotifyEvent(0)
	if s := d.state.Load(); s != gone || d.next != nil {
		t.Errorf("state %d", s)
	}
}

func TestDirectResetIsNotAnEnd(t *testing.T) {
	s := newAccepting(t)
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
		theirs := firstOf(&s.b.node().splice)
		ep, _ := inside(theirs.net)
		ep.Abort()
		if n, err := in.read(b, 5*time.Second); err != unix.ECONNRESET {
			t.Errorf("shut %v: after a reset: %d, %v", shut, n, err)
		}
		s.freed(in)
		out.close()
		waitFor(t, "both ends to go", func() bool { return live.Load() == 0 })
		in.close()
	}
}

// The program has closed and the network is silent: what was written is sent, then the end.
func TestDirectFullClose(t *testing.T) {
	s := newAccepting(t)
	for name, before := range map[string]func(*caller){
		"at once":           func(*caller) {},
		"after a half":      func(c *caller) { c.shutdown(); time.Sleep(30 * time.Millisecond) },
		"with words unsent": func(c *caller) { c.write([]byte("last words")) },
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
		s.freed(in)
		out.close()
	}
}

// Two connections with both directions full, and at first nothing is read: no byte is lost or mixed
// up, and no direction waits for the other one.
func TestDirectFullBothWays(t *testing.T) {
	s := newAccepting(t)
	const size, ends = 8 << 20, 4
	piece := func(i int) []byte { return bytes.Repeat([]byte{byte('a' + i)}, 64<<10) }
	var to, from [ends]*caller
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
			d := s.ours(in)
			in.direct.mu.Lock()
			defer in.direct.mu.Unlock()
			return d.state.Load() == idle && len(in.direct.in) == testRoom && len(in.direct.out) == testRoom
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
	s.freed(from[0])
	s.freed(from[1])
	to[0].close()
	to[1].close()
}

// A peer that stops reading must not keep a connection that the program has closed.
func TestDirectClosedAndNotRead(t *testing.T) {
	defer func(d time.Duration) { closedLimit = d }(closedLimit)
	closedLimit = 300 * time.Millisecond
	s := newAccepting(t)
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
		in.direct.kick() // the netstack notifies only when half of its buffer is free
		if now := written.Load(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > 2*closedLimit
	})
	if s.ours(in) == nil {
		t.Error("a slow peer alone must not end a connection")
	}
	in.close()
	s.freed(in)
	writing.Wait()
	out.close()
}

func TestDirectClosedNode(t *testing.T) {
	s := newAccepting(t)
	out, in := s.connect()
	if err := Close(s.a.handle); err != nil {
		t.Fatal(err)
	}
	if _, err := in.read(make([]byte, 1), time.Second); err != unix.ECONNRESET {
		t.Errorf("a connection of a closed node reads %v", err)
	}
	s.freed(in)
	if in.direct.tryWrite([]byte("x")) != unix.EPIPE {
		t.Error("it can be written to")
	}
	if n, err := out.read(make([]byte, 1), 5*time.Second); n != 0 || err == os.ErrDeadlineExceeded {
		t.Errorf("its peer reads %d, %v", n, err)
	}
	out.close()
}

const onPurpose = "a panic that this test wants"

// A panic of the program's side, which C code cannot have, stands for one of our own.
func TestDirectPanicEndsTheConnection(t *testing.T) {
	s := newAccepting(t)
	out, in := s.connect()
	in.direct.mu.Lock()
	in.direct.serve = func(c *taken) { c.serve = nil; panic(onPurpose) }
	in.direct.mu.Unlock()
	out.write([]byte("x"))
	s.freed(in)
	waitFor(t, "a word of it in the log", func() bool { return strings.Contains(s.a.log.text(), "panicked: "+onPurpose) })
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
func TestDirectManyAtOnce(t *testing.T) {
	s := newAccepting(t)
	var all sync.WaitGroup
	for range 50 {
		out, in := s.connect()
		in.direct.mu.Lock()
		in.direct.serve = func(c *taken) { c.out, c.in = append(c.out, c.in...), nil }
		in.direct.mu.Unlock()
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
	ready.mu.Lock()
	defer ready.mu.Unlock()
	if ready.first != nil || ready.workers > mostWorkers {
		t.Errorf("%d workers, or something left to do", ready.workers)
	}
}

// A node that closes while a connection arrives: the connection is refused, or it is opened once,
// told of its end and freed.
func TestDirectWhileTheNodeCloses(t *testing.T) {
	before := live.Load()
	conns := connectedPairs(t)
	ended := func(d *direct) {
		t.Helper()
		d.set.wait()
		if s := d.state.Load(); s != gone || d.ref == 0 {
			t.Fatalf("state %d, ref %d", s, d.ref)
		}
	}

	// Before the connection is in the set, and between the steps of adding it.
	d := newDirect(new(splices), conns.next(), new(logger))
	d.set.closeAll()
	if d.set.add(d) {
		t.Error("a closed set takes a connection")
	}
	d.net.Close()
	d = newDirect(new(splices), conns.next(), new(logger))
	d.set.add(d)
	d.set.closeAll()
	ready.mu.Lock()
	early := ready.first != nil || d.state.Load() != again
	ready.mu.Unlock()
	if early {
		t.Fatal("a connection that the program does not know yet is given a turn")
	}
	d.begin()
	ended(d)

	// At any other moment.
	for range 500 {
		set, in := new(splices), conns.next()
		var both sync.WaitGroup
		both.Go(func() { d = set.direct(in, new(logger)) })
		both.Go(func() { set.closeAll() })
		both.Wait()
		if d != nil {
			ended(d)
		}
		in.Close()
	}
	if n := live.Load(); n != before {
		t.Errorf("%d connections are left", n-before)
	}
	p := testing_()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.all) > 0 {
		t.Errorf("%d connections were not freed", len(p.all))
	}
}

// pairs makes connections of a netstack without a node.
type pairs struct {
	stack *stack.Stack
	next  func() *gonet.TCPConn // an accepted one, whose other end lives until the test ends
}

func connectedPairs(t *testing.T) pairs {
	testing_()
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
	return pairs{s, func() *gonet.TCPConn {
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

func TestBufferFor(t *testing.T) {
	for _, c := range []struct{ conns, size int }{
		{0, mostBuffer}, {1, mostBuffer}, {32, mostBuffer}, {33, mostBuffer / 2}, {256, firstBuffer}, {1024, leastBuffer}, {1 << 20, leastBuffer},
	} {
		if got := bufferFor(c.conns); got != c.size {
			t.Errorf("%d connections: %d instead of %d", c.conns, got, c.size)
		}
	}
}

// Buffers shrink as connections become many, including those that have grown, and grow again later.
func TestDirectBuffersFitTheirNumber(t *testing.T) {
	conns, s := connectedPairs(t), new(splices)
	if err := s.boundBuffers(conns.stack); err != nil {
		t.Fatal(err)
	}
	sizes := func(d *direct) (int64, int64) {
		o := d.ep.SocketOptions()
		return o.GetReceiveBufferSize(), o.GetSendBufferSize()
	}
	var all []*direct
	for range 100 {
		d := newDirect(s, conns.next(), new(logger))
		s.add(d)
		if in, out := sizes(d); in != firstBuffer || out > firstBuffer {
			t.Fatalf("a connection begins with %d and %d", in, out)
		}
		// As if much data had passed through it.
		d.ep.SocketOptions().SetReceiveBufferSize(int64(s.buffer), false)
		d.ep.SocketOptions().SetSendBufferSize(int64(s.buffer), false)
		all = append(all, d)
	}
	var sum int64
	for _, d := range all {
		in, out := sizes(d)
		sum += max(in, out)
	}
	if sum > buffersAll {
		t.Errorf("%d bytes for %d connections", sum, len(all))
	}
	for _, d := range all {
		d.begin()
	}
	s.closeAll()
	s.wait()
	if s.buffer != mostBuffer {
		t.Errorf("%d where there is none left", s.buffer)
	}
}

// How much a peer may leave unread with us in many connections: more would be a way to fill our
// memory.
func TestDirectUnreadIsLittle(t *testing.T) {
	s := newAccepting(t)
	var all sync.WaitGroup
	var outs, ins []*caller
	const conns = 100
	for range conns {
		out, in := s.connect()
		outs, ins = append(outs, out), append(ins, in)
		all.Go(func() { out.tryWrite(make([]byte, 1<<20)) })
	}
	unread := func() (sum int) {
		for _, in := range ins {
			n, err := s.ours(in).ep.GetSockOptInt(tcpip.ReceiveQueueSizeOption)
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
	if last == 0 || last > 2*buffersAll {
		t.Errorf("%d bytes wait in %d connections", last, conns)
	}
	for i := range outs {
		ins[i].close()
		outs[i].close()
	}
	all.Wait()
}
