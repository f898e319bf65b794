"""What is measured, as a list of experiments.

Each has a name and runs once per round, all in turn, so that changes of the machine affect all of
them alike.

Names: load/TARGET/CELL, idle/TARGET, after/TARGET, tokens/TARGET, keys/N, rules/N, policies/N,
slow/TARGET, resets/TARGET, peers/N, sign, start/STATE/UID, contact/STATE/PEERS,
contact/STATE/real, size.
"""

import collections
import concurrent.futures
import json
import os
import subprocess
import time

import contact
import starts
from world import Failed, World, most_connections

# The length in bytes of most answers of /issue.
LONG = 600

# Connections, keep-alive, who calls.
CELLS = {
    "c1": (1, True, "one"),
    "c8": (8, True, "one"),
    "c64": (64, True, "one"),
    "new8": (8, False, "new"),
    "many64": (64, True, "many"),
    "resumed8": (8, False, "new"),
}

# In the order of the table.
FLOORS = ["floor", "floor-short", "floor-short-half", "floor-whois"]
ISSUERS = {"rs256": "RS256", "es256": "ES256", "eddsa": "EdDSA"}
# Over TLS, with certificates that devnet's ACME server issues.
TLS_FLOORS = ["tls-floor", "tls-floor-short", "tls-floor-whois"]
WORKLOAD = {"workload-es256": "ES256", "workload-rs256": "RS256"}
TLS = [*TLS_FLOORS, "tls-constant", "tls-es256", *WORKLOAD, "tls-jwks", "funnel-jwks"]
TARGETS = [*FLOORS, "constant", "constant-all", *ISSUERS, "gate", "proxy", "sts", *TLS]
# With GOMAXPROCS as the other side has it.
PROCESSORS = ["floor-short-half", "constant-all"]
CORES = len(os.sched_getaffinity(0))
# Targets for which the caller matters: the constant asks for no identity, and the exchange gets it
# in the request.
WITH_MANY = ["floor", "floor-whois", *ISSUERS, "gate"]

# Numbers of invented peers of the tailnet, and the targets measured there with a new connection for
# each request.
PEERS = [0, 1_000, 10_000]
AMONG_PEERS = ["floor", "floor-whois", "constant", "es256", "gate"]

IDLE = [100, 1_000, 10_000]
SLOW = 1_000
# Tokens that one server issues while its memory is watched, and how often that is read.
TOKENS, TOKENS_STEP = 1_000_000, 100_000
# What is asked for there costs about as much as the floor's: the listener is measured, and an
# exchange verifies an RSA signature and calls another server.
RESETS = ["floor", "floor-whois", "es256", "gate", "sts-health", "admin"]
# Seconds of quiet before memory is measured.
AFTER = 3


class Experiment:
    def __init__(self, name, run, once=False):
        self.name, self.run, self.once = name, run, once


def experiments(world, options):
    plan = Plan(world, options)
    found = [Experiment("size", plan.size, once=True), Experiment("sign", plan.sign)]
    for cell in CELLS:
        for target in [*TARGETS, *plan.before]:
            if plan.has(target, cell):
                found.append(Experiment(f"load/{target}/{cell}", lambda target=target, cell=cell: plan.load(target, cell)))
    for target in ("floor", "es256"):
        found.append(Experiment(f"slow/{target}", lambda target=target: plan.slow(target)))
    for target in RESETS:
        found.append(Experiment(f"resets/{target}", lambda target=target: plan.resets(target)))
    for count in (1, 1_000):
        found.append(Experiment(f"keys/{count}", lambda count=count: plan.keys(count)))
        found.append(Experiment(f"rules/{count}", lambda count=count: plan.rules(count)))
        found.append(Experiment(f"policies/{count}", lambda count=count: plan.policies(count)))
    found += [Experiment(f"peers/{count}", lambda count=count: plan.peers(count)) for count in PEERS]
    for target in ("floor", "es256", "tls-floor", "tls-es256"):
        found.append(Experiment(f"idle/{target}", lambda target=target: plan.idle(target)))
    for target in ("floor", "es256"):
        found.append(Experiment(f"after/{target}", lambda target=target: plan.after(target)))
    found.append(Experiment("tokens/workload-es256", lambda: plan.tokens("workload-es256"), once=True))
    for state in ("cold", "warm", "killed"):
        found.append(Experiment(f"start/{state}/own", lambda state=state: plan.start(state, None), once=True))
        if os.getuid() == 0:
            found.append(Experiment(f"start/{state}/65532", lambda state=state: plan.start(state, 65532), once=True))
    found.append(Experiment("start/tls/own", lambda: plan.start("tls", None), once=True))
    for peers in (1, 30):
        found.append(Experiment(f"contact/cold/{peers}", lambda peers=peers: plan.contact("cold", peers, 1), once=True))
    found.append(Experiment("contact/newcomer/1", lambda: plan.contact("newcomer", 1, 1), once=True))
    for state in ("warm", "killed", "moved"):
        for peers in (4, 30) if state != "moved" else ():
            found.append(Experiment(f"contact/{state}/{peers}", lambda state=state, peers=peers: plan.contact(state, peers, 4), once=True))
        found.append(Experiment(f"contact/{state}/real", lambda state=state: plan.contact(state, 0, 1, real=True), once=True))
    return found


