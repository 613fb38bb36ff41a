#!/usr/bin/env python3
"""One step of a trace of `recua train --trace` as a picture: of each rank what it computed, when it waited, and what was under way.

    timeline.py TRACE.json OUT.svg [--step 1]

The trace itself is opened by ui.perfetto.dev, which shows names and bytes too.
"""

import argparse
import json
from pathlib import Path

WIDTH, LEFT, ROW, GAP = 1100, 150, 22, 14
COLOURS = {"computation": "#4a78b5", "waiting": "#d9604a", "communication": "#e3a33b"}


def steps(events: list[dict]) -> list[float]:
    """Where the first rank's steps begin, microseconds; the last is the end of all."""
    spans = [e for e in events if e.get("ph") == "X"]
    first = next(e["name"] for e in spans if e["pid"] == 0 and e["cat"] == "computation")
    return [e["ts"] for e in spans if e["pid"] == 0 and e["name"] == first] + [max(e["ts"] + e["dur"] for e in spans)]


def picture(events: list[dict], began: float, ended: float) -> str:
    def x(ts: float) -> float:
        return LEFT + (min(max(ts, began), ended) - began) / (ended - began) * (WIDTH - LEFT - 10)

    ranks = sorted({e["pid"] for e in events})
    rows = {(rank, row): 30 + i * (2 * (ROW + 2) + GAP) + row * (ROW + 2) for i, rank in enumerate(ranks) for row in (0, 1)}
    parts = []
    # Waiting lies over the computation that it stops.
    for kind in COLOURS:
        for e in events:
            if e.get("cat") != kind or e["ts"] + e["dur"] <= began or e["ts"] >= ended:
                continue
            left, right = x(e["ts"]), x(e["ts"] + e["dur"])
            parts.append(f'<rect x="{left:.1f}" y="{rows[e["pid"], e["tid"]]}" width="{max(right - left, 0.4):.1f}" height="{ROW}" '
                         f'fill="{COLOURS[kind]}" stroke="white" stroke-width="0.3"><title>{e["name"]}, {e["dur"] / 1e3:.1f} ms</title></rect>')
    for (rank, row), y in rows.items():
        parts.append(f'<text x="8" y="{y + 15}">rank {rank}: {"communicates" if row else "computes"}</text>')
    height = max(rows.values()) + ROW + 34
    for i in range(6):
        at = began + i * (ended - began) / 5
        parts.append(f'<text x="{x(at):.0f}" y="{height - 10}" text-anchor="middle">{(at - began) / 1e3:.0f} ms</text>')
    key = "".join(f'<rect x="{LEFT + 150 * i}" y="8" width="12" height="12" fill="{colour}"/><text x="{LEFT + 150 * i + 18}" y="18">{kind}</text>'
                  for i, (kind, colour) in enumerate(COLOURS.items()))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH + 20}" height="{height}" font-family="sans-serif" font-size="12">\n'
            f'<rect width="100%" height="100%" fill="white"/>\n{key}\n' + "\n".join(parts) + "\n</svg>\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--step", type=int, default=1, help="of the trace, from 0")
    a = parser.parse_args()
    events = json.loads(a.trace.read_text())["traceEvents"]
    at = steps(events)
    if not 0 <= a.step < len(at) - 1:
        parser.error(f"the trace has {len(at) - 1} steps")
    a.out.write_text(picture(events, at[a.step], at[a.step + 1]))
