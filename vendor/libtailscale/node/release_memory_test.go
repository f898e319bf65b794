package node

import (
	"context"
	"runtime"
	"runtime/metrics"
	"testing"
	"time"
)

func TestReleaseMemory(t *testing.T) {
	number := func(name string) uint64 {
		s := []metrics.Sample{{Name: name}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { releaseMemory(ctx); close(done) }()
	defer func() { cancel(); <-done }()

	runtime.GC()
	const much = 64 << 20
	before := number("/memory/classes/heap/objects:bytes")
	runtime.KeepAlive(make([]byte, much))
	waitFor(t, "what is not used any more to be given back", func() bool {
		return number("/memory/classes/heap/objects:bytes") < before+much/2 && number("/memory/classes/heap/free:bytes") < much/2
	})

	time.Sleep(releaseInterval)
	collections := number("/gc/cycles/forced:gc-cycles")
	time.Sleep(4 * releaseInterval)
	if n := number("/gc/cycles/forced:gc-cycles") - collections; n > 0 {
		t.Errorf("%d collections although nothing was used", n)
	}
}
