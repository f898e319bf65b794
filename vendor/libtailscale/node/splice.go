// The pump between a dialled connection of the netstack and a unix socket whose other end the
// caller holds; and the set of all connections of a node, including the accepted ones (direct.go).
//
// Invariants
//   - Half close works both ways: end of stream from the network shuts down our writing side, end
//     of stream from the caller closes the writing side towards the network. The other direction
//     goes on.
//   - An abnormal end from the network (reset, timeout) closes the unix socket without shutting it
//     down first, so the caller can tell it from an end of stream while its own writing side is
//     open.
//   - A full close by the caller ends both directions even if the network is silent. What the
//     caller had written is still sent, then FIN, as the kernel would do.
//   - An idle connection keeps two goroutines, a small buffer and the sockets, and nothing else.
//   - Both goroutines end when the connection ends; the last one frees everything.
//   - A peer that stops reading cannot keep a connection that the caller has closed for more than
//     about a minute (sweep).

package node

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
)

const (
	idleBuffer = 2 << 10  // waits for the network; one read takes most requests
	bulkBuffer = 64 << 10 // taken from the pool while data flows

	sweepEvery   = 15 * time.Second
	sweepStrikes = 4
)

var bulk = sync.Pool{New: func() any { b := make([]byte, bulkBuffer); return &b }}

// live counts the connections of all nodes.
var live atomic.Int64

// netConn is the part of a netstack connection that we use.
type netConn interface {
	net.Conn
	CloseWrite() error
}

// splices are the connections of one node.
type splices struct {
	mu      sync.Mutex
	closed  bool
	all     map[*splice]struct{}
	directs map[*direct]struct{}
	ended   sync.WaitGroup

	netstack tuned // nil: do not bound the buffers
	buffer   int   // what a buffer may grow to, in bytes
}

type splice struct {
	set  *splices
	net  netConn
	unix ours

	// Callbacks for the poller, made once, and the data they work on. in belongs to the goroutine
	// from unix to net, out to the other one.
	in  inward
	out outward

	halves   atomic.Int32  // directions still running
	netEOF   atomic.Bool   // the network's end of stream was passed on
	writing  atomic.Uint64 // odd while a write to the network is in progress
	lastSeen uint64        // value of writing at the last sweep; belongs to sweep
	strikes  int           // belongs to sweep
}

type inward struct {
	read func(fd uintptr) bool
	hup  func(fd uintptr) bool
	buf  *[]byte
	n    int
	err  error
}

type outward struct {
	write func(fd uintptr) bool
	rest  []byte
	err   error
}

// start begins to pump. It returns false if the node is closing; the caller must then close both
// ends itself.
func (set *splices) start(c netConn, u ours) bool {
	s := &splice{set: set, net: c, unix: u}
	s.in.read, s.in.hup, s.out.write = s.readable, hungUp, s.writable
	s.halves.Store(2)
	set.mu.Lock()
	if set.closed {
		set.mu.Unlock()
		return false
	}
	if set.all == nil {
		set.all = make(map[*splice]struct{})
	}
	set.all[s] = struct{}{}
	set.ended.Add(1)
	set.mu.Unlock()
	live.Add(1)
	go s.toCaller()
	go s.toNetwork()
	return true
}

// closeAll aborts all connections and refuses new ones. It returns their endpoints.
func (set *splices) closeAll() []tcpip.Endpoint {
	set.mu.Lock()
	set.closed = true
	all := make([]*splice, 0, len(set.all))
	for s := range set.all {
		all = append(all, s)
	}
	directs := make([]*direct, 0, len(set.directs))
	for d := range set.directs {
		directs = append(directs, d)
	}
	set.mu.Unlock()
	var eps []tcpip.Endpoint
	for _, d := range directs {
		d.abort()
		eps = append(eps, d.ep)
	}
	for _, s := range all {
		s.abort()
		if ep, _ := inside(s.net); ep != nil {
			eps = append(eps, ep)
		}
	}
	return eps
}

func (set *splices) wait() { set.ended.Wait() }

