#!/usr/bin/env python3
"""Ranks that are processes, over MPI: N of them equal one, and a job whose rank dies or hangs ends in time and goes on as if it had not.

    ranks.py RECUA TRAIN_TOKENS VALID_TOKENS [--kills N] [--seed S]

Needs Python 3 alone, and a `recua` with the feature `mpi`. TRAIN_TOKENS and VALID_TOKENS are datasets of `recua data tokenize`.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Losses of a run on one rank and on several differ by the order of sums alone.
RELATIVE = 1e-5
# Seconds that the others wait for a rank; and what ending a job may take beside on a machine that is busy.
TIMEOUT, GRACE = 10, 30
MODEL = ["--preset", "debug", "--set", "model.dim=64", "--set", "model.n_layers=2", "--set", "model.n_heads=4", "--set",
         "model.max_seq_len=64", "--set", "train.batch=8", "--set", "train.val_windows=8", "--set", "optim.warmup_steps=5",
         "--set", "sample.every=0", "--threads", "1"]


class Ranks:
    def __init__(self, recua: Path, train: Path, valid: Path, work: Path):
        self.recua, self.work = recua, work
        self.base = ["train", "--data", str(train), "--valid", str(valid), *MODEL]

    def command(self, name: str, ranks: int, *more: str, timeout: int = 300) -> list[str]:
        nproc = ["--nproc", str(ranks)] if ranks > 1 else []
        return [str(self.recua), *self.base, "--run", str(self.work / name), *nproc, "--comm-timeout", str(timeout), *more]

    def run(self, name: str, ranks: int, *more: str) -> str:
        done = subprocess.run(self.command(name, ranks, *more), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            sys.exit(f"{name}: exit code {done.returncode}\n{done.stderr}")
        return done.stderr

    def losses(self, name: str) -> dict[int, float]:
        lines = (self.work / name / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        return {r["step"]: r["loss"] for r in records if "loss" in r}

    def first_checkpoint(self, name: str, job: subprocess.Popen) -> None:
        """Waits for a whole one."""
        while not any("tmp" not in path.name for path in (self.work / name / "checkpoints").glob("step-*")) and job.poll() is None:
            time.sleep(0.02)

    def weights(self, name: str) -> str:
        """Hash of the newest checkpoint's tensors."""
        steps = sorted((self.work / name / "checkpoints").glob("step-*"), key=lambda p: int(p.name.split("-")[1]))
        whole = hashlib.sha256()
        for path in sorted(steps[-1].rglob("*.safetensors")):
            whole.update(path.relative_to(steps[-1]).as_posix().encode() + path.read_bytes())
        return f"{steps[-1].name} {whole.hexdigest()}"


def same(what: str, got: dict[int, float], expected: dict[int, float], relative: float) -> None:
    if got.keys() != expected.keys():
        sys.exit(f"{what}: steps {sorted(got)}, expected {sorted(expected)}")
    worst = max(abs(got[s] / expected[s] - 1) for s in expected)
    print(f"{what}: {len(got)} losses, largest relative difference {worst:.1e}")
    if worst > relative:
        sys.exit(f"{what}: more than {relative:.0e}")


def equal_one(r: Ranks, steps: int) -> None:
    n = ["--steps", str(steps)]
    r.run("one", 1, *n)
    one = r.losses("one")
    if one[steps] >= one[1]:
        sys.exit(f"the loss does not fall: {one}")
    meshes = {
        "dp2": (2, []),
        "tp2": (2, ["--set", "parallel.tp=2"]),
        "tp2-sequence": (2, ["--set", "parallel.tp=2", "--set", "parallel.sequence=true"]),
        "dp2-tp2": (4, ["--set", "parallel.tp=2", "--set", "parallel.sequence=true"]),
    }
    for name, (ranks, sets) in meshes.items():
        said = r.run(name, ranks, *n, *sets)
        if f"of {ranks} (" not in said or "tp" not in said:
            sys.exit(f"{name}: the start does not tell rank and mesh:\n{said}")
        same(name, r.losses(name), one, RELATIVE)
    r.run("dp2-tp2-again", 4, *n, *meshes["dp2-tp2"][1])
    if r.weights("dp2-tp2") != r.weights("dp2-tp2-again"):
        sys.exit("the same mesh twice: other weights")
    # From one mesh to another, in the middle.
    every = ["--set", f"train.checkpoint_every={steps // 2}"]
    r.run("moved", 2, *n, *every)
    newest = sorted((r.work / "moved" / "checkpoints").iterdir())[-1]
    subprocess.run(["rm", "-r", str(newest)], check=True)
    r.run("moved", 4, *n, *every, *meshes["dp2-tp2"][1], "--resume")
    same("dp 2, then dp 2 x tp 2", r.losses("moved"), one, RELATIVE)


