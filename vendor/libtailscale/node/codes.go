// What can go wrong, as the numbers of the C ABI (tailscale.h) with words for a person.
//
// Every call of this package that can fail returns *Error; a nil *Error is success. The words say what was wrong
// and, where there is something to do about it, what. They never hold a key or a token.

package node

import (
	"context"
	"errors"
	"fmt"
)

// Code is a tailscale_code. The numbers are part of the ABI and never change their meaning.
type Code int32

const (
	OK Code = iota
	Invalid
	Closed
	BadState
	NotFound
	InUse
	Timeout
	Canceled
	Refused
	Unreachable
	IO
	Start
	Panic
	Internal
	Forbidden
)

// Error is a code with its words.
type Error struct {
	Code  Code
	Words string
}

func (e *Error) Error() string { return e.Words }

func fail(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Words: fmt.Sprintf(format, args...)}
}

// ioFail is fail for errors of this machine's kernel; the cause is kept in the words.
func ioFail(what string, err error) *Error { return fail(IO, "%s: %v", what, err) }

// contextCode says which of the two ends of a context happened.
func contextCode(err error) (Code, bool) {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return Timeout, true
	case errors.Is(err, context.Canceled):
		return Canceled, true
	}
	return OK, false
}

var errClosed = &Error{Closed, "the node is closed"}
var errNotStarted = &Error{BadState, "the node is not started"}
