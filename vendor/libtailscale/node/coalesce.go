// Coalesces inbound TCP packets of one flow at a time.
//
// Upstream fault, seen in gVisor at the version that tailscale.com v1.102.5 requires: packets that
// WireGuard delivers in one batch are coalesced per flow (GRO), and Flush is to deliver what was
// collected after the last one. But it delivers only the first flow in each of its eight buckets,
// because it follows the link of an entry that it has just removed. The other flows stay in the
// object, which returns to a pool of the process. They are delivered late or never, or, with
// several nodes in one process, to the netstack of another node, which answers with a reset.
// Reported with a fix as google/gvisor#14081.
//
// So never collect two flows at once: deliver what was collected before taking a packet of another
// flow. Senders produce long runs of one flow, so little is lost (BenchmarkBulk; without any GRO it
// shows a quarter less).
//
// This file can go when tailscale.com requires a gVisor with that fix: TestFlowsDoNotMix must
// then pass without it.

package node

import (
	"net/netip"
	"sync"

	"tailscale.com/net/packet"
	"tailscale.com/net/tstun"
	"tailscale.com/wgengine/filter"
	"tailscale.com/wgengine/netstack/gro"
)

type flow struct{ src, dst netip.AddrPort }

// flowTracker remembers which flow each GRO object is collecting.
type flowTracker struct {
	next   tstun.GROFilterFunc
	mu     sync.Mutex
	flowOf map[*gro.GRO]flow
}

// maxTracked limits the entries for objects that the pool no longer holds. Forgetting one only
// causes an early delivery.
const maxTracked = 64

// collectOneFlowAtATime must be called before the node has peers.
func collectOneFlowAtATime(tun *tstun.Wrapper) {
	r := &flowTracker{next: tun.PostFilterPacketInboundFromWireGuard, flowOf: make(map[*gro.GRO]flow)}
	tun.PostFilterPacketInboundFromWireGuard = r.inbound
}

// inbound takes a packet, and what was collected from earlier packets of its batch.
func (t *flowTracker) inbound(p *packet.Parsed, w *tstun.Wrapper, collected *gro.GRO) (filter.Response, *gro.GRO) {
	f := flow{p.Src, p.Dst}
	if collected != nil && !t.isCollecting(collected, f) {
		collected.Flush() // returns it to the pool
		collected = nil
	}
	isNew := collected == nil
	response, collected := t.next(p, w, collected)
	if isNew && collected != nil {
		t.track(collected, f)
	}
	return response, collected
}

func (t *flowTracker) isCollecting(collected *gro.GRO, f flow) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.flowOf[collected] == f
}

func (t *flowTracker) track(collected *gro.GRO, f flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.flowOf) >= maxTracked {
		clear(t.flowOf)
	}
	t.flowOf[collected] = f
}
