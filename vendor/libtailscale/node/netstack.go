// What we change in tsnet's netstack, and why.
//
// Closing. Upstream fault, seen in tailscale.com v1.102.5: netstack.Impl.Close first stops the
// goroutine that sends packets and then resets every endpoint, including those that only wait in
// their final state. The resets go into a queue of 512 packets that nothing empties any more, and
// whoever finds it full waits for ever. So a node that closes disables the netstack's interface
// first, which drops what would be sent from then on, and lets the queue empty (stopSending). That
// can go when Close resets the endpoints before it stops sending: TestCloseWithManyConnections must
// then pass without it.
//
// Before, a node waits a moment until the peers of its connections have acknowledged the end
// (awaitAcks). Without it they would notice only by a timeout of their own.
//
// Final states. A busy server has closed thousands of connections within a minute, as long as
// gVisor keeps each. Here they are forgotten sooner (finalStateTimeout).
//
// Memory. tsnet gives each connection buffers of fixed size, 1 MiB for each direction at first and
// up to 8 MiB. A peer that sends and does not read may fill them all, so here many connections have
// small buffers (bufferSizeFor).

package node

import (
	"reflect"
	"slices"
	"time"
	"unsafe"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"tailscale.com/tsd"
	"tailscale.com/wgengine/netstack"
)

const (
	// How long an endpoint stays after its last packet, instead of a minute. Long enough for late
	// packets on a tailnet. A later one is answered with a reset, as for any unknown connection.
	finalStateTimeout = 1500 * time.Millisecond

	// Size in bytes of the buffer for each direction of a connection: what it begins with, the
	// least, and what it may grow to while bytes come and go quickly. All buffers together grow to
	// maxBuffersTotal at most, unless even the least size takes more.
	initialBuffer   = 128 << 10
	minBuffer       = 32 << 10
	maxBuffer       = 1 << 20
	maxBuffersTotal = 32 << 20

	queueTimeout = time.Second // for packets that are sent at the end: milliseconds, unless the machine is busy

	ackTimeout = time.Second // a peer that lost a packet gets it again within that; one that is gone is not waited for
	resetGrace = 50 * time.Millisecond
)

// optionSetter is the part of a netstack that sets its options.
type optionSetter interface {
	SetTransportProtocolOption(tcpip.TransportProtocolNumber, tcpip.SettableTransportProtocolOption) tcpip.Error
}

// configureNetstack makes a node's netstack forget closed connections soon, and bounds the buffers
// of its connections.
func (n *Node) configureNetstack() *Error {
	ns, ok := n.srv.Sys().Netstack.Get().(*netstack.Impl)
	if !ok {
		return errorf(Internal, "the node's netstack is a %T", n.srv.Sys().Netstack.Get())
	}
	if err := shortenFinalStates(ns); err != nil {
		return err
	}
	return n.conns.limitBuffers(ns)
}

func shortenFinalStates(ns optionSetter) *Error {
	linger := tcpip.TCPLingerTimeoutOption(finalStateTimeout)
	wait := tcpip.TCPTimeWaitTimeoutOption(finalStateTimeout)
	for _, o := range []tcpip.SettableTransportProtocolOption{&linger, &wait} {
		if err := ns.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return errorf(Internal, "the netstack does not take %T: %v", o, err)
		}
	}
	return nil
}

// bufferSizeFor returns how large each buffer of a connection may become with this many
// connections.
func bufferSizeFor(conns int) int {
	size := maxBuffer
	for size > minBuffer && size*conns > maxBuffersTotal {
		size /= 2
	}
	return size
}

// setBufferLimits lets no buffer grow beyond most bytes. It does not shrink larger ones of accepted
// connections: the netstack cannot do that for all, so their owner must.
func setBufferLimits(ns optionSetter, most int) *Error {
	first := min(initialBuffer, most)
	in := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: first, Max: most}
	out := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: first, Max: most}
	for _, o := range []tcpip.SettableTransportProtocolOption{&in, &out} {
		if err := ns.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return errorf(Internal, "the netstack does not take %T: %v", o, err)
		}
	}
	return nil
}

