// The Go runtime below the program: its limits and its numbers.
//
// There is one for the process, whatever the number of nodes.

package node

import (
	"encoding/json"
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"

	tsversion "tailscale.com/version"
)

// Version returns what this archive was built from; tags are those of the build.
func Version() ([]byte, *Error) {
	v := struct {
		Tsnet string   `json:"tsnet"`
		Go    string   `json:"go"`
		Tags  []string `json:"tags"`
	}{Tsnet: tsnetVersion(), Go: runtime.Version(), Tags: buildTags()}
	return encode(v)
}

func tsnetVersion() string {
	if bi, ok := debug.ReadBuildInfo(); ok {
		for _, d := range bi.Deps {
			if d.Path == "tailscale.com" && len(d.Version) > 1 {
				return d.Version[1:]
			}
		}
	}
	return tsversion.Short()
}

func buildTags() []string {
	if bi, ok := debug.ReadBuildInfo(); ok {
		for _, s := range bi.Settings {
			if s.Key == "-tags" && s.Value != "" {
				return splitTags(s.Value)
			}
		}
	}
	return []string{}
}

func splitTags(s string) []string {
	out := []string{}
	for len(s) > 0 {
		i := 0
		for i < len(s) && s[i] != ',' {
			i++
		}
		if i > 0 {
			out = append(out, s[:i])
		}
		s = s[min(i+1, len(s)):]
	}
	return out
}

type runtimeLimits struct {
	MemoryLimit *int64 `json:"memory_limit"`
	GCPercent   *int   `json:"gc_percent"`
	MaxProcs    *int   `json:"max_procs"`
}

var runtimeMu sync.Mutex

// RuntimeSet changes the limits that are given and returns those in force.
func RuntimeSet(raw []byte) ([]byte, *Error) {
	var in runtimeLimits
	if len(raw) > 0 {
		if err := decodeStrict(raw, 4096, &in); err != nil {
			return nil, err
		}
	}
	if m := in.MemoryLimit; m != nil && *m < 16<<20 {
		return nil, errorf(Invalid, "memory_limit: %d bytes are too few for a node (at least 16 MiB)", *m)
	}
	if g := in.GCPercent; g != nil && (*g < -1 || *g > 10_000) {
		return nil, errorf(Invalid, "gc_percent: must be between -1 (off) and 10000")
	}
	if p := in.MaxProcs; p != nil && (*p < 1 || *p > 4096) {
		return nil, errorf(Invalid, "max_procs: must be between 1 and 4096")
	}
	runtimeMu.Lock()
	defer runtimeMu.Unlock()
	if in.MemoryLimit != nil {
		debug.SetMemoryLimit(*in.MemoryLimit)
	}
	if in.GCPercent != nil {
		debug.SetGCPercent(*in.GCPercent)
	}
	if in.MaxProcs != nil {
		runtime.GOMAXPROCS(*in.MaxProcs)
	}
	mem := debug.SetMemoryLimit(-1)
	gc := debug.SetGCPercent(100) // the only way to read it is to set it
	debug.SetGCPercent(gc)
	procs := runtime.GOMAXPROCS(0)
	out := runtimeLimits{GCPercent: &gc, MaxProcs: &procs}
	if mem != math.MaxInt64 {
		out.MemoryLimit = &mem
	}
	return encode(out)
}

// RuntimeStats returns the runtime's numbers. It does not stop the world.
func RuntimeStats() ([]byte, *Error) {
	s := []metrics.Sample{
		{Name: "/sched/goroutines:goroutines"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/total:bytes"},
		{Name: "/gc/cycles/total:gc-cycles"},
		{Name: "/sched/threads/total:threads"},
		{Name: "/gc/gomemlimit:bytes"},
		{Name: "/sched/gomaxprocs:threads"},
	}
	metrics.Read(s)
	num := func(i int) uint64 {
		if s[i].Value.Kind() == metrics.KindUint64 {
			return s[i].Value.Uint64()
		}
		return 0
	}
	table.mu.Lock()
	nodes := len(table.nodes)
	table.mu.Unlock()
	var limit *uint64
	if l := num(5); l != math.MaxInt64 {
		limit = &l
	}
	return encode(struct {
		Goroutines uint64 `json:"goroutines"`
		Heap       uint64 `json:"heap_bytes"`
		Sys        uint64 `json:"sys_bytes"`
		GC         uint64 `json:"gc_cycles"`
		Threads    uint64 `json:"threads"`
		MaxProcs   uint64 `json:"max_procs"`
		Nodes      int    `json:"nodes"`
		Conns      int64  `json:"conns"`
		// Absent if there is none.
		MemoryLimit *uint64 `json:"memory_limit,omitempty"`
	}{num(0), num(1), num(2), num(3), num(4), num(6), nodes, liveConns.Load(), limit})
}

func encode(v any) ([]byte, *Error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, errorf(Internal, "%v", err)
	}
	return b, nil
}
