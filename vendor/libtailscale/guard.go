// Recovers from panics: whatever happens inside a call, C gets a code and a message.
//
// A panic on another goroutine cannot be caught here. Package node recovers on the goroutines that
// run other people's code.

package main

import (
	"fmt"

	"tailbone.dev/libtailscale/node"
)

func guard(f func() ([]byte, *node.Error)) (data []byte, err *node.Error) {
	defer func() {
		if p := recover(); p != nil {
			data, err = nil, &node.Error{Code: node.Panic, Message: fmt.Sprintf("the node's code panicked: %v", p)}
		}
	}()
	return f()
}

func testPanic() ([]byte, *node.Error) { panic("this panic was asked for") }
