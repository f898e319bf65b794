// Connections that the program does not take, and peers that make many of them.

package node

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
)

// backlogTest makes a server whose program takes nothing, a peer that opens many connections, and
// another peer.
func backlogTest(t *testing.T) (server, many, other *testNode, to string) {
	tn := newTailnet(t)
	check := checkLeaks(t)
	server, many, other = tn.join("server"), tn.join("many"), tn.join("other")
	many.awaitPeer("server")
	other.awaitPeer("server")
	to = fmt.Sprintf("%v:80", server.ip(4))
	t.Cleanup(func() {
		server.close()
		many.close()
		other.close()
		check()
	})
	return server, many, other, to
}

// reset opens a connection and resets it once the server has it.
func (m *testNode) reset(to string) {
	m.t.Helper()
	c, err := m.node().srv.Dial(m.t.Context(), "tcp", to)
	if err != nil {
		m.t.Fatalf("a connection to be reset: %v", err)
	}
	waitFor(m.t, "the server to have the connection", func() bool { return liveConns.Load() == 1 })
	ep, _ := endpointOf(c.(netConn))
	ep.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: true})
	c.Close()
}

func TestResetConnectionsLeaveTheBacklog(t *testing.T) {
	server, many, other, to := backlogTest(t)
	ln := server.listen(":80")
	// More than may wait, and none of them is taken.
	const storm = 2 * maxPendingPerPeer
	for range storm {
		many.reset(to)
		waitFor(t, "the connection to be freed", func() bool { return liveConns.Load() == 0 })
	}
	out := other.dial(to)
	out.write([]byte("ping"))
	for {
		in := receive(t, ln)
		b := make([]byte, 10)
		if in.peer.Addr() != other.ip(4) {
			if _, err := in.read(b, time.Second); err != unix.ECONNRESET {
				t.Fatalf("a connection that was reset: %v", err)
			}
			continue
		}
		if n, err := in.read(b, 5*time.Second); err != nil || string(b[:n]) != "ping" {
			t.Errorf("the connection behind the storm: %q, %v", b[:n], err)
		}
		break
	}
	closeListener(ln)
}

func TestOnePeerCannotFillTheBacklog(t *testing.T) {
	server, many, other, to := backlogTest(t)
	ln := server.listen(":80")
	var outs []*testConn
	refused := 0
	for range maxPendingPerPeer + 100 { // the socket holds about forty
		fd, err := many.node().Dial([]byte(to), 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		switch c, f := receiveAny(t, fd, 12*time.Second); {
		case f == nil:
			outs = append(outs, c)
		case f.code == Refused:
			refused++
		default:
			t.Errorf("dial: %+v", f)
		}
		unix.Close(fd)
	}
	if refused == 0 {
		t.Errorf("none of %d connections of one peer was refused", len(outs))
	}
	outs = append(outs, other.dial(to))
	// Closing the listener frees what was not taken.
	closeListener(ln)
	for _, out := range outs {
		out.close()
	}
	waitFor(t, "all to be freed", func() bool { return liveConns.Load() == 0 })
}
