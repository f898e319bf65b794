"""How long a start takes: process start to "listening", and to the first answer that a caller on the tailnet gets.

    starts.py BINARY DEVNET_JSON [--runs 20] [--uid 65532] [--warm]

Each run is a fresh host name on an empty state folder (cold), or a second start on the folder of the first (--warm). The caller is
a devnet peer, asked through its SOCKS5 proxy; it begins to call only after the server has said "listening". Prints one JSON object;
times are milliseconds.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("devnet")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--uid", type=int)
    parser.add_argument("--warm", action="store_true")
    options = parser.parse_args()
    devnet = json.loads(options.devnet)
    runs = [one(options, devnet, number) for number in range(options.runs)]
    rows = {name: sorted(run[name] for run in runs) for name in ("listening_ms", "first_answer_ms", "rss_idle_kib")}
    print(json.dumps({"uid": options.uid or os.getuid(), "state": "warm" if options.warm else "cold", "runs": runs}
                     | {name: spread(values) for name, values in rows.items()}))


def spread(values):
    return {"median": statistics.median(values), "min": values[0], "max": values[-1], "p95": values[int(len(values) * 0.95) - 1]}


def one(options, devnet, number):
    folder = tempfile.mkdtemp(prefix="tailbone-start.")
    if options.uid is not None:
        os.chown(folder, options.uid, options.uid)
    host = f"start-{os.getpid()}-{number}"
    try:
        if options.warm:
            start(options, devnet, folder, host)
        return start(options, devnet, folder, host)
    finally:
        shutil.rmtree(folder)


def start(options, devnet, folder, host):
    environment = {
        "TB_SERVER_TAILSCALE_AUTHKEY": devnet["auth_key"],
        "TB_SERVER_TAILSCALE_CONTROLURL": devnet["control_url"],
        "TB_SERVER_TAILSCALE_HOSTNAME": host,
        "TB_COMPONENTS": "issuer",
    }
    began = time.monotonic()
    server = subprocess.Popen([options.binary, "server", "start"], cwd=folder, env=environment, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, user=options.uid, group=options.uid)
    try:
        said = []
        for line in server.stdout:
            said.append(line)
            if " listening " in line:
                break
        else:
            sys.exit("the server ended:\n" + "".join(said))
        listening = time.monotonic()
        answer = post(devnet["peers"]["alice"]["proxy"], host, 80, "/issue")
        answered = time.monotonic()
        if b" 200 " not in answer.split(b"\r\n", 1)[0]:
            sys.exit(f"not a token: {answer!r}")
        time.sleep(1)
        return {"listening_ms": round((listening - began) * 1000, 1), "first_answer_ms": round((answered - began) * 1000, 1),
                "rss_idle_kib": rss(server.pid)}
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)
        server.stdout.close()


def rss(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


def post(proxy, host, port, path):
    """One request through a SOCKS5 proxy that resolves the name (RFC 1928)."""
    where = proxy.split("://")[1].rsplit(":", 1)
    with socket.create_connection((where[0], int(where[1])), timeout=30) as stream:
        stream.sendall(b"\x05\x01\x00")
        read(stream, 2)
        name = host.encode()
        stream.sendall(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + struct.pack(">H", port))
        reply = read(stream, 4)
        if reply[1] != 0:
            sys.exit(f"the proxy says {reply[1]}")
        read(stream, {1: 4, 4: 16}[reply[3]] + 2)
        stream.sendall(f"POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while chunk := stream.recv(65536):
            answer += chunk
        return answer


def read(stream, count):
    data = b""
    while len(data) < count:
        chunk = stream.recv(count - len(data))
        if not chunk:
            sys.exit("the proxy closed")
        data += chunk
    return data


if __name__ == "__main__":
    main()
