// Callers: nodes that make requests as ordered. A line of JSON on stdin is one order, a line on
// stdout its result.
//
//	{"op":"run", …}      requests over so many connections for so long (see run.go)
//	{"op":"hold", …}     opens connections, gets an answer on each, and keeps them open
//	{"op":"trickle", …}  opens connections whose requests are never finished
//	{"op":"release"}     closes connections that are held or trickle
//	{"op":"paths", …}    which nodes have no direct path to the server
//	{"op":"usage", …}    processor time and memory of processes
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sync"
)

// order is one line on stdin. An operation uses only the members that it needs.
type order struct {
	Op        string         `json:"op"`
	Request   request        `json:"request"`
	Conns     int            `json:"conns"`
	KeepAlive bool           `json:"keep_alive"`
	WarmUp    float64        `json:"warm_up"` // seconds
	Measure   float64        `json:"measure"` // seconds
	Watch     map[string]int `json:"watch"`   // processes by name; "server" is the one being measured
}

type callers struct {
	nodes []*node
	held  held
}

func load(args []string) error {
	flags := flag.NewFlagSet("load", flag.ContinueOnError)
	control := flags.String("control", "", "`URL` of the control server")
	api := flags.String("api", "", "`URL` of devnet's API, where auth keys are made")
	count := flags.Int("peers", 1, "how many nodes, each of another user")
	name := flags.String("name", "caller", "first part of their names")
	if err := parse(flags, args); err != nil {
		return err
	}
	c, err := gather(*control, *api, *name, *count)
	if err != nil {
		return err
	}
	defer c.close()
	if err := say(c.who()); err != nil {
		return err
	}
	orders := bufio.NewScanner(os.Stdin)
	orders.Buffer(nil, 1<<20)
	for orders.Scan() {
		var o order
		if err := json.Unmarshal(orders.Bytes(), &o); err != nil {
			return fmt.Errorf("not an order: %w", err)
		}
		result, err := c.do(o)
		if err != nil {
			result = map[string]string{"error": err.Error()}
		}
		if err := say(result); err != nil {
			return err
		}
	}
	return orders.Err()
}

func gather(control, api, name string, count int) (*callers, error) {
	c := &callers{nodes: make([]*node, count)}
	errs := make([]error, count)
	var all sync.WaitGroup
	for i := range count {
		all.Go(func() {
			host := fmt.Sprintf("%s-%d", name, i)
			var key string
			if key, errs[i] = keyOf(api, host+"@example.com"); errs[i] == nil {
				c.nodes[i], errs[i] = join(control, key, host)
			}
		})
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *callers) close() {
	c.held.release()
	var all sync.WaitGroup
	for _, n := range c.nodes {
		all.Go(n.close)
	}
	all.Wait()
}

// who returns the callers' addresses and logins.
func (c *callers) who() any {
	type caller struct {
		IP    string `json:"ip"`
		Login string `json:"login"`
	}
	var all []caller
	for _, n := range c.nodes {
		all = append(all, caller{n.ip.String(), n.name + "@example.com"})
	}
	return map[string]any{"callers": all}
}

func (c *callers) do(o order) (any, error) {
	switch o.Op {
	case "run":
		return c.run(o)
	case "hold":
		return c.hold(o)
	case "trickle":
		return c.trickle(o)
	case "release":
		c.held.release()
		return map[string]any{}, nil
	case "paths":
		return c.paths(o)
	case "usage":
		return usages(o.Watch)
	default:
		return nil, fmt.Errorf("no such operation: %q", o.Op)
	}
}

func usages(watch map[string]int) (any, error) {
	type record struct {
		CPU  float64 `json:"cpu"`
		RSS  int64   `json:"rss_kib"`
		Peak int64   `json:"peak_kib"`
	}
	all := map[string]record{}
	for name, pid := range watch {
		u, err := readUsage(pid)
		if err != nil {
			return nil, err
		}
		all[name] = record{u.cpu, u.rss, u.peak}
	}
	return all, nil
}
