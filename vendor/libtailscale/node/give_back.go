// Memory that the Go runtime has done with goes back to the system when the process has become quiet.
//
// Left alone, the runtime collects by growth: what a start or a busy hour left behind stays resident until as much again
// was used, which for an idle server is hours: 84 MB after some seconds of load, in place of 53. A collection at a quiet
// moment costs some milliseconds of processor time.
//
// Invariant: what little an idle node allocates never makes a collection; only what giveBackFrom and more has left does.

package node

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	giveBackEvery = 500 * time.Millisecond
	quietBytes    = 64 << 10 // allocated within giveBackEvery, it is quiet
	giveBackFrom  = 1 << 20  // allocated since the last time, it is worth it
)

func giveBack(ctx context.Context) {
	tick := time.NewTicker(giveBackEvery)
	defer tick.Stop()
	var given, before uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			now := allocated()
			if now-before < quietBytes && now-given >= giveBackFrom {
				debug.FreeOSMemory()
				given = now
			}
			before = now
		}
	}
}

// allocated is all that was ever allocated.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
