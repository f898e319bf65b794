// Access to the endpoint inside a connection of the netstack's adapter.
//
// The adapter (gonet) can only block: a read that finds nothing makes a channel and parks a
// goroutine together with its buffer. The endpoint below it returns at once and notifies us of
// changes. The adapter has no method that returns the endpoint, and tsnet makes the connection, so
// we read its two private fields (gVisor as tailscale.com v1.102.5 requires it). If a later version
// has other fields, no node starts (checked by startServer), and TestEndpointFields fails first.
//
// This file can go when gonet.TCPConn returns its endpoint and queue, or when tsnet passes them on.

package node

import (
	"reflect"
	"unsafe"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/waiter"
)

var endpointOffset, queueOffset, endpointFieldsKnown = func() (uintptr, uintptr, bool) {
	t := reflect.TypeFor[gonet.TCPConn]()
	ep, ok1 := t.FieldByName("ep")
	wq, ok2 := t.FieldByName("wq")
	ok := ok1 && ok2 && ep.Type == reflect.TypeFor[tcpip.Endpoint]() && wq.Type == reflect.TypeFor[*waiter.Queue]()
	return ep.Offset, wq.Offset, ok
}()

// endpointOf returns a connection's endpoint and the queue of its waiters, or nil for a connection
// of another kind.
func endpointOf(c netConn) (tcpip.Endpoint, *waiter.Queue) {
	g, ok := c.(*gonet.TCPConn)
	if !ok || !endpointFieldsKnown {
		return nil, nil
	}
	at := unsafe.Pointer(g)
	return *(*tcpip.Endpoint)(unsafe.Add(at, endpointOffset)), *(**waiter.Queue)(unsafe.Add(at, queueOffset))
}
