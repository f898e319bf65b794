"""Where a request's processor time goes: `perf record` on a server under load, by kind of code.

    profile.py --binary PROGRAM --bench FLOOR TARGET/CELL ...    (floor-short/c8 constant/c8)

Both programs need their symbols: CARGO_PROFILE_RELEASE_STRIP=none cargo build --release, and
tests/bench/go built without `-ldflags "-s -w"`. Inlined code counts for its caller.
"""

import argparse
import collections
import os
import pathlib
import re
import resource
import signal
import subprocess
import tempfile
import types

from plan import CELLS, Plan
from world import World

# The first match counts. Symbols of Go are package paths, those of C plain words, those of Rust
# neither.
KINDS = [
    ("sockets, scheduling and timers of the kernel", r"^\[k\]"),
    ("WireGuard and magicsock", r"^(github\.com/tailscale/wireguard-go|tailscale\.com/|golang\.org/x/(crypto|net|sys)|crypto/|vendor/golang)"),
    ("netstack", r"^(gvisor\.dev/|github\.com/google/btree)"),
    ("Go's HTTP server and ours of the floor", r"^(net/http|net/textproto|bufio|mime|net/url|main\.|io\.|bytes\.|strconv\.|strings\.)"),
    ("our side of the fence in Go", r"^(tailbone\.dev/|_cgo|runtime\.cgocall|.*_Cfunc_)"),
    ("Go's runtime, and the clock", r"^(__vdso|\[vdso\]|runtime|internal|sync|time|sort|slices|math|context|errors|reflect|unicode|os|net|syscall|type:|memeq|aeshash|cmpbody|go:|gogo|gcWriteBarrier|indexbyte)"),
    ("cryptography of tokens", r"(aws_lc|nistz256|p256|rsaz|bn_|BN_|sha256|sha512|curve25519|fiat_|ed25519|x25519|bignum_|RSA_|mul_mont|ChaCha|aes_)"),
]
REST = "Rust: hyper, the layers, the handler, memory"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True, type=pathlib.Path)
    parser.add_argument("--bench", required=True, type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("what", nargs="+")
    options = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    columns = {}
    with World({"tailbone": options.binary, "bench": options.bench}) as world:
        plan = Plan(world, types.SimpleNamespace(before=None))
        for what in options.what:
            columns[what] = profile(world, plan, *what.split("/"), options.seconds)
    kinds = [kind for kind, _ in KINDS] + [REST]
    rows = [kind for kind in kinds if any(column[kind] >= 0.05 for column in columns.values())]
    print("| server CPU µs/request | " + " | ".join(columns) + " |\n| --- |" + " --- |" * len(columns))
    for kind in rows:
        print(f"| {kind} | " + " | ".join(f"{column[kind]:.1f}" for column in columns.values()) + " |")
    print("| together | " + " | ".join(f"{sum(column.values()):.1f}" for column in columns.values()) + " |")


def profile(world, plan, target, cell, seconds):
    """Microseconds of processor time per request, by kind."""
    server, request = plan.target(target)
    conns, keep_alive, who = CELLS[cell]
    load = world.load(who)
    load.run(server, request, conns, keep_alive, measure=1)
    with tempfile.NamedTemporaryFile(dir=world.work) as data:
        command = ["perf", "record", "--quiet", "-F", "1999", "-o", data.name, "-p", str(server.pid)]
        recording = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"LC_ALL": "C"})
        result = load.run(server, request, conns, keep_alive, measure=seconds)
        recording.send_signal(signal.SIGINT)
        recording.wait()
        shares = subprocess.run(["perf", "report", "--stdio", "--sort", "symbol", "-i", data.name, "--percent-limit", "0"],
                                check=True, capture_output=True, text=True).stdout
    spent = result["cpu"]["server"] / result["requests"] * 1e6
    found = collections.Counter()
    for line in shares.splitlines():
        # "    1.23%  [k] name  -  -"
        if match := re.match(r"\s+([\d.]+)%\s+(\[.\]) (.+?)(\s+-\s+-\s*)?$", line):
            share, mode, symbol = float(match[1]), match[2], match[3].strip()
            found[kind_of(f"{mode} {symbol}" if mode == "[k]" else symbol)] += share
    total = sum(found.values())
    return collections.Counter({kind: spent * share / total for kind, share in found.items()})


def kind_of(symbol):
    return next((kind for kind, pattern in KINDS if re.search(pattern, symbol)), REST)


if __name__ == "__main__":
    main()
