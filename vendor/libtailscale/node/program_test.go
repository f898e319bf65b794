// The program's side of accepted connections in its simplest form. In the real program it is
// src/tailnet/direct.rs.

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
	all   map[uintptr]*taken
	byID  map[uint64]*taken
	kicks []uint64
	wake  int
}

// taken is an accepted connection as the program holds it.
type taken struct {
	p  *testProgram
	id uint64

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each turn
	in, out []byte
	end     End
	shut    bool
	closed  bool
	freed   bool
	// serve, if set, handles what arrived, inside the turn.
	serve func(c *taken)
}

const testRoom = 64 << 10

var testing_ = sync.OnceValue(func() *testProgram {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		panic(err)
	}
	t := &testProgram{all: make(map[uintptr]*taken), byID: make(map[uint64]*taken), wake: p[1]}
	if err := SetProgram(t, p[0]); err != nil {
		panic(err.Words)
	}
	return t
})

func (p *testProgram) Open(id uint64) uintptr {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last++
	c := &taken{p: p, id: id, changed: make(chan struct{})}
	p.all[p.last], p.byID[id] = c, c
	return p.last
}

func (p *testProgram) of(ref uintptr) *taken {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all[ref]
}

func (p *testProgram) Turn(ref uintptr, in []byte, end End, out []byte, told *Told) {
	c := p.of(ref)
	if c == nil {
		panic("a turn of a connection that was freed")
	}
	c.mu.Lock()
	defer c.mu.Unlock() // even if serve panics
	if len(c.in)+len(in) > testRoom {
		panic("more than there is room for")
	}
	c.in, c.end = append(c.in, in...), end
	if c.serve != nil {
		c.serve(c)
	}
	n := copy(out, c.out)
	c.out = c.out[n:]
	*told = Told{Out: uint32(n), Room: uint32(testRoom - len(c.in))}
	if len(c.out) > 0 {
		told.Flags |= TellsMore
	}
	if c.shut {
		told.Flags |= TellsShut
	}
	if c.closed {
		told.Room = 0
		told.Flags |= TellsClosed
	}
	c.tell()
}

func (c *taken) tell() {
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
	if c.end == Open || !c.shut {
		c.end = Broken
	}
	c.tell()
}

func (p *testProgram) Kicked(ids []uint64) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := copy(ids, p.kicks)
	p.kicks = p.kicks[n:]
	return n
}

func (c *taken) kick() {
	c.p.mu.Lock()
	c.p.kicks = append(c.p.kicks, c.id)
	c.p.mu.Unlock()
	unix.Write(c.p.wake, []byte{1})
}

// take returns the connection of a listener's message.
func (p *testProgram) take(id uint64) *taken {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.byID[id]
}

// wait waits until ok returns true. ok is called with the lock held.
func (c *taken) wait(within time.Duration, ok func() bool) bool {
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

func (c *taken) read(b []byte, within time.Duration) (int, error) {
	there := c.wait(within, func() bool { return len(c.in) > 0 || c.end != Open })
	defer c.mu.Unlock()
	switch {
	case len(c.in) > 0:
		n := copy(b, c.in)
		full := len(c.in) == testRoom
		if c.in = c.in[n:]; full {
			c.kick()
		}
		return n, nil
	case !there:
		return 0, os.ErrDeadlineExceeded
	case c.end == Ended:
		return 0, io.EOF
	}
	return 0, unix.ECONNRESET
}

func (c *taken) tryWrite(b []byte) error {
	for len(b) > 0 {
		if !c.wait(time.Minute, func() bool { return len(c.out) < testRoom || c.end == Broken }) {
			c.mu.Unlock()
			return os.ErrDeadlineExceeded
		}
		if c.end == Broken {
			c.mu.Unlock()
			return unix.EPIPE
		}
		n := min(len(b), testRoom-len(c.out))
		c.out = append(c.out, b[:n]...)
		b = b[n:]
		c.mu.Unlock()
		c.kick()
	}
	return nil
}

func (c *taken) shutdown() {
	c.mu.Lock()
	c.shut = true
	c.mu.Unlock()
	c.kick()
}

func (c *taken) close() {
	c.mu.Lock()
	c.shut, c.closed, c.in = true, true, nil
	c.mu.Unlock()
	c.kick()
}
