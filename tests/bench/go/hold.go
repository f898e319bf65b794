// Connections that stay open: idle ones after a request, and slow ones whose request never ends.
package main

import (
	"fmt"
	"sync"
	"time"
)

// held are the connections kept open until they are released.
type held struct {
	mu    sync.Mutex
	conns []*conn
	stop  chan struct{}
	all   sync.WaitGroup
}

func (h *held) add(c *conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns = append(h.conns, c)
}

func (h *held) release() {
	h.mu.Lock()
	if h.stop != nil {
		close(h.stop)
		h.stop = nil
	}
	for _, c := range h.conns {
		c.Close()
	}
	h.conns = nil
	h.mu.Unlock()
	h.all.Wait()
}

// opening is how many connections are opened at once.
const opening = 32

// hold opens connections and gets an answer on each.
func (c *callers) hold(o order) (any, error) {
	bytes := o.Request.bytes()
	return c.open(o, func(conn *conn) error {
		conn.SetDeadline(time.Now().Add(patience))
		status, _, err := conn.ask(bytes)
		if err == nil && status != o.Request.Expect {
			err = fmt.Errorf("status %d", status)
		}
		if err == nil {
			// The reader's buffer is this side's cost, which is not measured.
			conn.in = nil
			err = conn.SetDeadline(time.Time{})
		}
		return err
	})
}

// trickle opens connections that send one header line each second and never the end of the head.
func (c *callers) trickle(o order) (any, error) {
	stop := make(chan struct{})
	c.held.mu.Lock()
	c.held.stop = stop
	c.held.mu.Unlock()
	head := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\n", o.Request.Method, o.Request.Path, o.Request.Addr)
	return c.open(o, func(conn *conn) error {
		_, err := conn.Write([]byte(head))
		c.held.all.Go(func() {
			for line := 0; ; line++ {
				select {
				case <-stop:
					return
				case <-time.After(time.Second):
				}
				if _, err := fmt.Fprintf(conn, "x-%d: slow\r\n", line); err != nil {
					return
				}
			}
		})
		return err
	})
}

// open makes the connections, and returns how many there are.
func (c *callers) open(o order, first func(*conn) error) (any, error) {
	var (
		all     sync.WaitGroup
		mu      sync.Mutex
		failure error
		done    int
	)
	places := make(chan struct{}, opening)
	for i := range o.Conns {
		n := c.nodes[i%len(c.nodes)]
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			conn, err := n.connect(o.Request)
			if err == nil {
				c.held.add(conn)
				err = first(conn)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failure = err
				return
			}
			done++
		})
	}
	all.Wait()
	if done == 0 && failure != nil {
		return nil, failure
	}
	result := map[string]any{"open": done}
	if failure != nil {
		result["failure"] = failure.Error()
	}
	return result, nil
}
