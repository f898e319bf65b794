package node

import (
	"context"
	"io"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"tailscale.com/net/packet"
	"tailscale.com/types/ipproto"
	"tailscale.com/wgengine/netstack"
)

func TestStackField(t *testing.T) {
	if !stackFieldKnown {
		t.Fatal("netstack.Impl has no stack where time_wait.go expects it")
	}
}

// A peer calls again from the port of a connection that the program closed first.
func TestAPortInTimeWaitIsOpenedAgain(t *testing.T) {
	s := newAcceptTest(t)
	ns := func(m *testNode) *netstack.Impl { return m.node().lb.Load().Sys().Netstack.Get().(*netstack.Impl) }
	// Longer than any dial here.
	long := tcpip.TCPTimeWaitTimeoutOption(time.Hour)
	if err := ns(s.server).SetTransportProtocolOption(tcp.ProtocolNumber, &long); err != nil {
		t.Fatal(err)
	}
	at := func(m *testNode, port uint16) tcpip.FullAddress {
		return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFromSlice(m.ip(4).AsSlice()), Port: port}
	}
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second)
		out, err := gonet.DialTCPWithBind(ctx, stackOf(ns(s.client)), at(s.client, 40000), at(s.server, 80), ipv4.ProtocolNumber)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		in := receive(t, s.listener)
		ours := s.connOf(in)
		in.shutdown()
		if _, err := out.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("the caller reads %v", err)
		}
		theirs, _ := endpointOf(out)
		out.Close()
		s.awaitFreed(in)
		waitFor(t, "the caller's port to be free", func() bool { return tcp.EndpointState(theirs.State()) == tcp.StateClose })
		waitFor(t, "TIME_WAIT", func() bool { return tcp.EndpointState(ours.endpoint.State()) == tcp.StateTimeWait })
	}
	// A connection that has not ended gives no way to another one.
	out, in := s.connect()
	defer out.close()
	st, from := stackOf(ns(s.server)), in.peer
	endTimeWait(st, syn(from, in.local))
	out.write([]byte("ping"))
	b := make([]byte, 10)
	if n, err := in.read(b, 5*time.Second); err != nil || string(b[:n]) != "ping" {
		t.Errorf("a connection that stands, after a SYN of its ports: %q, %v", b[:n], err)
	}
	in.close()
}

func syn(from, to netip.AddrPort) *packet.Parsed {
	return &packet.Parsed{IPVersion: 4, IPProto: ipproto.TCP, Src: from, Dst: to, TCPFlags: packet.TCPSyn}
}
