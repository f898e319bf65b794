// Connections from the tailnet, passed to the program without a socket in between. While there is
// something to do for a connection, one of a few goroutines copies its bytes from the netstack into
// the program's memory and back.
//
// Dialled connections use a socket pair instead (splice.go). For a request it costs four system
// calls and two thread switches, more than the netstack itself. Here the program handles a request
// inside the call that brings it, on our thread, and its answer is sent when that call returns.
//
// Invariants
//   - One goroutine at a time works for a connection (state), so its bytes stay in order and its
//     fields need no lock. An idle connection has no goroutine and no buffer. One whose peer does
//     not read keeps only the bytes still to be sent.
//   - Nothing here waits: reads and writes of the netstack return at once, and its queue notifies
//     us when another try is worthwhile. So a peer that does not read delays nobody else, and the
//     other direction goes on.
//   - Memory is lent to the program for the duration of a call only.
//   - The program does not call us to say that something changed. It puts the connection's number
//     into a queue and wakes us (a kick).
//   - An abnormal end is reported as such, and so is an end of stream. After a close by the
//     program, what it wrote is sent, then FIN.
//   - A peer that stops reading cannot keep a connection that the program has closed for longer
//     than closedLimit.
//   - A panic in this code ends the connection, not the process.

package node

import (
	"bytes"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Program is the program's side, to which accepted connections are passed. Its methods are called
// from any goroutine, those for one connection never at the same time.
type Program interface {
	// Open announces a connection. The result stands for it in the other calls, until Free.
	Open(id uint64) (ref uintptr)
	// Turn passes what came from the network, lets the program work, and takes what is to be sent
	// into out. in is at most as long as the room reported by the last turn.
	Turn(ref uintptr, in []byte, end End, out []byte, told *Told)
	// Free ends the connection.
	Free(ref uintptr)
	// Kicked takes the numbers of connections that need a turn.
	Kicked(ids []uint64) int
}

// End is the state of the direction from the network.
type End uint32

const (
	Open   End = iota
	Ended      // the peer's end of stream
	Broken     // a reset, a timeout, the end of the node: nothing goes either way any more
)

// Told is what a turn reports, with the layout of tailscale_told in tailscale.h.
type Told struct {
	Out   uint32 // bytes written into out
	Room  uint32 // bytes that the next turn may bring; after 0 comes a kick once there is room
	Flags uint32
}

const (
	TellsMore   = 1 << iota // there is more to send
	TellsShut               // and nothing will be sent after it
	TellsClosed             // the program has released the connection, and reads no more either
)

// turnBuffer is the most that a turn brings and takes. At first the program has room for that much.
const turnBuffer = 64 << 10

var closedLimit = time.Minute // shorter in a test

// The states of a connection.
const (
	idle    = iota
	working // a goroutine works for it
	again   // and must check again before it stops
	gone
)

type direct struct {
	set  *splices
	log  *logger
	id   uint64
	ref  uintptr
	net  netConn
	ep   tcpip.Endpoint
	wq   *waiter.Queue
	note waiter.Entry

	state   atomic.Uint32
	kicked  atomic.Bool
	aborted atomic.Bool
	arrival atomic.Pointer[arrival] // set when it was put into the backlog

	// The following fields belong to the goroutine that works.
	end  End
	room uint32
	shut bool   // our end of stream was sent
	rest []byte // what the netstack would not take yet
	late *time.Timer

	next *direct // of ready
}

// buffers are the memory that a goroutine works with.
type buffers struct {
	in, out [turnBuffer]byte
	told    Told
	writer  tcpip.SliceWriter
	reader  bytes.Reader
}

var spare = sync.Pool{New: func() any { return new(buffers) }}

var program struct {
	Program
	mu   sync.RWMutex
	last uint64
	all  map[uint64]*direct
}

// SetProgram sets who gets the connections, once for the process. kicks becomes readable when
// Kicked has something to return; the descriptor is given away.
func SetProgram(p Program, kicks int) *Error {
	program.mu.Lock()
	defer program.mu.Unlock()
	if program.Program != nil {
		unix.Close(kicks)
		return fail(BadState, "the program was set before")
	}
	if err := unix.SetNonblock(kicks, true); err != nil {
		unix.Close(kicks)
		return ioFail("the descriptor for kicks", err)
	}
	unix.CloseOnExec(kicks)
	program.Program = p
	program.all = make(map[uint64]*direct)
	go followKicks(os.NewFile(uintptr(kicks), "kicks"), p)
	return nil
}

func programSet() bool {
	program.mu.RLock()
	defer program.mu.RUnlock()
	return program.Program != nil
}

func followKicks(f *os.File, p Program) {
	var b [64]byte
	var ids [256]uint64
	for {
		if n, err := f.Read(b[:]); n == 0 || err != nil {
			return
		}
		for n := len(ids); n == len(ids); {
			n = p.Kicked(ids[:])
			program.mu.RLock()
			for _, id := range ids[:n] {
				if d := program.all[id]; d != nil {
					d.kicked.Store(true)
					d.schedule()
				}
			}
			program.mu.RUnlock()
		}
	}
}

// direct adds a connection to the set and begins to serve it. It returns nil if the node is
// closing, or if the connection is of an unknown kind.
func (set *splices) direct(c netConn, log *logger) *direct {
	d := newDirect(set, c, log)
	if d == nil || !set.add(d) {
		return nil
	}
	d.begin()
	return d
}

// newDirect makes a connection that nothing else sees yet. Its state is working, not idle: once it
// is in the set it may be aborted at any time, and an idle one would then get a goroutine before
// the program knows of it.
func newDirect(set *splices, c netConn, log *logger) *direct {
	ep, wq := inside(c)
	if ep == nil {
		log.rarely(lvError, "a connection is a %T, which is not known", c)
		return nil
	}
	d := &direct{set: set, log: log, net: c, ep: ep, wq: wq, room: turnBuffer}
	d.state.Store(working)
	return d
}

// begin announces a connection of the set to the program and schedules its first turn.
func (d *direct) begin() {
	program.mu.Lock()
	program.last++
	d.id = program.last
	program.all[d.id] = d
	program.mu.Unlock()
	d.ref = program.Open(d.id)
	d.note.Init(d, waiter.ReadableEvents|waiter.WritableEvents|waiter.EventHUp|waiter.EventErr)
	d.wq.EventRegister(&d.note)
	ready.put(d)
}

// add adds a connection to the set. It returns false if the node is closing.
func (set *splices) add(d *direct) bool {
	set.mu.Lock()
	defer set.mu.Unlock()
	if set.closed {
		return false
	}
	if set.directs == nil {
		set.directs = make(map[*direct]struct{})
	}
	set.directs[d] = struct{}{}
	set.rebound()
	if set.netstack != nil {
		// tsnet's forwarder gives accepted connections a buffer size of its own.
		shrink(d.ep, min(firstBuffer, set.buffer))
	}
	set.ended.Add(1)
	live.Add(1)
	return true
}

// NotifyEvent is called by the netstack, with locks held, when something has changed.
func (d *direct) NotifyEvent(waiter.EventMask) { d.schedule() }

func (d *direct) schedule() {
	for {
		switch d.state.Load() {
		case idle:
			if d.state.CompareAndSwap(idle, working) {
				ready.put(d)
				return
			}
		case working:
			if d.state.CompareAndSwap(working, again) {
				return
			}
		default:
			return
		}
	}
}

// abort ends both directions now. It closes the netstack's connection itself and does not leave
// that to the goroutine that works: when a node is closed, the peer must hear of it before the node
// is gone.
func (d *direct) abort() {
	d.aborted.Store(true)
	d.net.Close()
	d.schedule()
}

// ready holds the connections with something to do, and the goroutines that work for them. These
// are few and never end, because the netstack needs more stack than a new goroutine has. Each of
// them occupies a thread while the program handles a request. Idle ones wait.
var ready queue

type queue struct {
	mu          sync.Mutex
	first, last *direct
	workers     int
	waiting     int
	wake        chan struct{}
}

// Limits for the threads that the program may occupy. There are a few even if Go has one processor,
// so that a long turn does not stop the others.
const (
	leastWorkers = 4
	mostWorkers  = 64
)

func (q *queue) put(d *direct) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.first == nil {
		q.first = d
	} else {
		q.last.next = d
	}
	q.last = d
	switch {
	case q.waiting > 0:
		q.waiting--
		q.wake <- struct{}{}
	case q.workers < min(max(2*runtime.GOMAXPROCS(0), leastWorkers), mostWorkers):
		if q.wake == nil {
			q.wake = make(chan struct{}, mostWorkers)
		}
		q.workers++
		go q.work()
	}
}

