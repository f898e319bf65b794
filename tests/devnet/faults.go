// Listeners of servers that can be given faults: hold, fail, slow, down.
//
// Invariants: the port stays ours from start to end, even while nothing listens on it, so that
// "down" refuses connections and "ok" comes back at the same address. A fault applies to a request
// when it arrives; one that is held goes on when the fault changes, under the rule of that moment.
package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// discardLog discards what net/http would log about broken connections, which tests break on
// purpose.
var discardLog = log.New(io.Discard, "", 0)

// fault is the body of POST /control and POST /acme. Path, if given, limits it to requests whose
// path begins with it (for example /machine/register). RetryAfter is in seconds.
type fault struct {
	Mode       string `json:"mode"`
	DelayMS    int    `json:"delay_ms,omitempty"`
	Status     int    `json:"status,omitempty"`
	RetryAfter int    `json:"retry_after,omitempty"`
	Path       string `json:"path,omitempty"`
}

func (f *fault) check() error {
	switch f.Mode {
	case "ok", "hold", "down":
	case "slow":
		if f.DelayMS <= 0 {
			return fmt.Errorf("mode slow needs delay_ms above 0")
		}
	case "fail":
		if f.Status == 0 {
			f.Status = http.StatusInternalServerError
		}
		if f.Status < 400 || f.Status > 599 {
			return fmt.Errorf("status %d is not an error status (400 to 599)", f.Status)
		}
	default:
		return fmt.Errorf("mode %q is not one of ok, hold, fail, slow, down", f.Mode)
	}
	if f.RetryAfter != 0 && (f.Mode != "fail" || f.RetryAfter < 0) {
		return fmt.Errorf("retry_after is for mode fail, and above 0")
	}
	if f.Path != "" && f.Mode == "down" {
		return fmt.Errorf("mode down cannot be limited to a path")
	}
	return nil
}

// appliesTo reports whether the fault applies to a path.
func (f *fault) appliesTo(path string) bool { return strings.HasPrefix(path, f.Path) }

type faultyListener struct {
	addr string      // host:port, the same for life
	tls  *tls.Config // nil: plain
	// refuse writes the answer to a request that must fail.
	refuse func(http.ResponseWriter, fault)

	mu         sync.Mutex
	fault      fault
	changed    chan struct{} // closed and replaced when fault changes
	streamsCut chan struct{} // closed and replaced when streams must end
	reservedFD int           // socket that keeps the port while closed, else -1
	listener   net.Listener
	conns      map[net.Conn]bool
	server     *http.Server
}

// newFaultyListener takes a loopback port; nothing is served before serve.
func newFaultyListener() (*faultyListener, error) {
	l := &faultyListener{
		refuse: func(w http.ResponseWriter, f fault) {
			http.Error(w, "devnet: this server was told to fail", f.Status)
		},
		fault:      fault{Mode: "ok"},
		changed:    make(chan struct{}),
		streamsCut: make(chan struct{}),
		conns:      map[net.Conn]bool{},
		reservedFD: -1,
	}
	port, err := l.reservePort(0)
	if err != nil {
		return nil, fmt.Errorf("no loopback port for a server: %w", err)
	}
	l.addr = fmt.Sprintf("127.0.0.1:%d", port)
	return l, nil
}

// reservePort takes the port without listening, so that connections are refused.
func (l *faultyListener) reservePort(port int) (int, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	if err == nil {
		err = syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
	}
	var sa syscall.Sockaddr
	if err == nil {
		sa, err = syscall.Getsockname(fd)
	}
	if err != nil {
		syscall.Close(fd)
		return 0, err
	}
	l.reservedFD = fd
	return sa.(*syscall.SockaddrInet4).Port, nil
}

// serve serves handler, and goes on after each "down".
func (l *faultyListener) serve(handler http.Handler) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.server = &http.Server{Handler: handler, ErrorLog: discardLog}
	return l.listen()
}

