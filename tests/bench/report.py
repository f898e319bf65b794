"""Tables of a run: on the terminal, as docs/benchmarks.md, and README's short one with a picture.

    report.py FOLDER [--publish]
"""

import argparse
import pathlib

import picture
import reach
from plan import AFTER, AMONG_PEERS, CELLS, ISSUERS, LONG, PEERS, RESETS, SLOW, TARGETS, WORKLOAD
from results import Runs, cpu_us, load_cpu_us, median, p50, p99, peak_mb, per_second, sign_cpu_us, switches
from world import MANY

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMES = {
    "floor": f"floor: Go `net/http` on tsnet, a constant of {LONG} bytes",
    "floor-short": "the same, as short as our constant",
    "floor-short-half": "the same, Go on half of the cores (`GOMAXPROCS`)",
    "floor-whois": "the same, with a WhoIs per request",
    "constant": "our constant (`GET /_healthz`)",
    "constant-all": "the same, Go on all cores",
    "rs256": "`POST /issue`, RS256",
    "es256": "`POST /issue`, ES256",
    "eddsa": "`POST /issue`, EdDSA",
    "gate": "gate, forward-auth decision over the tailnet",
    "proxy": f"gate, reverse proxy, {LONG} bytes from a local service",
    "sts": "exchange, RS256 subject token, stub token endpoint",
    "tls-floor": f"TLS floor: the floor on tsnet's `ListenTLS`, {LONG} bytes",
    "tls-floor-short": "the same, as short as our constant",
    "tls-floor-whois": "the same, with a WhoIs per request",
    "tls-constant": "TLS, our constant",
    "tls-es256": "TLS, `POST /issue`, ES256",
    "workload-es256": "TLS, workload `POST /token`, ES256",
    "workload-rs256": "TLS, workload `POST /token`, RS256",
    "tls-jwks": "TLS, `GET /.well-known/jwks.json`",
    "funnel-jwks": "the same from the internet, through Funnel's ingress (of the row above)",
    "sts-health": "exchange (`GET /_healthz`)",
    "admin": "admin (a refusal of what is not gRPC)",
}
NAMES |= {f"before-{name}": f"before: {NAMES[name]}" for name in ("constant", *ISSUERS)}
WORDS = {"c1": "1", "c8": "8", "c64": "64", "new8": "8, new each time", "many64": f"64, from {MANY} callers",
         "resumed8": "8, new each time, sessions resumed"}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    runs = Runs(options.folder)
    print(text(runs))
    if options.publish:
        publish(runs, ROOT)


def text(runs):
    """Everything, for the terminal."""
    return "\n\n".join(f"## {title}\n\n{table}" for title, table in tables(runs))


def tables(runs):
    made = [
        ("Reach", aims(runs)),
        ("Requests", loads(runs)),
        ("Signatures", signs(runs)),
        ("Start", starts(runs)),
        ("First contact: callers that never pause", first_contact(runs)),
        ("Memory of idle connections", idle(runs)),
        ("Growth", growth(runs)),
        ("Size of the tailnet", peers(runs)),
        ("Memory after load", after(runs)),
        ("Memory over a million workload tokens", tokens(runs)),
        ("Slow callers", slow(runs)),
        ("Connections that are reset", resets(runs)),
        ("How quiet the machine was", quiet(runs)),
    ]
    return [(title, table) for title, table in made if table]


def aims(runs):
    rows = [[aim.what, aim.wanted, spread(aim.values, aim.unit), "met" if aim.met else "**not met**"]
            for aim in reach.aims(runs) if aim.met is not None]
    return table(["", "wanted", "measured", ""], rows)


