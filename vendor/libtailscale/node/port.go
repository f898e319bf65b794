package node

// The node's UDP port stays the same over restarts.
//
// A peer that had a session with us goes on sending to the address it last heard us at, answers to our first handshake
// included, until its own path finding has found the new one. At another port those answers are lost, and the first
// connection after a restart waits 5 s for WireGuard's next try. At the same port they arrive.
//
// The port is kept in the node's state, so it moves with the identity that peers know. If it is taken, magicsock falls back to
// a free one, and that one is kept from then on.

import (
	"strconv"

	"tailscale.com/ipn"
)

const portKey = ipn.StateKey("_tailbone-udp-port")

// keptPort gives the port of the last run, or 0.
func keptPort(st ipn.StateStore) uint16 {
	raw, err := st.ReadState(portKey)
	if err != nil {
		return 0
	}
	port, err := strconv.ParseUint(string(raw), 10, 16)
	if err != nil {
		return 0
	}
	return uint16(port)
}

// keepPort remembers the port that was bound. That it could not be written costs a slower restart, nothing else.
func (n *Node) keepPort() {
	sock, ok := n.srv.Sys().MagicSock.GetOK()
	if !ok {
		return
	}
	port := sock.LocalPort()
	if port == 0 || port == keptPort(n.store) {
		return
	}
	if err := n.store.WriteState(portKey, strconv.AppendUint(nil, uint64(port), 10)); err != nil {
		n.log.printf(lvWarn, "the UDP port could not be kept for the next start: %v", err)
	}
}
