"""How long a start takes: from process start to "listening", and to the first answer to a caller.

    starts.py BINARY DEVNET_JSON [--runs 20] [--uid 65532] [--warm | --killed]

Each run has a new host name on an empty state folder (cold), or is a second start on the folder
of the first, ended by TERM (--warm) or KILL (--killed), with a caller that has an open session
with the first. State "tls" is as warm, with answers over TLS. The caller is the devnet peer
"alice", used through its SOCKS5 proxy. It begins to call only after the server has said
"listening", and calls again if it has not heard of the node yet. Prints one JSON object; times
are milliseconds.
"""

import argparse
import json
import math
import os
import shutil
import signal
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request

from world import Failed

# Longest wait in seconds until a caller has heard of a new node.
HEARD = 10


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("devnet")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--uid", type=int)
    parser.add_argument("--warm", dest="state", action="store_const", const="warm", default="cold")
    parser.add_argument("--killed", dest="state", action="store_const", const="killed")
    options = parser.parse_args()
    try:
        print(json.dumps(measure(options.binary, json.loads(options.devnet), options.runs, options.uid, options.state)))
    except Failed as failure:
        sys.exit(f"error: {failure}")


def measure(binary, devnet, count, uid, state):
    runs = [one(binary, devnet, number, uid, state) for number in range(count)]
    rows = {name: sorted(run[name] for run in runs) for name in ("listening_ms", "first_answer_ms", "rss_idle_kib")}
    return ({"uid": os.getuid() if uid is None else uid, "state": state, "runs": runs}
            | {name: spread(values) for name, values in rows.items()})


def spread(values):
    # 19 of 20 are at or below the p95.
    return {"median": statistics.median(values), "min": values[0], "max": values[-1],
            "p95": values[math.ceil(len(values) * 0.95) - 1]}


def one(binary, devnet, number, uid, state):
    folder = tempfile.mkdtemp(prefix="tailbone-start.")
    if uid is not None:
        os.chown(folder, uid, uid)
    host = f"start-{os.getpid()}-{state}-{uid}-{number}".lower()
    try:
        if state != "cold":
            start(binary, devnet, folder, host, uid, state, signal.SIGKILL if state == "killed" else signal.SIGTERM, settle=0)
        return start(binary, devnet, folder, host, uid, state, signal.SIGTERM, settle=1)
    finally:
        shutil.rmtree(folder)
        # The tailnet of the next run must be as small as that of this one.
        urllib.request.urlopen(urllib.request.Request(f"{devnet['api_url']}/nodes/{host}", method="DELETE"), timeout=20).close()


def start(binary, devnet, folder, host, uid, state, ending, settle):
    began = time.monotonic()
    server = launch(binary, devnet, folder, host, uid, subprocess.PIPE)
    try:
        said = []
        for line in server.stdout:
            said.append(line)
            if " listening " in line:
                break
        else:
            raise Failed("the server ended:\n" + "".join(said))
        listening = time.monotonic()
        root = devnet["acme"]["root_file"] if state == "tls" else None
        while not (answer := post(devnet["peers"]["alice"]["proxy"], host, 443 if root else 80, "/issue", root=root)):
            if time.monotonic() - listening > HEARD:
                raise Failed(f"alice cannot dial {host}")
            time.sleep(0.002)
        answered = time.monotonic()
        if b" 200 " not in answer.split(b"\r\n", 1)[0]:
            raise Failed(f"not a token: {answer!r}")
        time.sleep(settle)
        return {"listening_ms": round((listening - began) * 1000, 1), "first_answer_ms": round((answered - began) * 1000, 1),
                "rss_idle_kib": rss(server.pid)}
    finally:
        stop(server, ending)


def launch(binary, devnet, folder, host, uid, output=subprocess.DEVNULL):
    environment = {
        "TB_SERVER_TAILSCALE_AUTHKEY": devnet["auth_key"],
        "TB_SERVER_TAILSCALE_CONTROLURL": devnet["control_url"],
        "TB_SERVER_TAILSCALE_HOSTNAME": host,
        "TB_COMPONENTS": "issuer",
    } | devnet.get("environment", {})
    return subprocess.Popen([binary, "server", "start"], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
                            stdout=output, stderr=subprocess.STDOUT, text=True, user=uid, group=uid)


def stop(server, ending):
    server.send_signal(ending)
    server.wait(20)
    if server.stdout:
        server.stdout.close()


def rss(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


def post(proxy, host, port, path, limit=30, root=None):
    """One request through a SOCKS5 proxy that resolves the name (RFC 1928), over TLS if there is a
    `root` to trust. None if it cannot dial or has no certificate yet; TimeoutError after `limit`
    seconds.
    """
    until = time.monotonic() + limit
    where = proxy.split("://")[1].rsplit(":", 1)
    with socket.create_connection((where[0], int(where[1])), timeout=limit) as stream:
        stream.sendall(b"\x05\x01\x00")
        read(stream, 2, until)
        name = host.encode()
        stream.sendall(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + struct.pack(">H", port))
        reply = read(stream, 4, until)
        if reply[1] != 0:
            return None
        read(stream, {1: 4, 4: 16}[reply[3]] + 2, until)
        if root:
            context = ssl.create_default_context(cafile=root)
            # The certificate is for the full name.
            context.check_hostname = False
            try:
                stream = context.wrap_socket(stream, server_hostname=host)
            except ssl.SSLError:
                return None
        stream.sendall(f"POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while chunk := receive(stream, 65536, until):
            answer += chunk
        return answer


def read(stream, count, until):
    data = b""
    while len(data) < count:
        chunk = receive(stream, count - len(data), until)
        if not chunk:
            raise Failed("the proxy closed")
        data += chunk
    return data


def receive(stream, count, until):
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    stream.settimeout(left)
    return stream.recv(count)


if __name__ == "__main__":
    main()
