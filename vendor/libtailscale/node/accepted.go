// Connections from the tailnet, passed to the program without a socket in between. While there is
// something to do for a connection, one of a few goroutines copies its bytes from the netstack into
// the program's memory and back (docs/design/polling-in-place.md).
//
// Dialled connections use a socket pair instead (dialled.go). For a request it costs four system
// calls and two thread switches, more than the netstack itself. Here the program handles a request
// inside the call that brings it, on our thread, and its answer is sent when that call returns.
//
// Invariants
//   - One goroutine at a time serves a connection (state), so its bytes stay in order and its
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
//     than closedTimeout.
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

// Callbacks is the program's side, to which accepted connections are passed. Its methods are called
// from any goroutine, those for one connection never at the same time.
type Callbacks interface {
	// Open announces a connection. The result stands for it in the other calls, until Free.
	Open(id uint64) (ref uintptr)
	// Turn passes what came from the network, lets the program work, and takes what is to be sent
	// into out. in is at most as long as the room reported by the last turn.
	Turn(ref uintptr, in []byte, inbound InboundState, out []byte, result *TurnResult)
	// Free ends the connection.
	Free(ref uintptr)
	// TakeKicks fills ids with the numbers of connections that need a turn, and returns how many.
	TakeKicks(ids []uint64) int
}

// InboundState is the state of the direction from the network.
type InboundState uint32

const (
	InboundOpen   InboundState = iota
	InboundEnded               // the peer's end of stream
	InboundBroken              // a reset, a timeout, the end of the node: nothing goes either way any more
)

// TurnResult is what a turn reports, with the layout of tailscale_turn_result in tailscale.h.
type TurnResult struct {
	Out   uint32 // bytes written into out
	Room  uint32 // bytes that the next turn may bring; after 0 comes a kick once there is room
	Flags uint32
}

const (
	TurnMore     = 1 << iota // there is more to send
	TurnShutdown             // the program sends nothing after that
	TurnClosed               // the program has released the connection, and reads no more either
)

// turnBytes is the most that a turn brings and takes. At first the program has room for that much.
const turnBytes = 64 << 10

var closedTimeout = time.Minute // shorter in a test

// The states of a connection.
const (
	connIdle    = iota
	connServed  // a goroutine serves it, or is about to
	connRecheck // the same, and the goroutine must check again before it stops
	connFreed
)

type acceptedConn struct {
	conns        *connSet
	log          *logger
	id           uint64
	ref          uintptr
	net          netConn
	endpoint     tcpip.Endpoint
	waitQueue    *waiter.Queue
	notification waiter.Entry

	state   atomic.Uint32
	kicked  atomic.Bool
	aborted atomic.Bool
	pending atomic.Pointer[pendingConn] // set when it was put into the backlog

	// The following fields belong to the goroutine that serves the connection.
	inbound    InboundState
	room       uint32
	finSent    bool   // our end of stream was sent
	unsent     []byte // what the netstack would not take yet
	closeTimer *time.Timer

	next *acceptedConn // in readyQueue
}

// turnBuffers are the memory that a goroutine uses to serve a connection.
type turnBuffers struct {
	in, out [turnBytes]byte
	result  TurnResult
	writer  tcpip.SliceWriter
	reader  bytes.Reader
}

var bufferPool = sync.Pool{New: func() any { return new(turnBuffers) }}

var program struct {
	Callbacks
	mu     sync.RWMutex
	lastID uint64
	conns  map[uint64]*acceptedConn
}

// SetCallbacks sets the program's side, once for the process. kicks becomes readable when TakeKicks
// has something to return; the descriptor is given away.
func SetCallbacks(p Callbacks, kicks int) *Error {
	program.mu.Lock()
	defer program.mu.Unlock()
	if program.Callbacks != nil {
		unix.Close(kicks)
		return errorf(BadState, "the callbacks were set before")
	}
	if err := unix.SetNonblock(kicks, true); err != nil {
		unix.Close(kicks)
		return ioError("the descriptor for kicks", err)
	}
	unix.CloseOnExec(kicks)
	program.Callbacks = p
	program.conns = make(map[uint64]*acceptedConn)
	go serveKicks(os.NewFile(uintptr(kicks), "kicks"), p)
	return nil
}

