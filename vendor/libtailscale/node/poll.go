package node

import "time"

// pollUntil calls done after each step until it returns true or the limit is over.
func pollUntil(limit, step time.Duration, done func() bool) {
	for end := time.Now().Add(limit); !done() && time.Now().Before(end); {
		time.Sleep(step)
	}
}
