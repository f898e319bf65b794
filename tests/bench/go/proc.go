// What the kernel counts: processor time, memory and context switches of processes, and the load of
// the whole machine.
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// tick is the kernel's unit of processor time in /proc, in seconds (USER_HZ is 100 on every Linux
// that Go runs on).
const tick = 0.01

// machine is processor time since boot in seconds, over all cores.
type machine struct{ busy, steal float64 }

func readMachine() (m machine, err error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return m, err
	}
	line, _, _ := bytes.Cut(text, []byte("\n"))
	fields := strings.Fields(string(line))
	if len(fields) < 9 || fields[0] != "cpu" {
		return m, fmt.Errorf("/proc/stat begins with %q", line)
	}
	at := func(i int) float64 {
		ticks, _ := strconv.ParseFloat(fields[i], 64)
		return ticks * tick
	}
	// user, nice, system, irq, softirq. idle and iowait are not work.
	m.busy = at(1) + at(2) + at(3) + at(6) + at(7)
	m.steal = at(8)
	return m, nil
}

// usage is what a process has used since it began, and its current memory.
type usage struct {
	cpu      float64 // seconds
	switches int64
	rss      int64 // KiB
	peak     int64 // KiB, since the last forgetPeak
}

func readUsage(pid int) (u usage, err error) {
	folder := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(folder + "/stat")
	if err != nil {
		return u, err
	}
	// The name in parentheses may contain anything.
	_, rest, _ := strings.Cut(string(stat[bytes.LastIndexByte(stat, ')'):]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return u, fmt.Errorf("%s/stat is cut", folder)
	}
	for _, field := range fields[11:13] {
		ticks, _ := strconv.ParseFloat(field, 64)
		u.cpu += ticks * tick
	}
	memory, err := numbers(folder + "/status")
	if err != nil {
		return u, err
	}
	u.rss, u.peak = memory["VmRSS"], memory["VmHWM"]
	threads, err := filepath.Glob(folder + "/task/*/status")
	if err != nil {
		return u, err
	}
	for _, thread := range threads {
		// The counts of a thread that has just ended are gone.
		if counts, err := numbers(thread); err == nil {
			u.switches += counts["voluntary_ctxt_switches"] + counts["nonvoluntary_ctxt_switches"]
		}
	}
	return u, nil
}

// forgetPeak resets VmHWM to what is resident now.
func forgetPeak(pid int) error {
	return os.WriteFile("/proc/"+strconv.Itoa(pid)+"/clear_refs", []byte("5"), 0)
}

// numbers parses lines of the form "Name:  number …".
func numbers(path string) (map[string]int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	found := map[string]int64{}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		if fields := strings.Fields(value); len(fields) > 0 {
			if number, err := strconv.ParseInt(fields[0], 10, 64); err == nil {
				found[name] = number
			}
		}
	}
	return found, nil
}