func (q *queue) work() {
	for {
		q.mu.Lock()
		d := q.first
		if d == nil {
			q.waiting++
			q.mu.Unlock()
			<-q.wake
			continue
		}
		q.first, d.next = d.next, nil
		q.mu.Unlock()
		d.work()
	}
}

// work does what there is to do for the connection.
func (d *direct) work() {
	over := true
	defer func() {
		if p := recover(); p != nil {
			d.log.printf(lvError, "a connection ends: serving it panicked: %v\n%s", p, debug.Stack())
		}
		if over {
			d.free()
		}
	}()
	b := spare.Get().(*buffers)
	defer spare.Put(b)
	for {
		d.state.Store(working)
		if d.pass(b) {
			return
		}
		if d.state.CompareAndSwap(working, idle) {
			over = false
			return
		}
	}
}

// pass moves bytes in both directions until there are none left. It returns true if the connection
// has ended.
func (d *direct) pass(b *buffers) bool {
	turn := d.kicked.Swap(false)
	for {
		// Send what is waiting first; nothing more is taken before it is gone.
		if len(d.rest) > 0 {
			d.rest = d.send(b, d.rest)
			turn = turn || len(d.rest) == 0
		}
		if d.aborted.Load() {
			d.end = Broken
		}
		n, end := 0, d.end
		if end == Open && d.room > 0 {
			n = d.receive(b)
		}
		if n == 0 && d.end == end && end != Broken && !turn {
			return false
		}
		out := b.out[:]
		if len(d.rest) > 0 {
			out = nil
		}
		program.Turn(d.ref, b.in[:n], d.end, out, &b.told)
		if d.end == Broken {
			return true
		}
		d.room = b.told.Room
		if b.told.Out > 0 {
			// A copy, if the netstack does not take all: the buffer is reused for other
			// connections.
			d.rest = slices.Clone(d.send(b, out[:b.told.Out]))
		}
		closed := b.told.Flags&TellsClosed != 0
		turn = len(d.rest) == 0 && b.told.Flags&TellsMore != 0
		switch {
		case d.end == Broken:
		case len(d.rest) > 0:
			if closed && d.late == nil {
				d.late = time.AfterFunc(closedLimit, d.abort)
			}
		case turn:
		case closed:
			return true
		case b.told.Flags&TellsShut != 0:
			if !d.shut && d.net.CloseWrite() != nil {
				d.end = Broken
			}
			d.shut = true
			if d.end == Ended {
				return true
			}
		}
	}
}