def pid_of(rank: int, run: Path) -> int | None:
    for entry in Path("/proc").iterdir():
        try:
            if not entry.name.isdigit() or str(run).encode() not in (entry / "cmdline").read_bytes().split(b"\0"):
                continue
            if f"OMPI_COMM_WORLD_RANK={rank}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                return int(entry.name)
        except OSError:
            pass  # it ended meanwhile
    return None


def kills(r: Ranks, count: int, chance: random.Random) -> None:
    steps = ["--steps", "120", "--set", "train.checkpoint_every=10", "--set", "train.val_every=0"]
    meshes = {"dp": (2, []), "tp": (2, ["--set", "parallel.tp=2"]), "both": (4, ["--set", "parallel.tp=2"])}
    whole = {}
    for i in range(count):
        mesh = list(meshes)[i % len(meshes)]
        ranks, sets = meshes[mesh]
        if mesh not in whole:
            r.run(f"whole-{mesh}", ranks, *steps, *sets)
            whole[mesh] = r.weights(f"whole-{mesh}")
        name, rank = f"killed-{i}", chance.randrange(ranks)
        how = [signal.SIGKILL, signal.SIGSTOP][i % 2]
        with open(r.work / f"{name}.log", "w+") as log:
            job = subprocess.Popen(r.command(name, ranks, *steps, *sets, timeout=TIMEOUT), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            # Somewhere after the first checkpoint: in a step, or in the writing of a checkpoint.
            r.first_checkpoint(name, job)
            time.sleep(chance.random())
            pid = pid_of(rank, r.work / name)
            if pid is None:
                sys.exit(f"{name}: rank {rank} has ended before it was killed\n{(r.work / f'{name}.log').read_text()}")
            os.kill(pid, how)
            began = time.monotonic()
            try:
                code = job.wait(TIMEOUT + GRACE)
            except subprocess.TimeoutExpired:
                job.kill()
                sys.exit(f"{name}: still there {TIMEOUT + GRACE} s after {how.name} of rank {rank}")
            took = time.monotonic() - began
            left = [n for n in range(ranks) if pid_of(n, r.work / name)]
            said = (r.work / f"{name}.log").read_text()
            if code == 0 or left:
                sys.exit(f"{name}: exit code {code}, ranks that are left: {left}\n{said}")
            if how == signal.SIGSTOP and f"no answer from rank {rank}" not in said:
                sys.exit(f"{name}: rank {rank} was stopped, and nobody says so:\n{said}")
        r.run(name, ranks, *steps, *sets, "--resume")
        got = r.weights(name)
        print(f"{name}: {mesh}, {how.name} of rank {rank}: exit code {code} after {took:.1f} s; resumed to {got.split()[0]}")
        if got != whole[mesh]:
            sys.exit(f"{name}: other weights than without interruption")


def restarts(r: Ranks) -> None:
    """--restarts: the job goes on by itself."""
    steps = ["--steps", "120", "--set", "train.checkpoint_every=10", "--set", "train.val_every=0"]
    with open(r.work / "restarted.log", "w+") as log:
        job = subprocess.Popen(r.command("restarted", 2, *steps, "--restarts", "1"), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        r.first_checkpoint("restarted", job)
        pid = pid_of(1, r.work / "restarted")
        os.kill(pid, signal.SIGKILL)
        code = job.wait(300)
    said = (r.work / "restarted.log").read_text()
    if code != 0 or "starting again from the last checkpoint (1 of 1)" not in said:
        sys.exit(f"--restarts: exit code {code}\n{said}")
    print("--restarts: went on by itself")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("recua", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("valid", type=Path)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12, help="of the runs on several meshes; 0: none of them")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    a = parser.parse_args()
    print(f"seed {a.seed}")
    with tempfile.TemporaryDirectory() as work:
        r = Ranks(a.recua.resolve(), a.train.resolve(), a.valid.resolve(), Path(work))
        if a.steps:
            equal_one(r, a.steps)
        kills(r, a.kills, random.Random(a.seed))
        restarts(r)
