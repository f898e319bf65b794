package node

import (
	"encoding/json"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
	"tailscale.com/types/key"
	"tailscale.com/wgengine/filter"
)

func TestJoinAndRestart(t *testing.T) {
	tn := newTailnet(t, func(c *testcontrol.Server) { c.RequireAuthKey = "right" })
	check := checkLeaks(t)
	cfg := tn.config("first")
	cfg.AuthKey = "right"
	m := tn.make(cfg)
	p := m.await("Running")
	if p.Name != "first.loop.ts.net" || p.Hostname != "first" || p.Tailnet != "loop.ts.net" || p.Owner == "" || p.ID == "" {
		t.Errorf("picture: %+v", p)
	}
	m.awaitStatus("the map poll", func(p nodeStatus) bool { return p.InMapPoll && p.Error == "" && p.ControlError == "" })
	id := p.ID
	m.close()

	// Existing state wins: no key is needed, and a wrong one does no harm once the control server
	// knows the node.
	tn.control.RequireAuthKey = ""
	cfg.AuthKey = ""
	m = tn.make(cfg)
	if p := m.await("Running"); p.ID != id {
		t.Errorf("after a restart the node is %s, was %s", p.ID, id)
	}
	m.close()
	check()
}

func TestWrongKey(t *testing.T) {
	tn := newTailnet(t, func(c *testcontrol.Server) { c.RequireAuthKey = "right" })
	m := tn.make(tn.config("wrong"))
	p := m.awaitStatus("an error", func(p nodeStatus) bool { return p.Error != "" })
	if !strings.Contains(p.Error, "invalid authkey") || p.State == "Running" {
		t.Errorf("picture: %+v", p)
	}
}

func TestInteractiveLogin(t *testing.T) {
	tn := newTailnet(t, func(c *testcontrol.Server) { c.RequireAuth = true })
	cfg := tn.config("person")
	cfg.AuthKey = ""
	m := tn.make(cfg)
	p := m.awaitStatus("a login link", func(p nodeStatus) bool { return p.AuthURL != "" })
	if p.State != "NeedsLogin" {
		t.Errorf("state %s with a link", p.State)
	}
	if !tn.control.CompleteAuth(p.AuthURL) {
		t.Fatal("the link is not one of the control server")
	}
	m.await("Running")
}

func TestUnreachableControl(t *testing.T) {
	tn := newTailnet(t)
	cfg := tn.config("alone")
	cfg.ControlURL = "http://127.0.0.1:1"
	m := tn.make(cfg)
	p := m.awaitStatus("a control error", func(p nodeStatus) bool { return p.ControlError != "" })
	if !strings.Contains(p.ControlError, "127.0.0.1:1") {
		t.Errorf("control_error %q does not name the server", p.ControlError)
	}
}

// The loss of a control server after the join must be reported, and its return as well.
func TestControlLost(t *testing.T) {
	tn := newTailnet(t)
	m := tn.join("lost")
	m.awaitStatus("the map poll", func(p nodeStatus) bool { return p.InMapPoll })
	tn.listener.closeAll()
	m.awaitStatus("the loss", func(p nodeStatus) bool { return !p.InMapPoll && p.ControlError != "" })
}

func TestCloseTwiceAndTogether(t *testing.T) {
	tn := newTailnet(t)
	m := tn.join("twice")
	n := m.node()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := Close(m.handle); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
	wg.Wait()
	if err := Close(m.handle); err != nil {
		t.Errorf("close again: %v", err)
	}
	if err := Close(m.handle + 1000); err != errClosed {
		t.Errorf("close of a handle never given: %v", err)
	}
	for what, err := range map[string]*Error{
		"start":  n.Start(),
		"logout": n.Logout(time.Second),
		"status": errorOf(n.Status()),
		"whois":  errorOf(n.WhoIs([]byte("100.64.0.1"), nil)),
		"watch":  errorOf(n.Watch()),
		"listen": errorOf(n.Listen([]byte(":80"))),
		"dial":   errorOf(n.Dial([]byte("100.64.0.1:80"), time.Second)),
	} {
		if err == nil || err.Code != Closed {
			t.Errorf("%s on a closed node: %v", what, err)
		}
	}
	if _, err := Find(m.handle); err != errClosed {
		t.Errorf("find: %v", err)
	}
}

