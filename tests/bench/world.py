"""The processes of a run: a tailnet on loopback, servers on it, callers, and what servers talk to.

Each is started when first asked for and ended with the world. If one ends early the run ends, with
its log.
"""

import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
MANY = 16

# For servers being measured: no rate limit for a peer or caller, and idle connections stay open.
LIMITS = {"TB_SERVER_LIMITS_REQUESTRATE": "0", "TB_SERVER_LIMITS_CALLERRATE": "0", "TB_SERVER_LIMITS_HEADERTIME": "10m"}


class Failed(Exception):
    """The run cannot go on."""


class World:
    def __init__(self, programs, peers=0):
        self.programs, self.peers = programs, peers
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="tailbone-bench."))
        self.processes, self.servers, self.loads = {}, {}, {}
        self.numbers = 0

    def __enter__(self):
        # The tailnet's owner does not call.
        self.devnet = self.json_process(
            "devnet", [ROOT / "scripts/devnet", "--with-stdin", "--https", "--funnel", "--peer", "alice=alice@example.com"])
        acme = self.devnet["acme"]
        self.acme = {"TS_DEBUG_ACME_DIRECTORY_URL": acme["directory"], "SSL_CERT_FILE": acme["ca_file"]}
        if self.peers:
            self.api("POST", "/crowd", {"count": self.peers})
        return self

    def __exit__(self, *_):
        # The devnet is ended last, since nodes log out from it.
        for process in reversed(self.processes.values()):
            end(process)
        shutil.rmtree(self.work, ignore_errors=True)

    def load(self, name):
        """Callers: "one" of them, "many", or a "new" one. What a caller has dialled stays in its
        netstack for a minute, and thousands of connections slow it down until they are all that is
        measured.
        """
        if name == "new" and name in self.loads:
            load = self.loads.pop(name)
            process = self.processes.pop(load.name)
            # It would wait for each of its connections.
            process.kill()
            process.wait()
            for server in self.servers.values():
                server.reached.discard(load.name)
        if name not in self.loads:
            count = MANY if name == "many" else 1
            arguments = ["load", "--control", self.devnet["control_url"], "--api", self.devnet["api_url"],
                         "--peers", str(count), "--name", f"caller-{name}"]
            self.loads[name] = Load(self, f"load-{name}", arguments)
        return self.loads[name]

    def stub(self):
        if "stub" not in self.processes:
            self.stub_says = self.json_process("stub", [self.programs["bench"], "stub"])
        return self.stub_says

    def floor(self, name, whois=False, environment=None, tls=False):
        if name not in self.servers:
            command = [self.programs["bench"], "floor", "--control", self.devnet["control_url"],
                       "--key", self.devnet["auth_key"], "--hostname", name] + ["--whois"] * whois + ["--tls"] * tls
            said = self.json_process(name, command, self.acme | (environment or {}))
            self.servers[name] = Server(name, self.processes[name], said["ip"], None)
        return self.servers[name]

    def tailbone(self, name, environment, binary=None, prepare=None, until=b" listening "):
        """The program under test, in its own folder, which `prepare` may fill and which is kept."""
        if name not in self.servers:
            folder = self.work / name
            if not folder.exists():
                folder.mkdir()
                if prepare:
                    prepare(folder)
            environment = LIMITS | self.acme | {
                "TB_SERVER_TAILSCALE_AUTHKEY": self.devnet["auth_key"],
                "TB_SERVER_TAILSCALE_CONTROLURL": self.devnet["control_url"],
                "TB_SERVER_TAILSCALE_HOSTNAME": name,
            } | environment
            log = folder / "log"
            began = time.monotonic()
            self.processes[name] = subprocess.Popen(
                # It does not watch stdin, so the kernel ends it if this process is killed.
                ["setpriv", "--pdeathsig", "TERM", binary or self.programs["tailbone"], "server", "start"],
                cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log.open("wb"), stderr=subprocess.STDOUT)
            said = wait_for_line(self.processes[name], log, until)
            listening = time.monotonic() - began
            if not said:
                raise Failed(f"{name} ended:\n{log.read_text()}")
            self.servers[name] = Server(name, self.processes[name], self.node(name)["ip"], listening)
        return self.servers[name]

    def fresh(self, name):
        """A name that no node has had yet."""
        self.numbers += 1
        return f"{name}-{self.numbers}"

    def stop(self, server):
        end(self.processes.pop(server.name))
        del self.servers[server.name]

    def forget(self, server):
        """Stops it and removes its node, so that the tailnet is as small as before."""
        self.stop(server)
        self.api("DELETE", f"/nodes/{server.name}")

    def node(self, name):
        return self.api("GET", f"/nodes/{name}")

    def resets(self, server, addr, seconds):
        """Alice opens connections one by one and resets each as soon as it is established."""
        order = {"to": server.name, "port": int(addr.rpartition(":")[2]), "at_once": 1, "for_ms": round(seconds * 1000)}
        return self.api("POST", "/peers/alice/resets", order)

    def api(self, method, path, body=None):
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(self.devnet["api_url"] + path, data, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def json_process(self, name, command, environment=None):
        """Starts a program that prints one line of JSON when it is ready."""
        log = self.work / f"{name}.log"
        # The files it leaves if it is killed are removed with the world.
        process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=log.open("wb"), text=True, env=os.environ | {"TMPDIR": str(self.work)} | (environment or {}))
        self.processes[name] = process
        line = process.stdout.readline()
        if not line:
            raise Failed(f"{name} did not start:\n{log.read_text()}")
        return json.loads(line)

    def watch(self, server, load):
        """All our processes, so that any other load is that of somebody else."""
        pids = {name: process.pid for name, process in self.processes.items()
                if name not in (server.name, load.name)}
        return pids | {"server": server.pid}


