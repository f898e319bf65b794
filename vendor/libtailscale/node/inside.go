// The endpoint inside a connection of the netstack's adapter.
//
// The adapter (gonet) can only wait: each read that finds nothing makes a channel and parks a goroutine with its buffer.
// The endpoint under it answers at once and tells when something has changed. The adapter does not give it out, and
// tsnet makes the connection, so it is taken from the two fields. Should a later version have others, no node starts
// (checked by Start), and a test says so first.

package node

import (
	"reflect"
	"unsafe"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/waiter"
)

var endpointAt, queueAt, insideKnown = func() (uintptr, uintptr, bool) {
	t := reflect.TypeFor[gonet.TCPConn]()
	ep, ok1 := t.FieldByName("ep")
	wq, ok2 := t.FieldByName("wq")
	ok := ok1 && ok2 && ep.Type == reflect.TypeFor[tcpip.Endpoint]() && wq.Type == reflect.TypeFor[*waiter.Queue]()
	return ep.Offset, wq.Offset, ok
}()

// inside gives a connection's endpoint and the queue of those who wait for it, nil when it is of another kind.
func inside(c netConn) (tcpip.Endpoint, *waiter.Queue) {
	g, ok := c.(*gonet.TCPConn)
	if !ok || !insideKnown {
		return nil, nil
	}
	at := unsafe.Pointer(g)
	return *(*tcpip.Endpoint)(unsafe.Add(at, endpointAt)), *(**waiter.Queue)(unsafe.Add(at, queueAt))
}
