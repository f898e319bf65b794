// The control server's listener, and the troubles it can be given: hold, fail, slow, down.
//
// Invariants: the port stays ours from start to end, even while nothing listens on it, so that
// "down" refuses connections and "ok" comes back at the same address. The trouble applies to a
// request when it arrives; one that is held goes on when the trouble ends, under the rule of that
// moment.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// quiet discards what net/http would log about broken connections, which tests break on purpose.
var quiet = log.New(io.Discard, "", 0)

// trouble is the body of POST /control. Path, if given, limits it to requests whose path begins
// with it (for example /machine/register).
type trouble struct {
	Mode    string `json:"mode"`
	DelayMS int    `json:"delay_ms,omitempty"`
	Status  int    `json:"status,omitempty"`
	Path    string `json:"path,omitempty"`
}

func (t *trouble) check() error {
	switch t.Mode {
	case "ok", "hold", "down":
	case "slow":
		if t.DelayMS <= 0 {
			return fmt.Errorf("mode slow needs delay_ms above 0")
		}
	case "fail":
		if t.Status == 0 {
			t.Status = http.StatusInternalServerError
		}
		if t.Status < 400 || t.Status > 599 {
			return fmt.Errorf("status %d is not an error status (400 to 599)", t.Status)
		}
	default:
		return fmt.Errorf("mode %q is not one of ok, hold, fail, slow, down", t.Mode)
	}
	if t.Path != "" && t.Mode == "down" {
		return fmt.Errorf("mode down cannot be limited to a path")
	}
	return nil
}

// reaches reports whether the trouble applies to a path.
func (t *trouble) reaches(path string) bool { return strings.HasPrefix(path, t.Path) }

type door struct {
	addr string // host:port, the same for life

	mu      sync.Mutex
	trouble trouble
	changed chan struct{} // closed and replaced when trouble changes
	broken  chan struct{} // closed and replaced when streams must end
	bound   int           // socket that keeps the port while closed, else -1
	ln      net.Listener
	conns   map[net.Conn]bool
	server  *http.Server
}

// newDoor takes a loopback port; nothing is served before open.
func newDoor() (*door, error) {
	d := &door{
		trouble: trouble{Mode: "ok"},
		changed: make(chan struct{}),
		broken:  make(chan struct{}),
		conns:   map[net.Conn]bool{},
		bound:   -1,
	}
	port, err := d.bind(0)
	if err != nil {
		return nil, fmt.Errorf("no loopback port for the control server: %w", err)
	}
	d.addr = fmt.Sprintf("127.0.0.1:%d", port)
	return d, nil
}

// bind takes the port without listening, so that connections are refused.
func (d *door) bind(port int) (int, error) {
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
	d.bound = fd
	return sa.(*syscall.SockaddrInet4).Port, nil
}

// open serves handler, and continues to through every down and ok.
func (d *door) open(handler http.Handler) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.server = &http.Server{Handler: handler, ErrorLog: quiet}
	return d.listen()
}

func (d *door) listen() error {
	if err := syscall.Listen(d.bound, 1024); err != nil {
		return fmt.Errorf("cannot listen on %s: %w", d.addr, err)
	}
	f := os.NewFile(uintptr(d.bound), "control")
	ln, err := net.FileListener(f)
	f.Close()
	d.bound = -1
	if err != nil {
		return fmt.Errorf("cannot listen on %s: %w", d.addr, err)
	}
	d.ln = ln
	go d.server.Serve(&countingListener{ln, d})
	return nil
}

func (d *door) current() trouble {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.trouble
}

// set changes the trouble; it is in force when set returns.
func (d *door) set(t trouble) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	was := d.trouble.Mode
	d.trouble = t
	close(d.changed)
	d.changed = make(chan struct{})

	if t.Mode == "down" && was != "down" {
		d.ln.Close()
		_, port, _ := net.SplitHostPort(d.addr)
		var p int
		fmt.Sscan(port, &p)
		if _, err := d.bind(p); err != nil {
			return fmt.Errorf("lost the control port: %w", err)
		}
		for c := range d.conns {
			c.Close()
		}
	}
	if t.Mode != "down" && was == "down" {
		if err := d.listen(); err != nil {
			return err
		}
	}
	if t.Mode == "down" || t.Mode == "fail" && t.reaches("/machine/map") {
		close(d.broken)
		d.broken = make(chan struct{})
	}
	return nil
}

// cut returns a channel that is closed when the streams that run now must end.
func (d *door) cut() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.broken
}

// gate applies the trouble to every request.
func (d *door) gate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status, ok := d.pass(r.Context(), r.URL.Path)
		switch {
		case !ok:
			panic(http.ErrAbortHandler)
		case status != 0:
			http.Error(w, "devnet: the control server was told to fail", status)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// passable delays a message of a running stream while control is held or slow. It returns false if
// the client has gone, or control fails: the stream must then end even if it has not seen yet that
// it was cut.
func (d *door) passable(ctx context.Context) bool {
	status, ok := d.pass(ctx, "/machine/map")
	return ok && status == 0
}

// pass waits until a path has no trouble. It returns a status if the request must fail, and false
// if the client has gone or the listener is closed.
func (d *door) pass(ctx context.Context, path string) (status int, ok bool) {
	for {
		d.mu.Lock()
		t, changed := d.trouble, d.changed
		d.mu.Unlock()
		if !t.reaches(path) {
			return 0, true
		}
		switch t.Mode {
		case "fail":
			return t.Status, true
		case "down":
			return 0, false
		case "slow":
			select {
			case <-time.After(time.Duration(t.DelayMS) * time.Millisecond):
				return 0, true
			case <-ctx.Done():
				return 0, false
			}
		case "hold":
			select {
			case <-changed:
			case <-ctx.Done():
				return 0, false
			}
		default:
			return 0, true
		}
	}
}

func (d *door) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.server != nil {
		d.server.Close()
	}
	for c := range d.conns {
		c.Close()
	}
	if d.bound >= 0 {
		syscall.Close(d.bound)
		d.bound = -1
	}
}

// countingListener remembers open connections, including those taken over by Noise, so that they
// can be cut.
type countingListener struct {
	net.Listener
	door *door
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	cc := &countedConn{Conn: c, door: l.door}
	l.door.mu.Lock()
	l.door.conns[cc] = true
	l.door.mu.Unlock()
	return cc, nil
}

type countedConn struct {
	net.Conn
	door *door
	once sync.Once
}

// Close removes the connection in the background, because set closes connections while it holds the
// lock.
func (c *countedConn) Close() error {
	c.once.Do(func() {
		go func() {
			c.door.mu.Lock()
			delete(c.door.conns, c)
			c.door.mu.Unlock()
		}()
	})
	return c.Conn.Close()
}
