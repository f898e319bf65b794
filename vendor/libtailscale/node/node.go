// The life of a node: new, start, close; and the table of all nodes of the process.
//
// Invariants
//   - A handle is never reused; a closed node is no longer in the table.
//   - Start is sticky: after a failed start the node can only be closed (as in tsnet).
//   - Close works in every state, from any goroutine and repeatedly, within closeLimit. Afterwards
//     the program's generation counter is not touched and no descriptor of the node is open. If
//     tsnet has not stopped by then (it cannot be stopped while it trades a client secret over the
//     network), Close reports that, and the rest is torn down in the background as soon as
//     possible.
//   - Everything that runs for a node is started by n.spawn, so that close can wait for it.
//
// This file decides the order of starting and stopping.

package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"tailscale.com/envknob"
	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnauth"
	"tailscale.com/ipn/ipnlocal"
	"tailscale.com/ipn/store"
	"tailscale.com/logtail"
	"tailscale.com/net/netns"
	"tailscale.com/tailcfg"
	"tailscale.com/tsnet"
)

const closeLimit = 5200 * time.Millisecond // the ABI promises 5.5 s

// Node is one tailnet node.
type Node struct {
	cfg     *Config
	log     *logger
	gen     generation
	ctx     context.Context // ends when close begins
	cancel  context.CancelFunc
	tempDir string // to be removed at close

	idTokens idTokens // asked at most once, while the node starts

	srv           tsnet.Server
	store         ipn.StateStore
	lb            atomic.Pointer[ipnlocal.LocalBackend] // set while srv starts, see extension.go
	filterChanged chan struct{}                         // receives a value when the packet filter may have changed
	started       chan struct{}                         // closed when srv.Start has returned

	mu         sync.Mutex
	starting   bool
	startErr   *Error
	closing    bool
	closed     chan struct{}
	closeErr   *Error
	stopping   atomic.Value // a string: what close waits for
	goroutines sync.WaitGroup
	watchers   map[chan struct{}]struct{}
	lastErrors backendErrors

	listeners listeners
	funnel    funnel
	conns     connSet
	greet     greeter
	ordering  chan struct{} // holds a value while a certificate is ordered

	rejoins bool // the node was on the tailnet in an earlier run; set by start
}

var table struct {
	mu    sync.Mutex
	next  uint64
	nodes map[uint64]*Node

	// Settings that tsnet keeps for the whole process. All nodes that live at the same time must
	// agree.
	netns        bool
	logUploadOff bool // once off, logtail cannot be switched on again
}

// Find returns the node of a handle.
func Find(handle uint64) (*Node, *Error) {
	table.mu.Lock()
	defer table.mu.Unlock()
	if n := table.nodes[handle]; n != nil {
		return n, nil
	}
	return nil, errClosed
}

