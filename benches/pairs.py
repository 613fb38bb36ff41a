#!/usr/bin/env python3
"""Two binaries of recua in turn: is the new one slower?

    python3 benches/pairs.py OLD NEW [--pairs 10] [--steps 6]            training, on the shapes of compare_train.py
    python3 benches/pairs.py OLD NEW --build mixture.toml [--pairs 10]   `recua data build`, each time into an empty folder

Prints the median of NEW's figure over OLD's, pair by pair, and the interval that holds it with 95 % (order statistics: with 10 pairs
the second smallest and the second largest ratio). Within a pair the order alternates, so that drift cancels. Of training the figure is
tok/s; of a build wall time, processor time, and the seconds of each stage (the sum over its shards).
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

SHAPES = {
    "tiny": dict(vocab=4096, dim=288, layers=6, heads=6, ffn=768, seq=256, batch=8),
    "vocab32k": dict(vocab=32000, dim=512, layers=8, heads=8, ffn=1376, seq=512, batch=4),
    "long": dict(vocab=4096, dim=288, layers=6, heads=6, ffn=768, seq=2048, batch=1),
}


def measure(binary: str, shape: dict[str, int], steps: int) -> dict:
    flags = [x for k, v in shape.items() for x in (f"--{k}", str(v))]
    command = [binary, "bench", "train", *flags, "--steps", str(steps), "--backend", "flex", "--json"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def rank(pairs: int) -> int:
    """How many ratios to leave out on each side for at least 95 %."""
    tail, k = 0.0, 0
    while True:
        tail += math.comb(pairs, k) / 2**pairs
        if 2 * tail > 0.05:
            return k
        k += 1


def interval(ratios: list[float]) -> str:
    ratios = sorted(ratios)
    cut = max(rank(len(ratios)) - 1, 0)
    return f"{statistics.median(ratios):.3f} [{ratios[cut]:.3f}, {ratios[-1 - cut]:.3f}]"


def build(binary: str, config: str) -> dict[str, float]:
    """Seconds of one build, whole and by stage."""
    with tempfile.TemporaryDirectory() as out:
        began = time.monotonic()
        process = subprocess.Popen(
            [binary, "data", "build", "--config", config, "--out", f"{out}/build"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        got = {"wall": time.monotonic() - began, "processor": usage.ru_utime + usage.ru_stime}
        if status != 0:
            raise SystemExit(f"{binary}: status {status}")
        for path in pathlib.Path(out).glob("build/*/*/*.timing.json"):
            stage = path.parts[-3]
            got[stage] = got.get(stage, 0.0) + json.loads(path.read_text())["seconds"]
        return got


def builds(old: str, new: str, config: str, pairs: int) -> None:
    for binary in (old, new):  # what both read is in memory
        build(binary, config)
    rows = []
    for i in range(pairs):
        order = [old, new] if i % 2 == 0 else [new, old]
        got = {binary: build(binary, config) for binary in order}
        rows.append((got[old], got[new]))
    for name in rows[0][0]:
        medians = [statistics.median(row[side][name] for row in rows) for side in (0, 1)]
        ratios = interval([row[1][name] / row[0][name] for row in rows])
        print(f"{name:10} new/old {ratios}, {medians[0]:.2f} -> {medians[1]:.2f} s, {pairs} pairs", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--build", metavar="CONFIG")
    args = parser.parse_args()
    if args.build:
        builds(args.old, args.new, args.build, args.pairs)
        return
    for name, shape in SHAPES.items():
        ratios, memory, speeds = [], [], []
        for i in range(args.pairs):
            order = [args.old, args.new] if i % 2 == 0 else [args.new, args.old]
            got = {binary: measure(binary, shape, args.steps) for binary in order}
            old, new = got[args.old], got[args.new]
            ratios.append(new["tok_s"] / old["tok_s"])
            memory.append(new["work_mb"] / old["work_mb"])
            speeds.append((old["tok_s"], new["tok_s"]))
        medians = [statistics.median(s[i] for s in speeds) for i in (0, 1)]
        print(
            f"{name:9} new/old {interval(ratios)}, memory {statistics.median(memory):.3f},"
            f" tok/s {medians[0]:.0f} -> {medians[1]:.0f}, {args.pairs} pairs",
            flush=True,
        )


if __name__ == "__main__":
    main()
