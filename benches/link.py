#!/usr/bin/env python3
"""Two ranks on two machines that are network namespaces, joined by a link as slow as one likes: what overlap hides, and what
happens when the link goes down. As root, on Linux, with OpenMPI; `recua` with the feature `mpi`.

    link.py RECUA RUN overlap --mbit 400 [--steps 20] [-- --set model.dim=256 ...]
    link.py RECUA RUN down --timeout 5

RUN is the folder of a quickstart. `overlap` trains with and without, and prints seconds a step, seconds in which bytes moved, and
those of them in which computation waited; traces for ui.perfetto.dev stay in the work folder. netem is not in every kernel, so
that only the bandwidth is limited (tbf).
"""

import argparse
import json
import os
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


def spans(trace: Path) -> dict[str, float]:
    """Seconds of rank 0, by kind."""
    sums: dict[str, float] = {}
    for event in json.loads(trace.read_text())["traceEvents"]:
        if event.get("ph") == "X" and event["pid"] == 0:
            sums[event["cat"]] = sums.get(event["cat"], 0.0) + event["dur"] / 1e6
    return sums


def overlap(a: argparse.Namespace, work: Path) -> None:
    print(f"link of {a.mbit} Mbit/s, {a.steps} steps")
    steps = {}
    for on in ("true", "false", "true", "false"):
        run, trace = work / f"overlap-{on}-{time.time():.0f}", work / f"overlap-{on}.json"
        subprocess.run(command(a, work, run, "--steps", str(a.steps), "--set", f"parallel.overlap={on}", "--trace", str(trace)),
                       env=os.environ | ROOT, stdin=subprocess.DEVNULL, check=True)
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        records = [r for r in records if "step_s" in r][2:]
        step = sorted(r["step_s"] for r in records)[len(records) // 2]
        sums = spans(trace)
        moved, waited = sums.get("communication", 0.0) / a.steps, sums.get("waiting", 0.0) / a.steps
        steps.setdefault(on, []).append(step)
        print(f"overlap {on:5}: {step:.3f} s a step; {moved:.3f} s moving bytes, {waited:.3f} s waited for: exposed {waited / max(moved, 1e-9):.2f}; {trace}")
    print(f"with overlap {min(steps['false']) / min(steps['true']):.2f} times as fast")


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
    parser.add_argument("what", choices=["overlap", "down"])
    parser.add_argument("--mbit", type=float, default=400)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--timeout", type=float, default=60)
    own = sys.argv[1:]
    more = own[own.index("--") + 1:] if "--" in own else []
    a = parser.parse_args(own[:len(own) - len(more) - 1] if more else own)
    a.more = more
    work = Path(tempfile.mkdtemp(prefix="recua-link-"))
    try:
        link(a.mbit if a.what == "overlap" else 0)
        (overlap if a.what == "overlap" else down)(a, work)
    finally:
        unlink()
