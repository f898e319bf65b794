// The pump between a dialled connection of the netstack and a unix socket whose other end the
// program holds.
//
// Invariants
//   - Half close works both ways: end of stream from the network shuts down our writing side, end
//     of stream from the program closes the writing side towards the network. The other direction
//     goes on.
//   - An abnormal end from the network (reset, timeout) closes the unix socket without shutting it
//     down first, so the program can tell it from an end of stream while its own writing side is
//     open.
//   - A full close by the program ends both directions even if the network is silent. What the
//     program had written is still sent, then FIN, as the kernel would do.
//   - An idle connection keeps two goroutines, a small buffer and the sockets, and nothing else.
//   - Both goroutines end when the connection ends; the last one frees everything.
//   - A peer that stops reading cannot keep a connection that the program has closed for more than
//     about a minute (sweepStuck).

package node

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	idleBuffer = 2 << 10  // waits for the network; one read takes most requests
	bulkBuffer = 64 << 10 // taken from the pool while data flows

	sweepEvery     = 15 * time.Second
	maxStuckSweeps = 4
)

var bulkBuffers = sync.Pool{New: func() any { b := make([]byte, bulkBuffer); return &b }}

type dialledConn struct {
	conns  *connSet
	net    netConn
	socket socketEnd

	// Callbacks for the poller, made once, and the data they work on. fromProgram belongs to
	// pumpToNetwork, toProgram to pumpToProgram.
	fromProgram programReads
	toProgram   programWrites

	openDirections atomic.Int32  // directions still running
	netEOF         atomic.Bool   // the network's end of stream was passed on
	writeCount     atomic.Uint64 // odd while a write to the network is in progress
	lastWriteCount uint64        // value of writeCount at the last sweep; belongs to sweepStuck
	stuckSweeps    int           // belongs to sweepStuck
}

type programReads struct {
	onReadable func(fd uintptr) bool
	onHangup   func(fd uintptr) bool
	buf        *[]byte
	n          int
	err        error
}

type programWrites struct {
	onWritable func(fd uintptr) bool
	unsent     []byte
	err        error
}

// abort ends both directions now. The unix socket is not shut down first, see the invariants.
func (c *dialledConn) abort() {
	c.socket.file.Close()
	c.net.Close()
}

func (c *dialledConn) directionEnded() {
	if c.openDirections.Add(-1) > 0 {
		return
	}
	c.abort() // both directions have ended: this only frees
	c.conns.mu.Lock()
	delete(c.conns.dialled, c)
	c.conns.mu.Unlock()
	liveConns.Add(-1)
	c.conns.active.Done()
}

// pumpToProgram pumps from the network to the program.
func (c *dialledConn) pumpToProgram() {
	defer c.directionEnded()
	small := make([]byte, idleBuffer)
	for {
		n, err := c.net.Read(small)
		if n > 0 && !c.writeToProgram(small[:n]) {
			break
		}
		if err == nil && n == len(small) {
			err = c.pumpBulkToProgram()
		}
		if err == io.EOF {
			c.netEOF.Store(true)
			// If both directions have ended, this also wakes pumpToNetwork.
			c.socket.raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_WR) })
			return
		}
		if err != nil {
			break
		}
	}
	c.abort()
}

// pumpBulkToProgram goes on with a large buffer as long as it is well used.
func (c *dialledConn) pumpBulkToProgram() error {
	b := bulkBuffers.Get().(*[]byte)
	defer bulkBuffers.Put(b)
	for {
		n, err := c.net.Read(*b)
		if n > 0 && !c.writeToProgram((*b)[:n]) {
			return io.ErrClosedPipe
		}
		if err != nil {
			return err
		}
		if n < bulkBuffer/8 {
			return nil
		}
	}
}

// writeToProgram writes all of p to the program.
func (c *dialledConn) writeToProgram(p []byte) bool {
	c.toProgram.unsent, c.toProgram.err = p, nil
	err := c.socket.raw.Write(c.toProgram.onWritable)
	c.toProgram.unsent = nil
	return err == nil && c.toProgram.err == nil
}

func (c *dialledConn) onWritable(fd uintptr) bool {
	for len(c.toProgram.unsent) > 0 {
		n, err := sendmsg(int(fd), c.toProgram.unsent, nil)
		if err == unix.EAGAIN {
			return false
		}
		if err != nil {
			c.toProgram.err = err
			return true
		}
		c.toProgram.unsent = c.toProgram.unsent[n:]
	}
	return true
}

// pumpToNetwork pumps from the program to the network.
func (c *dialledConn) pumpToNetwork() {
	defer c.directionEnded()
	for {
		if c.socket.raw.Read(c.fromProgram.onReadable) != nil {
			break // our end was closed
		}
		if c.fromProgram.err != nil {
			break // the program closed before it had read everything: a reset, as from the kernel
		}
		if c.fromProgram.n == 0 {
			bulkBuffers.Put(c.fromProgram.buf)
			if c.net.CloseWrite() != nil {
				break
			}
			// The program may go on reading for hours. But once it has closed its end, or the
			// network's end of stream was passed on, nothing is left to do.
			c.socket.raw.Read(c.fromProgram.onHangup)
			if c.netEOF.Load() {
				return
			}
			break
		}
		c.writeCount.Add(1)
		_, err := c.net.Write((*c.fromProgram.buf)[:c.fromProgram.n])
		c.writeCount.Add(1)
		bulkBuffers.Put(c.fromProgram.buf)
		if err != nil {
			break
		}
	}
	c.abort()
}

// onReadable reads if there is something. It takes a buffer only then, so a silent connection holds
// none.
func (c *dialledConn) onReadable(fd uintptr) bool {
	b := bulkBuffers.Get().(*[]byte)
	for {
		n, err := unix.Read(int(fd), *b)
		switch err {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			bulkBuffers.Put(b)
			return false
		case nil:
			c.fromProgram.buf, c.fromProgram.n, c.fromProgram.err = b, n, nil
		default:
			bulkBuffers.Put(b)
			c.fromProgram.buf, c.fromProgram.n, c.fromProgram.err = nil, 0, err
		}
		return true
	}
}

// sweepStuck regularly looks for writes to the network that make no progress although the program
// is gone, and ends them.
func (set *connSet) sweepStuck(ctx context.Context) func() {
	return func() {
		tick := time.NewTicker(sweepEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				set.sweepOnce()
			}
		}
	}
}

func (set *connSet) sweepOnce() {
	set.mu.Lock()
	var stuck []*dialledConn
	for c := range set.dialled {
		w := c.writeCount.Load()
		if w%2 == 1 && w == c.lastWriteCount {
			stuck = append(stuck, c)
		} else {
			c.stuckSweeps = 0
		}
		c.lastWriteCount = w
	}
	set.mu.Unlock()
	for _, c := range stuck {
		gone := false
		c.socket.raw.Control(func(fd uintptr) { gone = hungUp(fd) })
		if !gone {
			c.stuckSweeps = 0
		} else if c.stuckSweeps++; c.stuckSweeps >= maxStuckSweeps {
			c.abort()
		}
	}
}
