// The fence for panics: whatever happens inside a call, C gets a code and words.
//
// A panic on a goroutine of its own cannot be caught from here; package node recovers on those that run code which is
// not ours.

package main

import (
	"fmt"

	"tailbone.dev/libtailscale/node"
)

func guard(f func() ([]byte, *node.Error)) (data []byte, err *node.Error) {
	defer func() {
		if p := recover(); p != nil {
			data, err = nil, &node.Error{Code: node.Panic, Words: fmt.Sprintf("the node's code panicked: %v", p)}
		}
	}()
	return f()
}

func testPanic() ([]byte, *node.Error) { panic("this panic was asked for") }
