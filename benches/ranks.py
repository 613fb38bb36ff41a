#!/usr/bin/env python3
"""What processes cost: two ranks of one thread each (dp 2) against one process of two threads, in pairs, on one machine.

    ranks.py RECUA RUN [--pairs 9] [--steps 24] [--at-least 0.9]

RUN is the folder of a quickstart; `recua` has the feature `mpi`. The same batch, model and data for both; the figure is tokens a second of
the median step, the first four left out. Within a pair the order alternates, so that drift cancels. Prints each pair, the median of the
ratio, and the interval that holds it with 95 % (order statistics, as pairs.py); fails where the median is below --at-least. Wants a
machine of two cores with nothing else on them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from pairs import interval

MODEL = ["model.dim=288", "model.n_layers=6", "model.n_heads=6", "model.ffn_dim=768", "model.max_seq_len=256", "train.batch=8",
         "train.val_every=0", "sample.every=0", "train.checkpoint_every=0"]
WAYS = {"one process of two threads": ["--threads", "2"], "two ranks of one thread": ["--nproc", "2", "--threads", "1"]}


def speed(recua: str, data: Path, steps: int, way: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        sets = [word for one in MODEL for word in ("--set", one)]
        command = [recua, "train", "--data", str(data), "--run", f"{folder}/run", "--steps", str(steps), *way, *sets]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(way)}: exit code {done.returncode}\n{done.stderr}")
        records = [json.loads(line) for line in (Path(folder) / "run/metrics.jsonl").read_text().splitlines()]
        return statistics.median(r["tok_s"] for r in records[4:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recua", type=os.path.abspath)
    parser.add_argument("run", type=Path)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--at-least", type=float, default=0.9)
    a = parser.parse_args()
    data = (a.run / "data/train").resolve()
    one, two = WAYS
    for way in WAYS.values():  # what both read is in memory
        speed(a.recua, data, 6, way)
    ratios, speeds = [], {name: [] for name in WAYS}
    for i in range(a.pairs):
        got = {name: speed(a.recua, data, a.steps, WAYS[name]) for name in (WAYS if i % 2 == 0 else reversed(WAYS))}
        ratios.append(got[two] / got[one])
        for name in WAYS:
            speeds[name].append(got[name])
        print(f"{got[one]:.0f} tok/s {one}, {got[two]:.0f} {two}: {ratios[-1]:.3f}", flush=True)
    medians = ", ".join(f"{name} {statistics.median(all):.0f} tok/s" for name, all in speeds.items())
    print(f"{medians}; ratio {interval(ratios)}, {a.pairs} pairs")
    if statistics.median(ratios) < a.at_least:
        sys.exit(f"less than {a.at_least}")


if __name__ == "__main__":
    main()
