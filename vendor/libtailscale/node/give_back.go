// Returns memory that the Go runtime no longer uses to the system when the process has become
// quiet.
//
// The runtime collects in proportion to growth: what a start or a busy hour has left stays resident
// until as much again was allocated, which takes an idle server hours. A collection at a quiet
// moment costs some milliseconds of processor time.
//
// Invariants
//   - One node of the process does it for all.
//   - The little that an idle node allocates never causes a collection; only giveBackFrom bytes or
//     more do.

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
	quietBytes    = 64 << 10 // less allocated within giveBackEvery counts as quiet
	giveBackFrom  = 1 << 20  // this much allocated since the last time is worth a collection
)

// giver is held by the node that does it.
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
	allocated := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}} // since the start of the process
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