class Plan:
    def __init__(self, world, options):
        self.world, self.options = world, options
        # The program before a change, measured beside the current one.
        self.before = [f"before-{name}" for name in ("constant", *ISSUERS)] if options.before else []

    def has(self, target, cell):
        return {"many64": target in WITH_MANY, "new8": target not in PROCESSORS, "resumed8": target in TLS}.get(cell, True)

    def measure(self, load, server, request, conns, keep_alive=True):
        """A run. Repeated once if other processes used the machine; the quieter one counts."""
        times = {"warm_up": self.options.warm_up, "measure": self.options.measure}
        result = load.run(server, request, conns, keep_alive, **times)
        if result["foreign_cores"] > self.options.foreign:
            again = load.run(server, request, conns, keep_alive, **times)
            result = min(result, again, key=lambda one: one["foreign_cores"]) | {"repeated": True}
        if not result["requests"]:
            raise Failed(f"no answer from {server.name}: {result}")
        return result | {"noisy": result["foreign_cores"] > self.options.foreign}

    def load(self, target, cell):
        conns, keep_alive, who = CELLS[cell]
        server, request = self.target(target)
        request = request | {"resume": cell == "resumed8"}
        return self.measure(self.world.load(who), server, request, conns, keep_alive)

    def target(self, name):
        """The running server for that target, and the request to send to it."""
        world = self.world
        if name == "floor":
            return self.constant(world.floor("floor"), LONG)
        if name == "floor-short":
            # As long as the program's own constant.
            return self.constant(world.floor("floor"), self.constant_length())
        if name == "floor-short-half":
            half = {"GOMAXPROCS": str(max(CORES // 2, 1))}
            return self.constant(world.floor("floor-half", environment=half), self.constant_length())
        if name == "floor-whois":
            return self.constant(world.floor("floor-whois", whois=True), LONG)
        if name in TLS_FLOORS:
            whois = name == "tls-floor-whois"
            length = self.constant_length() if name == "tls-floor-short" else LONG
            return self.tls_constant(world.floor("tls-floor-whois" if whois else "tls-floor", whois=whois, tls=True), length)
        if name in WORKLOAD:
            server = self.workload(name, WORKLOAD[name])
            return server, secured(workload_token(server), server, world)
        if name in TLS:
            server = self.tls_issuer("jwks" if name.endswith("-jwks") else name)
            request = {"tls-constant": get(server, 443, "/_healthz"), "tls-es256": issue(server, 443)}.get(name)
            request = secured(request or get(server, 443, "/.well-known/jwks.json"), server, world)
            if name == "funnel-jwks":
                request |= {"addr": world.devnet["funnel"]["443"], "outside": True}
            return server, request
        binary = self.options.before if name.startswith("before-") else None
        kind = name.removeprefix("before-")
        if kind in ("constant", "constant-all"):
            processors = {"GOMAXPROCS": str(CORES)} if kind == "constant-all" else {}
            server = world.tailbone(name, {"TB_KEYS_ALGORITHM": "ES256"} | processors, binary)
            return server, get(server, 80, "/_healthz")
        if kind in ISSUERS:
            server = world.tailbone(name, {"TB_KEYS_ALGORITHM": ISSUERS[kind]}, binary)
            return server, issue(server)
        if kind in ("gate", "proxy"):
            server = self.gate("gate", 1)
            return server, (decision(server, world) if kind == "gate" else get(server, 8082, f"/{LONG}"))
        server = self.exchange("sts", 1)
        return server, exchange(server, world)

    def constant(self, server, length):
        return server, get(server, 80, f"/{length}")

    def tls_constant(self, server, length):
        return server, secured(get(server, 443, f"/{length}"), server, self.world)

    def tls_issuer(self, name):
        settings = {"TB_KEYS_ALGORITHM": "ES256", "TB_SERVER_LISTEN": "tailnet+tls://:443"
                    + (",funnel://:443" if name == "jwks" else "")}
        return self.world.tailbone(name, settings, until=b" in use ")

    def workload(self, name, algorithm):
        """Gives everybody every audience, by a rule of the file."""
        return self.world.tailbone(name, {
            "TB_COMPONENTS": "workload",
            "TB_WORKLOAD_ALGORITHM": algorithm,
            "TB_WORKLOAD_POLICY": "policy.toml",
        }, prepare=lambda folder: (folder / "policy.toml").write_text(rule("all", "*")), until=b" in use ")

    def constant_length(self):
        server, request = self.target("constant")
        return self.world.load("one").run(server, request, 1, warm_up=0, measure=0.1)["bytes"]

    def gate(self, name, rules):
        world = self.world

        def prepare(folder):
            nobody = [rule(f"nobody-{n}", f"nobody-{n}@example.com") for n in range(rules - 1)]
            (folder / "policy.toml").write_text("".join([*nobody, rule("all", "*")]))

        callers = world.load("one").callers + world.load("many").callers + world.load("new").callers
        return world.tailbone(name, {
            "TB_COMPONENTS": "gate",
            "TB_GATE_UPSTREAM": world.stub()["url"],
            "TB_GATE_POLICY": "policy.toml",
            "TB_GATE_AUTH_PROXIES": ",".join(caller["login"] for caller in callers),
            # The callers are users, not browsers.
            "TB_GATE_AUTH_USERPROXIES": "true",
        }, prepare=prepare)

    def exchange(self, name, policies):
        world = self.world
        stub = world.stub()["url"]

        def prepare(folder):
            (folder / "policies").mkdir()
            for number in range(policies):
                # The policy that fits is the last in their order.
                subject = "bench" if number == policies - 1 else f"nobody-{number}"
                (folder / f"policies/{number:04}.toml").write_text(
                    f'issuer = "{stub}"\nalgorithm = "RS256"\naudience = "bench"\nsubject = "{subject}"\n'
                    f'jwks_url = "{stub}/jwks"\nallowed_scopes = ["acls"]\n')

        return world.tailbone(name, {
            "TB_COMPONENTS": "sts",
            "TB_STS_CLIENTID": "bench",
            "TB_STS_CLIENTSECRET": "tskey-client-bench",
            "TB_STS_TOKENURL": f"{stub}/token",
        }, prepare=prepare)

    def keys(self, count):
        """A key directory as the original leaves it: the first start takes the keys over."""
        def prepare(folder):
            subprocess.run([self.options.sign, "--write-keys", folder / "keys", str(count)], check=True)

        name = self.world.fresh(f"keys-{count}")

        def start():
            return self.world.tailbone(name, {"TB_KEYS_ALGORITHM": "ES256"}, prepare=prepare)

        first = start()
        self.world.stop(first)
        again = start()
        return self.grown(again, issue(again)) | {"first_listening_s": first.listening}

    def rules(self, count):
        server = self.gate(self.world.fresh(f"rules-{count}"), count)
        return self.grown(server, decision(server, self.world))

    def policies(self, count):
        server = self.exchange(self.world.fresh(f"policies-{count}"), count)
        return self.grown(server, exchange(server, self.world))

    def grown(self, server, request):
        """Memory of a server that has just started, and then its throughput."""
        load = self.world.load("one")
        try:
            load.reach(server, request)
            rss = load.usage(server)["rss_kib"]
            return self.measure(load, server, request, 8) | {"listening_s": server.listening, "rss_before_kib": rss}
        finally:
            self.world.forget(server)

    def slow(self, target):
        """Throughput of callers, without and with many others that never finish a request."""
        server, request = self.target(target)
        load, crowd = self.world.load("one"), self.world.load("many")
        crowd.reach(server, request)
        alone = self.measure(load, server, request, 8)
        standing = crowd.order(op="trickle", request=request, conns=SLOW)["open"]
        try:
            beside = self.measure(load, server, request, 8)
        finally:
            crowd.order(op="release")
        return {"alone": alone, "beside": beside, "slow": standing}

    def resets(self, target):
        """Throughput with new connections, alone and beside a peer that resets its own."""
        if target == "admin":
            server, _ = self.target("es256")
            # Only gRPC is served there; 415 is an answer as well.
            request = get(server, 50051, "/") | {"expect": 415}
        elif target == "sts-health":
            server, _ = self.target("sts")
            request = get(server, 8080, "/_healthz")
        else:
            server, request = self.target(target)
        load = self.world.load("new")
        alone = self.measure(load, server, request, 1, keep_alive=False)
        during = self.options.warm_up + self.options.measure + 1
        with concurrent.futures.ThreadPoolExecutor() as other:
            storm = other.submit(self.world.resets, server, request["addr"], during)
            # Not repeated if noisy: the resets would be over by then.
            beside = load.run(server, request, 1, False, self.options.warm_up, self.options.measure)
            made = storm.result()["reset"]
        if not beside["requests"]:
            raise Failed(f"no answer from {server.name} beside {made} resets: {beside}")
        return {"alone": alone, "beside": beside, "resets_per_second": made / during}

    def peers(self, count):
        """Servers in a tailnet of that size: time to start, memory once they know it, throughput.

        It is a separate tailnet, since what a server knows about its peers stays with it.
        """
        with World(self.world.programs, peers=count) as world:
            there = Plan(world, self.options)
            result = {}
            for target in AMONG_PEERS:
                began = time.monotonic()
                server, request = there.target(target)
                ready = time.monotonic() - began
                load = world.load("new")
                load.reach(server, request)
                rss = load.usage(server)["rss_kib"]
                # The program's own start, without waiting for the callers that its settings name.
                ready = server.listening or ready
                result[target] = {"ready_s": ready, "rss_kib": rss} | there.measure(load, server, request, 8, keep_alive=False)
                # Each target runs alone with its callers.
                world.stop(server)
            return result

    def idle(self, target):
        """Memory without connections, then with more and more that are idle after a request."""
        load, name = self.world.load("many"), self.world.fresh(f"idle-{target}")
        if target == "floor":
            server, request = self.constant(self.world.floor(name), LONG)
        elif target == "tls-floor":
            server, request = self.tls_constant(self.world.floor(name, tls=True), LONG)
        elif target == "tls-es256":
            server = self.tls_issuer(name)
            request = secured(issue(server, 443), server, self.world)
        else:
            server = self.world.tailbone(name, {"TB_KEYS_ALGORITHM": ISSUERS[target]})
            request = issue(server)
        try:
            load.reach(server, request)
            time.sleep(self.options.settle)
            steps = [{"conns": 0} | load.usage(server)]
            held = 0
            for wanted in IDLE:
                wanted = min(wanted, most_connections())
                result = load.order(op="hold", request=request, conns=wanted - held)
                held += result["open"]
                steps.append({"conns": held} | self.settled(load, server))
            return {"steps": steps}
        finally:
            load.order(op="release")
            self.world.forget(server)

    def settled(self, load, server):
        """Usage once memory has stopped changing, or after some seconds."""
        before = load.usage(server)
        for _ in range(10):
            time.sleep(0.5)
            now = load.usage(server)
            if abs(now["rss_kib"] - before["rss_kib"]) < before["rss_kib"] / 200:
                return now
            before = now
        return before

    def after(self, target):
        """Memory of a server that was busy and has become quiet."""
        server, request = self.target(target)
        load = self.world.load("one")
        busy = self.measure(load, server, request, 64)
        time.sleep(AFTER)
        return {"busy": busy, "quiet": load.usage(server)}

    def tokens(self, target):
        """Memory of a server of its own while it issues tokens, with pauses in which it is read."""
        server = self.workload(self.world.fresh(f"tokens-{target}"), WORKLOAD[target])
        request, load = secured(workload_token(server), server, self.world), self.world.load("one")
        try:
            load.reach(server, request)
            steps, issued, errors = [{"tokens": 0} | load.usage(server)], 0, collections.Counter()
            rate = load.run(server, request, 64, measure=1)["per_second"]
            while issued < TOKENS:
                left = TOKENS_STEP * len(steps) - issued
                # Half of the new connections are refused at first: a peer may have 32 handshakes at
                # a time. The warm-up is for that.
                result = load.run(server, request, 64, measure=max(left / rate, 0.2))
                if not result["requests"]:
                    raise Failed(f"no answer from {server.name}: {result}")
                issued, rate = issued + result["requests"], result["per_second"]
                errors += collections.Counter(result.get("why", {}))
                if issued >= TOKENS_STEP * len(steps):
                    steps.append({"tokens": issued} | self.settled(load, server))
            return {"steps": steps, "errors": errors.total(), "why": errors}
        finally:
            self.world.forget(server)

    def start(self, state, uid):
        devnet = self.world.devnet
        if state == "tls":
            devnet = devnet | {"environment": self.world.acme | {"TB_SERVER_LISTEN": "tailnet+tls://:443"}}
        return starts.measure(self.world.programs["tailbone"], devnet, self.options.starts, uid, state)

    def contact(self, state, peers, callers, real=False):
        uid = 65532 if os.getuid() == 0 else None
        return contact.measure(self.world.programs["tailbone"], self.options.contacts, uid, state, peers, callers,
                               self.world.programs["tailscaled"] if real else None)

    def sign(self):
        own = subprocess.run([self.options.sign, "--seconds", str(self.options.sign_time)], check=True, capture_output=True)
        return {"own": json.loads(own.stdout), "openssl": openssl(self.options.sign_time)}

    def size(self):
        programs = self.world.programs
        return {name: os.path.getsize(programs[name]) for name in ("tailbone", "bench")}


def rule(name, who):
    return f'[[rule]]\nname = "{name}"\ndecision = "allow"\nwho = ["{who}"]\n'


def get(server, port, path):
    return {"addr": f"{server.ip}:{port}", "method": "GET", "path": path, "expect": 200}


def secured(request, server, world):
    return request | {"tls": world.node(server.name)["name"]}


def issue(server, port=80):
    return {"addr": f"{server.ip}:{port}", "method": "POST", "path": "/issue", "expect": 200}


def workload_token(server):
    return {"addr": f"{server.ip}:443", "method": "POST", "path": "/token?resource=https://bench.example.com",
            "headers": {"X-Tsiam": "1"}, "expect": 200}


def decision(server, world):
    """A request of a trusted proxy that asks about another caller."""
    about = world.devnet["peers"]["alice"]["ip"]
    headers = {"Remote-Addr": about, "X-Original-URI": "/a/page", "X-Original-Method": "GET", "Host": "wiki.example.com"}
    return {"addr": f"{server.ip}:8083", "method": "GET", "path": "/auth/nginx", "headers": headers, "expect": 204}


def exchange(server, world):
    headers = {"Authorization": f"Bearer {world.stub()['jwt']}", "Content-Type": "application/json"}
    return {"addr": f"{server.ip}:8080", "method": "POST", "path": "/", "headers": headers, "body": '{"scopes":["acls"]}',
            "expect": 200}


def openssl(seconds):
    """Signatures per second of processor time, by `openssl speed`: one process, one per core."""
    names = {"rsa2048": "RS256", "ecdsap256": "ES256", "ed25519": "EdDSA"}
    rates = {}
    for name, algorithm in names.items():
        rates[algorithm] = {
            "one": openssl_rate(name, seconds, []),
            "all": openssl_rate(name, seconds, ["-multi", str(CORES)]),
        }
    return rates


def openssl_rate(name, seconds, arguments):
    try:
        done = subprocess.run(["openssl", "speed", "-mr", "-seconds", str(max(1, round(seconds))), *arguments, name],
                              check=True, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    # "+F2:2:2048:signatures:verifications", F4 for ECDSA, F6 for EdDSA. With -multi the children's
    # lines come first, each after other text, and the sum last.
    for line in reversed(done.stdout.splitlines()):
        if line.startswith(("+F2:", "+F4:", "+F6:")):
            return float(line.split(":")[-2])
    return None
