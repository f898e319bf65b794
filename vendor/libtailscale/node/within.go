package node

import "time"

// within calls done after each step until it returns true or the limit is over.
func within(limit, step time.Duration, done func() bool) {
	for end := time.Now().Add(limit); !done() && time.Now().Before(end); {
		time.Sleep(step)
	}
}
