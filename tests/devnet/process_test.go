// The program as others start it, through scripts/devnet: the ready line, what
// listens where, and that it ends with its parent and leaves nothing.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const script = "../../scripts/devnet"

// buildOnce builds the program once, so that start times are those of later runs.
var buildOnce = sync.OnceValue(func() error {
	out, err := exec.Command(script, "--help").CombinedOutput()
	if err != nil {
		return &exec.Error{Name: string(out), Err: err}
	}
	return nil
})

// startScript starts a command that ends up as devnet and reads its ready line.
func startScript(t *testing.T, cmd *exec.Cmd) (r ready, stderr *strings.Builder) {
	t.Helper()
	if err := buildOnce(); err != nil {
		t.Fatal(err)
	}
	tmp := t.TempDir()
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	stderr = new(strings.Builder)
	cmd.Stderr = stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	if err != nil {
		cmd.Wait()
		t.Fatalf("no ready line: %v\n%s", err, stderr)
	}
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		t.Fatalf("ready line %q: %v", line, err)
	}
	go io.Copy(io.Discard, lines)
	return r, stderr
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

// awaitEnd waits for the end of a devnet and checks that it left nothing.
func awaitEnd(t *testing.T, r ready, tmp string) {
	t.Helper()
	waitUntil(t, 5*time.Second, func() string {
		if alive(r.PID) {
			return "devnet " + strconv.Itoa(r.PID) + " lives"
		}
		return ""
	})
	if left, _ := filepath.Glob(tmp + "/*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := http.Get(r.APIURL + "/healthz"); err == nil {
		t.Error("the test API still answers")
	}
}

// tempDirOf returns where launch lets the command put its files.
func tempDirOf(cmd *exec.Cmd) string {
	dir, _ := strings.CutPrefix(cmd.Env[len(cmd.Env)-1], "TMPDIR=")
	return dir
}

func TestReadyLineAndTerm(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		cmd := exec.Command(script, "--peer", "alice=alice@example.com", "--peer", "ci=tag:ci", "--owner", "boss@example.com")
		if err := buildOnce(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		r, stderr := startScript(t, cmd)
		t.Logf("ready after %v, script and program start included", time.Since(began))
		if r.PID != cmd.Process.Pid || r.Owner != "boss@example.com" || len(r.Peers) != 2 || !strings.HasPrefix(r.AuthKey, "tskey-auth-") {
			t.Errorf("ready line: %+v", r)
		}
		for _, u := range []string{r.ControlURL, r.APIURL, r.Peers["alice"].Proxy, r.Peers["ci"].Proxy} {
			if p, err := url.Parse(u); err != nil || p.Hostname() != "127.0.0.1" || p.Port() == "" {
				t.Errorf("%q is not on 127.0.0.1", u)
			}
		}
		if open := listeners(t, r.PID); len(open) < 5 {
			t.Errorf("found only %d listeners: %v", len(open), open)
		} else {
			for _, addr := range open {
				if !strings.HasPrefix(addr, "0100007F:") {
					t.Errorf("listens on %s, which is not 127.0.0.1", addr)
				}
			}
		}
		cmd.Process.Signal(sig)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %v\n%s", sig, err, stderr)
		}
		if !strings.Contains(stderr.String(), "127.0.0.1 alone") {
			t.Errorf("stderr does not tell where it listens: %s", stderr)
		}
		awaitEnd(t, r, tempDirOf(cmd))
	}
}

