"""The raw results in one run's folder, and what is computed from them.

Ratios are computed within a round, where both sides saw the same machine; then the median of the
rounds is taken, with its range.
"""

import json
import pathlib
import statistics


class Runs:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.machine = json.loads((self.folder / "machine.json").read_text(encoding="utf-8"))
        took = self.folder / "took.json"
        whole = json.loads(took.read_text(encoding="utf-8")) if took.exists() else {}
        self.took, self.failed = whole.get("seconds"), whole.get("failed", [])
        self.results = {}
        for path in self.folder.glob("*.[0-9]*.json"):
            one = json.loads(path.read_text(encoding="utf-8"))
            self.results.setdefault(one["name"], {})[one["round"]] = one["result"]

    def rounds(self, name):
        """Results by round; empty if the experiment was not run."""
        return self.results.get(name, {})

    def values(self, name, of):
        return [of(result) for _, result in sorted(self.rounds(name).items())]

    def ratios(self, ours, theirs, of, of_theirs=None):
        """One ratio for each round in which both were run."""
        left, right = self.rounds(ours), self.rounds(theirs)
        return [of(left[number]) / (of_theirs or of)(right[number]) for number in sorted(left.keys() & right.keys())]

    def loads(self):
        """Every measurement of requests."""
        for name, rounds in self.results.items():
            for result in rounds.values():
                for one in (result, *(part for part in result.values() if isinstance(part, dict))):
                    if "per_second" in one:
                        yield name, one


def per_second(result):
    return result["per_second"]


def p50(result):
    return result["p50_ms"]


def p99(result):
    return result["p99_ms"]


def cpu_us(result):
    """Processor time of the server per request."""
    return result["cpu"]["server"] * 1e6 / max(1, result["requests"])


def load_cpu_us(result):
    return result["cpu"]["load"] * 1e6 / max(1, result["requests"])


def switches(result):
    return result["switches"] / max(1, result["requests"])


def peak_mb(result):
    return result["peak_kib"] / 1024


def sign_cpu_us(result, algorithm, library, threads):
    """Processor time of one signature while "one" thread or one on each of "all" cores sign."""
    if library == "own":
        return result["own"][algorithm][threads]["cpu_us"]
    rate = result["openssl"][algorithm][threads]
    if not rate:
        return None
    # `openssl speed` adds up what each process does in a second of its processor time.
    return (1 if threads == "one" else result["own"][algorithm]["all"]["threads"]) * 1e6 / rate


def fastest_sign_us(result, algorithm, threads="all"):
    both = (sign_cpu_us(result, algorithm, library, threads) for library in ("own", "openssl"))
    return min(one for one in both if one)


def idle_kib(result):
    """Memory of one idle connection, averaged over the largest number that was held."""
    steps = result["steps"]
    return (steps[-1]["rss_kib"] - steps[0]["rss_kib"]) / steps[-1]["conns"]


def median(values):
    return statistics.median(values)