// New makes a node. generation may be nil. New always takes over logFD, even if it fails.
func New(raw []byte, gen *uint64, logFD int) (handle uint64, err *Error) {
	if logFD >= 0 {
		if _, ferr := unix.FcntlInt(uintptr(logFD), unix.F_GETFD, 0); ferr != nil {
			return 0, errorf(Invalid, "log_fd: %d is not an open descriptor", logFD)
		}
		unix.CloseOnExec(logFD)
	}
	defer func() {
		if err != nil && logFD >= 0 {
			unix.Close(logFD)
		}
	}()
	cfg, err := ParseConfig(raw)
	if err != nil {
		return 0, err
	}
	idTokens, err := newIDTokens(cfg.IDTokenFD)
	if err != nil {
		return 0, err
	}
	table.mu.Lock()
	defer table.mu.Unlock()
	if err := applyProcessSettings(cfg); err != nil {
		idTokens.close()
		return 0, err
	}
	n := &Node{
		cfg:           cfg,
		idTokens:      idTokens,
		filterChanged: make(chan struct{}, 1),
		started:       make(chan struct{}),
		closed:        make(chan struct{}),
		watchers:      make(map[chan struct{}]struct{}),
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.gen.counter = gen
	n.greet.wake = make(chan struct{}, 1)
	n.ordering = make(chan struct{}, 1)
	n.funnel.init()
	n.log = newLogger(logFD, cfg.level)
	table.next++
	if table.nodes == nil {
		table.nodes = make(map[uint64]*Node)
	}
	table.nodes[table.next] = n
	return table.next, nil
}

// Discard closes a log descriptor that New never got.
func Discard(logFD int) {
	if logFD >= 0 {
		unix.Close(logFD)
	}
}

// applyProcessSettings applies the settings that tsnet keeps for the whole process. The caller
// holds table.mu.
func applyProcessSettings(cfg *Config) *Error {
	if len(table.nodes) > 0 && table.netns != cfg.Netns {
		return errorf(Invalid, "netns: another node of this process has it set to %v, and it holds for the whole process", table.netns)
	}
	if cfg.UploadLogs && table.logUploadOff {
		return errorf(Invalid, "upload_logs: an earlier node of this process switched it off, which lasts until the process ends")
	}
	table.netns = cfg.Netns
	netns.SetEnabled(cfg.Netns)
	if !cfg.UploadLogs && !table.logUploadOff {
		table.logUploadOff = true
		// Disable keeps everything that is logged out of the upload buffer. SetNoLogsNoSupport
		// tells the control server that there are no logs, and stops network flow logs. It adds a
		// variable to the environment (once), so it must be called before other threads of the
		// process change the environment.
		logtail.Disable()
		if !envknob.NoLogsNoSupport() {
			envknob.SetNoLogsNoSupport()
		}
	}
	return nil
}

// spawn runs f on a goroutine that close waits for. It returns false once close has begun.
func (n *Node) spawn(f func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closing {
		return false
	}
	n.goroutines.Add(1)
	go func() {
		defer n.goroutines.Done()
		f()
	}()
	return true
}

// backend returns the LocalBackend of a started node.
func (n *Node) backend() (*ipnlocal.LocalBackend, *Error) {
	if n.ctx.Err() != nil {
		return nil, errClosed
	}
	if lb := n.lb.Load(); lb != nil {
		return lb, nil
	}
	return nil, errNotStarted
}

// Start brings the node up as far as this machine can: state, sockets, engine. Joining the tailnet
// then goes on by itself and shows in the watch. If starting needs the network (a client secret or
// an ID token is traded for an auth key, or the state is in Kubernetes), it goes on in the
// background as well, and a failure shows in the watch's error.
func (n *Node) Start() *Error {
	n.mu.Lock()
	if n.closing {
		n.mu.Unlock()
		return errClosed
	}
	first := !n.starting
	n.starting = true
	n.mu.Unlock()
	if first {
		go n.start()
	}
	if n.cfg.usesExchange() || len(n.cfg.Store) > len("kube:") {
		select {
		case <-n.started:
		default:
			return nil
		}
	}
	select {
	case <-n.started:
	case <-n.ctx.Done():
		return errorf(Canceled, "the node was closed while it started")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.startErr
}

func (n *Node) start() {
	err := n.startServer()
	n.mu.Lock()
	n.startErr = err
	n.mu.Unlock()
	if err != nil {
		n.lastErrors.setError(err.Message)
		n.log.printf(levelDebug, "the node would not start: %s", err.Message) // the caller of Start reports it
	}
	close(n.started)
	n.changed()
	if err == nil {
		n.spawn(n.followFilter)
		n.spawn(n.conns.sweepStuck(n.ctx))
		n.spawn(func() { releaseMemory(n.ctx) })
		n.spawn(n.greetPeers)
		n.spawn(n.followFunnel)
	}
}

func (n *Node) startServer() (err *Error) {
	defer func() {
		if p := recover(); p != nil {
			n.log.printf(levelError, "tsnet panicked while starting: %v\n%s", p, debug.Stack())
			err = errorf(Panic, "tsnet panicked while starting: %v", p)
		}
	}()
	if n.cfg.Dir == "" {
		dir, err := os.MkdirTemp("", "tailbone-node-")
		if err != nil {
			return ioError("making a temporary directory for the node", err)
		}
		n.tempDir, n.cfg.Dir = dir, dir
	}
	if err := os.MkdirAll(n.cfg.Dir, 0o700); err != nil {
		return ioError("making the state directory", err)
	}
	where := n.cfg.Store
	if where != "" && !store.HasKnownProviderPrefix(where) {
		return errorf(Start, "store: this build has no store %q", where)
	}
	if where == "" {
		where = filepath.Join(n.cfg.Dir, "tailscaled.state")
	}
	st, serr := store.New(n.log.backendf, where)
	if serr != nil {
		return errorf(IO, "opening the node's state: %v", serr)
	}
	// Always our own store. tsnet would make the same one, but extension.go recognises the node by
	// it.
	n.store = st
	registerStore(st, n)

	n.srv.Dir = n.cfg.Dir
	n.srv.Store = st
	n.srv.Port = storedPort(st)
	n.srv.Hostname = n.cfg.Hostname
	n.srv.Ephemeral = n.cfg.Ephemeral
	n.srv.ControlURL = n.cfg.ControlURL
	n.srv.AdvertiseTags = n.cfg.Tags
	n.srv.AuthKey = n.cfg.AuthKey
	n.srv.Logf = n.backendLine
	n.srv.UserLogf = n.log.userf
	n.rejoins = hasLogin(st)
	if n.rejoins && n.cfg.usesExchange() {
		// tsnet would trade the secret for a key at each start and then ignore the key, because
		// existing state wins.
		n.srv.AuthKey = ""
	} else if n.cfg.usesIDToken() {
		key, err := n.federatedKey()
		if err != nil {
			return errorf(Start, "error resolving auth key: %v", err)
		}
		n.srv.AuthKey = key
	} else {
		n.srv.ClientSecret = n.cfg.ClientSecret
	}
	n.idTokens.close()
	// Upstream fault, seen in tailscale.com v1.102.5: tsnet falls back to environment variables for
	// each of these settings that is empty, and has no option against it. Unsetting them here would
	// change the environment of the whole process while other threads read it. So warn. The program
	// hides them from Go (crates/tailnet/src/ffi.rs); both can go when tsnet has such an option.
	if n.srv.AuthKey == "" {
		for _, v := range []string{"TS_AUTHKEY", "TS_AUTH_KEY", "TS_CLIENT_SECRET"} {
			if os.Getenv(v) != "" {
				n.log.printf(levelWarn, "%s is set in the environment; the node uses it where the configuration gives nothing", v)
			}
		}
	}
	if !endpointFieldsKnown {
		return errorf(Internal, "the netstack's connections are not made as this build expects")
	}
	n.srv.RegisterFallbackTCPHandler(n.listeners.acceptHandler(n))
	if err := n.srv.Start(); err != nil {
		return errorf(Start, "%v", err)
	}
	if n.lb.Load() == nil {
		return errorf(Internal, "tsnet started without telling us its backend")
	}
	n.storePort()
	return n.configureNetstack()
}

// hasLogin reports whether the state holds a node key: then no auth key is needed.
func hasLogin(st ipn.StateStore) bool {
	id, err := st.ReadState(ipn.CurrentProfileStateKey)
	if err != nil || len(id) == 0 {
		return false
	}
	raw, err := st.ReadState(ipn.StateKey(id))
	if err != nil {
		return false
	}
	prefs := ipn.NewPrefs()
	if err := ipn.PrefsFromBytes(raw, prefs); err != nil {
		return false
	}
	return !prefs.LoggedOut && prefs.Persist != nil && !prefs.Persist.PrivateNodeKey.IsZero()
}

// Logout gives the node's identity back to the control server and forgets it here.
func (n *Node) Logout(timeout time.Duration) *Error {
	lb, err := n.backend()
	if err != nil {
		return err
	}
	if timeout <= 0 {
		return errorf(Invalid, "timeout_ms: must be between 1 and a day")
	}
	ctx, cancel := context.WithTimeout(n.ctx, timeout)
	defer cancel()
	if err := lb.Logout(ctx, ipnauth.Self); err != nil {
		if n.ctx.Err() != nil {
			return errClosed
		}
		if code, ok := contextCode(errors.Join(err, ctx.Err())); ok {
			return errorf(code, "logging out: the control server did not answer in time")
		}
		return errorf(Internal, "logging out: %v", err)
	}
	return nil
}

// Close ends the node. See the invariants at the top.
func Close(handle uint64) *Error {
	table.mu.Lock()
	n := table.nodes[handle]
	known := n != nil || handle != 0 && handle <= table.next
	table.mu.Unlock()
	if n == nil {
		if known {
			return nil // closed before: idempotent
		}
		return errClosed
	}
	n.mu.Lock()
	if n.closing {
		n.mu.Unlock()
		<-n.closed
		return n.closeErr
	}
	n.closing = true
	starting := n.starting
	n.mu.Unlock()

	n.closeErr = n.close(starting)

	table.mu.Lock()
	delete(table.nodes, handle)
	table.mu.Unlock()
	close(n.closed)
	return n.closeErr
}

func (n *Node) close(starting bool) *Error {
	n.cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.stopping.Store("its listeners")
		n.listeners.closeAll()
		n.funnel.closeAll(n)
		n.stopping.Store("what its peers have to acknowledge")
		awaitAcks(n.conns.closeAll())
		if starting {
			n.stopping.Store("its start")
			<-n.started
			n.stopServer()
		}
		n.stopping.Store("the goroutines of its connections")
		n.conns.closeAll() // flows that arrived meanwhile
		n.goroutines.Wait()
		n.conns.wait()
		if n.store != nil {
			unregisterStore(n.store)
		}
		if n.tempDir != "" {
			os.RemoveAll(n.tempDir)
		}
	}()
	limit := time.NewTimer(closeLimit)
	defer limit.Stop()
	var err *Error
	select {
	case <-done:
	case <-limit.C:
		err = errorf(Timeout, "the node did not stop within %v: it still waits for %v, and stops in the background", closeLimit, n.stopping.Load())
		n.log.printf(levelWarn, "%s", err.Message)
	}
	n.gen.stop()
	n.idTokens.close()
	n.log.close()
	return err
}

func (n *Node) stopServer() {
	defer func() {
		if p := recover(); p != nil {
			n.log.printf(levelError, "tsnet panicked while stopping: %v\n%s", p, debug.Stack())
		}
	}()
	if n.startErr != nil && n.srv.Sys() == nil {
		return // tsnet was not reached, or gave up before it built anything
	}
	if n.startErr == nil {
		n.stopping.Store("the last packets of its connections")
		stopSending(n.srv.Sys())
	}
	n.stopping.Store("the control server")
	// The control client is stopped first, so that no network map reaches an engine that is closed
	// (see setEmptySelfNode). An ephemeral node must log out before that: tsnet would do it itself,
	// but needs the control client for it.
	if lb := n.lb.Load(); lb != nil {
		if n.cfg.Ephemeral {
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			if err := lb.Logout(ctx, ipnauth.Self); err != nil {
				n.log.printf(levelWarn, "the ephemeral node could not log out: %v", err)
			}
			cancel()
		}
		lb.DisconnectControl()
		setEmptySelfNode(lb)
	}
	// Also after a failed start. Upstream fault, seen in tailscale.com v1.102.5: Start then closes
	// most of what it had built, but not its netstack and its bus. Close closes those as well.
	n.stopping.Store("tsnet")
	n.srv.Close()
}

// setEmptySelfNode gives magicsock an empty self node.
//
// Upstream fault, seen in tailscale.com v1.102.5: when the control client is stopped, one network
// map may still be on its way through the backend, because Auto.Shutdown waits on a queue that it
// has shut down before. If it is the first map and the engine is closed when it arrives, magicsock
// takes the filter from it but no self node, then reads the self node and panics on its own
// goroutine, which ends the process. A panic of the same kind was tailscale/tailscale#17516. This
// can go when TestFirstMapAfterClose passes without it.
func setEmptySelfNode(lb *ipnlocal.LocalBackend) {
	if lb.NetMapNoPeers() == nil {
		lb.MagicConn().SetNetworkMap((&tailcfg.Node{}).View(), nil)
	}
}
