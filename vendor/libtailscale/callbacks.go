// The calls out of Go: the functions that the program passed to tailscale_set_callbacks.
//
// They have a file of their own because a file with exports must not define C code. The bytes and
// the struct that are passed belong to Go and are lent for the call; they hold no pointers.

package main

/*
#include "tailscale.h"

static inline uintptr_t call_open(tailscale_callbacks c, uint64_t id) { return c.open(id); }
static inline void call_turn(tailscale_turn turn, uintptr_t conn, tailscale_bytes in, size_t in_len, uint32_t inbound,
                                uint8_t *out, size_t out_cap, tailscale_turn_result *result) {
  turn(conn, in, in_len, inbound, out, out_cap, result);
}
static inline void call_free(tailscale_callbacks c, uintptr_t conn) { c.free(conn); }
static inline size_t call_take_kicks(tailscale_callbacks c, uint64_t *ids, size_t cap) { return c.take_kicks(ids, cap); }
*/
import "C"

import (
	"unsafe"

	"tailbone.dev/libtailscale/node"
)

type callbacks struct{ c C.tailscale_callbacks }

// The Go and the C struct must have the same size.
var _ [unsafe.Sizeof(node.TurnResult{})]byte = [unsafe.Sizeof(C.tailscale_turn_result{})]byte{}

func (cb *callbacks) Open(id uint64) uintptr {
	return uintptr(C.call_open(cb.c, C.uint64_t(id)))
}

func (cb *callbacks) Turn(ref uintptr, in []byte, inbound node.InboundState, out []byte, result *node.TurnResult) {
	C.call_turn(cb.c.turn, C.uintptr_t(ref), (C.tailscale_bytes)(unsafe.Pointer(unsafe.SliceData(in))), C.size_t(len(in)), C.uint32_t(inbound),
		(*C.uint8_t)(unsafe.Pointer(unsafe.SliceData(out))), C.size_t(len(out)), (*C.tailscale_turn_result)(unsafe.Pointer(result)))
}

func (cb *callbacks) Free(ref uintptr) { C.call_free(cb.c, C.uintptr_t(ref)) }

func (cb *callbacks) TakeKicks(ids []uint64) int {
	return int(C.call_take_kicks(cb.c, (*C.uint64_t)(unsafe.Pointer(&ids[0])), C.size_t(len(ids))))
}
