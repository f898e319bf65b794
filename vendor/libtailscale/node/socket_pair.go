// Unix socket pairs, on which everything but bytes and numbers crosses to the program.
//
// Invariants: both ends are close-on-exec and non-blocking from the start. Our end is an *os.File
// in Go's poller, so a goroutine that waits on it occupies no thread and wakes when it is closed.
// Sends never raise SIGPIPE.

package node

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// socketEnd is our end of a socket pair.
type socketEnd struct {
	file *os.File
	raw  syscall.RawConn
}

// socketPair makes a socket pair of kind unix.SOCK_STREAM or unix.SOCK_SEQPACKET and returns our
// end and the other's descriptor.
func socketPair(kind int) (socketEnd, int, error) {
	p, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return socketEnd{}, -1, err
	}
	f := os.NewFile(uintptr(p[0]), "tailnet")
	rc, err := f.SyscallConn()
	if err != nil {
		f.Close()
		unix.Close(p[1])
		return socketEnd{}, -1, err
	}
	return socketEnd{f, rc}, p[1], nil
}

// send sends one message, waiting for room. rights is the encoded control message, or nil.
func (o socketEnd) send(msg, rights []byte) error {
	var err error
	werr := o.raw.Write(func(fd uintptr) bool {
		_, err = sendmsg(int(fd), msg, rights)
		return err != unix.EAGAIN
	})
	return errors.Join(werr, err)
}

// trySend is send without waiting: the message is lost if there is no room.
func (o socketEnd) trySend(msg []byte) {
	o.raw.Control(func(fd uintptr) { sendmsg(int(fd), msg, nil) })
}

func sendmsg(fd int, msg, rights []byte) (int, error) {
	for {
		n, err := unix.SendmsgN(fd, msg, rights, nil, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// awaitHangup waits until the other end is closed, or ours is. It discards what the other end
// sends.
func (o socketEnd) awaitHangup() {
	var b [64]byte
	for {
		n, err := o.file.Read(b[:])
		if n == 0 || err != nil {
			return
		}
	}
}

// hungUp reports whether the other end is closed, or both directions are shut down.
func hungUp(fd uintptr) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	for {
		_, err := unix.Poll(p, 0)
		if err != unix.EINTR {
			return err == nil && p[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
		}
	}
}
