// Accepted connections that the program has not taken yet.
//
// Invariants
//   - One goroutine at a time sends them to the listener's socket, in the order in which they came.
//     A connection in the socket (socketBufferBytes, about forty) counts as taken.
//   - At most maxPending wait, and at most maxPendingPerPeer from one address: a peer that opens
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
	maxPending        = 512
	maxPendingPerPeer = 128
)

type backlog struct {
	mu      sync.Mutex
	waiting list.List // of *pendingConn
	perPeer map[netip.Addr]int
	sending bool
}

// pendingConn is a connection with the message that announces it.
type pendingConn struct {
	conn    *acceptedConn
	peer    netip.Addr
	message []byte
	backlog *backlog
	element *list.Element // nil when it does not wait any more
}

// full reports whether a further connection from this address would be refused.
func (b *backlog) full(from netip.Addr) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fullLocked(from)
}

func (b *backlog) fullLocked(from netip.Addr) bool {
	return b.waiting.Len() >= maxPending || b.perPeer[from] >= maxPendingPerPeer
}

// empty reports whether every connection has been sent to the listener's socket.
func (b *backlog) empty() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.waiting.Len() == 0 && !b.sending
}

// put adds a connection. Unless another goroutine is sending, it then sends all that wait. It
// returns false if there is no room.
func (b *backlog) put(p *pendingConn, send func(*pendingConn)) bool {
	b.mu.Lock()
	if b.fullLocked(p.peer) {
		b.mu.Unlock()
		return false
	}
	if b.perPeer == nil {
		b.perPeer = make(map[netip.Addr]int)
	}
	p.backlog, p.element = b, b.waiting.PushBack(p)
	b.perPeer[p.peer]++
	isSender := !b.sending
	b.sending = true
	b.mu.Unlock()
	// The connection may end at the same time (acceptedConn.free). Each side stores before it
	// loads, so the later one sees the other.
	p.conn.pending.Store(p)
	if p.conn.state.Load() == connFreed {
		p.withdraw()
	}
	for isSender {
		b.mu.Lock()
		first := b.waiting.Front()
		if first == nil {
			b.sending, isSender = false, false
		} else {
			b.remove(first.Value.(*pendingConn))
		}
		b.mu.Unlock()
		if isSender {
			send(first.Value.(*pendingConn))
		}
	}
	return true
}

// withdraw removes the connection if it still waits.
func (p *pendingConn) withdraw() {
	p.backlog.mu.Lock()
	defer p.backlog.mu.Unlock()
	if p.element != nil {
		p.backlog.remove(p)
	}
}

func (b *backlog) remove(p *pendingConn) {
	b.waiting.Remove(p.element)
	p.element = nil
	if b.perPeer[p.peer]--; b.perPeer[p.peer] == 0 {
		delete(b.perPeer, p.peer)
	}
}
