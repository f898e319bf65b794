// The calls out of Go: the functions that the program passed to tailscale_set_program.
//
// They have a file of their own because a file with exports must not define C code. The bytes and
// the struct that are passed belong to Go and are lent for the call; they hold no pointers.

package main

/*
#include "tailscale.h"

static inline uintptr_t program_open(tailscale_program p, uint64_t id) { return p.open(id); }
static inline void program_turn(tailscale_turn turn, uintptr_t conn, tailscale_bytes in, size_t in_len, uint32_t end,
                                uint8_t *out, size_t out_cap, tailscale_told *told) {
  turn(conn, in, in_len, end, out, out_cap, told);
}
static inline void program_free(tailscale_program p, uintptr_t conn) { p.free(conn); }
static inline size_t program_kicked(tailscale_program p, uint64_t *ids, size_t cap) { return p.kicked(ids, cap); }
*/
import "C"

import (
	"unsafe"

	"tailbone.dev/libtailscale/node"
)

type program struct{ c C.tailscale_program }

// The Go and the C struct must have the same size.
var _ [unsafe.Sizeof(node.TurnResult{})]byte = [unsafe.Sizeof(C.tailscale_told{})]byte{}

func (p *program) Open(id uint64) uintptr {
	return uintptr(C.program_open(p.c, C.uint64_t(id)))
}

func (p *program) Turn(ref uintptr, in []byte, end node.InboundState, out []byte, told *node.TurnResult) {
	C.program_turn(p.c.turn, C.uintptr_t(ref), (C.tailscale_bytes)(unsafe.Pointer(unsafe.SliceData(in))), C.size_t(len(in)), C.uint32_t(end),
		(*C.uint8_t)(unsafe.Pointer(unsafe.SliceData(out))), C.size_t(len(out)), (*C.tailscale_told)(unsafe.Pointer(told)))
}

func (p *program) Free(ref uintptr) { C.program_free(p.c, C.uintptr_t(ref)) }

func (p *program) TakeKicks(ids []uint64) int {
	return int(C.program_kicked(p.c, (*C.uint64_t)(unsafe.Pointer(&ids[0])), C.size_t(len(ids))))
}
