#!/usr/bin/env python3
"""Builds and runs tests/cuda/attention_test.cpp for each head size, and gemm_test.cpp for each kind of product: the CUDA kernels on the
CPU. Needs only a C++20 compiler. Each runs twice, at two extremes of what a GPU may do: copies that land when they are waited for,
products and sums apart; and copies that land at once (EMULATE_EARLY), products and sums fused where the CPU can.

    tests/cuda/check.py [-v] [--head-dim 64 ...] [--gemm 8 ...] [--source folder of the kernels]
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile


def main():
    here = pathlib.Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head-dim", nargs="+", type=int, default=(32, 64, 80, 96, 128))
    parser.add_argument("--gemm", nargs="*", type=int, default=(0, 1, 2, 6, 7, 8, 9, 10, 11, 15))
    parser.add_argument("--source", type=pathlib.Path, default=here.parents[1] / "crates/core/src/ops/cube/cuda")
    parser.add_argument("-v", action="store_true", help="print every case")
    args = parser.parse_args()
    tests = [("attention_test", "HEAD_DIM", n) for n in args.head_dim] + [("gemm_test", "GEMM", n) for n in args.gemm]
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    fused = ["-mfma", "-ffp-contract=fast"] if cpuinfo.exists() and " fma " in cpuinfo.read_text() else []
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for test, macro, value in tests:
            for flags, environment in [(["-ffp-contract=off"], {}), (fused, {"EMULATE_EARLY": "1"})]:
                program = pathlib.Path(folder) / f"{test}_{value}"
                subprocess.run([os.environ.get("CXX", "g++"), "-O2", "-std=c++20", "-pthread", "-Wall", "-Wextra", *flags,
                                "-Wno-unknown-pragmas", f"-D{macro}={value}", f"-I{args.source}", here / f"{test}.cpp", "-o", program],
                               check=True)
                command = [program, *(["-v"] if args.v else [])]
                failures += subprocess.run(command, env={**os.environ, **environment}, timeout=600).returncode != 0
    sys.exit(f"check.py: {failures} of {2 * len(tests)} runs failed" if failures else 0)


if __name__ == "__main__":
    main()