// listeners returns the local addresses of a process's listening TCP sockets, as the kernel writes
// them.
func listeners(t *testing.T, pid int) (addrs []string) {
	t.Helper()
	own := map[string]bool{}
	fds, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/fd/*")
	if err != nil || len(fds) == 0 {
		t.Fatalf("cannot read the open files of %d: %v", pid, err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil {
			own[strings.TrimSuffix(strings.TrimPrefix(to, "socket:["), "]")] = true
		}
	}
	for _, table := range []string{"tcp", "tcp6"} {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/net/" + table)
		if err != nil {
			continue
		}
		for _, line := range strings.Split(string(b), "\n")[1:] {
			f := strings.Fields(line)
			if len(f) > 9 && f[3] == "0A" && own[f[9]] {
				addrs = append(addrs, f[1])
			}
		}
	}
	return addrs
}

func TestEndsWithParent(t *testing.T) {
	// The parent is killed, so it can do nothing for us.
	cmd := exec.Command("bash", "-c", script+" & wait")
	r, _ := startScript(t, cmd)
	if !alive(r.PID) || r.PID == cmd.Process.Pid {
		t.Fatalf("devnet is %d, its parent %d", r.PID, cmd.Process.Pid)
	}
	cmd.Process.Kill()
	awaitEnd(t, r, tempDirOf(cmd))
}

// The ACME server's processes have no other tie to devnet than the kernel's.
func TestACMEServerEndsWithADevnetThatIsKilled(t *testing.T) {
	cmd := exec.Command(script, "--https")
	r, _ := startScript(t, cmd)
	tmp := tempDirOf(cmd)
	pids := processesIn(tmp)
	if len(pids) != 2 {
		t.Fatalf("%d processes, want pebble and its resolver", len(pids))
	}
	for _, pid := range pids {
		for _, addr := range listeners(t, pid) {
			if !strings.HasPrefix(addr, "0100007F:") {
				t.Errorf("listens on %s, which is not 127.0.0.1", addr)
			}
		}
	}
	if r.ACME == nil {
		t.Fatalf("ready line: %+v", r)
	}
	for _, file := range []string{r.ACME.CAFile, r.ACME.RootFile} {
		if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text), "BEGIN CERTIFICATE") {
			t.Errorf("%s: %v", file, err)
		}
	}
	syscall.Kill(r.PID, syscall.SIGKILL)
	cmd.Wait()
	waitUntil(t, 5*time.Second, func() string {
		if left := processesIn(tmp); len(left) > 0 {
			return "processes " + fmt.Sprint(left) + " live"
		}
		return ""
	})
}

// processesIn returns the processes that work below a directory.
func processesIn(dir string) (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range all {
		if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, dir+"/") {
			pid, _ := strconv.Atoi(strings.Split(link, "/")[2])
			pids = append(pids, pid)
		}
	}
	return pids
}

func TestOutlivesThreadOfParent(t *testing.T) {
	// The thread that starts it ends, but not the parent process.
	cmd := exec.Command(script)
	var r ready
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with us
		defer close(done)
		r, _ = startScript(t, cmd)
	}()
	<-done
	time.Sleep(1200 * time.Millisecond) // longer than its own look at the parent
	if res, err := http.Get(r.APIURL + "/healthz"); err != nil || res.StatusCode != 200 {
		t.Fatalf("devnet ended with a thread: %v", err)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	cmd.Wait()
	awaitEnd(t, r, tempDirOf(cmd))
}

func TestParentGoneBeforeStart(t *testing.T) {
	// As if the parent had died while the script was building: the program's parent is not the one
	// that the script saw.
	first := exec.Command(script)
	r, _ := startScript(t, first)
	program, err := os.Readlink("/proc/" + strconv.Itoa(r.PID) + "/exe")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir(), parentVar+"=1")
	ended := make(chan error, 1)
	go func() { ended <- cmd.Run() }()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		cmd.Process.Kill()
		t.Error("it runs on without its parent")
	}
}

func TestWithStdin(t *testing.T) {
	cmd := exec.Command(script, "--with-parent=false", "--with-stdin")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, _ := startScript(t, cmd)
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	awaitEnd(t, r, tempDirOf(cmd))
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{"--peer", "x"}, {"--peer", "x=tag:"}, {"--owner", "no body"}, {"extra"}, {"--suffix", "."}} {
		var e *exec.ExitError
		out, err := exec.Command(script, args...).Output()
		if !asExit(err, &e) || e.ExitCode() != 1 || len(out) > 0 {
			t.Errorf("%v: %v, stdout %q", args, err, out)
		}
	}
}

func asExit(err error, e **exec.ExitError) bool {
	x, ok := err.(*exec.ExitError)
	*e = x
	return ok
}
