// What the netstack puts together of inbound TCP, one flow at a time.
//
// Packets that WireGuard brings in one go are coalesced where they belong together (GRO), and what was collected is to be
// delivered after the last of them. But gVisor's Flush (that of tailscale.com 1.102.5) delivers only the first of the
// flows that share one of its eight buckets: it walks on from an entry that it has just cleared. The others stay in the
// object, which goes into a pool of the process. They come out late, or never, or, with several nodes in one process, in
// the netstack of another node, which answers with a reset.
//
// So nothing is collected for two flows at once: before another flow's packet, what there is is delivered. Flows come in
// runs, as their senders make them, so little is lost by it (BenchmarkBulk; without GRO it tells a quarter less).

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

// runs knows which flow is collected where.
type runs struct {
	next tstun.GROFilterFunc
	mu   sync.Mutex
	of   map[*gro.GRO]flow
}

// mostRuns bounds what is remembered of objects that the pool no longer has. Forgetting only costs a delivery early.
const mostRuns = 64

// oneFlowAtATime is to be called before the node has peers.
func oneFlowAtATime(tun *tstun.Wrapper) {
	r := &runs{next: tun.PostFilterPacketInboundFromWireGuard, of: make(map[*gro.GRO]flow)}
	tun.PostFilterPacketInboundFromWireGuard = r.inbound
}

// inbound takes a packet, and what was collected before it of those that came with it.
func (r *runs) inbound(p *packet.Parsed, w *tstun.Wrapper, collected *gro.GRO) (filter.Response, *gro.GRO) {
	f := flow{p.Src, p.Dst}
	if collected != nil && !r.is(collected, f) {
		collected.Flush() // which gives it to the pool
		collected = nil
	}
	begun := collected == nil
	response, collected := r.next(p, w, collected)
	if begun && collected != nil {
		r.begin(collected, f)
	}
	return response, collected
}

func (r *runs) is(collected *gro.GRO, f flow) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.of[collected] == f
}

func (r *runs) begin(collected *gro.GRO, f flow) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.of) >= mostRuns {
		clear(r.of)
	}
	r.of[collected] = f
}
