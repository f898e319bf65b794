// The pump alone, with a loopback connection in place of the tailnet's.

package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"math/rand"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pumpedConn returns the caller's end and the remote's end of a pumped connection.
func pumpedConn(t *testing.T, set *connSet) (*testConn, *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	remote, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ours, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	u, theirs, err := socketPair(unix.SOCK_STREAM)
	if err != nil {
		t.Fatal(err)
	}
	if !set.startDialled(ours.(*net.TCPConn), u) {
		t.Fatal("not started")
	}
	c := &testConn{t: t, fd: theirs}
	t.Cleanup(func() { c.close(); remote.Close() })
	return c, remote.(*net.TCPConn)
}

func TestDialledHalfCloses(t *testing.T) {
	check := checkLeaks(t)
	var set connSet

	// The caller ends first, the remote answers afterwards.
	c, remote := pumpedConn(t, &set)
	c.write([]byte("question"))
	c.shutdown()
	if got, err := io.ReadAll(remote); err != nil || string(got) != "question" {
		t.Errorf("remote: %q, %v", got, err)
	}
	remote.Write([]byte("answer"))
	remote.Close()
	got := make([]byte, 100)
	if n, err := c.read(got, time.Second); err != nil || string(got[:n]) != "answer" {
		t.Errorf("caller: %q, %v", got[:n], err)
	}
	c.close()

	// The remote ends first, the caller goes on writing.
	c, remote = pumpedConn(t, &set)
	remote.Write([]byte("question"))
	remote.CloseWrite()
	if got, err := c.readAll(time.Second); err != io.EOF || string(got) != "question" {
		t.Errorf("caller: %q, %v", got, err)
	}
	time.Sleep(20 * time.Millisecond)
	c.write([]byte("answer"))
	c.shutdown()
	if got, err := io.ReadAll(remote); err != nil || string(got) != "answer" {
		t.Errorf("remote: %q, %v", got, err)
	}
	// Both have ended: everything must be freed although both still hold their descriptors.
	set.wait()
	c.close()
	remote.Close()
	check()
}

func TestDialledResetIsNotAnEnd(t *testing.T) {
	check := checkLeaks(t)
	var set connSet
	c, remote := pumpedConn(t, &set)
	remote.Write([]byte("half an ans"))
	b := make([]byte, 100)
	if n, err := c.read(b, time.Second); err != nil || n != 11 {
		t.Fatal(n, err)
	}
	remote.SetLinger(0)
	remote.Close()
	if n, err := c.read(b, time.Second); err != unix.ECONNRESET {
		t.Errorf("after a reset: %d, %v", n, err)
	}
	set.wait()
	c.close()
	check()
}

// The caller has gone and the remote is silent: nothing else would ever end the connection.
func TestDialledFullCloseWithIdleRemote(t *testing.T) {
	for name, before := range map[string]func(*testConn){
		"at once":           func(*testConn) {},
		"after a half":      func(c *testConn) { c.shutdown(); time.Sleep(30 * time.Millisecond) },
		"with words unsent": func(c *testConn) { c.write([]byte("last words")) },
	} {
		t.Run(name, func(t *testing.T) {
			check := checkLeaks(t)
			var set connSet
			c, remote := pumpedConn(t, &set)
			before(c)
			c.close()
			remote.SetReadDeadline(time.Now().Add(5 * time.Second))
			got, err := io.ReadAll(remote)
			if err != nil {
				t.Errorf("the remote must see an end of stream: %v", err)
			}
			if name == "with words unsent" && string(got) != "last words" {
				t.Errorf("what was written before the close is lost: %q", got)
			}
			set.wait()
			remote.Close()
			check()
		})
	}
}

