// Accepted connections that the program has not taken yet.
//
// Invariants
//   - One goroutine at a time sends them to the listener's socket, in the order in which they came.
//     A connection in the socket (queueBytes, about forty) counts as taken.
//   - At most maxPending wait, and at most maxPendingEach from one address: a peer that opens
//     connections faster than the program takes them is refused before other peers are.
//   - A connection that ends while it waits leaves the backlog at once. So connections that are
//     reset after their handshake take no room from others.

package node

import (
	"container/list"
	"net/netip"
	"sync"
)

const (
	maxPending     = 512
	maxPendingEach = 128
)

type backlog struct {
	mu      sync.Mutex
	waiting list.List // of *arrival
	each    map[netip.Addr]int
	sending bool
}

// arrival is a connection with the message that announces it.
type arrival struct {
	d    *direct
	from netip.Addr
	msg  []byte
	in   *backlog
	at   *list.Element // nil when it does not wait any more
}

// full reports whether a further connection from this address would be refused.
func (b *backlog) full(from netip.Addr) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fullLocked(from)
}

func (b *backlog) fullLocked(from netip.Addr) bool {
	return b.waiting.Len() >= maxPending || b.each[from] >= maxPendingEach
}

// empty reports whether every connection has been sent to the listener's socket.
func (b *backlog) empty() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.waiting.Len() == 0 && !b.sending
}

// put adds a connection. Unless another goroutine is sending, it then sends all that wait. It
// returns false if there is no room.
func (b *backlog) put(a *arrival, send func(*arrival)) bool {
	b.mu.Lock()
	if b.fullLocked(a.from) {
		b.mu.Unlock()
		return false
	}
	if b.each == nil {
		b.each = make(map[netip.Addr]int)
	}
	a.in, a.at = b, b.waiting.PushBack(a)
	b.each[a.from]++
	mine := !b.sending
	b.sending = true
	b.mu.Unlock()
	// The connection may end at the same time (direct.free). Each side stores before it loads, so
	// the later one sees the other.
	a.d.arrival.Store(a)
	if a.d.state.Load() == gone {
		a.leave()
	}
	for mine {
		b.mu.Lock()
		first := b.waiting.Front()
		if first == nil {
			b.sending, mine = false, false
		} else {
			b.remove(first.Value.(*arrival))
		}
		b.mu.Unlock()
		if mine {
			send(first.Value.(*arrival))
		}
	}
	return true
}

// leave removes the connection if it still waits.
func (a *arrival) leave() {
	a.in.mu.Lock()
	defer a.in.mu.Unlock()
	if a.at != nil {
		a.in.remove(a)
	}
}

func (b *backlog) remove(a *arrival) {
	b.waiting.Remove(a.at)
	a.at = nil
	if b.each[a.from]--; b.each[a.from] == 0 {
		delete(b.each, a.from)
	}
}