func callbacksSet() bool {
	program.mu.RLock()
	defer program.mu.RUnlock()
	return program.Callbacks != nil
}

func serveKicks(f *os.File, p Callbacks) {
	var b [64]byte
	var ids [256]uint64
	for {
		if n, err := f.Read(b[:]); n == 0 || err != nil {
			return
		}
		for n := len(ids); n == len(ids); {
			n = p.TakeKicks(ids[:])
			program.mu.RLock()
			for _, id := range ids[:n] {
				if c := program.conns[id]; c != nil {
					c.kicked.Store(true)
					c.schedule()
				}
			}
			program.mu.RUnlock()
		}
	}
}

// newAcceptedConn makes a connection that nothing else sees yet. It counts as served, not as
// idle: once it is in the set it may be aborted at any time, and an idle one would then get a
// goroutine before the program knows of it.
func newAcceptedConn(set *connSet, nc netConn, log *logger) *acceptedConn {
	ep, wq := endpointOf(nc)
	if ep == nil {
		log.printfLimited(levelError, "a connection is a %T, which is not known", nc)
		return nil
	}
	c := &acceptedConn{conns: set, log: log, net: nc, endpoint: ep, waitQueue: wq, room: turnBytes}
	c.state.Store(connServed)
	return c
}

// open announces a connection of the set to the program and schedules its first turn.
func (c *acceptedConn) open() {
	program.mu.Lock()
	program.lastID++
	c.id = program.lastID
	program.conns[c.id] = c
	program.mu.Unlock()
	c.ref = program.Open(c.id)
	c.notification.Init(c, waiter.ReadableEvents|waiter.WritableEvents|waiter.EventHUp|waiter.EventErr)
	c.waitQueue.EventRegister(&c.notification)
	readyQueue.put(c)
}

// NotifyEvent is called by the netstack, with locks held, when something has changed.
func (c *acceptedConn) NotifyEvent(waiter.EventMask) { c.schedule() }

func (c *acceptedConn) schedule() {
	for {
		switch c.state.Load() {
		case connIdle:
			if c.state.CompareAndSwap(connIdle, connServed) {
				readyQueue.put(c)
				return
			}
		case connServed:
			if c.state.CompareAndSwap(connServed, connRecheck) {
				return
			}
		default:
			return
		}
	}
}

// abort ends both directions now. It closes the netstack's connection itself and does not leave
// that to the goroutine that serves it: when a node is closed, the peer must hear of it before the
// node is gone.
func (c *acceptedConn) abort() {
	c.aborted.Store(true)
	c.net.Close()
	c.schedule()
}

// readyQueue holds the connections with something to do, and the goroutines that serve them. These
// are few and never end, because the netstack needs more stack than a new goroutine has. Each
// of them occupies a thread while the program handles a request. Idle ones wait.
var readyQueue workQueue

type workQueue struct {
	mu          sync.Mutex
	first, last *acceptedConn
	workers     int
	idleWorkers int
	wake        chan struct{}
}

// Limits for the threads that the program may occupy. There are a few even if Go has one processor,
// so that a long turn does not stop the others.
const (
	minWorkers = 4
	maxWorkers = 64
)

func (q *workQueue) put(c *acceptedConn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.first == nil {
		q.first = c
	} else {
		q.last.next = c
	}
	q.last = c
	switch {
	case q.idleWorkers > 0:
		q.idleWorkers--
		q.wake <- struct{}{}
	case q.workers < min(max(2*runtime.GOMAXPROCS(0), minWorkers), maxWorkers):
		if q.wake == nil {
			q.wake = make(chan struct{}, maxWorkers)
		}
		q.workers++
		go q.run()
	}
}

func (q *workQueue) run() {
	for {
		q.mu.Lock()
		c := q.first
		if c == nil {
			q.idleWorkers++
			q.mu.Unlock()
			<-q.wake
			continue
		}
		q.first, c.next = c.next, nil
		q.mu.Unlock()
		c.serve()
	}
}

