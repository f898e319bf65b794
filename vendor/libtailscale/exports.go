// The C ABI of tailscale.h: thin conversions from C to Go and back, with a recover around each
// call.
//
// Invariants: no export panics into C; *out is always set; input bytes are copied before anything
// keeps them; results are allocated with malloc. Everything else is in package node, which knows
// nothing of C and is tested without it (cgo cannot be used in Go tests).
package main

/*
#include <stdlib.h>
#include "tailscale.h"
*/
import "C"

import (
	"time"
	"unsafe"

	"tailbone.dev/libtailscale/node"
)

func main() {}

// answer converts the outcome of a call for C.
func answer(out *C.tailscale_buf, data []byte, err *node.Error) C.int32_t {
	code := node.OK
	if err != nil {
		code, data = err.Code, []byte(err.Message)
	}
	if out != nil {
		out.data, out.len = nil, 0
		if len(data) > 0 {
			out.data = (*C.uint8_t)(C.CBytes(data))
			out.len = C.size_t(len(data))
		}
	}
	return C.int32_t(code)
}

// input copies bytes that are lent for the duration of the call.
func input(p C.tailscale_bytes, n C.size_t) ([]byte, *node.Error) {
	if n == 0 {
		return nil, nil
	}
	if p == nil {
		return nil, &node.Error{Code: node.Invalid, Message: "a NULL pointer was given with a length that is not 0"}
	}
	if n > 1<<20 {
		return nil, &node.Error{Code: node.Invalid, Message: "an argument is longer than 1 MiB"}
	}
	return C.GoBytes(unsafe.Pointer(p), C.int(n)), nil
}

func missing(what string) *node.Error {
	return &node.Error{Code: node.Invalid, Message: what + ": a NULL pointer was given for the result"}
}

//export tailscale_set_callbacks
func tailscale_set_callbacks(p *C.tailscale_callbacks, kick_fd C.int32_t, out *C.tailscale_buf) C.int32_t {
	_, err := guard(func() ([]byte, *node.Error) {
		if p == nil || p.open == nil || p.turn == nil || p.free == nil || p.take_kicks == nil {
			node.Discard(int(kick_fd))
			return nil, &node.Error{Code: node.Invalid, Message: "callbacks: a function is missing"}
		}
		return nil, node.SetCallbacks(&callbacks{*p}, int(kick_fd))
	})
	return answer(out, nil, err)
}

//export tailscale_version
func tailscale_version(out *C.tailscale_buf) C.int32_t {
	data, err := guard(node.Version)
	return answer(out, data, err)
}

//export tailscale_runtime_set
func tailscale_runtime_set(json C.tailscale_bytes, len C.size_t, out *C.tailscale_buf) C.int32_t {
	data, err := guard(func() ([]byte, *node.Error) {
		in, err := input(json, len)
		if err != nil {
			return nil, err
		}
		return node.RuntimeSet(in)
	})
	return answer(out, data, err)
}

//export tailscale_runtime_stats
func tailscale_runtime_stats(out *C.tailscale_buf) C.int32_t {
	data, err := guard(node.RuntimeStats)
	return answer(out, data, err)
}

//export tailscale_new
func tailscale_new(json C.tailscale_bytes, len C.size_t, generation *C.uint64_t, log_fd C.int32_t, handle *C.uint64_t, out *C.tailscale_buf) C.int32_t {
	if handle != nil {
		*handle = 0
	}
	_, err := guard(func() ([]byte, *node.Error) {
		in, err := input(json, len)
		if err == nil && handle == nil {
			err = missing("node")
		}
		if err == nil && uintptr(unsafe.Pointer(generation))%8 != 0 {
			err = &node.Error{Code: node.Invalid, Message: "generation: not aligned to 8 bytes"}
		}
		if err != nil {
			node.Discard(int(log_fd))
			return nil, err
		}
		h, err := node.New(in, (*uint64)(unsafe.Pointer(generation)), int(log_fd))
		*handle = C.uint64_t(h)
		return nil, err
	})
	return answer(out, nil, err)
}

//export tailscale_start
func tailscale_start(handle C.uint64_t, out *C.tailscale_buf) C.int32_t {
	_, err := guard(func() ([]byte, *node.Error) {
		n, err := node.Find(uint64(handle))
		if err != nil {
			return nil, err
		}
		return nil, n.Start()
	})
	return answer(out, nil, err)
}

