#!/usr/bin/env python3
"""Runs a recua built with `cuda` on a stand-in for NVIDIA's driver (standin/cuda.cpp): real CubeCL, real NVRTC, no GPU. Nothing is
computed; what counts is that every kernel compiles for an H200 and that no launch, copy, tensor map or product is refused.

    python3 -m pip install nvidia-cuda-nvrtc==13.0.* nvidia-cuda-runtime==13.0.* nvidia-cuda-cccl==13.0.* nvidia-cuda-crt==13.0.*
    tests/cuda/standin.py RECUA [--all] [--cuda FOLDER] [--kernels FOLDER]

Without --all the selftest leaves out cubek's routines for products, which training does not choose beside cuBLASLt and whose kernels take
most of the time. --kernels keeps the compiled kernels, by the very names that this binary looks for on an H200 with driver 580
(RECUA_KERNELS): carried there, a selftest takes seconds.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

BENCH = ["bench", "train", "--vocab", "4096", "--dim", "128", "--heads", "2", "--layers", "2", "--seq", "128", "--batch", "2", "--steps", "2"]
CUBEK = ["tma-mma", "cyclic-mma", "cyclic-cmma", "unit"]
# A row of the selftest that was computed, wrongly; any other problem is one of kernels or launches.
COMPUTED = (" elements differ, ", ", expected ")


def find_cuda():
    found = [folder for path in sys.path for folder in pathlib.Path(path).glob("nvidia/cu13") if (folder / "include").is_dir()]
    if not found:
        sys.exit("standin.py: no CUDA 13 of pip's packages in this Python; see --help")
    return found[0]


def build(here, folder):
    for source, library in (("cuda.cpp", "libcuda.so.1"), ("cublaslt.cpp", "libcublasLt.so.13")):
        command = [os.environ.get("CXX", "g++"), "-O1", "-std=c++20", "-Wall", "-Wextra", "-shared", "-fPIC", here / "standin" / source]
        subprocess.run([*command, "-o", folder / library, "-lpthread"], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recua", type=pathlib.Path)
    parser.add_argument("--all", action="store_true", help="all routines for products, larger shapes")
    parser.add_argument("--cuda", type=pathlib.Path, help="folder with include/ and lib/ (default: of pip's packages)")
    parser.add_argument("--kernels", type=pathlib.Path, help="keep the compiled kernels here: selftest/ and bench/, as benches/gpu.py reads them")
    parser.add_argument("--bench", action="store_true", help="the shapes of benches/gpu.py too (with fewer layers: the same kernels)")
    parser.add_argument("--texts", type=pathlib.Path, help="text to train on (default: the sources)")
    args = parser.parse_args()
    here, recua = pathlib.Path(__file__).resolve().parent, args.recua.resolve()
    cuda = (args.cuda or find_cuda()).resolve()
    failures = []

    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        build(here, work)
        log = work / "log"
        kernels = (args.kernels or work / "kernels").resolve()
        environment = {**os.environ, "LD_LIBRARY_PATH": f"{work}:{cuda / 'lib'}", "CUDA_PATH": str(cuda), "STANDIN_LOG": str(log)}

        def run(*arguments, backend=True):
            """Runs recua; gives its exit code, stdout and stderr, and collects what the stand-in refused."""
            log.write_text("")
            # Two folders: every process reads its own as a whole.
            folder = kernels / ("selftest" if arguments[0] == "selftest" else "bench")
            folder.mkdir(parents=True, exist_ok=True)
            environment["RECUA_KERNELS"] = str(folder)
            start = time.time()
            arguments = [str(argument) for argument in arguments]
            command = [recua, *arguments, *(["--backend", "cuda"] if backend else [])]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=work, timeout=1800)
            title = " ".join(map(str, arguments))
            lines = log.read_text().splitlines()
            print(f"{time.time() - start:6.1f} s  {title}: {'; '.join(line for line in lines if line.startswith('END'))}", flush=True)
            refused = [line for line in lines if line.startswith("PROBLEM")]
            failures.extend(f"{title}: {line}" for line in refused[:5])
            if len(refused) > 5:
                failures.append(f"{title}: {len(refused) - 5} more")
            return title, done

        def must(*arguments, **named):
            title, done = run(*arguments, **named)
            if done.returncode:
                failures.append(f"{title}: exit code {done.returncode}: {done.stderr[:2000]}")
            return done

        skip = [] if args.all else [part for name in CUBEK for part in ("--skip", f", {name}")]
        title, done = run("selftest", "--json", *skip)
        try:
            rows = json.loads(done.stdout.splitlines()[0])
        except (IndexError, ValueError):
            rows = []
            failures.append(f"{title}: no rows: {done.stderr[:2000]}")
        if len(rows) < 100:
            failures.append(f"{title}: {len(rows)} rows, expected more than 100")
        for row in rows:
            if row["problem"] and not any(text in row["problem"] for text in COMPUTED):
                failures.append(f"{title}: {row['name']} {row['shape']}: {row['problem'][:2000]}")

        for precision in ("f32", "bf16", "f16"):
            must(*BENCH, "--precision", precision)
        must(*BENCH, "--precision", "bf16", "--update-in-backward")
        must(*BENCH, "--precision", "bf16", "--keep", "block", "--kv-heads", "1")
        must(*BENCH, "--autodiff")
        for gemm in ("cublaslt", "wgmma", *(CUBEK if args.all else ())):
            must("bench", "gemm", "--m", "256", "--n", "512", "--k", "384", "--precision", "bf16", "--gemm", gemm, "--steps", "1")
        must("bench", "attention", "--dim", "256", "--heads", "2", "--seq", "256", "--precision", "bf16", "--attention", "raw", "--steps", "1")
        must("bench", "decode", "--dim", "128", "--heads", "2", "--layers", "2", "--seq", "32", "--steps", "2")

        if args.bench:
            train = ["bench", "train", "--vocab", "32000", "--layers", "2", "--steps", "1", "--precision", "bf16"]
            sizes = {"110m": (768, 12, 12, 2048, 1024, 16), "1b": (2048, 32, 4, 5632, 2048, 4), "7b": (4096, 32, 32, 11008, 2048, 1)}
            for dim, heads, kv, ffn, seq, batch in sizes.values():
                shape = ["--dim", dim, "--heads", heads, "--kv-heads", kv, "--ffn", ffn, "--seq", seq, "--batch", batch]
                for more in ([], ["--update-in-backward"], ["--update-in-backward", "--keep", "block"]):
                    must(*train, *shape, *more)
            shapes = [x for shape in ("8192x11008x4096", "2048x4096x4096", "2048x22016x4096", "16384x4096x11008") for x in ("--shape", shape)]
            for gemm in ("cublaslt", "wgmma", "tma-mma"):
                must("bench", "gemm", *shapes, "--gemm", gemm, "--precision", "bf16", "--steps", "1")
            for seq in (2048, 8192):
                for attention in ("auto", "cubecl"):
                    must("bench", "attention", "--dim", 4096, "--heads", 32, "--seq", seq, "--batch", 8192 // seq, "--attention", attention,
                         "--precision", "bf16", "--steps", "1")

        # Two steps of a real run, with a checkpoint and a sample, and text from it.
        texts = args.texts or here.parents[1] / "src"
        must("tokenizer", "train", "--input", texts.resolve(), "--out", "tokenizer.json", "--vocab-size", "512", backend=False)
        must("data", "tokenize", "--input", texts.resolve(), "--tokenizer", "tokenizer.json", "--out", "tokens", backend=False)
        must("train", "--data", "tokens", "--run", "run", "--preset", "debug", "--steps", "2", "--precision", "bf16", "--set",
             "sample.every=2", "--set", "train.checkpoint_every=1")
        must("train", "--run", "run", "--resume")
        must("generate", "--model", "run", "--tokens", "4", "fn")

    for failure in failures:
        print("FAILED", failure)
    sys.exit(f"standin.py: {len(failures)} failed" if failures else 0)


if __name__ == "__main__":
    main()