func errorOf[T any](_ T, err *Error) *Error { return err }

func TestBeforeStart(t *testing.T) {
	tn := newTailnet(t)
	check := checkLeaks(t)
	m := tn.unstarted(tn.config("early"))
	n := m.node()
	for what, err := range map[string]*Error{
		"logout": n.Logout(time.Second),
		"whois":  errorOf(n.WhoIs([]byte("100.64.0.1"), nil)),
		"listen": errorOf(n.Listen([]byte(":80"))),
		"dial":   errorOf(n.Dial([]byte("100.64.0.1:80"), time.Second)),
	} {
		if err == nil || err.Code != BadState {
			t.Errorf("%s before start: %v", what, err)
		}
	}
	if p, ok := m.nextStatus(time.Second); !ok || p.State != "NoState" {
		t.Errorf("first picture: %+v", p)
	}
	m.close()
	check()
}

// Closing must work at any moment of a join.
func TestCloseDuringJoin(t *testing.T) {
	tn := newTailnet(t)
	check := checkLeaks(t)
	for _, wait := range []time.Duration{0, time.Millisecond, 10 * time.Millisecond, 40 * time.Millisecond, 80 * time.Millisecond} {
		m := tn.unstarted(tn.config("hasty"))
		n := m.node()
		done := make(chan struct{})
		go func() {
			defer close(done)
			n.Start() // any result is fine
		}()
		time.Sleep(wait)
		m.close()
		<-done
	}
	check()
}

// A first network map that is on its way when the node is closed during its join. The test does
// what the backend does with it at the end, once the engine is closed.
func TestFirstMapAfterClose(t *testing.T) {
	tn := newTailnet(t, func(c *testcontrol.Server) { c.RequireAuthKey = "right" })
	m := tn.make(tn.config("late"))
	m.await("NeedsLogin")
	magic := m.node().lb.Load().MagicConn()
	m.close()
	self := (&tailcfg.Node{ID: 1, Key: key.NewNode().Public(), Addresses: []netip.Prefix{netip.MustParsePrefix("100.64.0.9/32")}}).View()
	magic.SetNetworkMap(self, nil)
	magic.SetFilter(filter.NewAllowAllForTest(t.Logf))
}

func TestFailedStart(t *testing.T) {
	tn := newTailnet(t)
	check := checkLeaks(t)

	// tsnet itself refuses: a client secret needs tags. By then it has built everything.
	cfg := tn.config("untagged")
	cfg.AuthKey, cfg.ClientSecret = "", "tskey-client-x"
	m := tn.unstarted(cfg)
	if err := m.node().Start(); err != nil {
		t.Fatalf("start with an exchange must go on in the background: %v", err)
	}
	p := m.awaitStatus("why it did not start", func(p nodeStatus) bool { return p.Error != "" })
	if !strings.Contains(p.Error, "tags") {
		t.Errorf("error: %q", p.Error)
	}
	if err := m.node().Start(); err == nil || err.Code != Start {
		t.Errorf("second start: %v", err)
	}
	m.close()

	// The machine refuses.
	cfg = tn.config("nodir")
	if err := os.WriteFile(cfg.Dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m = tn.unstarted(cfg)
	if err := m.node().Start(); err == nil || err.Code != IO {
		t.Errorf("start in a file: %v", err)
	}
	m.close()
	check()
}

func TestEphemeralInMemory(t *testing.T) {
	tn := newTailnet(t)
	check := checkLeaks(t)
	cfg := tn.config("brief")
	cfg.Dir, cfg.Store, cfg.Ephemeral = "", "mem:", true
	m := tn.make(cfg)
	m.await("Running")
	dir := m.node().tempDir
	m.close()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the temporary directory is still there: %v", err)
	}
	check()
}

