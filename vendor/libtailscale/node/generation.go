// The program's generation counter, by which it knows without asking that a cached WhoIs answer may
// be stale.
//
// Invariants: the counter is incremented after the backend's view has changed, so a program that
// sees the new number and then asks gets the new answer. It is not touched after stop has returned.
//
// There are three sources of changes: the backend's notifications (extension.go), the packet
// filter, which may change without a notification (below), and the node's own start and stop.

package node

import (
	"sync"
	"sync/atomic"
	"time"

	"tailscale.com/wgengine/filter"
)

type generation struct {
	mu       sync.Mutex
	counter  *uint64 // memory of the program; nil when it gave none or after stop
	fallback uint64  // what we have counted, for the watch when the program gave no counter
}

func (g *generation) bump() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fallback++
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
	return g.fallback
}

func (g *generation) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.counter != nil {
		g.fallback = atomic.LoadUint64(g.counter)
		g.counter = nil
	}
}

// followFilter increments the counter when the packet filter, and with it perhaps a peer's grants,
// has changed.
//
// Upstream fault, seen in tailscale.com v1.102.5: a map response that changes nothing but the
// filter causes no notification. The backend logs a line just before it installs the new filter,
// and that line wakes us (backend_log.go). A check every second ensures that a lost or reworded
// line costs a second and does not leave a stale grant for ever. Both can go when ipn.Notify
// reports changes of the filter.
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
		case <-n.filterChanged:
			lb.Prefs() // takes the backend's lock: waits until the goroutine that logged has installed the filter
		case <-tick.C:
		}
	}
}
