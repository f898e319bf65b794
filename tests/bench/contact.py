"""First contact: what callers see that dial all the time, from before the server's process starts.

    contact.py BINARY [--runs 40] [--uid 65532] [--peers 1]
               [--state cold | warm | killed | moved | newcomer]
               [--callers 1] [--tailscaled PROGRAM] [--delay 0]

Each caller begins 20 ms after the end of its last call, and gives a call up after 3 s. Each run has
a new host name. Cold: the callers begin before the first start on an empty state folder. Warm and
killed: they call the first process, which is ended by TERM or KILL, and go on while a second one
starts on its folder. Moved: as warm, and the second process has another UDP port, as in a container
that is replaced. Newcomer: the server runs, and in each run a peer joins and calls it at once, as a
job in a container does; its times count from the end of its join. The callers are peers of a devnet
with the given number of peers. With --tailscaled each caller is a real tailscaled in userspace mode
beside them. With --delay a packet takes that many milliseconds from node to node. A call whose
request the killed process had taken waits for the caller's limit, since nobody is left to answer or
to reset it; such callers are left out of their run and counted (open_at_kill). Prints one JSON
object; times are milliseconds from the start of the (second) process, or of the newcomer.
"""

import argparse
import contextlib
import json
import math
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import starts
from world import ROOT, Failed, end

PAUSE = 0.02
# A caller gives a call up after this many seconds.
LIMIT = 3
# A caller without a token after this many seconds is taken to get none.
LONGEST = 20


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--uid", type=int)
    parser.add_argument("--state", choices=("cold", "warm", "killed", "moved", "newcomer"), default="cold")
    parser.add_argument("--peers", type=int, default=1)
    parser.add_argument("--callers", type=int, default=1)
    parser.add_argument("--tailscaled", type=pathlib.Path)
    parser.add_argument("--delay", type=int, default=0)
    options = parser.parse_args()
    try:
        print(json.dumps(measure(options.binary, options.runs, options.uid, options.state, options.peers, options.callers,
                                 options.tailscaled, options.delay)))
    except Failed as failure:
        sys.exit(f"error: {failure}")


def measure(binary, count, uid, state, peers, callers, tailscaled=None, delay=0):
    with contextlib.ExitStack() as stack:
        tailnet = devnet(stack, max(peers, 0 if tailscaled else callers), delay)
        if tailscaled:
            proxies = [real_caller(stack, tailscaled, tailnet, number) for number in range(callers)]
        else:
            proxies = [peer["proxy"] for _, peer in sorted(tailnet["peers"].items())][:callers]
        if state == "newcomer":
            runs = newcomers(stack, binary, tailnet, count, uid)
        else:
            runs = [one(binary, tailnet, proxies, number, uid, state) for number in range(count)]
    firsts = sorted(max(run["first_ms"]) for run in runs)
    return {"uid": os.getuid() if uid is None else uid, "state": state, "peers": peers, "callers": callers, "delay": delay,
            "tailscaled": bool(tailscaled), "runs": runs, "first_ms": spread(firsts),
            "longest_call_ms": max(run["longest_call_ms"] for run in runs),
            "open_at_kill": sum(run["open_at_kill"] for run in runs)}


def spread(values):
    """Of the slowest caller of each run. Of 40 runs, 38 are at or below p95 and 36 below p90."""
    def at(share):
        return values[math.ceil(len(values) * share) - 1]

    return {"median": statistics.median(values), "min": values[0], "p90": at(0.9), "p95": at(0.95), "max": values[-1]}


