// The set of a node's connections, accepted and dialled.
//
// Invariants: a closed set takes no connection; a connection leaves the set when it is freed.

package node

import (
	"net"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// liveConns counts the connections of all nodes.
var liveConns atomic.Int64

// netConn is the part of a netstack connection that we use.
type netConn interface {
	net.Conn
	CloseWrite() error
}

// connSet is the set of one node's connections.
type connSet struct {
	mu       sync.Mutex
	closed   bool
	dialled  map[*dialledConn]struct{}
	accepted map[*acceptedConn]struct{}
	active   sync.WaitGroup

	netstack   optionSetter // nil: the buffers have no limit
	bufferSize int          // what a buffer may grow to, in bytes
}

// accept adds a connection to the set and begins to serve it. It returns nil if the node is
// closing, or if the connection is of an unknown kind.
func (set *connSet) accept(nc netConn, log *logger) *acceptedConn {
	c := newAcceptedConn(set, nc, log)
	if c == nil || !set.addAccepted(c) {
		return nil
	}
	c.open()
	return c
}

// addAccepted adds a connection to the set. It returns false if the node is closing.
func (set *connSet) addAccepted(c *acceptedConn) bool {
	set.mu.Lock()
	defer set.mu.Unlock()
	if set.closed {
		return false
	}
	if set.accepted == nil {
		set.accepted = make(map[*acceptedConn]struct{})
	}
	set.accepted[c] = struct{}{}
	set.resizeBuffers()
	if set.netstack != nil {
		// tsnet's forwarder gives accepted connections a buffer size of its own.
		shrinkBuffers(c.endpoint, min(initialBuffer, set.bufferSize))
	}
	set.active.Add(1)
	liveConns.Add(1)
	return true
}

// startDialled adds a connection to the set and begins to pump. It returns false if the node is
// closing; the caller must then close both ends itself.
func (set *connSet) startDialled(nc netConn, socket socketEnd) bool {
	c := &dialledConn{conns: set, net: nc, socket: socket}
	c.fromProgram.onReadable, c.fromProgram.onHangup, c.toProgram.onWritable = c.onReadable, hungUp, c.onWritable
	c.openDirections.Store(2)
	set.mu.Lock()
	if set.closed {
		set.mu.Unlock()
		return false
	}
	if set.dialled == nil {
		set.dialled = make(map[*dialledConn]struct{})
	}
	set.dialled[c] = struct{}{}
	set.active.Add(1)
	set.mu.Unlock()
	liveConns.Add(1)
	go c.pumpToProgram()
	go c.pumpToNetwork()
	return true
}

// closeAll aborts all connections and refuses new ones. It returns their endpoints.
func (set *connSet) closeAll() []tcpip.Endpoint {
	set.mu.Lock()
	set.closed = true
	dialled := make([]*dialledConn, 0, len(set.dialled))
	for c := range set.dialled {
		dialled = append(dialled, c)
	}
	accepted := make([]*acceptedConn, 0, len(set.accepted))
	for c := range set.accepted {
		accepted = append(accepted, c)
	}
	set.mu.Unlock()
	var endpoints []tcpip.Endpoint
	for _, c := range accepted {
		c.abort()
		endpoints = append(endpoints, c.endpoint)
	}
	for _, c := range dialled {
		c.abort()
		if ep, _ := endpointOf(c.net); ep != nil {
			endpoints = append(endpoints, ep)
		}
	}
	return endpoints
}

func (set *connSet) wait() { set.active.Wait() }