def loads(runs):
    rows = []
    for target in (*TARGETS, *(f"before-{name}" for name in ("constant", *ISSUERS))):
        for cell in CELLS:
            name = f"load/{target}/{cell}"
            if not runs.rounds(name):
                continue
            values = [spread(runs.values(name, of)) for of in (per_second, p50, p99, cpu_us)]
            floor = "floor-short" if "constant" in target or "short" in target else "floor"
            if target.startswith(("tls-", "workload-")):
                floor = f"tls-{floor}"
            elif target == "funnel-jwks":
                # No floor: tsnet's own ingress is not among the build tags.
                floor = "tls-jwks"
            ratio = spread(runs.ratios(name, f"load/{floor}/{cell}", per_second))
            counts = [spread(runs.values(name, of), only_median=True) for of in (switches, peak_mb, load_cpu_us)]
            errors = sum(runs.values(name, lambda result: result["errors"]))
            rows.append([NAMES[target] if cell == "c1" or not runs.rounds(f"load/{target}/c1") else "", WORDS[cell], *values, ratio,
                         *counts, str(errors)])
    return table(["", "connections", "requests/s", "p50 ms", "p99 ms", "server CPU µs/request", "of the floor's requests/s",
                  "switches/request", "peak RSS MB", "caller's CPU µs/request", "errors"], rows)


def signs(runs):
    rows = []
    for algorithm in ISSUERS.values():
        def rate(threads, algorithm=algorithm):
            return spread(runs.values("sign", lambda result: result["own"][algorithm][threads]["per_second"]))

        def cpu(library, threads, algorithm=algorithm):
            values = runs.values("sign", lambda result: sign_cpu_us(result, algorithm, library, threads))
            return spread([value for value in values if value])

        if runs.rounds("sign"):
            rows.append([algorithm, rate("one"), rate("all"), cpu("own", "one"), cpu("own", "all"), cpu("openssl", "one"),
                         cpu("openssl", "all")])
    return table(["", "tokens/s, one thread", "one thread per core", "CPU µs, one thread", "one per core",
                  "`openssl speed`: CPU µs, one process", "one per core"], rows)


def starts(runs):
    rows = []
    for state, words in (("cold", "empty state"), ("warm", "kept state, ended by TERM before, caller with an open session"),
                         ("tls", "the same over TLS, with the kept certificate"), ("killed", "kept state, ended by KILL before")):
        for uid in ("own", "65532"):
            for _, result in sorted(runs.rounds(f"start/{state}/{uid}").items()):
                rows.append([words, str(result["uid"]), str(len(result["runs"])), *(
                    f"{row['median']:.0f} ({row['min']:.0f}–{row['max']:.0f}), {row['p95']:.0f}"
                    for row in (result["listening_ms"], result["first_answer_ms"])),
                    f"{result['rss_idle_kib']['median'] / 1024:.1f}"])
    return table(["", "uid", "starts", "listening: median ms (range), 19 of 20", "first token: median ms (range), 19 of 20",
                  "RSS 1 s later, MB"], rows)


def first_contact(runs):
    rows = []
    for state, words in (("cold", "empty state, called from before the start"), ("warm", "kept state, ended by TERM"),
                         ("killed", "kept state, ended by KILL"), ("moved", "kept state at another UDP port"),
                         ("newcomer", "called by a peer as soon as it has joined")):
        for who in ("1", "4", "30", "real"):
            for _, result in sorted(runs.rounds(f"contact/{state}/{who}").items()):
                first, left_out = result["first_ms"], result.get("open_at_kill", 0)
                left_out = f"; {left_out} calls that it had taken are left out" if left_out else ""
                rows.append([words + left_out, "tailscaled" if result["tailscaled"] else str(result["peers"]), str(result["callers"]),
                             str(len(result["runs"])), f"{first['median']:.0f} ({first['min']:.0f}–{first['max']:.0f})",
                             f"{first['p90']:.0f}", f"{first['p95']:.0f}", f"{result['longest_call_ms']:.0f}"])
    return table(["", "peers", "callers", "starts", "first token of the slowest caller: median ms (range)", "36 of 40", "38 of 40",
                  "longest call, ms"], rows)


