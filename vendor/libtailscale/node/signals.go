// What tsnet tells nobody but its log: why the control server could not be reached, and that the packet filter is about
// to change. Taken from the format string and the typed argument, before anything is turned into text.
//
// Both have a test that fails when a newer tsnet says it in other words; nothing else may be learned from log lines.

package node

import (
	"strings"
	"sync"
)

type signals struct {
	mu      sync.Mutex
	err     string // last critical message of the backend, or why it did not start
	control string // last failure to talk with the control server
}

func (s *signals) setError(words string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = words
}

func (s *signals) setControl(words string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.control = words
}

func (s *signals) get() (err, control string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err, s.control
}

// backendLine is the Logf of tsnet's inside.
func (n *Node) backendLine(format string, args ...any) {
	switch {
	case format == "Received error: %v" && len(args) == 1:
		if err, ok := args[0].(error); ok {
			n.signals.setControl(clip(err.Error(), 500))
			n.changed()
		}
	case strings.HasPrefix(format, "[v1] netmap packet filter:"):
		select {
		case n.filter <- struct{}{}:
		default:
		}
	}
	n.log.backend(format, args...)
}
