// Messages that hand over a connection: its header together with its descriptor, or with the
// number of an accepted one, so that nothing has to be looked up later. And the descriptors on
// which a call sends one message, its outcome.
//
// The header is tailscale_conn_header of tailscale.h, byte for byte.

package node

import (
	"context"
	"encoding/binary"
	"net/netip"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	headerVersion = 1
	headerLen     = 40
	kindAccepted  = 0
	kindFunnel    = 1
	kindDialled   = 2
	kindFailure   = 255
	maxMessage    = 1000
)

// connHeader describes a connection. For one through Funnel, remote is the caller on the internet.
func connHeader(kind byte, remote, local netip.AddrPort) [headerLen]byte {
	var h [headerLen]byte
	h[0], h[1] = headerVersion, kind
	binary.NativeEndian.PutUint16(h[4:], remote.Port())
	binary.NativeEndian.PutUint16(h[6:], local.Port())
	r, l := remote.Addr().As16(), local.Addr().As16()
	copy(h[8:], r[:])
	copy(h[24:], l[:])
	return h
}

// failureMessage is the last message on a listener or a dial.
func failureMessage(err *Error) []byte {
	msg := make([]byte, headerLen, headerLen+len(err.Message))
	msg[0], msg[1] = headerVersion, kindFailure
	binary.NativeEndian.PutUint16(msg[2:], uint16(err.Code))
	words := err.Message
	for len(words) > maxMessage || !utf8.ValidString(words) {
		words = truncate(validPrefix(words), maxMessage-32)
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

// sendDescriptor sends a connection's header and descriptor to the other end of to, waiting for
// room. It always closes the descriptor: the message holds its own reference.
func sendDescriptor(to socketEnd, head [headerLen]byte, fd int) error {
	defer unix.Close(fd)
	return to.send(head[:], unix.UnixRights(fd))
}

// oneOutcome returns a descriptor on which f sends one message, the outcome of a call; our end is
// closed after it. f's context ends with the descriptor, with the node, and after limit.
func (n *Node) oneOutcome(call string, limit time.Duration, f func(ctx context.Context, outcome socketEnd)) (int, *Error) {
	outcome, programFD, err := socketPair(unix.SOCK_SEQPACKET)
	if err != nil {
		return -1, ioError("making the sockets of a "+call, err)
	}
	ctx, cancel := context.WithTimeout(n.ctx, limit)
	ok := n.spawn(func() {
		defer cancel()
		defer outcome.file.Close()
		f(ctx, outcome)
	})
	if !ok {
		cancel()
		outcome.file.Close()
		unix.Close(programFD)
		return -1, errClosed
	}
	go func() { // ends with our end at the latest
		outcome.awaitHangup()
		cancel()
	}()
	return programFD, nil
}
