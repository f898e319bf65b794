// Messages that hand over a connection: its head together with its descriptor, or with the number
// of an accepted one, so that nothing has to be looked up later.
//
// The head is tailscale_conn_head of tailscale.h, byte for byte.

package node

import (
	"encoding/binary"
	"net/netip"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	headVersion  = 1
	headLen      = 40
	kindAccepted = 0
	kindDialled  = 2
	kindFailure  = 255
	maxWords     = 1000
)

// connHead describes a connection. A Funnel listener will need kind 1 and the peer's address on the
// internet.
func connHead(kind byte, remote, local netip.AddrPort) [headLen]byte {
	var h [headLen]byte
	h[0], h[1] = headVersion, kind
	binary.NativeEndian.PutUint16(h[4:], remote.Port())
	binary.NativeEndian.PutUint16(h[6:], local.Port())
	r, l := remote.Addr().As16(), local.Addr().As16()
	copy(h[8:], r[:])
	copy(h[24:], l[:])
	return h
}

// failureMessage is the last message on a listener or a dial.
func failureMessage(err *Error) []byte {
	msg := make([]byte, headLen, headLen+len(err.Words))
	msg[0], msg[1] = headVersion, kindFailure
	binary.NativeEndian.PutUint16(msg[2:], uint16(err.Code))
	words := err.Words
	for len(words) > maxWords || !utf8.ValidString(words) {
		words = clip(validPrefix(words), maxWords-32)
	}
	return append(msg, words...)
}

func validPrefix(s string) string {
	for i, r := range s {
		if r == utf8.RuneError {
			if _, n := utf8.DecodeRuneInString(s[i:]); n == 1 {
				return s[:i]
			}
		}
	}
	return s
}

// handOver sends a connection's head and descriptor to the other end of to, waiting for room. It
// always closes the descriptor: the message holds its own reference.
func handOver(to ours, head [headLen]byte, fd int) error {
	defer unix.Close(fd)
	return to.send(head[:], unix.UnixRights(fd))
}
