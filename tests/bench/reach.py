"""The goals of the program, and whether this run meets them. No number is copied from a result."""

from plan import RESETS
from results import (cpu_us, fastest_sign_us, idle_kib, median, p50, peak_mb, per_second)


class Aim:
    def __init__(self, what, wanted, bound, at_least, values, unit="×"):
        self.what, self.wanted, self.bound, self.at_least, self.values, self.unit = what, wanted, bound, at_least, values, unit

    @property
    def met(self):
        """None if the experiment was not run."""
        if not self.values:
            return None
        value = median(self.values)
        return value >= self.bound if self.at_least else value <= self.bound


def at_least(what, bound, values):
    return Aim(what, f"≥ {bound}", bound, True, values)


def at_most(what, bound, values, unit="×"):
    return Aim(what, f"≤ {bound}" + ("" if unit == "×" else f" {unit}"), bound, False, values, unit)


def aims(runs):
    yield from (at_least(f"constant, requests/s at {cell[1:]} connections, of the floor's", 1.0,
                         runs.ratios(f"load/constant/{cell}", f"load/floor-short/{cell}", per_second))
                for cell in ("c8", "c64"))
    yield at_most("constant, p50 at 1 connection, of the floor's", 1.1,
                  runs.ratios("load/constant/c1", "load/floor-short/c1", p50))
    yield from (at_most(f"RS256 token at {cell[1:]} connections, server CPU, of fastest signature + floor", 1.1, rs256(runs, cell))
                for cell in ("c8", "c64"))
    yield from (at_least(f"ES256 token, requests/s at {cell[1:]} connections, of the floor's", 0.9,
                         runs.ratios(f"load/es256/{cell}", f"load/floor/{cell}", per_second))
                for cell in ("c8", "c64"))
    for cell in ("c8", "c64"):
        yield at_least(f"constant over TLS, requests/s at {cell[1:]} connections, of the TLS floor's", 1.0,
                       runs.ratios(f"load/tls-constant/{cell}", f"load/tls-floor-short/{cell}", per_second))
        yield at_least(f"ES256 token over TLS, requests/s at {cell[1:]} connections, of the TLS floor's", 0.9,
                       runs.ratios(f"load/tls-es256/{cell}", f"load/tls-floor/{cell}", per_second))
    for cell in ("c8", "c64", "new8"):
        words = "new each time" if cell == "new8" else "kept"
        yield at_least(f"workload token, ES256 over TLS, requests/s at {cell.lstrip('cnew')} connections, {words}, of our TLS constant", 0.9,
                       runs.ratios(f"load/workload-es256/{cell}", f"load/tls-constant/{cell}", per_second))
    for cell, words in (("new8", "new each time"), ("resumed8", "new each time, sessions resumed")):
        yield at_least(f"ES256 token over TLS, requests/s at 8 connections, {words}, of the TLS floor's with WhoIs", 1.2,
                       runs.ratios(f"load/tls-es256/{cell}", f"load/tls-floor-whois/{cell}", per_second))
    for target in RESETS[2:]:
        name = f"resets/{target}"
        yield at_least(f"{target} beside a peer that resets its connections, answers/s of the floor + WhoIs beside it", 0.9,
                       runs.ratios(name, "resets/floor-whois", lambda result: per_second(result["beside"])))
        yield at_most(f"{target} beside it, failed requests", 0, runs.values(name, lambda result: result["beside"]["errors"]), "")
    for name, target in (("ES256 token", "es256"), ("gate decision", "gate")):
        for words, other, bound in (("our constant's", "constant", 0.9), ("the floor's with WhoIs", "floor-whois", 1.2)):
            yield at_least(f"{name}, requests/s at 8 connections, new each time, of {words}", bound,
                           runs.ratios(f"load/{target}/new8", f"load/{other}/new8", per_second))
        yield from (at_least(f"the same, {count} peers in the tailnet, of that with few", 0.9, among_peers(runs, count, target))
                    for count in (1_000, 10_000))
    yield at_most("memory, idle", 40, runs.values("idle/es256", lambda result: result["steps"][0]["rss_kib"] / 1024), "MB")
    yield from (at_most(f"memory at 64 busy connections ({name}), of the floor's", 1.0,
                        runs.ratios(f"load/{name.lower()}/c64", "load/floor/c64", peak_mb))
                for name in ("RS256", "ES256"))
    # By then heaps and buffers have the size that 64 busy connections need.
    yield at_most("memory after a million workload tokens, of that after 300 000", 1.05,
                  runs.values("tokens/workload-es256", lambda result: result["steps"][-1]["rss_kib"] / result["steps"][3]["rss_kib"]))
    yield at_most("memory per idle connection, of the floor's", 1.5, runs.ratios("idle/es256", "idle/floor", idle_kib))
    yield at_most("memory per idle TLS connection, of the TLS floor's", 1.0, runs.ratios("idle/tls-es256", "idle/tls-floor", idle_kib))
    yield at_most("start to first answer over TLS with a kept certificate, more than without TLS", 50, later_with_tls(runs), "ms")
    states = {"cold": "empty state", "warm": "kept state, ended by TERM", "killed": "kept state, ended by KILL"}
    for state, words in states.items():
        for uid in ("own", "65532"):
            for kind, name, bound in (("listening", "listening_ms", 200), ("first answer", "first_answer_ms", 300)):
                yield at_most(f"start to {kind}, 19 of 20, {words}" + (", uid 65532" if uid == "65532" else ""), bound,
                              runs.values(f"start/{state}/{uid}", lambda result, name=name: result[name]["p95"]), "ms")
    for name, words, bound, share in contacts():
        yield at_most(f"{words}, slowest caller's first token, {share}", bound,
                      runs.values(f"contact/{name}", lambda result, share=share: result["first_ms"][SHARES[share]]), "ms")
    yield at_most("size of the binary, stripped", 41, runs.values("size", lambda result: result["tailbone"] / 1e6), "MB")