func TestLogout(t *testing.T) {
	tn := newTailnet(t)
	m := tn.join("leaver")
	before := atomic.LoadUint64(m.generation)
	if err := m.node().Logout(5 * time.Second); err != nil {
		t.Fatalf("logout: %v", err)
	}
	m.awaitStatus("the logout", func(p nodeStatus) bool { return p.State != "Running" })
	if atomic.LoadUint64(m.generation) == before {
		t.Error("the generation did not move")
	}
}

func TestTwoNodesAndWatchers(t *testing.T) {
	tn := newTailnet(t)
	check := checkLeaks(t)
	a, b := tn.join("a"), tn.join("b")
	if a.ip(4) == b.ip(4) {
		t.Errorf("both are %v", a.ip(4))
	}
	// A watcher that never reads must not delay the others or close.
	lazy, err := a.node().Watch()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		a.node().lastErrors.setError(strings.Repeat("x", i+1)) // makes each state different
		a.node().changed()
		time.Sleep(watchInterval)
	}
	a.node().lastErrors.setError("the last")
	a.node().changed()
	a.awaitStatus("the last change", func(p nodeStatus) bool { return p.Error == "the last" })
	var st nodeStatus
	raw, err := a.node().Status()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &st); err != nil || len(st.Peers) != 1 || st.Peers[0].Name != "b.loop.ts.net" || !st.Peers[0].Online || st.Peers[0].Login == "" {
		t.Errorf("status: %s (%v)", raw, err)
	}
	a.close()
	b.close()
	unix.Close(lazy)
	check()
}

// The caller's counter must not be touched after close: its memory may have been freed.
func TestGenerationStopsAtClose(t *testing.T) {
	tn := newTailnet(t)
	m := tn.join("counter")
	n := m.node()
	m.close()
	before := atomic.LoadUint64(m.generation)
	n.gen.bump()
	if got := atomic.LoadUint64(m.generation); got != before {
		t.Errorf("%d -> %d after close", before, got)
	}
}

func TestLogLines(t *testing.T) {
	tn := newTailnet(t)
	m := tn.join("talker")
	m.close()
	<-m.log.done // the descriptor was given away, so close must have closed it
	levels := map[string]int{}
	for line := range strings.Lines(m.log.text()) {
		var l struct{ Level, Msg string }
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		if len(line) > maxLine {
			t.Errorf("a line of %d bytes", len(line))
		}
		if strings.Contains(line, "tskey-test") {
			t.Errorf("the key is in the log: %s", line)
		}
		levels[l.Level]++
	}
	for _, want := range []string{"trace", "debug", "info"} {
		if levels[want] == 0 {
			t.Errorf("no lines of level %s in %v", want, levels)
		}
	}
}

func TestLogDropsInsteadOfBlocking(t *testing.T) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	l := newLogger(p[1], levelInfo)
	l.printf(levelDebug, "below the level")
	long := strings.Repeat("\x01é", 40_000) // escapes make it six times as long
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 200 {
			l.printf(levelWarn, "%s", long)
		}
	}()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("writing to a full pipe blocks")
	}
	b := make([]byte, 1<<20)
	n, _ := unix.Read(p[0], b)
	l.printf(levelError, "after")
	for line := range strings.Lines(string(b[:n])) {
		if len(line) > maxLine || !json.Valid([]byte(line)) {
			t.Errorf("a line of %d bytes: %.80q", len(line), line)
		}
	}
	n, _ = unix.Read(p[0], b)
	var last struct {
		Level, Msg string
		Dropped    uint64
	}
	if err := json.Unmarshal(b[:n], &last); err != nil || last.Msg != "after" || last.Dropped == 0 {
		t.Errorf("last line %q: %v", b[:n], err)
	}
	l.close()
	l.close()
}
