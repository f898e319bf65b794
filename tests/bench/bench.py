"""Runs the experiments of plan.py, writes each result as it comes, and has report.py make a page.

Called by scripts/bench, which builds what is needed.
"""

import argparse
import datetime
import json
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys
import time

import plan
import report
from world import ROOT, Failed, World


def main():
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    folder = pathlib.Path(options.folder)
    folder.mkdir(parents=True)
    programs = {"tailbone": options.binary, "bench": options.bench, "tailscaled": options.tailscaled}
    write(folder / "machine.json", machine(options))
    try:
        failed = measure(options, folder, programs)
    except Failed as failure:
        sys.exit(f"error: {failure}")
    write(folder / "took.json", {"seconds": round(time.monotonic() - began), "failed": failed})
    note(f"raw results: {folder}")
    runs = report.Runs(folder)
    print(report.text(runs))
    if options.publish:
        report.publish(runs, ROOT)
    if failed:
        sys.exit(f"error: not measured: {'; '.join(failed)}")


def measure(options, folder, programs):
    """Returns what could not be measured; the other results are kept."""
    began = time.monotonic()
    failed = []
    with World(programs) as world:
        wanted = [one for one in plan.experiments(world, options) if re.search(options.only, one.name)]
        if not wanted:
            sys.exit(f"no experiment has a name with {options.only!r} in it")
        for number in range(1, options.rounds + 1):
            for one in wanted:
                if number > 1 and one.once:
                    continue
                note(f"{time.monotonic() - began:4.0f} s  round {number}  {one.name}")
                try:
                    result = one.run()
                except Failed as failure:
                    failed.append(f"{one.name} of round {number}")
                    note(f"error: {failure}")
                    continue
                write(folder / f"{one.name.replace('/', '.')}.{number}.json",
                      {"name": one.name, "round": number, "result": result})
    return failed


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench")
    parser.add_argument("--only", default="", metavar="PATTERN", help="experiments whose name has this regular expression in it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="what tuning needs, in about three minutes")
    parser.add_argument("--before", metavar="BINARY", help="the program before a change, measured beside the one after it")
    parser.add_argument("--folder", required=True, help="where the raw results go; made anew")
    parser.add_argument("--publish", action="store_true", help="write docs/benchmarks.md and README's part of it")
    for name in ("binary", "bench", "sign", "tailscaled"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path)
    options = parser.parse_args()
    options.foreign, options.contacts = 0.25, 40
    options.warm_up, options.measure, options.starts, options.settle, options.sign_time = 0.5, 2.5, 20, 5, 1.0
    if options.quick:
        options.warm_up, options.measure, options.starts, options.settle, options.contacts = 0.4, 1.2, 5, 2, 5
        options.only = options.only or r"^sign$|^size$|^load/(floor(-short)?|constant|rs256|es256|before-.*)/c"
    return options


def machine(options):
    """The conditions under which the results hold."""
    def said(*command):
        try:
            return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    def field(path, name):
        lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
        return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)

    return {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": plan.CORES,
        "memory_gib": round(int(field("/proc/meminfo", "MemTotal").split()[0]) / 2**20, 1),
        "kernel": platform.release(),
        "rustc": said("rustc", "--version"),
        "go": said("go", "version"),
        "openssl": said("openssl", "version") if shutil.which("openssl") else None,
        "program": said(str(options.binary), "--version"),
        "commit": said("git", "rev-parse", "--short", "HEAD"),
        "changed": bool(said("git", "status", "--porcelain", "--untracked-files=no")),
        "rounds": options.rounds,
        "measured_s": options.measure,
        "quick": options.quick,
        "only": options.only,
    }


def write(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def note(words):
    print(f"    {words}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
