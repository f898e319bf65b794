"""Load on one URL through a SOCKS5 proxy, one connection per request. Reports how requests ended.

    load.py PROXY HOST WORKERS        POST http://HOST/issue until SIGTERM, then one line of JSON

"flowing" on standard error means that the load has begun.

answered  a whole response came, whatever its status (`statuses` counts them)
refused   no connection: the server does not listen any more (or yet); nothing was sent
cut       connected, but no whole response came: what a graceful stop must not do
spanning  answered requests that began before SIGUSR1 and ended after it: there was something to cut
"""

import json
import signal
import socket
import struct
import sys
import threading
import time

# More than the five seconds after which WireGuard repeats a first packet that was lost.
PATIENCE = 10
FLOWING = 50


def main():
    proxy, host, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
    address = proxy.rsplit("/", 1)[1].rsplit(":", 1)
    state = State((address[0], int(address[1])), host)
    signal.signal(signal.SIGUSR1, lambda *_: state.mark())
    signal.signal(signal.SIGTERM, lambda *_: state.ending.set())
    threads = [threading.Thread(target=state.work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    while not state.ending.wait(0.2):
        pass
    for thread in threads:
        thread.join()
    print(json.dumps(state.counts), flush=True)


class Refused(Exception):
    """The proxy could not connect."""


class State:
    def __init__(self, proxy, host):
        self.proxy, self.host = proxy, host.encode()
        self.ending, self.lock, self.marked = threading.Event(), threading.Lock(), None
        self.counts = {"answered": 0, "refused": 0, "cut": 0, "spanning": 0, "statuses": {}, "reasons": {}}

    def mark(self):
        self.marked = time.monotonic()

    def work(self):
        while not self.ending.is_set():
            began = time.monotonic()
            try:
                status = self.request()
                with self.lock:
                    self.counts["answered"] += 1
                    if self.counts["answered"] == FLOWING:
                        print("flowing", file=sys.stderr, flush=True)
                    self.count("statuses", status)
                    if self.marked and began < self.marked < time.monotonic():
                        self.counts["spanning"] += 1
            except Refused as reason:
                with self.lock:
                    self.counts["refused"] += 1
                    self.count("reasons", f"refused: {reason}")
                time.sleep(0.05)
            except (OSError, ValueError, EOFError) as reason:
                with self.lock:
                    self.counts["cut"] += 1
                    self.count("reasons", f"cut: {reason!r}")

    def count(self, table, name):
        self.counts[table][name] = self.counts[table].get(name, 0) + 1

    def request(self):
        try:
            stream = socket.create_connection(self.proxy, timeout=PATIENCE)
        except OSError as reason:
            raise Refused(f"no proxy: {reason}") from reason
        with stream:
            self.connect(stream)
            stream.sendall(b"POST /issue HTTP/1.1\r\nHost: " + self.host + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return whole_response(stream)

    def connect(self, stream):
        """SOCKS5 with the name resolved by the proxy."""
        try:
            stream.sendall(b"\x05\x01\x00")
            exactly(stream, 2)
            stream.sendall(b"\x05\x01\x00\x03" + bytes([len(self.host)]) + self.host + struct.pack(">H", 80))
            reply = exactly(stream, 4)
            exactly(stream, {1: 4, 4: 16}[reply[3]] + 2 if reply[3] != 3 else exactly(stream, 1)[0] + 2)
        except (OSError, EOFError, KeyError) as reason:
            raise Refused(repr(reason)) from reason
        if reply[1] != 0:
            raise Refused(f"SOCKS code {reply[1]}")


def exactly(stream, length):
    data = b""
    while len(data) < length:
        piece = stream.recv(length - len(data))
        if not piece:
            raise EOFError("closed")
        data += piece
    return data


def whole_response(stream):
    """The status of a response that came with all of its body; anything less raises."""
    data = b""
    while piece := stream.recv(65536):
        data += piece
    head, separator, body = data.partition(b"\r\n\r\n")
    if not separator:
        raise EOFError(f"closed after {len(data)} bytes")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if len(body) != int(headers["content-length"] if "content-length" in headers else -1):
        raise EOFError(f"closed after {len(body)} bytes of body")
    return lines[0].split(" ")[1]


main()