// serve exchanges bytes until nothing is left to do for the connection, and frees it if it has
// ended.
func (c *acceptedConn) serve() {
	ended := true
	defer func() {
		if p := recover(); p != nil {
			c.log.printf(levelError, "a connection ends: serving it panicked: %v\n%s", p, debug.Stack())
		}
		if ended {
			c.free()
		}
	}()
	b := bufferPool.Get().(*turnBuffers)
	defer bufferPool.Put(b)
	for {
		c.state.Store(connServed)
		if c.exchange(b) {
			return
		}
		if c.state.CompareAndSwap(connServed, connIdle) {
			ended = false
			return
		}
	}
}

// exchange moves bytes in both directions until there are none left. It returns true if the
// connection has ended.
func (c *acceptedConn) exchange(b *turnBuffers) bool {
	needsTurn := c.kicked.Swap(false)
	for {
		// Send what is waiting first; nothing more is taken before it is gone.
		if len(c.unsent) > 0 {
			c.unsent = c.send(b, c.unsent)
			needsTurn = needsTurn || len(c.unsent) == 0
		}
		if c.aborted.Load() {
			c.inbound = InboundBroken
		}
		n, end := 0, c.inbound
		if end == InboundOpen && c.room > 0 {
			n = c.receive(b)
		}
		if n == 0 && c.inbound == end && end != InboundBroken && !needsTurn {
			return false
		}
		out := b.out[:]
		if len(c.unsent) > 0 {
			out = nil
		}
		program.Turn(c.ref, b.in[:n], c.inbound, out, &b.result)
		if c.inbound == InboundBroken {
			return true
		}
		c.room = b.result.Room
		if b.result.Out > 0 {
			// A copy, if the netstack does not take all: the buffer is reused for other
			// connections.
			c.unsent = slices.Clone(c.send(b, out[:b.result.Out]))
		}
		closed := b.result.Flags&TurnClosed != 0
		needsTurn = len(c.unsent) == 0 && b.result.Flags&TurnMore != 0
		switch {
		case c.inbound == InboundBroken:
		case len(c.unsent) > 0:
			if closed && c.closeTimer == nil {
				c.closeTimer = time.AfterFunc(closedTimeout, c.abort)
			}
		case needsTurn:
		case closed:
			return true
		case b.result.Flags&TurnShutdown != 0:
			if !c.finSent && c.net.CloseWrite() != nil {
				c.inbound = InboundBroken
			}
			c.finSent = true
			if c.inbound == InboundEnded {
				return true
			}
		}
	}
}

// receive reads what the netstack has, at most as much as the program has room for.
func (c *acceptedConn) receive(b *turnBuffers) int {
	b.writer = b.in[:min(len(b.in), int(c.room))]
	got, err := c.endpoint.Read(&b.writer, tcpip.ReadOptions{})
	switch err.(type) {
	case nil:
		c.endpoint.ModerateRecvBuf(got.Count)
		return got.Count
	case *tcpip.ErrWouldBlock:
	case *tcpip.ErrClosedForReceive:
		c.inbound = InboundEnded
	default:
		c.inbound = InboundBroken
	}
	return 0
}

// send writes as much as the netstack takes, and returns the rest.
func (c *acceptedConn) send(b *turnBuffers, p []byte) []byte {
	for len(p) > 0 {
		b.reader.Reset(p)
		n, err := c.endpoint.Write(&b.reader, tcpip.WriteOptions{})
		if p = p[n:]; n > 0 && c.closeTimer != nil {
			c.closeTimer.Reset(closedTimeout)
		}
		switch err.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			return p
		default:
			c.inbound = InboundBroken
			return nil
		}
	}
	return nil
}

func (c *acceptedConn) free() {
	c.state.Store(connFreed)
	if a := c.pending.Load(); a != nil {
		a.withdraw()
	}
	if c.closeTimer != nil {
		c.closeTimer.Stop()
	}
	c.waitQueue.EventUnregister(&c.notification)
	c.net.Close()
	program.Free(c.ref)
	program.mu.Lock()
	delete(program.conns, c.id)
	program.mu.Unlock()
	c.conns.mu.Lock()
	delete(c.conns.accepted, c)
	c.conns.resizeBuffers()
	c.conns.mu.Unlock()
	liveConns.Add(-1)
	c.conns.active.Done()
}
