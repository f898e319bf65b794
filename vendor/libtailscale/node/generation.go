// The caller's generation counter: how it knows, without asking, that what it keeps from WhoIs may be stale.
//
// Invariants: it is incremented after the backend's view has changed, so whoever sees the new number and then asks gets
// the new answer. It is not touched any more once stop has returned.
//
// Three sources: the backend's notifications (attach.go), the packet filter, which may change without one (below),
// and the node's own start and stop.

package node

import (
	"sync"
	"sync/atomic"
	"time"

	"tailscale.com/wgengine/filter"
)

type generation struct {
	mu      sync.Mutex
	counter *uint64 // memory of the caller; nil when it gave none or after stop
	own     uint64  // what we have counted, for the watch when the caller gave no counter
}

func (g *generation) bump() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.own++
	if g.counter != nil {
		atomic.AddUint64(g.counter, 1)
	}
}

func (g *generation) now() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.counter != nil {
		return atomic.LoadUint64(g.counter)
	}
	return g.own
}

func (g *generation) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.counter != nil {
		g.own = atomic.LoadUint64(g.counter)
		g.counter = nil
	}
}

// followFilter bumps when the packet filter, and with it perhaps a peer's grants, has changed. A map response that
// carries nothing else changes it without any notification. The backend logs just before it puts the new filter in
// place; that line wakes us (signals.go), and a look each second makes sure that a lost or reworded line costs a second,
// not a stale grant for ever.
func (n *Node) followFilter() {
	lb, err := n.backend()
	if err != nil {
		return
	}
	engine := lb.Sys().Engine.Get()
	var last *filter.Filter
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if f := engine.GetFilter(); f != last {
			last = f
			n.gen.bump()
			n.changed()
		}
		select {
		case <-n.ctx.Done():
			return
		case <-n.filter:
			lb.Prefs() // takes the backend's lock: waits until the one who logged has put the filter in place
		case <-tick.C:
		}
	}
}
