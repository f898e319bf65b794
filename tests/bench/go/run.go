// One run: requests over so many connections, spread over the nodes, and what they cost.
//
// Every request that ends within the measured time counts, even if it began before. With slow
// answers on many connections a large share of the requests spans one end of that time; as many are
// cut off at the other.
package main

import (
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// outcome is the result of a run.
type outcome struct {
	Requests  int                `json:"requests"`
	Errors    int                `json:"errors"`
	Why       map[string]int     `json:"why,omitempty"`
	Bytes     int                `json:"bytes"` // of the last answer's body
	Seconds   float64            `json:"seconds"`
	PerSecond float64            `json:"per_second"`
	P50       float64            `json:"p50_ms"`
	P99       float64            `json:"p99_ms"`
	Most      float64            `json:"max_ms"`
	CPU       map[string]float64 `json:"cpu"` // seconds, by process; "load" is this one
	Foreign   float64            `json:"foreign_cores"`
	Steal     float64            `json:"steal_cores"`
	Switches  int64              `json:"switches"` // of the server
	RSS       int64              `json:"rss_kib"`  // of the server, at the end
	Peak      int64              `json:"peak_kib"` // of the server, within the run
}

// worker is the state of one connection.
type worker struct {
	times  []time.Duration
	errors map[string]int
	bytes  int
}

func (c *callers) run(o order) (any, error) {
	if o.Conns < 1 || o.Measure <= 0 {
		return nil, fmt.Errorf("a run needs conns and measure")
	}
	server := o.Watch["server"]
	if server == 0 {
		return nil, fmt.Errorf("a run needs the server's process")
	}
	var measuring, stop atomic.Bool
	workers := make([]worker, o.Conns)
	bytes := o.Request.bytes()
	var all sync.WaitGroup
	for i := range workers {
		n := c.nodes[i%len(c.nodes)]
		all.Go(func() { workers[i].work(n, o, bytes, &measuring, &stop) })
	}
	time.Sleep(seconds(o.WarmUp))
	if err := forgetPeak(server); err != nil {
		fmt.Fprintln(os.Stderr, "the peak of memory is that since the start:", err)
	}
	before, err := look(o.Watch)
	if err == nil {
		measuring.Store(true)
		began := time.Now()
		time.Sleep(seconds(o.Measure))
		measuring.Store(false)
		took := time.Since(began).Seconds()
		var after picture
		if after, err = look(o.Watch); err == nil {
			stop.Store(true)
			all.Wait()
			return sum(workers, before, after, took), nil
		}
	}
	stop.Store(true)
	all.Wait()
	return nil, err
}

func (w *worker) work(n *node, o order, bytes []byte, measuring, stop *atomic.Bool) {
	w.errors = map[string]int{}
	var c *conn
	defer func() {
		if c != nil {
			c.Close()
		}
	}()
	for !stop.Load() {
		began := time.Now()
		length, err := w.once(n, o, bytes, &c)
		took := time.Since(began)
		if err != nil {
			// Do not hammer a target that fails.
			time.Sleep(time.Millisecond)
		}
		if !measuring.Load() {
			continue
		}
		if err != nil {
			w.errors[err.Error()]++
			continue
		}
		w.bytes = length
		w.times = append(w.times, took)
	}
}

// once makes one request, on the existing connection or on a new one.
func (w *worker) once(n *node, o order, bytes []byte, c **conn) (length int, err error) {
	if *c == nil {
		if *c, err = n.connect(o.Request); err != nil {
			return 0, err
		}
	}
	(*c).SetDeadline(time.Now().Add(patience))
	status, length, err := (*c).ask(bytes)
	if err == nil && status != o.Request.Expect {
		err = fmt.Errorf("status %d", status)
	}
	if err != nil || !o.KeepAlive {
		// The caller closes first. Otherwise the floor's netstack keeps the pair of ports in
		// TIME_WAIT, where it drops a SYN from the same port instead of accepting a new connection.
		// Callers pick ports at random, so after some hundred connections one of them would wait.
		// (Our own node ends such an endpoint, see time_wait.go.)
		(*c).Close()
		*c = nil
	}
	return length, err
}

// picture is the state of machine and processes at one moment.
type picture struct {
	machine   machine
	processes map[string]usage
}

func look(watch map[string]int) (p picture, err error) {
	p.processes = map[string]usage{}
	if p.machine, err = readMachine(); err != nil {
		return p, err
	}
	for name, pid := range watch {
		if p.processes[name], err = readUsage(pid); err != nil {
			return p, err
		}
	}
	p.processes["load"], err = readUsage(os.Getpid())
	return p, err
}

func sum(workers []worker, before, after picture, took float64) outcome {
	out := outcome{Seconds: took, CPU: map[string]float64{}, Why: map[string]int{}}
	var times []time.Duration
	for _, w := range workers {
		times = append(times, w.times...)
		out.Bytes = max(out.Bytes, w.bytes)
		for why, count := range w.errors {
			out.Why[why] += count
			out.Errors += count
		}
	}
	slices.Sort(times)
	out.Requests = len(times)
	out.PerSecond = float64(len(times)) / took
	out.P50, out.P99, out.Most = at(times, 0.50), at(times, 0.99), at(times, 1)
	var known float64
	for name := range after.processes {
		used := after.processes[name].cpu - before.processes[name].cpu
		out.CPU[name] = used
		known += used
	}
	out.Foreign = max(0, after.machine.busy-before.machine.busy-known) / took
	out.Steal = (after.machine.steal - before.machine.steal) / took
	server := after.processes["server"]
	out.Switches = server.switches - before.processes["server"].switches
	out.RSS, out.Peak = server.rss, server.peak
	return out
}

// at returns the value in milliseconds below which the given share of the sorted times lies.
func at(times []time.Duration, share float64) float64 {
	if len(times) == 0 {
		return 0
	}
	place := min(int(float64(len(times))*share), len(times)-1)
	return float64(times[place].Nanoseconds()) / 1e6
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