// limitBuffers bounds the buffers of the set's connections from now on.
func (set *connSet) limitBuffers(ns optionSetter) *Error {
	set.mu.Lock()
	defer set.mu.Unlock()
	set.netstack, set.bufferSize = ns, bufferSizeFor(len(set.accepted))
	return setBufferLimits(ns, set.bufferSize)
}

// resizeBuffers fits the buffers to the number of connections. They grow again only at half of the
// number at which they shrank, so that connections that come and go around the limit do not change
// everything each time. The caller holds set.mu.
func (set *connSet) resizeBuffers() {
	if set.netstack == nil {
		return
	}
	was, conns := set.bufferSize, len(set.accepted)
	set.bufferSize = max(min(was, bufferSizeFor(conns)), bufferSizeFor(2*conns))
	if set.bufferSize == was {
		return
	}
	setBufferLimits(set.netstack, set.bufferSize) // cannot fail: the netstack took the same options before
	if set.bufferSize < was {
		for c := range set.accepted {
			shrinkBuffers(c.endpoint, set.bufferSize)
		}
	}
}

// shrinkBuffers makes a connection's buffers small enough. They may grow again by themselves, as
// far as the netstack lets them. Bytes in them stay. Bytes that the peer sends because it was
// promised more room are dropped and sent again.
func shrinkBuffers(ep tcpip.Endpoint, most int) {
	o := ep.SocketOptions()
	if o.GetReceiveBufferSize() > int64(most) {
		o.SetReceiveBufferSize(int64(most), false)
	}
	if o.GetSendBufferSize() > int64(most) {
		o.SetSendBufferSize(int64(most), false)
	}
}

// stopSending makes the netstack drop what it would send, and empties its queue: whoever waits for
// room there has it then.
func stopSending(sys *tsd.System) {
	ns, ok := sys.Netstack.Get().(*netstack.Impl)
	if !ok {
		return
	}
	stackOf(ns).DisableNIC(nicID)
	queue := queueOf(ns)
	if queue == nil {
		return
	}
	pollUntil(queueTimeout, time.Millisecond, func() bool { return queue.NumQueued() == 0 })
	for p := queue.Read(); p != nil; p = queue.Read() {
		p.DecRef()
	}
}

// sendQueue is the part of the netstack's link that has the packets to be sent. While somebody
// waits for room, there are some.
type sendQueue interface {
	NumQueued() int
	Read() *stack.PacketBuffer // nil if there is none
}

// The netstack has no method that returns its link, so we read its private field. If a later
// version has another one, close does not wait, and TestQueueField fails.
func queueOf(ns *netstack.Impl) sendQueue {
	f, ok := reflect.TypeFor[netstack.Impl]().FieldByName("linkEP")
	if !ok || !f.Type.Implements(reflect.TypeFor[sendQueue]()) {
		return nil
	}
	return reflect.NewAt(f.Type, unsafe.Add(unsafe.Pointer(ns), f.Offset)).Elem().Interface().(sendQueue)
}

// awaitAcks waits until the peers of closed connections have acknowledged the end. A reset is not
// acknowledged: it only gets time to be sent.
func awaitAcks(endpoints []tcpip.Endpoint) {
	if len(endpoints) == 0 {
		return
	}
	pollUntil(ackTimeout, 5*time.Millisecond, func() bool { return !slices.ContainsFunc(endpoints, awaitsAck) })
	time.Sleep(resetGrace)
}

func awaitsAck(ep tcpip.Endpoint) bool {
	switch tcp.EndpointState(ep.State()) {
	case tcp.StateEstablished, tcp.StateCloseWait, tcp.StateFinWait1, tcp.StateClosing, tcp.StateLastAck:
		return true
	}
	return false
}