func TestDialledBulkBothWays(t *testing.T) {
	var set connSet
	c, remote := pumpedConn(t, &set)
	const size = 16 << 20
	data := make([]byte, size)
	rand.New(rand.NewSource(1)).Read(data)
	want := sha256.Sum256(data)
	var writing sync.WaitGroup
	writing.Go(func() {
		io.Copy(remote, remote)
		remote.CloseWrite()
	})
	writing.Go(func() {
		c.write(data)
		c.shutdown()
	})
	h := sha256.New()
	b := make([]byte, 100_000)
	for {
		n, err := c.read(b, 10*time.Second)
		h.Write(b[:n])
		if err != nil {
			// Both directions are shut down, so poll reports a hang-up; that is an end, not a
			// reset.
			break
		}
	}
	if !bytes.Equal(h.Sum(nil), want[:]) {
		t.Error("the echo differs")
	}
	writing.Wait()
	set.wait()
}

func TestDialledCloseAll(t *testing.T) {
	check := checkLeaks(t)
	var set connSet
	c, remote := pumpedConn(t, &set)
	set.closeAll()
	set.wait()
	if _, err := c.read(make([]byte, 1), time.Second); err != unix.ECONNRESET {
		t.Errorf("caller: %v", err)
	}
	u, theirs, _ := socketPair(unix.SOCK_STREAM)
	if set.startDialled(remote, u) {
		t.Error("a closed set took a connection")
	}
	u.file.Close()
	unix.Close(theirs)
	remote.Close()
	c.close()
	check()
}

// A remote that stops reading must not keep a connection whose caller has gone.
func TestDialledSweep(t *testing.T) {
	check := checkLeaks(t)
	var set connSet
	c, remote := pumpedConn(t, &set)
	ours := firstDialled(&set)
	full := make(chan struct{})
	go func() {
		defer close(full)
		b := make([]byte, 1<<20)
		for {
			if n, err := unix.SendmsgN(c.fd, b, nil, nil, unix.MSG_NOSIGNAL); err != nil || n == 0 {
				if err != unix.EAGAIN {
					return
				}
				if w := ours.writeCount.Load(); w%2 == 1 {
					time.Sleep(100 * time.Millisecond)
					if ours.writeCount.Load() == w {
						return
					}
				}
				time.Sleep(time.Millisecond)
			}
		}
	}()
	<-full
	for range maxStuckSweeps + 2 {
		set.sweepOnce()
	}
	if firstDialled(&set) == nil {
		t.Error("a slow remote alone must not end a connection")
	}
	c.close()
	for range maxStuckSweeps + 1 {
		set.sweepOnce()
	}
	done := make(chan struct{})
	go func() { set.wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(3 * time.Second):
		t.Error("the connection is still there")
	}
	remote.Close()
	check()
}

func firstDialled(set *connSet) *dialledConn {
	set.mu.Lock()
	defer set.mu.Unlock()
	for s := range set.dialled {
		return s
	}
	return nil
}

func TestSweepEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	new(connSet).sweepStuck(ctx)()
}

// Measures what one idle connection costs here, without the netstack's share. Run with -test.v to
// see it.
func TestDialledIdleCost(t *testing.T) {
	var lim unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &lim)
	n := 1000
	if lim.Cur < uint64(4*n+100) {
		n = int(lim.Cur)/4 - 50
	}
	var set connSet
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC() // empties the pool
	runtime.ReadMemStats(&before)
	for range n {
		c, remote := pumpedConn(t, &set)
		remote.Write([]byte("x"))
		c.read(make([]byte, 1), time.Second)
		c.write([]byte("y"))
		remote.Read(make([]byte, 1))
	}
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&after)
	per := (int64(after.HeapInuse+after.StackInuse) - int64(before.HeapInuse+before.StackInuse)) / int64(n)
	t.Logf("%d idle connections: %d bytes of heap and stack each (with the test's own ends)", n, per)
	if per > 32<<10 && !raceEnabled {
		t.Errorf("an idle connection costs %d bytes", per)
	}
	set.closeAll()
	set.wait()
}
