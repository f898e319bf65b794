package node

import (
	"bytes"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"tailscale.com/net/packet"
	"tailscale.com/net/tstun"
	"tailscale.com/wgengine/filter"
	"tailscale.com/wgengine/netstack/gro"
)

// More flows at once than the netstack has places to collect them: each arrives whole, none is
// reset.
func TestFlowsDoNotMix(t *testing.T) {
	s := newAcceptTest(t)
	const flows, size = 16, 1 << 20
	piece := func(i int) []byte { return bytes.Repeat([]byte{byte('a' + i)}, 64<<10) }
	var all sync.WaitGroup
	var outs, ins [flows]*testConn
	for i := range flows {
		outs[i], ins[i] = s.connect()
	}
	for i := range flows {
		out, in := outs[i], ins[i]
		all.Go(func() {
			for range size / (64 << 10) {
				out.write(piece(i))
			}
			out.shutdown()
		})
		all.Go(func() {
			got, err := in.readAll(20 * time.Second)
			if err != io.EOF || !bytes.Equal(got, bytes.Repeat(piece(i), size/(64<<10))) {
				t.Errorf("%d: %d bytes instead of %d, or others, %v", i, len(got), size, err)
			}
			in.close()
			out.close()
		})
	}
	all.Wait()
}

// Two flows of one bucket in one batch: both are delivered, and packets of the same flow are
// coalesced.
func TestOneFlowIsCollectedAtATime(t *testing.T) {
	var got delivered
	collect := func(p *packet.Parsed, _ *tstun.Wrapper, g *gro.GRO) (filter.Response, *gro.GRO) {
		if g == nil {
			g = gro.NewGRO()
			g.SetDispatcher(&got)
		}
		g.Enqueue(p)
		return filter.DropSilently, g
	}
	r := &flowTracker{next: collect, flowOf: make(map[*gro.GRO]flow)}
	bring := func(through tstun.GROFilterFunc) {
		got = nil
		var g *gro.GRO
		for i, port := range []uint16{1000, 1000, 1008, 1008, 1000} {
			_, g = through(segment(port, uint32(i)), nil, g)
		}
		g.Flush()
	}
	bring(r.inbound)
	if !slices.Equal(got, delivered{2, 2, 1}) {
		t.Errorf("delivered were %v segments", got)
	}
	bring(collect)
	segments := 0
	for _, n := range got {
		segments += n
	}
	if segments == 5 {
		t.Errorf("gVisor's Flush delivers all flows (%v): coalesce.go is not needed any more", got)
	}
	if _, g := r.inbound(segment(1000, 0), nil, nil); g != nil {
		clear(r.flowOf)
		got = nil
		if r.inbound(segment(1000, 1), nil, g); len(got) != 1 {
			t.Error("what is not known was collected on")
		}
	}
	for range 10 * maxTracked {
		_, g := r.inbound(segment(1000, 0), nil, nil)
		_ = g // not flushed: the pool returns another one next time
	}
	if len(r.flowOf) > maxTracked {
		t.Errorf("%d are remembered", len(r.flowOf))
	}
}

// segmentSize is the payload of each segment in bytes.
const segmentSize = 100

// segment returns the nth segment of a flow from a port.
func segment(port uint16, n uint32) *packet.Parsed {
	b := make([]byte, header.IPv4MinimumSize+header.TCPMinimumSize+segmentSize)
	from, to := tcpip.AddrFrom4([4]byte{100, 64, 0, 2}), tcpip.AddrFrom4([4]byte{100, 64, 0, 1})
	ip := header.IPv4(b)
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(b)), TTL: 64, Protocol: uint8(header.TCPProtocolNumber), SrcAddr: from, DstAddr: to})
	ip.SetChecksum(^ip.CalculateChecksum())
	tcp := header.TCP(ip.Payload())
	tcp.Encode(&header.TCPFields{SrcPort: port, DstPort: 80, SeqNum: n * segmentSize, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagAck})
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, from, to, uint16(len(tcp)))
	tcp.SetChecksum(^tcp.CalculateChecksum(checksum.Checksum(tcp.Payload(), sum)))
	p := new(packet.Parsed)
	p.Decode(b)
	return p
}

// delivered holds the packets that came out, each as the number of its segments.
type delivered []int

func (d *delivered) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, p *stack.PacketBuffer) {
	*d = append(*d, p.Size()/segmentSize)
}

func (d *delivered) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}
