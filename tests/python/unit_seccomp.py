"""The list of system calls of a systemd unit as a seccomp profile for containers:
unit_seccomp.py UNIT >PROFILE.

So the unit's confinement can be tested without systemd as init. Sets (@…) are expanded by
systemd-analyze, as systemd itself does.
"""

import json
import pathlib
import subprocess
import sys


def expand(word):
    if not word.startswith("@"):
        return {word}
    calls = set()
    # The first line is the set's name; nested sets appear as @….
    for line in subprocess.run(["systemd-analyze", "syscall-filter", word], capture_output=True, text=True, check=True).stdout.splitlines()[1:]:
        line = line.strip()
        if line and not line.startswith("#"):
            calls |= expand(line)
    return calls


def main():
    # What systemd allows with any allow list.
    allowed = expand("@default")
    for line in pathlib.Path(sys.argv[1]).read_text().splitlines():
        name, _, value = line.partition("=")
        if name == "SystemCallFilter":
            calls = set().union(*(expand(word) for word in value.lstrip("~").split()))
            allowed = allowed - calls if value.startswith("~") else allowed | calls
    if len(allowed) < 50:
        sys.exit(f"{sys.argv[1]}: no list of system calls")
    json.dump({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "syscalls": [{"names": sorted(allowed), "action": "SCMP_ACT_ALLOW"}]}, sys.stdout)


main()