// receive reads what the netstack has.
func (d *direct) receive(b *buffers) int {
	b.writer = b.in[:min(len(b.in), int(d.room))]
	got, err := d.ep.Read(&b.writer, tcpip.ReadOptions{})
	switch err.(type) {
	case nil:
		d.ep.ModerateRecvBuf(got.Count)
		return got.Count
	case *tcpip.ErrWouldBlock:
	case *tcpip.ErrClosedForReceive:
		d.end = Ended
	default:
		d.end = Broken
	}
	return 0
}

// send writes as much as the netstack takes, and returns the rest.
func (d *direct) send(b *buffers, p []byte) []byte {
	for len(p) > 0 {
		b.reader.Reset(p)
		n, err := d.ep.Write(&b.reader, tcpip.WriteOptions{})
		if p = p[n:]; n > 0 && d.late != nil {
			d.late.Reset(closedLimit)
		}
		switch err.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			return p
		default:
			d.end = Broken
			return nil
		}
	}
	return nil
}

func (d *direct) free() {
	d.state.Store(gone)
	if a := d.arrival.Load(); a != nil {
		a.leave()
	}
	if d.late != nil {
		d.late.Stop()
	}
	d.wq.EventUnregister(&d.note)
	d.net.Close()
	program.Free(d.ref)
	program.mu.Lock()
	delete(program.all, d.id)
	program.mu.Unlock()
	d.set.mu.Lock()
	delete(d.set.directs, d)
	d.set.rebound()
	d.set.mu.Unlock()
	live.Add(-1)
	d.set.ended.Done()
}
