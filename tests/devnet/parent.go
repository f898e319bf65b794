// Ends with the parent: a devnet that outlives the test that started it would hold ports and fill
// the machine.
//
// It checks its parent five times a second and does not ask the kernel for a signal
// (PR_SET_PDEATHSIG). That signal is sent when the parent's *thread* ends, so the end of a test
// runner's worker thread would stop us while the test goes on; and it is not sent at all for a
// parent that died before we asked.
package main

import (
	"context"
	"io"
	"os"
	"strconv"
	"time"
)

// parentVar names the parent as scripts/devnet saw it. The parent may end while the script is
// building; ours is then another process from the start.
const parentVar = "TAILBONE_DEVNET_PARENT"

// endWithParent calls end when the process that started us is gone.
func endWithParent(ctx context.Context, end func()) {
	parent := os.Getppid()
	if pid, err := strconv.Atoi(os.Getenv(parentVar)); err == nil {
		parent = pid
	}
	tick := time.NewTicker(200 * time.Millisecond)
	go func() {
		defer tick.Stop()
		for os.Getppid() == parent {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
		end()
	}()
}

// endWithStdin calls end when stdin is closed.
func endWithStdin(end func()) {
	go func() {
		io.Copy(io.Discard, os.Stdin)
		end()
	}()
}