def idle(runs):
    rows = []
    for target in ("floor", "es256", "tls-floor", "tls-es256"):
        rounds = runs.rounds(f"idle/{target}")
        if not rounds:
            continue
        steps = list(zip(*(result["steps"] for result in rounds.values())))
        for at in steps:
            conns = at[0]["conns"]
            memory = spread([step["rss_kib"] / 1024 for step in at])
            each = spread([(step["rss_kib"] - first["rss_kib"]) / step["conns"] for step, first in zip(at, steps[0])]) if conns else ""
            rows.append([NAMES[target] if not conns else "", str(conns), memory, each])
    return table(["", "connections", "RSS MB", "KiB each"], rows)


def after(runs):
    rows = [[NAMES[target], *(spread(runs.values(name, of)) for of in (lambda result: peak_mb(result["busy"]),
                                                                      lambda result: result["quiet"]["rss_kib"] / 1024))]
            for target in ("floor", "es256") if runs.rounds(name := f"after/{target}")]
    return table(["", "RSS MB at 64 connections", f"after {AFTER} s of quiet"], rows)


def tokens(runs):
    for target in WORKLOAD:
        for _, result in sorted(runs.rounds(f"tokens/{target}").items()):
            heads = [NAMES[target], *(f"{round(step['tokens'], -3):,}".replace(",", " ") for step in result["steps"]), "errors"]
            return table(heads, [["RSS MB", *(number(step["rss_kib"] / 1024) for step in result["steps"]), str(result["errors"])]])
    return ""


def growth(runs):
    rows = []
    for kind, words in (("keys", "ES256 keys in the directory"), ("rules", "rules of the gate, the last one decides"),
                        ("policies", "policies of the exchange, the last one decides")):
        for count in (1, 1_000):
            name = f"{kind}/{count}"
            if runs.rounds(name):
                start = spread(runs.values(name, lambda result: result["listening_s"] * 1000))
                if kind == "keys":
                    start += "; taking over: " + spread(runs.values(name, lambda result: result["first_listening_s"] * 1000))
                memory = spread(runs.values(name, lambda result: result["rss_before_kib"] / 1024))
                rows.append([words if count == 1 else "", str(count), start, memory,
                             *(spread(runs.values(name, of)) for of in (per_second, p50, cpu_us))])
    return table(["", "", "ms to listening", "RSS MB", "requests/s at 8 connections", "p50 ms", "server CPU µs/request"], rows)


def peers(runs):
    rows = []
    for target in AMONG_PEERS:
        for count in PEERS:
            name = f"peers/{count}"
            if runs.rounds(name):
                def values(of, name=name, target=target):
                    return spread(runs.values(name, lambda result: of(result[target])))

                rows.append([NAMES[target] if count == PEERS[0] else "", str(count), values(lambda one: one["ready_s"] * 1000),
                             values(lambda one: one["rss_kib"] / 1024), values(per_second), values(p50), values(cpu_us)])
    return table(["", "invented peers", "ms to ready", "RSS MB", "requests/s at 8 connections, new each time", "p50 ms",
                  "server CPU µs/request"], rows)


def slow(runs):
    rows = []
    for target in ("floor", "es256"):
        name = f"slow/{target}"
        if runs.rounds(name):
            ratio = spread(runs.values(name, lambda result: per_second(result["beside"]) / per_second(result["alone"])))
            rows.append([NAMES[target], *(spread(runs.values(name, lambda result, part=part: per_second(result[part])))
                                          for part in ("alone", "beside")), ratio])
    return table(["", "requests/s at 8 connections, alone", f"beside {SLOW} connections that send a header's line a second",
                  "ratio"], rows)


def resets(runs):
    rows = []
    for target in RESETS:
        name = f"resets/{target}"
        if runs.rounds(name):
            of = {part: spread(runs.values(name, lambda result, part=part: per_second(result[part]))) for part in ("alone", "beside")}
            floor = runs.ratios(name, "resets/floor-whois", lambda result: per_second(result["beside"]))
            failed = str(sum(runs.values(name, lambda result: result["beside"]["errors"])))
            storm = spread(runs.values(name, lambda result: result["resets_per_second"]))
            rows.append([NAMES[target], of["alone"], of["beside"], failed, storm, spread(floor)])
    return table(["", "new connections/s of one caller, alone", "beside the resets", "failed", "resets/s",
                  "beside them, of the floor + WhoIs"], rows)


