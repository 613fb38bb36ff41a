#!/usr/bin/env python3
"""Memory of a rank, measured and planned: what is kept from forward to backward falls as 1 / tp with sequence parallelism, the
optimizer's state as 1 / dp with ZeRO-1 (`recua plan --cluster` has the formula). Linux, OpenMPI.

    memory.py RECUA TRAIN_TOKENS

The peak of each rank's process, less that of one whose model is next to nothing.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BOUND = 0.10
BUCKET = 4 << 20  # parallel.bucket
# dim, layers, heads, ffn, seq, sequences
LARGE, TINY = (512, 8, 8, 1376, 1024, 4), (32, 1, 4, 64, 32, 4)


def sizes(dim: int, layers: int, heads: int, ffn: int, seq: int, batch: int) -> list[str]:
    model = {"model.dim": dim, "model.n_layers": layers, "model.n_heads": heads, "model.ffn_dim": ffn, "model.max_seq_len": seq,
             "train.batch": batch, "train.micro_batch": 1}
    return [word for key, value in model.items() for word in ("--set", f"{key}={value}")]


def peak(recua: str, data: str, work: Path, ranks: int, model: list[str], more: list[str], steps: int) -> float:
    """Bytes of the largest rank. The steps take long enough to be looked at."""
    run = work / f"run-{time.time_ns()}"
    nproc = ["--nproc", str(ranks)] if ranks > 1 else []
    job = subprocess.Popen([recua, "train", "--data", data, "--run", str(run), "--steps", str(steps), "--threads", "1", *nproc, *model, *more,
                            "--set", "train.val_every=0", "--set", "sample.every=0", "--set", "train.checkpoint_every=0"],
                           stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peaks: dict[int, int] = {}
    while job.poll() is None:
        for entry in Path("/proc").iterdir():
            try:
                if not entry.name.isdigit() or str(run).encode() not in (entry / "cmdline").read_bytes().split(b"\0"):
                    continue
                # Saving, at the end, has buffers of its own.
                if (run / "checkpoints").exists() and any((run / "checkpoints").iterdir()):
                    continue
                name = (entry / "comm").read_text().strip()
                for line in (entry / "status").read_text().splitlines():
                    if line.startswith("VmHWM") and name == Path(recua).name[:15]:
                        peaks[int(entry.name)] = int(line.split()[1]) * 1024
            except OSError:
                pass
        time.sleep(0.02)
    if job.returncode != 0:
        sys.exit(f"exit code {job.returncode}: {job.stderr.read()}")
    return max(peaks.values())


if __name__ == "__main__":
    recua, data = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
    here = Path(__file__).resolve().parents[2]
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        text = (here / "crates/core/assets/clusters/a100-80.toml").read_text()
        lines = [f"bucket_elements = {BUCKET}" if line.startswith("bucket_elements =") else "bucket_elements_per_rank = 0"
                 if line.startswith("bucket_elements_per_rank") else line for line in text.splitlines()]
        cluster = work / "cluster.toml"
        cluster.write_text("\n".join(lines))
        vocab = None
        for dp, tp in [(1, 1), (2, 1), (4, 1), (1, 2), (1, 4), (2, 2)]:
            ranks, batch = dp * tp, ["--set", f"train.batch={dp}"]
            parallel = ["--set", f"parallel.tp={tp}", "--set", f"parallel.sequence={'true' if tp > 1 else 'false'}"]
            large, tiny = (peak(recua, data, work, ranks, sizes(*m), batch + parallel, n) for m, n in ((LARGE, 3), (TINY, 400)))
            if vocab is None:
                config = next(work.glob("run-*/config.toml")).read_text()
                vocab = next(line.split("=")[1].strip() for line in config.splitlines() if line.startswith("vocab_size"))
            out = subprocess.run([recua, "plan", "--cluster", str(cluster), "--devices", str(ranks), "--precision", "f32", *sizes(*LARGE), *batch,
                                  "--set", f"model.vocab_size={vocab}", *parallel, "--json"], capture_output=True, text=True, check=True)
            plan = json.loads(out.stdout)["memory"]
            got, planned = large - tiny, plan["total"]
            parts = ", ".join(f"{name} {value / 1e6:.0f}" for name, value in plan.items() if name != "total")
            print(f"dp {dp} tp {tp}: measured {got / 1e6:.0f} MB, planned {planned / 1e6:.0f} MB ({parts}): {got / planned - 1:+.1%}", flush=True)
            failed |= abs(got / planned - 1) > BOUND
    sys.exit("more than 10 % apart" if failed else 0)
