#!/usr/bin/env python3
"""Two binaries of recua in turn on the shapes of compare_train.py: is the new one slower?

    python3 benches/pairs.py OLD NEW [--pairs 10] [--steps 6]

Prints for each shape the median of NEW's tok/s over OLD's, pair by pair, and the interval that holds it with 95 % (order statistics:
with 10 pairs the second smallest and the second largest ratio). Within a pair the order alternates, so that drift cancels.
"""

import argparse
import json
import math
import statistics
import subprocess

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=6)
    args = parser.parse_args()
    for name, shape in SHAPES.items():
        ratios, memory, speeds = [], [], []
        for i in range(args.pairs):
            order = [args.old, args.new] if i % 2 == 0 else [args.new, args.old]
            got = {binary: measure(binary, shape, args.steps) for binary in order}
            old, new = got[args.old], got[args.new]
            ratios.append(new["tok_s"] / old["tok_s"])
            memory.append(new["work_mb"] / old["work_mb"])
            speeds.append((old["tok_s"], new["tok_s"]))
        ratios.sort()
        cut = max(rank(args.pairs) - 1, 0)
        low, high = ratios[cut], ratios[-1 - cut]
        medians = [statistics.median(s[i] for s in speeds) for i in (0, 1)]
        print(
            f"{name:9} new/old {statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}], memory {statistics.median(memory):.3f},"
            f" tok/s {medians[0]:.0f} -> {medians[1]:.0f}, {args.pairs} pairs",
            flush=True,
        )


if __name__ == "__main__":
    main()