def quiet(runs):
    all_runs = list(runs.loads())
    if not all_runs:
        return ""
    noisy = sorted({name for name, one in all_runs if one.get("noisy")})
    repeated = sum(1 for _, one in all_runs if one.get("repeated"))
    steal = [one["steal_cores"] for _, one in all_runs]
    foreign = [one["foreign_cores"] for _, one in all_runs]
    words = (f"{len(all_runs)} measurements; cores used by others: median {median(foreign):.2f}, most {max(foreign):.2f}; "
             f"stolen by the hypervisor: median {median(steal):.2f}, most {max(steal):.2f}. "
             f"{repeated} were repeated because others used more than 0.25 cores")
    if runs.failed:
        words = f"Not measured: {', '.join(runs.failed)}. {words}"
    return words + (f"; noisy all the same: {', '.join(noisy)}." if noisy else ", and none was noisy afterwards.")


def spread(values, unit="", only_median=False):
    """ "median (least–most)", to about three digits."""
    if not values:
        return "–"
    unit = "" if unit in ("", "×") else f" {unit}"
    middle = number(median(values))
    if only_median or len(values) == 1:
        return middle + unit
    return f"{middle} ({number(min(values))}–{number(max(values))}){unit}"


def number(value):
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def table(heads, rows):
    if not rows:
        return ""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def publish(runs, root):
    (root / "docs/benchmarks.svg").write_text(picture.bars(runs), encoding="utf-8")
    (root / "docs/benchmarks.md").write_text(page(runs), encoding="utf-8")
    readme = root / "README.md"
    begin, end = "<!-- made by scripts/bench -->\n", "<!-- end -->"
    before, rest = readme.read_text(encoding="utf-8").split(begin, 1)
    readme.write_text(before + begin + short(runs) + end + rest.split(end, 1)[1], encoding="utf-8")


def page(runs):
    machine = runs.machine
    facts = (f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, Linux {machine['kernel']}; "
             f"{machine['program']}, {machine['rustc']}, {machine['go']}, {machine['openssl'] or 'no openssl'}")
    method, bounds = ((ROOT / f"tests/bench/{name}.md").read_text(encoding="utf-8") for name in ("method", "bounds"))
    body = "\n\n".join(f"## {title}\n\n{made}" for title, made in tables(runs))
    return (f"# Benchmarks\n\nMade by `scripts/bench --publish`; not to be edited. Measured {machine['when'][:10]} on {facts}, "
            f"in {minutes(runs)}.\n\n{method}\n{body}\n\n{bounds}")


def minutes(runs):
    return f"{runs.took // 60} minutes" if runs.took else "about 20 minutes"


def short(runs):
    """The table in README, with what readers ask first."""
    rows = []
    for target in ("floor", "constant", "es256", "eddsa", "rs256", "gate"):
        name = f"load/{target}/c8"
        if runs.rounds(name):
            floor = "floor-short" if target == "constant" else "floor"
            rows.append([NAMES[target], *(spread(runs.values(name, of), only_median=True) for of in (per_second, p50, cpu_us)),
                         spread(runs.ratios(name, f"load/{floor}/c8", per_second))])
    machine = runs.machine
    return (f"![Requests a second, as ratios to a Go server on tsnet that answers a constant](docs/benchmarks.svg)\n\n"
            f"{table(['8 connections', 'requests/s', 'p50 ms', 'server CPU µs/request', 'of the floor’s requests/s'], rows)}\n\n"
            f"Server and callers on the same {machine['cores']} cores ({machine['cpu']}); the ratios are what carries over.\n"
            f"`scripts/bench` measures it again in {minutes(runs)}; everything else it found is in `docs/benchmarks.md`.\n")


if __name__ == "__main__":
    main()