func (l *faultyListener) listen() error {
	if err := syscall.Listen(l.reservedFD, 1024); err != nil {
		return fmt.Errorf("cannot listen on %s: %w", l.addr, err)
	}
	f := os.NewFile(uintptr(l.reservedFD), "control")
	ln, err := net.FileListener(f)
	f.Close()
	l.reservedFD = -1
	if err != nil {
		return fmt.Errorf("cannot listen on %s: %w", l.addr, err)
	}
	l.listener = ln
	var to net.Listener = &trackingListener{ln, l}
	if l.tls != nil {
		to = tls.NewListener(to, l.tls)
	}
	go l.server.Serve(to)
	return nil
}

func (l *faultyListener) currentFault() fault {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fault
}

// setFault changes the fault; it is in force when set returns.
func (l *faultyListener) setFault(f fault) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.fault.Mode
	l.fault = f
	close(l.changed)
	l.changed = make(chan struct{})

	if f.Mode == "down" && was != "down" {
		l.listener.Close()
		_, port, _ := net.SplitHostPort(l.addr)
		var p int
		fmt.Sscan(port, &p)
		if _, err := l.reservePort(p); err != nil {
			return fmt.Errorf("lost the port of %s: %w", l.addr, err)
		}
		for c := range l.conns {
			c.Close()
		}
	}
	if f.Mode != "down" && was == "down" {
		if err := l.listen(); err != nil {
			return err
		}
	}
	if f.Mode == "down" || f.Mode == "fail" && f.appliesTo("/machine/map") {
		close(l.streamsCut)
		l.streamsCut = make(chan struct{})
	}
	return nil
}

// streamsEnd returns a channel that is closed when the streams that run now must end.
func (l *faultyListener) streamsEnd() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.streamsCut
}

// withFault applies the fault to every request.
func (l *faultyListener) withFault(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		failing, ok := l.await(r.Context(), r.URL.Path)
		switch {
		case !ok:
			panic(http.ErrAbortHandler)
		case failing != nil:
			if failing.RetryAfter > 0 {
				w.Header().Set("Retry-After", strconv.Itoa(failing.RetryAfter))
			}
			l.refuse(w, *failing)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// mayDeliver delays a message of a running stream while control is held or slow. It returns false
// if the client has gone, or control fails: the stream must then end even if it has not seen yet
// that it was cut.
func (l *faultyListener) mayDeliver(ctx context.Context) bool {
	failing, ok := l.await(ctx, "/machine/map")
	return ok && failing == nil
}

// await waits until no fault holds a request for this path. It returns the fault by which the
// request must fail, and false if the client has gone or the listener is closed.
func (l *faultyListener) await(ctx context.Context, path string) (failing *fault, ok bool) {
	for {
		l.mu.Lock()
		f, changed := l.fault, l.changed
		l.mu.Unlock()
		if !f.appliesTo(path) {
			return nil, true
		}
		switch f.Mode {
		case "fail":
			return &f, true
		case "down":
			return nil, false
		case "slow":
			select {
			case <-time.After(time.Duration(f.DelayMS) * time.Millisecond):
				return nil, true
			case <-ctx.Done():
				return nil, false
			}
		case "hold":
			select {
			case <-changed:
			case <-ctx.Done():
				return nil, false
			}
		default:
			return nil, true
		}
	}
}

func (l *faultyListener) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.server != nil {
		l.server.Close()
	}
	for c := range l.conns {
		c.Close()
	}
	if l.reservedFD >= 0 {
		syscall.Close(l.reservedFD)
		l.reservedFD = -1
	}
}

// trackingListener remembers open connections, including those taken over by Noise, so that they
// can be cut.
type trackingListener struct {
	net.Listener
	owner *faultyListener
}

func (l *trackingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	cc := &trackedConn{Conn: c, owner: l.owner}
	l.owner.mu.Lock()
	l.owner.conns[cc] = true
	l.owner.mu.Unlock()
	return cc, nil
}

type trackedConn struct {
	net.Conn
	owner *faultyListener
	once  sync.Once
}

// Close removes the connection in the background, because set closes connections while it holds the
// lock.
func (c *trackedConn) Close() error {
	c.once.Do(func() {
		go func() {
			c.owner.mu.Lock()
			delete(c.owner.conns, c)
			c.owner.mu.Unlock()
		}()
	})
	return c.Conn.Close()
}