// descriptor is guard for the calls that return a descriptor.
func descriptor(handle C.uint64_t, fd *C.int32_t, out *C.tailscale_buf, f func(*node.Node) (int, *node.Error)) C.int32_t {
	if fd != nil {
		*fd = -1
	}
	_, err := guard(func() ([]byte, *node.Error) {
		if fd == nil {
			return nil, missing("fd")
		}
		n, err := node.Find(uint64(handle))
		if err != nil {
			return nil, err
		}
		got, err := f(n)
		if err == nil {
			*fd = C.int32_t(got)
		}
		return nil, err
	})
	return answer(out, nil, err)
}

//export tailscale_watch
func tailscale_watch(handle C.uint64_t, fd *C.int32_t, out *C.tailscale_buf) C.int32_t {
	return descriptor(handle, fd, out, (*node.Node).Watch)
}

//export tailscale_status
func tailscale_status(handle C.uint64_t, out *C.tailscale_buf) C.int32_t {
	data, err := guard(func() ([]byte, *node.Error) {
		n, err := node.Find(uint64(handle))
		if err != nil {
			return nil, err
		}
		return n.Status()
	})
	return answer(out, data, err)
}

//export tailscale_whois
func tailscale_whois(handle C.uint64_t, addr C.tailscale_bytes, len C.size_t, local C.tailscale_bytes, localLen C.size_t, out *C.tailscale_buf) C.int32_t {
	data, err := guard(func() ([]byte, *node.Error) {
		n, err := node.Find(uint64(handle))
		if err != nil {
			return nil, err
		}
		peer, err := input(addr, len)
		if err != nil {
			return nil, err
		}
		own, err := input(local, localLen)
		if err != nil {
			return nil, err
		}
		return n.WhoIs(peer, own)
	})
	return answer(out, data, err)
}

//export tailscale_listen
func tailscale_listen(handle C.uint64_t, addr C.tailscale_bytes, len C.size_t, fd *C.int32_t, out *C.tailscale_buf) C.int32_t {
	return descriptor(handle, fd, out, func(n *node.Node) (int, *node.Error) {
		in, err := input(addr, len)
		if err != nil {
			return -1, err
		}
		return n.Listen(in)
	})
}

//export tailscale_listen_funnel
func tailscale_listen_funnel(handle C.uint64_t, port C.uint32_t, fd *C.int32_t, out *C.tailscale_buf) C.int32_t {
	return descriptor(handle, fd, out, func(n *node.Node) (int, *node.Error) {
		return n.ListenFunnel(uint32(port))
	})
}

//export tailscale_dial
func tailscale_dial(handle C.uint64_t, addr C.tailscale_bytes, len C.size_t, timeout_ms C.int64_t, fd *C.int32_t, out *C.tailscale_buf) C.int32_t {
	return descriptor(handle, fd, out, func(n *node.Node) (int, *node.Error) {
		in, err := input(addr, len)
		if err != nil {
			return -1, err
		}
		return n.Dial(in, milliseconds(int64(timeout_ms)))
	})
}

//export tailscale_cert
func tailscale_cert(handle C.uint64_t, name C.tailscale_bytes, len C.size_t, min_validity_s C.int64_t, fd *C.int32_t, out *C.tailscale_buf) C.int32_t {
	return descriptor(handle, fd, out, func(n *node.Node) (int, *node.Error) {
		in, err := input(name, len)
		if err != nil {
			return -1, err
		}
		return n.Cert(in, int64(min_validity_s))
	})
}

//export tailscale_logout
func tailscale_logout(handle C.uint64_t, timeout_ms C.int64_t, out *C.tailscale_buf) C.int32_t {
	_, err := guard(func() ([]byte, *node.Error) {
		n, err := node.Find(uint64(handle))
		if err != nil {
			return nil, err
		}
		return nil, n.Logout(milliseconds(int64(timeout_ms)))
	})
	return answer(out, nil, err)
}

//export tailscale_close
func tailscale_close(handle C.uint64_t, out *C.tailscale_buf) C.int32_t {
	_, err := guard(func() ([]byte, *node.Error) { return nil, node.Close(uint64(handle)) })
	return answer(out, nil, err)
}

//export tailscale_buf_free
func tailscale_buf_free(buf *C.tailscale_buf) {
	if buf != nil {
		C.free(unsafe.Pointer(buf.data))
		buf.data, buf.len = nil, 0
	}
}

//export tailscale_test_panic
func tailscale_test_panic(out *C.tailscale_buf) C.int32_t {
	data, err := guard(testPanic)
	return answer(out, data, err)
}

// milliseconds returns -1 for a number out of range, so that it is refused and does not overflow to
// a small one.
func milliseconds(ms int64) time.Duration {
	if ms < 0 || ms > int64(24*time.Hour/time.Millisecond) {
		return -1
	}
	return time.Duration(ms) * time.Millisecond
}
