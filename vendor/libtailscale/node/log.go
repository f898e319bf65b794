// Log lines of a node, one JSON object a line, to a descriptor given by the program.
//
// Invariants: writing never blocks the node. A line that does not fit is dropped and counted, and
// the next line that gets through carries the count. A line is never longer than what a pipe takes
// in one piece, so lines never mix. Nothing is learned from the text of a line, except from two for
// which tsnet offers no other signal (see backend_log.go).

package node

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

type level int8

const (
	levelTrace level = iota
	levelDebug
	levelInfo
	levelWarn
	levelError
	levelOff
)

var levelNames = [...]string{"trace", "debug", "info", "warn", "error", "off"}

func (l level) String() string { return levelNames[l] }

func parseLevel(s string) (level, error) {
	if s == "" {
		return levelInfo, nil
	}
	for i, n := range levelNames {
		if s == n {
			return level(i), nil
		}
	}
	return levelOff, fmt.Errorf("must be one of %s", strings.Join(levelNames[:], ", "))
}

// maxLine is PIPE_BUF: up to this size the kernel writes all or nothing.
const maxLine = 4096

type logger struct {
	minLevel level

	mu          sync.Mutex
	fd          int // -1 when there is none or it is closed
	dropped     uint64
	lastPrinted map[string]time.Time // used by rarely
}

func newLogger(fd int, minLevel level) *logger {
	if fd >= 0 {
		// A blocking write would stop the processing of network maps while the reader sleeps.
		if err := unix.SetNonblock(fd, true); err != nil {
			unix.Close(fd)
			fd = -1
		}
	}
	if fd < 0 {
		minLevel = levelOff
	}
	return &logger{minLevel: minLevel, fd: fd}
}

func (l *logger) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd >= 0 {
		unix.Close(l.fd)
		l.fd = -1
	}
}

func (l *logger) enabled(lv level) bool { return lv >= l.minLevel && l.minLevel != levelOff }

func (l *logger) printf(lv level, format string, args ...any) {
	if l.enabled(lv) {
		l.print(lv, fmt.Sprintf(format, args...))
	}
}

// printfLimited is printf at most once in ten seconds for each format, for events that a peer can
// cause again and again.
func (l *logger) printfLimited(lv level, format string, args ...any) {
	if !l.enabled(lv) {
		return
	}
	now := time.Now()
	l.mu.Lock()
	if l.lastPrinted == nil {
		l.lastPrinted = make(map[string]time.Time)
	}
	wait := now.Sub(l.lastPrinted[format]) < 10*time.Second
	if !wait {
		l.lastPrinted[format] = now
	}
	l.mu.Unlock()
	if !wait {
		l.printf(lv, format, args...)
	}
}

func (l *logger) print(lv level, msg string) {
	msg = truncate(strings.TrimRight(msg, "\n"), maxLine)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd < 0 {
		return
	}
	line := l.render(lv, msg)
	for len(line) > maxLine {
		// Escapes may have made the line longer than the text; halving ends after a few rounds.
		msg = truncate(msg, min(len(msg)/2, maxLine*3/4))
		line = l.render(lv, msg)
	}
	for {
		n, err := unix.Write(l.fd, line)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n != len(line) {
			l.dropped++
		} else {
			l.dropped = 0
		}
		return
	}
}

func (l *logger) render(lv level, msg string) []byte {
	b, _ := json.Marshal(struct {
		Level   string `json:"level"`
		Msg     string `json:"msg"`
		Dropped uint64 `json:"dropped,omitempty"`
	}{lv.String(), msg, l.dropped})
	return append(b, '\n')
}

// backendf takes the log lines of tsnet's internals. They are written for its developers: plain
// ones become debug lines here, those marked as verbose trace lines.
func (l *logger) backendf(format string, args ...any) {
	lv := levelDebug
	switch {
	case strings.Contains(format[:min(len(format), 24)], "[v"): // perhaps after a prefix such as "control: "
		lv = levelTrace
	case strings.Contains(format, "[unexpected]"):
		lv = levelWarn
	}
	l.printf(lv, format, args...)
}

// userf takes the few lines that tsnet means for its user. The one with the login link also says to
// set TS_AUTHKEY, which is not how our users give a key; they get the link from the watch.
func (l *logger) userf(format string, args ...any) {
	lv := levelInfo
	if strings.HasPrefix(format, "To start this tsnet server") || strings.HasPrefix(format, "AuthLoop") {
		lv = levelDebug
	}
	l.printf(lv, format, args...)
}
