package node

import (
	"net"
	"testing"
)

func (m *testNode) udpPort() int {
	sock := m.node().srv.Sys().MagicSock.Get()
	return int(sock.LocalPort())
}

func TestPortIsKeptOverRestarts(t *testing.T) {
	tn := newTailnet(t)
	cfg := tn.config("stays")
	first := tn.make(cfg)
	first.await("Running")
	port := first.udpPort()
	first.close()

	again := tn.make(cfg)
	again.await("Running")
	if got := again.udpPort(); got != port {
		t.Errorf("port %d after the restart, %d before: peers with a session answer to a dead port", got, port)
	}
	again.close()

	// Another socket takes the port.
	taken, err := net.ListenUDP("udp4", &net.UDPAddr{Port: port})
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	third := tn.make(cfg)
	third.await("Running")
	if got := third.udpPort(); got == port || got == 0 {
		t.Errorf("port %d, which is taken", got)
	} else if kept := storedPort(third.node().store); int(kept) != got {
		t.Errorf("kept port %d, want the new one, %d", kept, got)
	}
}
