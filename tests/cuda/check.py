#!/usr/bin/env python3
"""Builds and runs tests/cuda/attention_test.cpp for each head size: the CUDA kernels on the CPU. Needs only a C++20 compiler.

    tests/cuda/check.py [-v] [--head-dim 64 ...] [--source folder of the kernels]
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
    parser.add_argument("--source", type=pathlib.Path, default=here.parents[1] / "src/ops/cube/cuda")
    parser.add_argument("-v", action="store_true", help="print every case")
    args = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for head_dim in args.head_dim:
            program = pathlib.Path(folder) / f"attention_test_{head_dim}"
            subprocess.run([os.environ.get("CXX", "g++"), "-O2", "-std=c++20", "-pthread", "-Wall", "-Wextra",
                            "-Wno-unknown-pragmas", f"-DHEAD_DIM={head_dim}", f"-I{args.source}",
                            here / "attention_test.cpp", "-o", program], check=True)
            failures += subprocess.run([program, *(["-v"] if args.v else [])], timeout=600).returncode != 0
    sys.exit(f"check.py: {failures} of {len(args.head_dim)} head sizes failed" if failures else 0)


if __name__ == "__main__":
    main()
