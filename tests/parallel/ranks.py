#!/usr/bin/env python3
"""Ranks that are processes, over MPI: N of them equal one, in training and in benchmarks; and a job whose rank dies, hangs or has no
room on its disk ends in time and goes on as if it had not, on the same ranks or on others.

    ranks.py RECUA TRAIN_TOKENS VALID_TOKENS [--kills N] [--seed S] [--tmpfs]

Needs Python 3 alone, and a `recua` with the features `mpi` and `eval`. TRAIN_TOKENS and VALID_TOKENS are datasets of `recua data tokenize`
with their tokenizer.json in the same folder or above it. --tmpfs, as root: a file system that is really full as well.
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


def fail(what: str, said: str = "") -> None:
    sys.exit(f"{what}\n{said}")


class Ranks:
    def __init__(self, recua: Path, train: Path, valid: Path, work: Path):
        self.recua, self.work = recua, work
        self.tokenizer = next((at for at in (folder / "tokenizer.json" for folder in (train, *train.parents[:2])) if at.exists()), None)
        self.base = ["train", "--data", str(train), "--valid", str(valid), *MODEL]

    def command(self, name: str, ranks: int, *more: str, timeout: int = 300) -> list[str]:
        nproc = ["--nproc", str(ranks)] if ranks > 1 else []
        return [str(self.recua), *self.base, "--run", str(self.work / name), *nproc, "--comm-timeout", str(timeout), *more]

    def run(self, name: str, ranks: int, *more: str) -> str:
        done = subprocess.run(self.command(name, ranks, *more), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            fail(f"{name}: exit code {done.returncode}", done.stderr)
        return done.stderr

    def out(self, given: str, *words: str, code: int = 0) -> str:
        """What `recua` prints."""
        done = subprocess.run([str(self.recua), *words], input=given, capture_output=True, text=True, timeout=300)
        if done.returncode != code:
            fail(f"recua {' '.join(words)}: exit code {done.returncode}", done.stderr)
        return done.stdout if code == 0 else done.stderr

    def begin(self, name: str, ranks: int, *more: str, timeout: int = TIMEOUT) -> subprocess.Popen:
        """Starts a job whose words go to a log."""
        with open(self.log(name), "w") as log:
            command = self.command(name, ranks, *more, timeout=timeout)
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def log(self, name: str) -> Path:
        return self.work / f"{name}.log"

    def said(self, name: str) -> str:
        return self.log(name).read_text()

    def ended(self, name: str, job: subprocess.Popen, ranks: int) -> tuple[int, float]:
        """Waits for the end of a job that has failed: its exit code, and the seconds it took."""
        began = time.monotonic()
        try:
            code = job.wait(TIMEOUT + GRACE)
        except subprocess.TimeoutExpired:
            job.kill()
            fail(f"{name}: still there {TIMEOUT + GRACE} s after a rank failed", self.said(name))
        left = [n for n in range(ranks) if pid_of(n, self.work / name)]
        if code == 0 or left:
            fail(f"{name}: exit code {code}, ranks that are left: {left}", self.said(name))
        return code, time.monotonic() - began

    def checkpoints(self, name: str) -> list[str]:
        """Whole ones, oldest first."""
        found = [path.name for path in (self.work / name / "checkpoints").glob("step-*") if path.name.split("-")[1].isdigit()]
        return sorted(found, key=lambda name: int(name.split("-")[1]))

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


STEPS = ["--steps", "120", "--set", "train.checkpoint_every=10", "--set", "train.val_every=0"]
TP2 = ["--set", "parallel.tp=2"]


class Whole:
    """Runs that nothing interrupts, made when they are asked for."""

    def __init__(self, r: Ranks):
        self.r, self.made = r, set()

    def run(self, mesh: str, ranks: int, *words: str) -> str:
        name = f"whole-{mesh}"
        if name not in self.made:
            self.r.run(name, ranks, *words)
            self.made.add(name)
        return name


def found(r: Ranks, name: str, job: subprocess.Popen, rank: int) -> int:
    pid = pid_of(rank, r.work / name)
    if pid is None:
        fail(f"{name}: rank {rank} has ended before it was killed, exit code {job.poll()}", r.said(name))
    return pid


def strike(r: Ranks, name: str, job: subprocess.Popen, rank: int, how: signal.Signals) -> None:
    os.kill(found(r, name, job, rank), how)


def heard(r: Ranks, name: str, rank: int, how: signal.Signals) -> None:
    if how == signal.SIGSTOP and f"no answer from rank {rank}" not in r.said(name):
        fail(f"{name}: rank {rank} was stopped, and nobody says so", r.said(name))


def kills(r: Ranks, whole: Whole, count: int, chance: random.Random) -> None:
    """The same ranks go on: to the bit."""
    meshes = {"dp": (2, []), "tp": (2, TP2), "both": (4, TP2)}
    for i in range(count):
        mesh = list(meshes)[i % len(meshes)]
        ranks, sets = meshes[mesh]
        expected = r.weights(whole.run(mesh, ranks, *STEPS, *sets))
        name, rank = f"killed-{i}", chance.randrange(ranks)
        how = [signal.SIGKILL, signal.SIGSTOP][i % 2]
        job = r.begin(name, ranks, *STEPS, *sets)
        # Somewhere after the first checkpoint: in a step, or in the writing of a checkpoint.
        r.first_checkpoint(name, job)
        time.sleep(chance.random())
        strike(r, name, job, rank, how)
        code, took = r.ended(name, job, ranks)
        heard(r, name, rank, how)
        r.run(name, ranks, *STEPS, *sets, "--resume")
        got = r.weights(name)
        print(f"{name}: {mesh}, {how.name} of rank {rank}: exit code {code} after {took:.1f} s; resumed to {got.split()[0]}")
        if got != expected:
            fail(f"{name}: other weights than without interruption")


def moved(r: Ranks, whole: Whole, chance: random.Random) -> None:
    """Other ranks go on: with the losses of a run that nothing interrupted, within the tolerance of sums in another order."""
    steps = ["--steps", "40", "--set", "train.checkpoint_every=5", "--set", "train.val_every=0"]
    both = [*TP2, "--set", "parallel.sequence=true"]
    for what, (ranks, sets), (then, then_sets) in [
        ("2 ranks, then 4", (2, []), (4, both)), ("dp, then tp", (2, []), (2, TP2)), ("tp, then dp", (2, both), (2, [])),
        ("2 ranks, then 1", (2, TP2), (1, [])),
    ]:
        name = f"moved-{ranks}-{then}-{len(sets)}-{len(then_sets)}"
        mesh = "tp" if sets else "dp"
        expected = r.losses(whole.run(f"short-{mesh}-{len(sets)}", ranks, *steps, *sets))
        job = r.begin(name, ranks, *steps, *sets)
        r.first_checkpoint(name, job)
        rank = chance.randrange(ranks)
        strike(r, name, job, rank, signal.SIGKILL)
        r.ended(name, job, ranks)
        at = r.checkpoints(name)[-1]
        # What the meshes share has to be said again where it is not so any more: the run remembers its settings.
        reset = [] if then_sets == both else ["--set", "parallel.sequence=false"]
        reset += [] if then_sets else ["--set", "parallel.tp=1"]
        r.run(name, then, *steps, *reset, *then_sets, "--resume")
        same(f"{what}, killed after {at}", r.losses(name), expected, RELATIVE)


LARGE = ["--set", "model.dim=256", "--set", "model.n_layers=4", "--steps", "8", "--set", "train.checkpoint_every=1", "--set", "train.val_every=0"]


def writing(r: Ranks, whole: Whole, tries: int) -> None:
    """A rank is killed or stopped while the checkpoint after the first is being written: the first stays whole, and nobody waits for
    the other as long as writing may take."""
    expected, half = r.weights(whole.run("large", 2, *LARGE)), 0
    for i in range(tries):
        name, rank, how = f"writing-{i}", i // 2 % 2, [signal.SIGKILL, signal.SIGSTOP][i % 2]
        job = r.begin(name, 2, *LARGE)
        r.first_checkpoint(name, job)
        root, file = r.work / name / "checkpoints", f"r{rank:05}.safetensors"
        pid = found(r, name, job, rank)
        while job.poll() is None and not any(path.name.endswith(file) for path in root.glob("*tmp*/*")):
            time.sleep(0.001)  # a checkpoint is written in tens of milliseconds
        os.kill(pid, how)
        r.ended(name, job, 2)
        heard(r, name, rank, how)
        left, before = [path.name for path in root.glob("*tmp*")], r.checkpoints(name)
        half += bool(left)
        r.run(name, 2, *LARGE, "--resume")
        if r.weights(name) != expected or list(root.glob("*tmp*")):
            fail(f"{name}: killed after {before} with {left} half-written: other weights, or what was left is still there")
        print(f"{name}: {how.name} of rank {rank} after {before[-1]}, {len(left)} half-written; resumed to the same weights")
    if not half:
        fail(f"in {tries} tries no checkpoint was half-written")


def no_room(r: Ranks, whole: Whole, name: str, limit, freed) -> None:
    """The disk of a rank is full when the second checkpoint is written. `limit` starts the job that finds it so."""
    steps = [*LARGE, "--set", "train.checkpoint_every=4"]
    expected = r.weights(whole.run("sparse", 2, *steps))
    job = r.begin(name, 2, *steps)
    r.first_checkpoint(name, job)
    strike(r, name, job, 0, signal.SIGKILL)
    r.ended(name, job, 2)
    if r.checkpoints(name) != ["step-4"]:
        fail(f"{name}: checkpoints {r.checkpoints(name)}, expected step-4")
    job = limit(steps)
    code, took = r.ended(name, job, 2)
    said = r.said(name)
    lines = [line for line in said.splitlines() if "error: rank" in line]
    ranks = {line.split("error: rank ")[1].split(":")[0] for line in lines if ".safetensors" in line}
    if ranks != {"0", "1"}:
        fail(f"{name}: not every rank names the file that has no room", said)
    if r.checkpoints(name) != ["step-4"] or list((r.work / name / "checkpoints").glob("*tmp*")):
        fail(f"{name}: checkpoints {os.listdir(r.work / name / 'checkpoints')}, expected step-4 alone", said)
    freed()
    r.run(name, 2, *steps, "--resume")
    if r.weights(name) != expected:
        fail(f"{name}: other weights than with room")
    print(f"{name}: exit code {code} after {took:.1f} s, `{lines[0]}`; resumed to the same weights")


def full(r: Ranks, whole: Whole, tmpfs: bool) -> None:
    # A rank whose files may not grow beyond 8 MiB, which MPI's own need: what a quota does, without special rights.
    small = 'if [ "$OMPI_COMM_WORLD_RANK" = 1 ]; then trap "" XFSZ; ulimit -f 8192; fi; exec "$@"'

    def limited(steps: list[str]) -> subprocess.Popen:
        words = r.command("limited", 1, *steps, "--resume", timeout=TIMEOUT)
        mpirun = ["mpirun", "-n", "2", "--oversubscribe", "--bind-to", "none", "bash", "-c", small, "rank"]
        allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        with open(r.log("limited"), "w") as log:
            return subprocess.Popen(mpirun + words, env=os.environ | allowed, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    no_room(r, whole, "limited", limited, lambda: None)
    if not tmpfs:
        return
    run = r.work / "full"
    run.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(run)], check=True)
    try:
        filler = run / "filler"

        def filled(steps: list[str]) -> subprocess.Popen:
            room = os.statvfs(run)
            step = sum(path.stat().st_size for path in (run / "checkpoints").rglob("*") if path.is_file())
            with open(filler, "wb") as file:  # half of a checkpoint is left
                os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - step // 2)
            return r.begin("full", 2, *steps, "--resume")

        no_room(r, whole, "full", filled, filler.unlink)
    finally:
        subprocess.run(["umount", str(run)], check=True)


def close(what: str, got, expected) -> None:
    """Numbers within the tolerance, everything else equal."""
    if isinstance(expected, dict):
        if not isinstance(got, dict) or got.keys() != expected.keys():
            fail(f"{what}: {got}, expected {expected}")
        for key in expected:
            close(f"{what}.{key}", got[key], expected[key])
    elif isinstance(expected, list):
        if not isinstance(got, list) or len(got) != len(expected):
            fail(f"{what}: {got}, expected {expected}")
        for i, (a, b) in enumerate(zip(got, expected)):
            close(f"{what}[{i}]", a, b)
    elif isinstance(expected, float):
        if abs(got - expected) > RELATIVE * max(1.0, abs(expected)):
            fail(f"{what}: {got}, expected {expected}")
    elif got != expected:
        fail(f"{what}: {got}, expected {expected}")


def benchmarks(r: Ranks) -> None:
    """Benchmarks by a model that ranks hold together, and during training: those of one rank."""
    steps = ["--steps", "8", "--set", "train.val_every=0"]
    asks = ["--set", "eval.every=4", "--set", "eval.limit=6", "--tokenizer", str(r.tokenizer or fail("there is no tokenizer.json by the data"))]
    r.run("asks-1", 1, *steps, *asks)

    def during(name: str) -> list[dict]:
        return [record["eval"] for record in map(json.loads, (r.work / name / "metrics.jsonl").open()) if record.get("eval")]

    if len(during("asks-1")) != 2:
        fail(f"benchmarks during training: {during('asks-1')}, expected two evaluations")
    for name, ranks, sets in [("asks-dp", 2, []), ("asks-tp", 2, TP2), ("asks-both", 4, TP2)]:
        r.run(name, ranks, *steps, *asks, *sets)
        close(f"{name}: benchmarks during training", during(name), during("asks-1"))
    print("benchmarks during training: dp 2, tp 2, dp 2 x tp 2 as one rank")

    run = str(r.work / "asks-1")
    texts: dict[int, list] = {}
    for ranks in (1, 2):
        out = r.work / f"scores-{ranks}"
        nproc = ["--nproc", str(ranks)] if ranks > 1 else []
        r.out("", "eval", "run", "--model", run, "--suite", "quick", "--limit", "6", "--out", str(out), "--threads", "1", *nproc)
        results = json.loads((out / "results.json").read_text())
        samples = {path.name: [json.loads(line) for line in path.open()] for path in sorted((out / "samples").iterdir())}
        texts[ranks] = [results["results"], samples]
        given = "[1, 5, 9, 5, 9]\n[7]\n[300, 301, 302, 40, 41, 42]\n"
        scores = r.out(given, "eval", "score", "--model", run, "--json", "--threads", "1", *nproc)
        texts[ranks].append([json.loads(line) for line in scores.splitlines()])
    if len(texts[1][2]) != 3 or not texts[1][1]:
        fail(f"eval: {texts[1][2]}")
    close("eval --nproc 2", texts[2], texts[1])
    said = r.out("", "eval", "run", "--model", run, "--tasks", "nothing", "--nproc", "2", code=2)
    if "error: rank 0" not in said or "`nothing` is no task" not in said:
        fail("eval --nproc of an unknown task", said)
    print("eval run and eval score: --nproc 2 as one rank, question by question")


def restarts(r: Ranks) -> None:
    """--restarts: the job goes on by itself."""
    job = r.begin("restarted", 2, *STEPS, "--restarts", "1", timeout=300)
    r.first_checkpoint("restarted", job)
    strike(r, "restarted", job, 1, signal.SIGKILL)
    code = job.wait(300)
    said = r.said("restarted")
    if code != 0 or "starting again from the last checkpoint (1 of 1)" not in said:
        fail(f"--restarts: exit code {code}", said)
    print("--restarts: went on by itself")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("recua", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("valid", type=Path)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12, help="of the runs on several meshes; 0: none of them")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--tmpfs", action="store_true", help="as root: fill a file system of 256 MiB")
    a = parser.parse_args()
    print(f"seed {a.seed}")
    with tempfile.TemporaryDirectory() as work:
        r = Ranks(a.recua.resolve(), a.train.resolve(), a.valid.resolve(), Path(work))
        if a.steps:
            equal_one(r, a.steps)
            benchmarks(r)
        chance, whole = random.Random(a.seed), Whole(r)
        kills(r, whole, a.kills, chance)
        moved(r, whole, chance)
        writing(r, whole, max(2, a.kills // 4))
        full(r, whole, a.tmpfs)
        restarts(r)
