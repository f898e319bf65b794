// Ending with the parent: a devnet that outlives the test that started it
// would hold ports and fill the machine.
//
// Two ways to learn of it, because each alone has a hole. The kernel's signal
// comes at once, but it is sent when the parent's *thread* ends, so a test
// runner's worker thread would take us down while the test goes on: it counts
// only if the parent process changed. And it is not sent for a parent that
// died before we asked, so the parent is compared once more with the one the
// starting script saw.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// parentVar names the parent as scripts/devnet saw it, since exec keeps our
// own parent but not the time we first looked.
const parentVar = "TAILBONE_DEVNET_PARENT"

// endWithParent calls end when the process that started us is gone.
func endWithParent(ctx context.Context, end func()) {
	parent := os.Getppid()
	if pid, err := strconv.Atoi(os.Getenv(parentVar)); err == nil {
		parent = pid
	}
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGUSR1)
	// main is locked to the first thread, which lives as long as we do: the
	// setting belongs to a thread.
	unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGUSR1), 0, 0, 0)
	go func() {
		defer signal.Stop(died)
		look := time.NewTicker(time.Second)
		defer look.Stop()
		for {
			if os.Getppid() != parent {
				end()
				return
			}
			select {
			case <-died:
			case <-look.C:
			case <-ctx.Done():
				return
			}
		}
	}()
}

// endWithStdin calls end when stdin is closed.
func endWithStdin(end func()) {
	go func() {
		io.Copy(io.Discard, os.Stdin)
		end()
	}()
}