// abort ends both directions now. The unix socket is not shut down first, see the invariants.
func (s *splice) abort() {
	s.unix.f.Close()
	s.net.Close()
}

func (s *splice) half() {
	if s.halves.Add(-1) > 0 {
		return
	}
	s.abort() // both directions have ended: this only frees
	s.set.mu.Lock()
	delete(s.set.all, s)
	s.set.mu.Unlock()
	live.Add(-1)
	s.set.ended.Done()
}

// toCaller pumps from the network to the caller.
func (s *splice) toCaller() {
	defer s.half()
	small := make([]byte, idleBuffer)
	for {
		n, err := s.net.Read(small)
		if n > 0 && !s.give(small[:n]) {
			break
		}
		if err == nil && n == len(small) {
			err = s.bulkToCaller()
		}
		if err == io.EOF {
			s.netEOF.Store(true)
			// If both directions have ended, this also wakes toNetwork.
			s.unix.rc.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_WR) })
			return
		}
		if err != nil {
			break
		}
	}
	s.abort()
}

// bulkToCaller goes on with a large buffer as long as it is well used.
func (s *splice) bulkToCaller() error {
	b := bulk.Get().(*[]byte)
	defer bulk.Put(b)
	for {
		n, err := s.net.Read(*b)
		if n > 0 && !s.give((*b)[:n]) {
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

// give writes all of p to the caller.
func (s *splice) give(p []byte) bool {
	s.out.rest, s.out.err = p, nil
	err := s.unix.rc.Write(s.out.write)
	s.out.rest = nil
	return err == nil && s.out.err == nil
}

func (s *splice) writable(fd uintptr) bool {
	for len(s.out.rest) > 0 {
		n, err := sendmsg(int(fd), s.out.rest, nil)
		if err == unix.EAGAIN {
			return false
		}
		if err != nil {
			s.out.err = err
			return true
		}
		s.out.rest = s.out.rest[n:]
	}
	return true
}

// toNetwork pumps from the caller to the network.
func (s *splice) toNetwork() {
	defer s.half()
	for {
		if s.unix.rc.Read(s.in.read) != nil {
			break // our end was closed
		}
		if s.in.err != nil {
			break // the caller closed before it had read everything: a reset, as from the kernel
		}
		if s.in.n == 0 {
			bulk.Put(s.in.buf)
			if s.net.CloseWrite() != nil {
				break
			}
			// The caller may go on reading for hours. But once it has closed its end, or the
			// network's end of stream was passed on, nothing is left to do.
			s.unix.rc.Read(s.in.hup)
			if s.netEOF.Load() {
				return
			}
			break
		}
		s.writing.Add(1)
		_, err := s.net.Write((*s.in.buf)[:s.in.n])
		s.writing.Add(1)
		bulk.Put(s.in.buf)
		if err != nil {
			break
		}
	}
	s.abort()
}

// readable reads if there is something. It takes a buffer only then, so a silent connection holds
// none.
func (s *splice) readable(fd uintptr) bool {
	b := bulk.Get().(*[]byte)
	for {
		n, err := unix.Read(int(fd), *b)
		switch err {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			bulk.Put(b)
			return false
		case nil:
			s.in.buf, s.in.n, s.in.err = b, n, nil
		default:
			bulk.Put(b)
			s.in.buf, s.in.n, s.in.err = nil, 0, err
		}
		return true
	}
}

// sweep regularly looks for writes to the network that make no progress although the caller is
// gone, and ends them.
func (set *splices) sweep(ctx context.Context) func() {
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

func (set *splices) sweepOnce() {
	set.mu.Lock()
	var stuck []*splice
	for s := range set.all {
		w := s.writing.Load()
		if w%2 == 1 && w == s.lastSeen {
			stuck = append(stuck, s)
		} else {
			s.strikes = 0
		}
		s.lastSeen = w
	}
	set.mu.Unlock()
	for _, s := range stuck {
		gone := false
		s.unix.rc.Control(func(fd uintptr) { gone = hungUp(fd) })
		if !gone {
			s.strikes = 0
		} else if s.strikes++; s.strikes >= sweepStrikes {
			s.abort()
		}
	}
}