class Server:
    def __init__(self, name, process, ip, listening):
        self.name, self.pid, self.ip, self.listening = name, process.pid, ip, listening
        self.reached = set()


class Load:
    """Callers in their own process, controlled by lines of JSON."""

    def __init__(self, world, name, arguments):
        self.world, self.name = world, name
        self.callers = world.json_process(name, [world.programs["bench"], *arguments])["callers"]
        self.process = world.processes[name]

    def order(self, **order):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise Failed(f"{self.name} ended:\n{(self.world.work / (self.name + '.log')).read_text()}")
        result = json.loads(line)
        if "error" in result:
            raise Failed(f"{self.name}, {order['op']}: {result['error']}")
        return result

    def run(self, server, request, conns, keep_alive=True, warm_up=0.5, measure=2.5):
        self.reach(server, request)
        return self.order(op="run", request=request, conns=conns, keep_alive=keep_alive, warm_up=warm_up,
                          measure=measure, watch=self.world.watch(server, self))

    def reach(self, server, request):
        """Ensures a direct path and an answer for each node before anything is measured."""
        if self.name in server.reached:
            return
        give_up = time.monotonic() + 30
        while not request.get("outside") and (relayed := self.order(op="paths", request=request)["relayed"]):
            if time.monotonic() > give_up:
                raise Failed(f"{self.name} has no direct way to {server.name}: {'; '.join(relayed)}")
        opened = self.order(op="hold", request=request, conns=len(self.callers))
        self.order(op="release")
        if opened["open"] != len(self.callers):
            raise Failed(f"{self.name} gets no answer from {server.name}: {opened}")
        server.reached.add(self.name)

    def usage(self, server):
        return self.order(op="usage", watch={"server": server.pid})["server"]


def wait_for_line(process, log, words):
    while process.poll() is None:
        if words in log.read_bytes():
            return True
        time.sleep(0.002)
    return False


def end(process):
    if process.poll() is None:
        if process.stdin:
            process.stdin.close()
        else:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout:
        process.stdout.close()


def most_connections():
    """How many connections the program accepts (src/server/live_settings.rs)."""
    return (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 100) // 4 - 32
