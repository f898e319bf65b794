// Facts that tsnet reports only in its log: why the control server could not be reached, and that
// the packet filter is about to change. They are taken from the format string and its typed
// argument, before these become text.
//
// Upstream fault, seen in tailscale.com v1.102.5: there is no notification for either. Each has a
// test that fails when a newer tsnet words the line differently (TestUnreachableControl,
// TestFilterLogLine). Nothing else may be learned from log lines. This file can go when ipn.Notify
// or ipnstate.Status has both.

package node

import (
	"strings"
	"sync"
)

type backendErrors struct {
	mu      sync.Mutex
	backend string // last critical message of the backend, or why it did not start
	control string // last failure to talk to the control server
}

func (s *backendErrors) setError(words string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.backend = words
}

func (s *backendErrors) setControl(words string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.control = words
}

func (s *backendErrors) get() (err, control string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.backend, s.control
}

// backendLine is the Logf of tsnet's internals.
func (n *Node) backendLine(format string, args ...any) {
	switch {
	case format == "Received error: %v" && len(args) == 1:
		if err, ok := args[0].(error); ok {
			n.lastErrors.setControl(truncate(err.Error(), 500))
			n.changed()
		}
	case strings.HasPrefix(format, "[v1] netmap packet filter:"):
		select {
		case n.filterChanged <- struct{}{}:
		default:
		}
	}
	n.log.backendf(format, args...)
}
