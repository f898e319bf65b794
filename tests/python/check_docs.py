"""Checks every Markdown file of the tree: each relative link and anchor leads somewhere, each page
of docs/ is in the summary and can be reached from its index, the files and tests that pages name
exist, each number of a defect in the name of a test has a row, and text wraps at 100. Prints what
is wrong, and exits with 1 then.
"""

import pathlib
import posixpath
import re
import subprocess
import sys

root = pathlib.Path(__file__).resolve().parents[2]
wrong = []
CODE = re.compile(r"^(```|~~~).*?^\1[^\n]*$|`+[^`\n]+`+", re.S | re.M)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^()\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|^\[[^\]]+\]:\s*(\S+)", re.M)
# A file of the tree in a span of code. What has no dot in its last part may be a folder.
PLACE = re.compile(r"(?:src|crates|tests|vendor|scripts|deploy|docs|examples|proto)/[\w./*{}-]*[\w}*]")
# Names of tests are sentences; shorter names in spans of code are settings, fields and codes, those
# that begin with tailbone_ are metrics.
TEST = re.compile(r"[dtwg]\d\d_\w+|[a-z][a-z0-9]*(?:_[a-z0-9]+){4,}")

# Made by a test and by scripts/bench, and what the latter copies.
MADE = ("docs/settings.md", "docs/benchmarks.md", "tests/bench/method.md", "tests/bench/bounds.md")


def main():
    pages = {path: (root / path).read_text(encoding="utf-8") for path in tracked() if path.endswith(".md")}
    anchors = {path: set(slugs(text)) for path, text in pages.items()}
    sources = "\n".join((root / path).read_text(encoding="utf-8") for path in tracked() if path.endswith((".rs", ".go")))
    functions = set(re.findall(r"\b(?:fn|func) (?:\([^)]*\) )?(\w+)", sources))
    leads_to = {}
    for path, text in pages.items():
        leads_to[path] = links(path, text, pages, anchors)
        spans(path, text, functions)
        if path not in MADE:
            width(path, text)
    summary(pages, leads_to)
    numbers(pages["docs/compatibility/defects.md"], functions)
    mentions()
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{len(pages)} Markdown files, {sum(map(len, leads_to.values()))} links")


def tracked():
    # In a container the tree may be another user's, which git takes for unsafe.
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    return sorted({path for path in listed.stdout.split("\0") if path and (root / path).is_file()})


def slugs(text):
    """The anchors of a page's headings, as forges and mdbook make them."""
    seen = {}
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", re.sub(r"^(```|~~~).*?^\1[^\n]*$", "", text, flags=re.S | re.M), re.M):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        seen[slug] = seen.get(slug, -1) + 1
        yield slug if seen[slug] == 0 else f"{slug}-{seen[slug]}"


def links(path, text, pages, anchors):
    found = set()
    for match in LINK.finditer(CODE.sub("", text)):
        target = match[1] or match[2]
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        place = posixpath.normpath(posixpath.join(posixpath.dirname(path), place)) if place else path
        found.add(place)
        if not (root / place).exists():
            wrong.append(f"{path}: no such file: {target}")
        elif anchor and place in pages and anchor not in anchors[place]:
            wrong.append(f"{path}: no such heading: {target}")
    return found


def spans(path, text, functions):
    """What stands in spans of code and looks like a file of the tree or a test must be there."""
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"^(```|~~~).*?^\1[^\n]*$", "", text, flags=re.S | re.M)):
        if PLACE.fullmatch(span) and not any(sign in span for sign in "*{}") and not (root / span).exists():
            wrong.append(f"{path}: names {span}, which is not there")
        if TEST.fullmatch(span) and path.startswith("docs/") and not span.startswith("tailbone_") and span not in functions:
            wrong.append(f"{path}: names the test {span}, which is not there")


def numbers(text, functions):
    """Each number of a defect in the name of a test has a row in the list."""
    rows = {f"{letter.lower()}{int(number):02}" for letter, number in re.findall(r"^\| ([DTWG])(\d+) \|", text, re.M)}
    for name in sorted(functions):
        for number in re.match(r"((?:[dtwg]\d+_)*)", name)[1].split("_")[:-1]:
            if number not in rows:
                wrong.append(f"docs/compatibility/defects.md: has no row for {number} of the test {name}")


def width(path, text):
    """Text wraps at 100. Tables, code and what scripts/bench writes into README cannot."""
    text = re.sub(r"^(```|~~~).*?^\1[^\n]*$|<!-- made by .*?<!-- end -->", lambda code: "\n" * code[0].count("\n"), text, flags=re.S | re.M)
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > 100 and not line.startswith(("|", "    ")):
            wrong.append(f"{path}:{number}: {len(line)} columns; text wraps at 100")


def summary(pages, leads_to):
    here = {path for path in pages if path.startswith("docs/")} - {"docs/SUMMARY.md"}
    for name in ("docs/SUMMARY.md", "docs/README.md"):
        reached = leads_to[name]
        if name == "docs/README.md":
            for page in list(reached):
                reached = reached | (leads_to[page] if page.endswith("/README.md") and page in leads_to else set())
        for path in sorted(here - reached - {name}):
            wrong.append(f"{name}: does not lead to {path}")


def mentions():
    """A page of docs/ that code, scripts or help texts name is there."""
    for path in tracked():
        if path.startswith(("tests/fuzz/corpus/", "docs/")) or path.endswith((".svg", ".sum", ".lock")):
            continue
        try:
            text = (root / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for place in re.findall(r"\bdocs/[\w/.-]+\.(?:md|svg)\b", text):
            if not (root / place).is_file():
                wrong.append(f"{path}: names {place}, which is not there")


main()
