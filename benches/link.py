#!/usr/bin/env python3
"""Two ranks on two machines that are network namespaces, joined by a link as slow as one likes: what overlap hides, and what
happens when the link goes down. As root, on Linux, with OpenMPI; `recua` with the feature `mpi`.

    link.py RECUA RUN all [--rounds 3] [--steps 12]       the figures of both meshes, the link's speed found by itself
    link.py RECUA RUN overlap --mbit 400 [--steps 20] [-- --set model.dim=256 ...]
    link.py RECUA RUN down --timeout 5

RUN is the folder of a quickstart. `all`, for two replicas and for a model that two ranks hold together: over a link on which
communication takes half of the computation's time, the share of it that computation waits for; over one on which they take equal
time, how much faster a step is with overlap. Rounds alternate; figures are medians. `overlap` does one of them over a link of one's own
choice, and leaves traces for ui.perfetto.dev in the work folder. netem is not in every kernel, so that only the bandwidth is limited
(tbf). The ranks need a core each, and a third for what joins them.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NET = "10.77.0"
AGENT = '#!/bin/bash\nh=$1; shift; exec ip netns exec "$h" unshare --uts bash -c "hostname $h; $*"\n'
ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def sh(command: str, check: bool = True) -> None:
    subprocess.run(command, shell=True, check=check, stderr=None if check else subprocess.DEVNULL)


def link(mbit: float) -> None:
    unlink()
    for name, other, n in (("ra", "rb", 1), ("rb", "ra", 2)):
        sh(f"ip netns add {name}")
    sh("ip link add va netns ra type veth peer name vb netns rb")
    for name, dev, n in (("ra", "va", 1), ("rb", "vb", 2)):
        sh(f"ip -n {name} addr add {NET}.{n}/24 dev {dev}; ip -n {name} link set {dev} up; ip -n {name} link set lo up")
        if mbit:
            sh(f"tc -n {name} qdisc add dev {dev} root tbf rate {mbit}mbit burst 256kb latency 400ms")
    for name in ("ra", "rb"):
        folder = Path("/etc/netns") / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{NET}.1 ra\n{NET}.2 rb\n")


def unlink() -> None:
    for name in ("ra", "rb"):
        sh(f"ip netns del {name}", check=False)


def command(a: argparse.Namespace, work: Path, run: Path, *more: str) -> list[str]:
    agent = work / "agent"
    agent.write_text(AGENT)
    agent.chmod(0o755)
    mpirun = ["mpirun", "-H", "ra:1,rb:1", "--bind-to", "none", "--mca", "plm_rsh_agent", str(agent), "--mca", "btl", "tcp,self",
              "--mca", "pml", "ob1", "--mca", "btl_tcp_if_include", f"{NET}.0/24", "--mca", "oob_tcp_if_include", f"{NET}.0/24"]
    for name in ROOT:
        mpirun += ["-x", name]
    train = [str(a.recua.resolve()), "train", "--data", str((a.run / "data/train").resolve()), "--run", str(run), "--threads", "1",
             "--comm-timeout", str(a.timeout), "--set", "sample.every=0", "--set", "train.val_every=0", *a.more, *more]
    words = " ".join(f"'{word}'" for word in mpirun + train)
    return ["ip", "netns", "exec", "ra", "unshare", "--uts", "bash", "-c", f"hostname ra; exec {words}"]


# Steps whose times a trace has.
TRACED = 3
# What a mesh trains: sizes of which a step takes long beside the latency that cannot be lowered. What a split model exchanges grows with
# its width, what it computes with the width's square: a narrow one spends its cores on moving bytes.
MODEL = ["model.max_seq_len=256", "parallel.bucket=500000"]
MESHES = {
    "dp 2": ["model.dim=256", "model.n_layers=6", "model.n_heads=8", "train.batch=8"],
    "tp 2": ["model.dim=1024", "model.n_layers=2", "model.n_heads=8", "train.batch=4", "parallel.tp=2", "parallel.sequence=true"],
}


def spans(trace: Path) -> tuple[dict[str, float], float]:
    """Seconds of a step of rank 0, by kind; and bytes that it gave to operations."""
    sums: dict[str, float] = {}
    moved = 0
    for event in json.loads(trace.read_text())["traceEvents"]:
        if event.get("ph") == "X" and event["pid"] == 0:
            sums[event["cat"]] = sums.get(event["cat"], 0.0) + event["dur"] / 1e6 / TRACED
            moved += event["args"].get("bytes", 0)
    return sums, moved / TRACED


def measure(a: argparse.Namespace, work: Path, overlap: bool, sets: list[str]) -> dict[str, float]:
    """Seconds of a step: all of it, bytes moving, and waited for; and the bytes."""
    on = "true" if overlap else "false"
    run, trace = work / f"run-{time.time_ns()}", work / f"overlap-{on}.json"
    words = [word for one in [*sets, f"parallel.overlap={on}"] for word in ("--set", one)]
    done = subprocess.run(command(a, work, run, "--steps", str(a.steps), "--trace", str(trace), *words), env=os.environ | ROOT,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"exit code {done.returncode}\n{done.stderr}")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [r["step_s"] for r in records if "step_s" in r][2:]
    shutil.rmtree(run)  # its checkpoint is large
    sums, moved = spans(trace)
    return {"step": statistics.median(steps), "moved": sums.get("communication", 0.0), "waited": sums.get("waiting", 0.0),
            "bytes": moved, "trace": str(trace)}


def overlap(a: argparse.Namespace, work: Path) -> None:
    print(f"link of {a.mbit} Mbit/s, {a.steps} steps")
    steps: dict[bool, list[float]] = {True: [], False: []}
    for on in (True, False, True, False):
        m = measure(a, work, on, [])
        steps[on].append(m["step"])
        exposed = m["waited"] / max(m["moved"], 1e-9)
        print(f"overlap {on}: {m['step']:.3f} s a step; {m['moved']:.3f} s moving bytes, {m['waited']:.3f} s waited for: "
              f"exposed {exposed:.2f}; {m['trace']}")
    print(f"with overlap {min(steps[False]) / min(steps[True]):.2f} times as fast")


def every(a: argparse.Namespace, work: Path) -> None:
    for name, mesh in MESHES.items():
        if a.mesh not in name:
            continue
        sets = [*MODEL, *mesh]
        link(0)
        free = measure(a, work, False, sets)
        computation = free["step"] - free["waited"]
        print(f"{name}: {computation:.3f} s of computation a step, {free['bytes'] / 1e6:.1f} MB given to operations", flush=True)
        for share in (0.5, 1.0):
            # About half of what is given crosses in each direction; one more look corrects that.
            mbit = 0.5 * free["bytes"] * 8e-6 / (share * computation)
            for _ in range(2):
                link(mbit)
                mbit *= measure(a, work, False, sets)["moved"] / (share * computation)
            link(mbit)
            rounds: dict[bool, list[dict[str, float]]] = {True: [], False: []}
            for i in range(a.rounds):
                for on in (True, False) if i % 2 == 0 else (False, True):
                    rounds[on].append(measure(a, work, on, sets))
            mid = {on: {key: statistics.median(m[key] for m in of) for key in ("step", "moved", "waited")} for on, of in rounds.items()}
            exposed = statistics.median(m["waited"] / m["moved"] for m in rounds[True])
            faster = statistics.median(b["step"] / w["step"] for w, b in zip(rounds[True], rounds[False]))
            print(f"{name}, {mbit:.0f} Mbit/s: communication / computation {mid[False]['moved'] / computation:.2f}; "
                  f"a step {mid[True]['step']:.3f} s with overlap, {mid[False]['step']:.3f} s without; "
                  f"exposed {exposed:.2f}, {faster:.2f} times as fast", flush=True)


def down(a: argparse.Namespace, work: Path) -> None:
    run = work / "down"
    with open(work / "down.log", "w+") as log:
        job = subprocess.Popen(command(a, work, run, "--steps", "100000"), env=os.environ | ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        while not (run / "metrics.jsonl").exists() and job.poll() is None:
            time.sleep(0.1)
        time.sleep(2)
        sh("ip -n ra link set va down")
        began = time.monotonic()
        while ranks(run) and time.monotonic() - began < a.timeout + 30:
            time.sleep(0.2)
        took, left = time.monotonic() - began, ranks(run)
        # mpirun may go on waiting for what is behind the link; its ranks are what counts.
        job.kill()
    print((work / "down.log").read_text()[-2000:])
    if left:
        sys.exit(f"ranks {left} are still there {took:.0f} s after the link went down")
    print(f"link down: no rank is left after {took:.1f} s (--comm-timeout {a.timeout})")


def ranks(run: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if str(run).encode() in words and b"OMPI_COMM_WORLD_RANK=" in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            pass
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("recua", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("what", choices=["all", "overlap", "down"])
    parser.add_argument("--mbit", type=float, default=400)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mesh", default="", help="of `all`: only those whose name has this in it")
    parser.add_argument("--timeout", type=float, default=60)
    own = sys.argv[1:]
    more = own[own.index("--") + 1:] if "--" in own else []
    a = parser.parse_args(own[:len(own) - len(more) - 1] if more else own)
    a.more = more
    work = Path(tempfile.mkdtemp(prefix="recua-link-"))
    try:
        link(a.mbit if a.what == "overlap" else 0)
        {"all": every, "overlap": overlap, "down": down}[a.what](a, work)
    finally:
        unlink()
