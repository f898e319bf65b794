// Memory that the Go runtime has done with goes back to the system when the process has become quiet.
//
// The runtime collects by growth: what a start or a busy hour has left stays resident until as much again was used, which
// for an idle server is hours. A collection at a quiet moment costs some milliseconds of processor time.
//
// Invariants
//   - One node of the process does it for all.
//   - What little an idle node allocates never makes a collection; only what giveBackFrom and more has left does.

package node

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	giveBackEvery = 500 * time.Millisecond
	quietBytes    = 64 << 10 // allocated within giveBackEvery, it is quiet
	giveBackFrom  = 1 << 20  // allocated since the last time, it is worth it
)

// giver is the one.
var giver sync.Mutex

func giveBack(ctx context.Context) {
	tick := time.NewTicker(giveBackEvery)
	defer tick.Stop()
	mine := false
	defer func() {
		if mine {
			giver.Unlock()
		}
	}()
	allocated := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}} // ever
	var given, before uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if mine = mine || giver.TryLock(); !mine {
			continue
		}
		metrics.Read(allocated)
		now := allocated[0].Value.Uint64()
		if now-before < quietBytes && now-given >= giveBackFrom {
			debug.FreeOSMemory()
			given = now
		}
		before = now
	}
}
