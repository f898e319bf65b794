package node

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkIdleConnections measures what an idle connection costs, netstack and pump together; each
// end counts as one connection.
//
//	go test -run '^$' -bench Idle -benchtime 1x ./node
func BenchmarkIdleConnections(b *testing.B) {
	tn := newTailnet(b)
	server, client := tn.join("server"), tn.join("client")
	client.awaitPeer("server")
	ln := server.listen(":80")
	to := fmt.Sprintf("%v:80", server.ip(4))
	var ends []*testConn
	pairUp := func() {
		out, in := client.dial(to), receive(b, ln)
		out.write([]byte("GET / HTTP/1.1\r\n\r\n"))
		in.read(make([]byte, 100), time.Second)
		in.write([]byte("HTTP/1.1 200 OK\r\n\r\n"))
		out.read(make([]byte, 100), time.Second)
		ends = append(ends, out, in)
	}
	for range 50 {
		pairUp()
	}
	measure := func() (heap, stack int64, goroutines int) {
		for range 3 {
			runtime.GC()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc), int64(m.StackInuse), runtime.NumGoroutine()
	}
	const n = 1000
	for b.Loop() {
		h0, s0, g0 := measure()
		for range n {
			pairUp()
		}
		time.Sleep(time.Second)
		h1, s1, g1 := measure()
		b.ReportMetric(float64(h1-h0)/(2*n), "heap-B/conn")
		b.ReportMetric(float64(s1-s0)/(2*n), "stack-B/conn")
		b.ReportMetric(float64(g1-g0)/(2*n), "goroutines/conn")
	}
	unix.Close(ln)
	for _, c := range ends {
		c.close()
	}
	waitFor(b, "the connections to end", func() bool { return liveConns.Load() == 0 })
	server.close()
	client.close()
}

// BenchmarkBulk measures the throughput in both directions of an accepted connection.
//
//	go test -run '^$' -bench Bulk ./node
func BenchmarkBulk(b *testing.B) {
	tn := newTailnet(b)
	server, client := tn.join("server"), tn.join("client")
	client.awaitPeer("server")
	ln := server.listen(":80")
	to := fmt.Sprintf("%v:80", server.ip(4))
	out, in := client.dial(to), receive(b, ln)
	piece := make([]byte, 64<<10)
	for _, way := range []struct {
		name     string
		from, to *testConn
	}{{"in", out, in}, {"out", in, out}} {
		b.Run(way.name, func(b *testing.B) {
			b.SetBytes(int64(len(piece)))
			go func() {
				for range b.N {
					way.from.write(piece)
				}
			}()
			got := make([]byte, len(piece))
			for left := b.N * len(piece); left > 0; {
				n, err := way.to.read(got, 10*time.Second)
				if left -= n; err != nil {
					b.Fatal(left, err)
				}
			}
		})
	}
	unix.Close(ln)
	out.close()
	in.close()
	server.close()
	client.close()
}
