// Errors, as the numbers of the C ABI (tailscale.h) with a message for a person.
//
// Every call of this package that can fail returns *Error; a nil *Error is success. The message
// says what was wrong and, if something can be done about it, what. It never contains a key or a
// token.

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
	NoHTTPS
	ACME
	NoFunnel
	FunnelPort
)

// Error is a code with its message.
type Error struct {
	Code    Code
	Message string
}

func (e *Error) Error() string { return e.Message }

func errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// ioError is errorf for errors of this machine's kernel. The message includes the cause.
func ioError(what string, err error) *Error { return errorf(IO, "%s: %v", what, err) }

// contextCode returns which of the two ways a context ended: timeout or cancellation.
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
