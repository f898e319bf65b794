package node

// Keeps the node's UDP port the same over restarts.
//
// Upstream peculiarity, seen in tailscale.com v1.102.5: tsnet takes another port at each start. A
// peer that had a session with us goes on sending to the last address that it heard us at, answers
// to our first handshake included, until its own path discovery has found the new one. At another
// port those answers are lost, and the first connection after a restart waits 5 s for WireGuard's
// next try.
//
// The port is kept in the node's state, next to the identity that peers know. If it is taken,
// magicsock falls back to a free one, which is kept from then on. This file can go when tsnet keeps
// its port itself: TestPortIsKeptOverRestarts must then pass without it.

import (
	"strconv"

	"tailscale.com/ipn"
)

const udpPortKey = ipn.StateKey("_tailbone-udp-port")

// storedPort returns the port of the last run, or 0.
func storedPort(st ipn.StateStore) uint16 {
	raw, err := st.ReadState(udpPortKey)
	if err != nil {
		return 0
	}
	port, err := strconv.ParseUint(string(raw), 10, 16)
	if err != nil {
		return 0
	}
	return uint16(port)
}

// storePort stores the port that was bound. If it cannot be written, the next start is slower.
func (n *Node) storePort() {
	sock, ok := n.srv.Sys().MagicSock.GetOK()
	if !ok {
		return
	}
	port := sock.LocalPort()
	if port == 0 || port == storedPort(n.store) {
		return
	}
	if err := n.store.WriteState(udpPortKey, strconv.AppendUint(nil, uint64(port), 10)); err != nil {
		n.log.printf(levelWarn, "the UDP port could not be kept for the next start: %v", err)
	}
}
