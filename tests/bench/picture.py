"""A bar for each target: its requests a second relative to the floor's in the same round.

The thin line is the range.
"""

from results import median, per_second

CELL = "c8"
BARS = [
    ("constant", "our constant", "floor-short"),
    ("es256", "token, ES256", "floor"),
    ("eddsa", "token, EdDSA", "floor"),
    ("gate", "gate decision", "floor"),
    ("floor-whois", "Go with a WhoIs per request", "floor"),
    ("proxy", "gate, reverse proxy", "floor"),
    ("sts", "token exchange", "floor"),
    ("rs256", "token, RS256", "floor"),
]
OURS, THEIRS, INK, PALE = "#2563eb", "#94a3b8", "#1f2937", "#e5e7eb"
LEFT, WIDTH, ROW, TOP = 200, 640, 30, 44


def bars(runs):
    rows = []
    for target, words, floor in BARS:
        ratios = runs.ratios(f"load/{target}/{CELL}", f"load/{floor}/{CELL}", per_second)
        if ratios:
            rows.append((words, ratios, THEIRS if target.startswith("floor") else OURS))
    most = max([1.0] + [max(ratios) for _, ratios, _ in rows])
    scale = (WIDTH - LEFT - 60) / most
    height = TOP + ROW * len(rows) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff" stroke="{PALE}"/>',
        f'<text x="16" y="24">Requests a second at 8 connections, Go net/http on tsnet with a constant = 1</text>',
    ]
    one = LEFT + scale
    for place, (words, ratios, colour) in enumerate(rows):
        y = TOP + ROW * place
        middle, least, greatest = (LEFT + value * scale for value in (median(ratios), min(ratios), max(ratios)))
        parts += [
            f'<text x="{LEFT - 10}" y="{y + 15}" text-anchor="end">{words}</text>',
            f'<rect x="{LEFT}" y="{y + 2}" width="{middle - LEFT:.1f}" height="18" rx="2" fill="{colour}"/>',
            f'<line x1="{least:.1f}" x2="{greatest:.1f}" y1="{y + 11}" y2="{y + 11}" stroke="{INK}" stroke-width="1.5"/>',
            f'<text x="{greatest + 8:.1f}" y="{y + 15}">{median(ratios):.2f}</text>',
        ]
    parts += [
        f'<line x1="{one:.1f}" x2="{one:.1f}" y1="{TOP - 6}" y2="{height - 14}" stroke="{INK}" stroke-dasharray="3 3"/>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"