SHARES = {"36 of 40": "p90", "38 of 40": "p95", "40 of 40": "max"}


def contacts():
    """Callers that never pause (contact.py): experiment, text, bound in ms, share of starts."""
    for peers in (1, 30):
        yield f"cold/{peers}", f"called from before the start, empty state, peers: {peers}", 350, "38 of 40"
        yield f"cold/{peers}", f"called from before the start, empty state, peers: {peers}", 1200, "40 of 40"
    yield "newcomer/1", "a peer calls as soon as it has joined", 350, "38 of 40"
    yield "newcomer/1", "a peer calls as soon as it has joined", 1200, "40 of 40"
    for state, words in (("warm", "kept state, ended by TERM"), ("killed", "kept state, ended by KILL"),
                         ("moved", "kept state at another UDP port")):
        for peers in (4, 30) if state != "moved" else ():
            yield f"{state}/{peers}", f"four callers, {words}, peers: {peers}", 1200, "40 of 40"
        yield f"{state}/real", f"a tailscaled calls, {words}", 1200, "36 of 40"


def later_with_tls(runs):
    secured, plain = runs.rounds("start/tls/own"), runs.rounds("start/warm/own")
    return [secured[number]["first_answer_ms"]["median"] - plain[number]["first_answer_ms"]["median"]
            for number in sorted(secured.keys() & plain.keys())]


def among_peers(runs, count, target):
    """Throughput in a large tailnet relative to a small one."""
    few, many = runs.rounds("peers/0"), runs.rounds(f"peers/{count}")
    return [per_second(many[number][target]) / per_second(few[number][target]) for number in sorted(few.keys() & many.keys())]


def rs256(runs, cell):
    """Processor time of a token relative to its minimum: the fastest signature plus the floor."""
    signs, floors, tokens = runs.rounds("sign"), runs.rounds(f"load/floor/{cell}"), runs.rounds(f"load/rs256/{cell}")
    return [cpu_us(tokens[number]) / (fastest_sign_us(signs[number], "RS256") + cpu_us(floors[number]))
            for number in sorted(signs.keys() & floors.keys() & tokens.keys())]
