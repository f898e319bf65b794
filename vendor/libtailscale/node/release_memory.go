// Returns memory that the Go runtime no longer uses to the system when the process has become
// quiet.
//
// The runtime collects in proportion to growth: what a start or a busy hour has left stays resident
// until as much again was allocated, which takes an idle server hours. A collection at a quiet
// moment costs some milliseconds of processor time.
//
// Invariants
//   - One node of the process does it for all.
//   - The little that an idle node allocates never causes a collection; only minReleaseBytes bytes
//     or more do.

package node

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

const (
	releaseInterval = 500 * time.Millisecond
	maxQuietBytes   = 64 << 10 // less allocated within releaseInterval counts as quiet
	minReleaseBytes = 1 << 20  // this much allocated since the last time is worth a collection
)

// releaser is locked by the node that does it.
var releaser sync.Mutex

func releaseMemory(ctx context.Context) {
	tick := time.NewTicker(releaseInterval)
	defer tick.Stop()
	isReleaser := false
	defer func() {
		if isReleaser {
			releaser.Unlock()
		}
	}()
	allocated := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}} // since the start of the process
	var lastRelease, lastTick uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if isReleaser = isReleaser || releaser.TryLock(); !isReleaser {
			continue
		}
		metrics.Read(allocated)
		now := allocated[0].Value.Uint64()
		if now-lastTick < maxQuietBytes && now-lastRelease >= minReleaseBytes {
			debug.FreeOSMemory()
			lastRelease = now
		}
		lastTick = now
	}
}
