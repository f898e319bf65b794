// The program's side of accepted connections in its simplest form. In the real program it is
// crates/tailnet/src/direct.rs.

package node

import (
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// testProgram keeps the connections that were opened and not freed.
type testProgram struct {
	mu    sync.Mutex
	last  uintptr
	all   map[uintptr]*testAcceptedConn
	byID  map[uint64]*testAcceptedConn
	kicks []uint64
	wake  int
}

// testAcceptedConn is an accepted connection as the program holds it.
type testAcceptedConn struct {
	p  *testProgram
	id uint64

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each turn
	in, out []byte
	end     InboundState
	shut    bool
	closed  bool
	freed   bool
	// serve, if set, handles what arrived, inside the turn.
	serve func(c *testAcceptedConn)
}

const testBufferBytes = 64 << 10

var sharedTestProgram = sync.OnceValue(func() *testProgram {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		panic(err)
	}
	t := &testProgram{all: make(map[uintptr]*testAcceptedConn), byID: make(map[uint64]*testAcceptedConn), wake: p[1]}
	if err := SetCallbacks(t, p[0]); err != nil {
		panic(err.Message)
	}
	return t
})

func (p *testProgram) Open(id uint64) uintptr {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last++
	c := &testAcceptedConn{p: p, id: id, changed: make(chan struct{})}
	p.all[p.last], p.byID[id] = c, c
	return p.last
}

func (p *testProgram) connOf(ref uintptr) *testAcceptedConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all[ref]
}

func (p *testProgram) Turn(ref uintptr, in []byte, end InboundState, out []byte, told *TurnResult) {
	c := p.connOf(ref)
	if c == nil {
		panic("a turn of a connection that was freed")
	}
	c.mu.Lock()
	defer c.mu.Unlock() // even if serve panics
	if len(c.in)+len(in) > testBufferBytes {
		panic("more than there is room for")
	}
	c.in, c.end = append(c.in, in...), end
	if c.serve != nil {
		c.serve(c)
	}
	n := copy(out, c.out)
	c.out = c.out[n:]
	*told = TurnResult{Out: uint32(n), Room: uint32(testBufferBytes - len(c.in))}
	if len(c.out) > 0 {
		told.Flags |= TurnMore
	}
	if c.shut {
		told.Flags |= TurnShutdown
	}
	if c.closed {
		told.Room = 0
		told.Flags |= TurnClosed
	}
	c.notify()
}

func (c *testAcceptedConn) notify() {
	close(c.changed)
	c.changed = make(chan struct{})
}

func (p *testProgram) Free(ref uintptr) {
	p.mu.Lock()
	c := p.all[ref]
	delete(p.all, ref)
	delete(p.byID, c.id)
	p.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.freed = true
	if c.end == InboundOpen || !c.shut {
		c.end = InboundBroken
	}
	c.notify()
}

func (p *testProgram) TakeKicks(ids []uint64) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := copy(ids, p.kicks)
	p.kicks = p.kicks[n:]
	return n
}

func (c *testAcceptedConn) kick() {
	c.p.mu.Lock()
	c.p.kicks = append(c.p.kicks, c.id)
	c.p.mu.Unlock()
	unix.Write(c.p.wake, []byte{1})
}

// take returns the connection of a listener's message.
func (p *testProgram) take(id uint64) *testAcceptedConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.byID[id]
}

// wait waits until ok returns true. ok is called with the lock held.
func (c *testAcceptedConn) wait(within time.Duration, ok func() bool) bool {
	late := time.After(within)
	for {
		c.mu.Lock()
		if ok() {
			return true // with the lock held
		}
		changed := c.changed
		c.mu.Unlock()
		select {
		case <-changed:
		case <-late:
			c.mu.Lock()
			return false
		}
	}
}

func (c *testAcceptedConn) read(b []byte, within time.Duration) (int, error) {
	there := c.wait(within, func() bool { return len(c.in) > 0 || c.end != InboundOpen })
	defer c.mu.Unlock()
	switch {
	case len(c.in) > 0:
		n := copy(b, c.in)
		full := len(c.in) == testBufferBytes
		if c.in = c.in[n:]; full {
			c.kick()
		}
		return n, nil
	case !there:
		return 0, os.ErrDeadlineExceeded
	case c.end == InboundEnded:
		return 0, io.EOF
	}
	return 0, unix.ECONNRESET
}

func (c *testAcceptedConn) tryWrite(b []byte) error {
	for len(b) > 0 {
		if !c.wait(time.Minute, func() bool { return len(c.out) < testBufferBytes || c.end == InboundBroken }) {
			c.mu.Unlock()
			return os.ErrDeadlineExceeded
		}
		if c.end == InboundBroken {
			c.mu.Unlock()
			return unix.EPIPE
		}
		n := min(len(b), testBufferBytes-len(c.out))
		c.out = append(c.out, b[:n]...)
		b = b[n:]
		c.mu.Unlock()
		c.kick()
	}
	return nil
}

func (c *testAcceptedConn) shutdown() {
	c.mu.Lock()
	c.shut = true
	c.mu.Unlock()
	c.kick()
}

func (c *testAcceptedConn) close() {
	c.mu.Lock()
	c.shut, c.closed, c.in = true, true, nil
	c.mu.Unlock()
	c.kick()
}
