package node

import "time"

// within looks again after each step until it is done, or until the limit is over.
func within(limit, step time.Duration, done func() bool) {
	for end := time.Now().Add(limit); !done() && time.Now().Before(end); {
		time.Sleep(step)
	}
}