def devnet(stack, peers, delay):
    command = [ROOT / "scripts/devnet", "--with-stdin", f"--delay={delay}ms",
               *(f"--peer=peer{number:02}=user{number:02}@example.com" for number in range(peers))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    stack.callback(end, process)
    line = process.stdout.readline()
    if not line:
        raise Failed("the test tailnet did not start")
    # All nodes must use the relay, since the delay is added there.
    return json.loads(line) | {"environment": {"TS_DEBUG_NEVER_DIRECT_UDP": "true"} if delay else {}}


def real_caller(stack, program, tailnet, number):
    """A tailscaled without a network device; returns its SOCKS5 proxy."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tailbone-caller."))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    name = f"real{number}"
    config = folder / "config"
    config.write_text(json.dumps({"version": "alpha0", "ServerURL": tailnet["control_url"], "AuthKey": tailnet["auth_key"],
                                  "Hostname": name, "Enabled": True}), encoding="ascii")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = (folder / "log").open("wb")
    process = subprocess.Popen([program, "--tun=userspace-networking", f"--socks5-server=127.0.0.1:{port}", f"--statedir={folder}",
                                f"--socket={folder}/socket", f"--config={config}", "--port=0", "--no-logs-no-support"],
                               env=os.environ | tailnet["environment"], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    stack.callback(end, process)
    for _ in range(LONGEST * 10):
        if process.poll() is not None:
            raise Failed("tailscaled ended:\n" + (folder / "log").read_text(errors="replace")[-2000:])
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{tailnet['api_url']}/nodes/{name}", timeout=20) as node:
            if json.load(node)["online"]:
                return f"socks5h://127.0.0.1:{port}"
        time.sleep(0.1)
    raise Failed("tailscaled did not join:\n" + (folder / "log").read_text(errors="replace")[-2000:])


class Caller:
    """Calls until it is stopped. Records when each call began and ended, and if it got a token."""

    def __init__(self, proxy, host):
        self.proxy, self.host = proxy, host
        self.calls, self.stopped = [], threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.stopped.is_set():
            began, token = time.monotonic(), False
            with contextlib.suppress(OSError, Failed):
                answer = starts.post(self.proxy, self.host, 80, "/issue", LIMIT)
                token = answer is not None and b" 200 " in answer.split(b"\r\n", 1)[0]
            self.calls.append((began, time.monotonic(), token))
            self.stopped.wait(PAUSE)

    def lost(self, at):
        """Whether a call was open at that time and never answered: nothing tells the caller that
        its server is gone."""
        return any(began < at < ended and not token for began, ended, token in self.calls)

    def first(self, since):
        """When the first token after `since` came."""
        return next((ended for _, ended, token in self.calls if token and ended >= since), None)

    def stop(self):
        self.stopped.set()
        self.thread.join(LIMIT + 1)


def one(binary, tailnet, proxies, number, uid, state):
    folder = tempfile.mkdtemp(prefix="tailbone-contact.")
    if uid is not None:
        os.chown(folder, uid, uid)
    host = f"contact-{os.getpid()}-{state}-{number}"
    callers, server = [], None
    try:
        if state == "cold":
            callers = [Caller(proxy, host) for proxy in proxies]
        else:
            server = starts.launch(binary, tailnet, folder, host, uid)
            callers = [Caller(proxy, host) for proxy in proxies]
            until_all(callers, 0)
            stopped = time.monotonic()
            starts.stop(server, signal.SIGKILL if state == "killed" else signal.SIGTERM)
        if state == "moved":
            forget_port(folder)
        began = time.monotonic()
        server = starts.launch(binary, tailnet, folder, host, uid)
        until_all(callers, began)
        time.sleep(0.2)
    finally:
        for caller in callers:
            caller.stop()
        if server:
            starts.stop(server, signal.SIGTERM)
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):
            api(tailnet, "DELETE", f"/nodes/{host}")
    # A request that the killed process had taken waits for the caller's own limit, whatever comes
    # after.
    open_calls = 0
    if state == "killed":
        waiting = [caller for caller in callers if not caller.lost(stopped)]
        open_calls, callers = len(callers) - len(waiting), waiting or callers
    longest = max(ended - max(since, began) for caller in callers for since, ended, _ in caller.calls if ended >= began)
    return {"first_ms": [round((caller.first(began) - began) * 1000, 1) for caller in callers],
            "longest_call_ms": round(longest * 1000, 1), "open_at_kill": open_calls}


def newcomers(stack, binary, tailnet, count, uid):
    folder = tempfile.mkdtemp(prefix="tailbone-contact.")
    stack.callback(shutil.rmtree, folder)
    if uid is not None:
        os.chown(folder, uid, uid)
    host = f"contact-{os.getpid()}-newcomer"
    server = starts.launch(binary, tailnet, folder, host, uid)
    stack.callback(starts.stop, server, signal.SIGTERM)
    caller = Caller(tailnet["peers"]["peer00"]["proxy"], host)
    until_all([caller], 0)
    caller.stop()
    return [newcomer(tailnet, host, f"newcomer{number:02}") for number in range(count)]


def newcomer(tailnet, host, name):
    peer = api(tailnet, "POST", "/peers", {"name": name, "login": f"{name}@example.com"})
    began = time.monotonic()
    caller = Caller(peer["proxy"], host)
    try:
        until_all([caller], began)
    finally:
        caller.stop()
        api(tailnet, "DELETE", f"/peers/{name}")
    longest = max(ended - since for since, ended, _ in caller.calls)
    return {"first_ms": [round((caller.first(began) - began) * 1000, 1)], "longest_call_ms": round(longest * 1000, 1), "open_at_kill": 0}


def api(tailnet, method, path, body=None):
    request = urllib.request.Request(tailnet["api_url"] + path, method=method, data=None if body is None else json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read() or b"null")


def forget_port(folder):
    path = pathlib.Path(folder) / ".tsnet/tailscaled.state"
    kept = json.loads(path.read_text(encoding="ascii"))
    del kept["_tailbone-udp-port"]
    path.write_text(json.dumps(kept), encoding="ascii")


def until_all(callers, since):
    until = time.monotonic() + LONGEST
    while any(caller.first(since) is None for caller in callers):
        if time.monotonic() > until:
            raise Failed("a caller never got a token")
        time.sleep(0.005)


if __name__ == "__main__":
    main()
