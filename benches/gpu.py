#!/usr/bin/env python3
"""What is run on a machine with an NVIDIA GPU: first whether recua computes right there, then how fast, beside PyTorch.

    bash benches/gpu.sh RECUA_BINARY [OUT_DIR, default gpu-results]
    python3 benches/gpu.py --table OUT_DIR      the table of what is there, also of a call that was cut short

Nothing is built there. The binary comes from a machine without a GPU and needs no CUDA toolkit to be built:

    CUDARC_CUDA_VERSION=13000 cargo build --release --no-default-features --features cli,cuda,nccl,flex && strip target/release/recua
    python3 tests/cuda/standin.py target/release/recua --all --bench --kernels kernels      (compiles its kernels ahead, without a GPU)

It travels with crates/core/src/ops/cube/cuda, tests/golden, tests/cuda, benches and the kernels: under 60 MB. The driver has to be 580 or
later. The peers need torch and transformers in this Python, and are left out where those are missing.

The parts, in this order; each has a share of the time, and what it finds is written at once (OUT_DIR/rows.jsonl, a line a row):

  check      the kernels in CUDA C++ alone (tests/cuda/device_check.py)
  selftest   `recua selftest` in groups, a process each, so that a fault of the device stays in its group
  curve      300 steps in float32 and in bfloat16, at once, beside the same on the CPU
  train      training steps of 1b, 7b, 110m; PyTorch's eager ones right after ours, compiled ones last
  attention, gemm   one layer's attention; products by routine
  ranks      NCCL: one rank's operations, and of 2, 4, 8 cards (those that are there) what crosses and training steps, `dp` and `tp`
  decode     new tokens of 7b in bfloat16, 1, 8 and 64 sequences at once, beside transformers; with our thin products and by each routine

A part is measured if the checks that it rests on have passed. A training row is void if its loss is not that of random tokens, its rate
above the peak, or the clock low. Verdicts are kept for this binary in /tmp: a second call skips what has passed, and goes on.

Variables: LIMIT=330 (seconds until nothing more is begun), PARTS="check selftest curve train attention gemm decode ranks", QUICK=1 (few shapes, few
steps, no torch.compile), KERNELS=DIR (compiled ahead), COMMIT=HASH (required on CUDA), PEAK_TFLOPS=989 (dense bfloat16, H100 and H200),
ROUTINES="cublaslt wgmma tma-mma", TEXTS=DIR (text to train on), BACKEND=cuda (another one needs no GPU: a rehearsal).
"""

import ctypes
import datetime
import hashlib
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
PEERS = ROOT / "benches/peers"
BACKEND = os.environ.get("BACKEND", "cuda")
CUDA = BACKEND == "cuda"
QUICK = os.environ.get("QUICK") == "1"
LIMIT = float(os.environ.get("LIMIT", "330"))
PEAK = float(os.environ.get("PEAK_TFLOPS", "989"))
PARTS = os.environ.get("PARTS", "check selftest curve train attention gemm decode ranks").split()
ROUTINES = os.environ.get("ROUTINES", "cublaslt wgmma tma-mma").split()
MOST_BYTES = 60_000_000
LEAST_MHZ = 1200
CURVE_STEPS, CURVE_DIFFERENCE = 300, 0.005

# seq, batch, and what the peer is told: vocab, dim, layers, heads, key/value heads, feed-forward width.
PRESETS = {
    "1b": (2048, 4, 32000, 2048, 22, 32, 4, 5632),
    "7b": (2048, 1, 32000, 4096, 32, 32, 32, 11008),
    "110m": (1024, 16, 32000, 768, 12, 12, 12, 2048),
}
if not CUDA:
    PRESETS = {"15m": (256, 2, 32000, 288, 6, 6, 6, 768)}
START = time.time()


def say(text):
    print(f"==> {time.time() - START:.0f} s: {text}", file=sys.stderr, flush=True)


def stop(text):
    sys.exit(f"gpu.py: {text}")


def left():
    return LIMIT - (time.time() - START)


def reason(err):
    """What went wrong, of a program's stderr: a kernel that does not compile leaves its whole source there."""
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower() or "problem" in line.lower()]
    return " | ".join((telling or lines)[:3])[:600]


class Watch:
    """The GPU while something runs: memory, clock, power, temperature."""

    KEYS = ("memory.used", "clocks.sm", "power.draw", "temperature.gpu")

    def __init__(self):
        self.samples, self.process = [], None
        if CUDA:
            command = ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(self.KEYS)}", "--format=csv,noheader,nounits", "-lms", "250"]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            try:
                self.samples.append([float(x) for x in line.split(",")])
            except ValueError:
                pass

    def end(self):
        if self.process:
            self.process.kill()
            self.process.wait()
        if not self.samples:
            return {}
        columns = list(zip(*self.samples))
        # Of the last half: before that, things are loaded.
        late = sorted(columns[1][len(columns[1]) // 2:])
        return {"device_mib": max(columns[0]), "mhz": late[len(late) // 2], "watt": max(columns[2]), "celsius": max(columns[3])}


class Session:
    def __init__(self, recua, out):
        self.recua, self.out = recua, out
        out.mkdir(parents=True, exist_ok=True)
        self.rows = out / "rows.jsonl"
        self.work = pathlib.Path(tempfile.mkdtemp())
        self.environment = dict(os.environ)
        digest = hashlib.sha256(recua.read_bytes()).hexdigest()[:16]
        self.verdict_file = pathlib.Path(tempfile.gettempdir()) / f"recua-gpu-{BACKEND}-{digest}.json"
        self.verdicts = json.loads(self.verdict_file.read_text()) if self.verdict_file.exists() else {}
        self.torch = self.transformers = ""
        self.memory_mib = 0

    def row(self, kind, shape, who, **fields):
        row = {"kind": kind, "shape": shape, "who": who, "at_s": round(time.time() - START, 1), **fields}
        with self.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        say(f"{kind} {shape} {who}: {row.get('problem') or row.get('text') or 'done'}")
        return row

    def verdict(self, name, passed):
        self.verdicts[name] = bool(passed)
        self.verdict_file.write_text(json.dumps(self.verdicts))

    def command(self, arguments):
        return [str(self.recua), *map(str, arguments)]

    def run(self, command, limit, kernels="bench", peer=False):
        """Runs a command for `limit` seconds at most: code (None: no time), stdout, stderr, seconds, and the GPU meanwhile."""
        limit = min(limit, left())
        if limit < 3:
            return {"code": None, "out": "", "err": "", "problem": "not run: no time left"}
        environment = dict(os.environ) if peer else dict(self.environment)
        if not peer and self.kernels:
            environment["RECUA_KERNELS"] = str(self.kernels / kernels)
        watch, began = Watch(), time.time()
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", timeout=limit, cwd=ROOT)
            code, out, err = done.returncode, done.stdout, done.stderr
            problem = f"exit code {code}: {reason(err)}" if code else None
        except subprocess.TimeoutExpired as e:
            text = lambda data: data.decode(errors="replace") if isinstance(data, bytes) else data or ""
            code, out, err, problem = 124, text(e.stdout), text(e.stderr), f"timed out after {limit:.0f} s"
        return {"code": code, "out": out, "err": err[:2048], "problem": problem, "seconds": round(time.time() - began, 1), **watch.end()}

    def measured(self, kind, shape, who, command, limit, peer=False, results=None):
        """Runs a measurement, a row for each of `results` lines of JSON that it prints (default: one, of `shape`)."""
        done = self.run(command, limit, peer=peer)
        shown = " ".join(map(str, command)).replace(str(self.recua), "recua").replace(sys.executable, "python3").replace(str(ROOT) + "/", "")
        lines = [json.loads(line) for line in done["out"].splitlines() if line.startswith("{")]
        fields = {key: done[key] for key in ("device_mib", "mhz", "watt", "celsius", "seconds") if key in done}
        for i, name in enumerate(results or [shape]):
            result = lines[i] if i < len(lines) else None
            problem = None if result else done["problem"] or "printed no JSON"
            self.row(kind, name, who, command=shown, result=result, problem=problem or self.void(kind, name, result, fields),
                     **({} if result else {"stderr": done["err"]}), **fields)

    def void(self, kind, shape, result, fields):
        """Why a figure is not to be believed."""
        if result["gflop_s"] / 1e3 > PEAK and CUDA:
            return f"void: {result['gflop_s'] / 1e3:.0f} TFLOP/s, above the peak"
        if kind == "train":
            vocab = PRESETS[shape.split(",")[0]][2]
            if not (result["loss"] is not None and abs(result["loss"] - math.log(vocab)) <= 0.3):
                return f"void: loss {result['loss']}, expected {math.log(vocab):.2f} +- 0.3 of random tokens"
        if fields.get("mhz", LEAST_MHZ) < LEAST_MHZ:
            return f"void: {fields['mhz']:.0f} MHz while measuring"
        return None


# ---- the machine

def cuda_roots():
    """Folders with CUDA's headers and libraries: of a toolkit, of nvcc, of pip's packages."""
    roots = [os.environ.get("CUDA_PATH")]
    if nvcc := shutil.which("nvcc"):
        roots.append(pathlib.Path(nvcc).resolve().parents[1])
    roots += ["/usr/local/cuda", "/opt/cuda"]
    for path in sys.path:
        roots += sorted(pathlib.Path(path).glob("nvidia/cu1*"))
    return [pathlib.Path(root) for root in roots if root and pathlib.Path(root).is_dir()]


def has_headers(root):
    there = lambda name: any((root / folder / name).exists() for folder in ("include", "include/cccl"))
    return [name for name in ("cuda_runtime.h", "cuda_fp16.h", "crt/mma.h", "nv/target") if not there(name)]


def library(roots, name):
    for root in roots:
        for folder in ("lib64", "lib"):
            found = sorted((root / folder).glob(f"lib{name}.so*"))
            if found:
                return found[-1]
    return None


def preflight(session, binary_bytes):
    machine = {"date": datetime.date.today().isoformat(), "backend": BACKEND, "peak_tflops": PEAK, "bytes": binary_bytes}
    machine["commit"] = os.environ.get("COMMIT") or ("" if CUDA else "rehearsal")
    environment = session.environment
    environment.setdefault("HOME", str(session.work))
    environment.setdefault("CUDA_CACHE_PATH", str(session.work / "driver-cache"))
    kernels = os.environ.get("KERNELS")
    session.kernels = pathlib.Path(kernels).resolve() if kernels else session.work / "kernels"
    if CUDA:
        if not machine["commit"]:
            stop("COMMIT is not set: the history does not travel")
        if not shutil.which("nvidia-smi"):
            stop("no nvidia-smi, and so no NVIDIA GPU here")
        query = ["nvidia-smi", "-i", "0", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
        name, memory, driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().split(", ")
        machine["machine"], session.memory_mib = f"{name}, {int(memory) // 1024} GiB, driver {driver}", int(memory)
        roots = cuda_roots()
        whole = [root for root in roots if not has_headers(root)]
        if not whole:
            stop("no CUDA headers: " + "; ".join(f"{root} lacks {', '.join(has_headers(root))}" for root in roots))
        environment["CUDA_PATH"] = str(whole[0])
        nvrtc, lt = library(whole[:1] + roots, "nvrtc"), library(whole[:1] + roots, "cublasLt")
        if not nvrtc:
            stop(f"no libnvrtc under {', '.join(map(str, roots))}")
        version, driver_version = cuda_versions(nvrtc)
        if version > driver_version:
            stop(f"NVRTC {version} ({nvrtc}) is newer than the driver's CUDA {driver_version}: what it writes does not load there")
        folders = dict.fromkeys(str(file.parent) for file in (nvrtc, lt) if file)
        environment["LD_LIBRARY_PATH"] = ":".join([*folders, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
        machine.update(nvrtc=str(nvrtc), cublaslt=str(lt) if lt else "missing: products by tma-mma or mma", driver_cuda=driver_version)
        rename_kernels(session.kernels, driver_version)
    else:
        machine["machine"] = f"{os.uname().machine}, {os.cpu_count()} cores (rehearsal on {BACKEND})"
    for module in ("torch", "transformers"):
        check = "; assert torch.cuda.is_available(), 'no GPU'" if CUDA and module == "torch" else ""
        asked = [sys.executable, "-c", f"import {module}{check}; print({module}.__version__)"]
        done = subprocess.run(asked, capture_output=True, text=True)
        setattr(session, module, done.stdout.strip() if done.returncode == 0 else "")
    machine.update(torch=session.torch, transformers=session.transformers)
    info = session.run(session.command(["info", "--ops"]), 20)
    machine.update(version=session.run(session.command(["--version"]), 5)["out"].strip(), info=info["out"][:6000])
    session.row("machine", "", "", **machine)


def cuda_versions(nvrtc):
    major, minor, driver = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    ctypes.CDLL(str(nvrtc)).nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(driver))
    return major.value * 1000 + minor.value * 10, driver.value


def rename_kernels(folder, driver_version):
    """Kernels that were compiled for driver 13000 serve a newer one too: CubeCL keeps PTX."""
    for found in folder.glob("*/*-13000-sm*"):
        if driver_version != 13000:
            found.rename(found.with_name(found.name.replace("-13000-", f"-{driver_version}-")))


# ---- right before fast

def check(session):
    if not (CUDA and session.torch):
        return
    command = [sys.executable, ROOT / "tests/cuda/device_check.py", *(["--quick"] if QUICK else [])]
    done = session.run(list(map(str, command)), 60, peer=True)
    lines = done["out"].splitlines()
    failed = [line for line in lines if line.startswith("FAILED")]
    session.row("check", "kernels in CUDA C++", "", problem=done["problem"], text="; ".join(lines[-1:]), failed=failed[:20], lines=lines[-40:])
    session.verdict("wgmma raw", not any("gemm" in line for line in failed) and done["code"] == 0)


def selftest(session):
    # What training rests on first. Products in one process (the references of each process take seconds); if it breaks down, what it has
    # not reached gets one of its own.
    narrow = [x for name in ("bf16", "f16") for x in ("--only", name)] + [x for name in ALL_ROUTINES for x in ("--skip", f", {name}")]
    if not session.verdicts.get("f32"):
        checks(session, "f32", ["--skip", "bf16", "--skip", "f16"], ["f32"])
    if not session.verdicts.get("bf16"):
        checks(session, "bf16, f16", narrow, ["bf16"])
    routines = ["auto", *(ROUTINES if CUDA else [])]
    open_ = lambda: [name for name in routines if name not in session.verdicts or not session.verdicts[name]]
    if open_():
        whole = checks(session, "products", [x for name in open_() for x in ("--only", f", {name}")], open_())
        for name in open_() if not whole else []:
            checks(session, f"products by {name}", ["--only", f", {name}"], [name])


ALL_ROUTINES = ["auto", "cublaslt", "wgmma", "tma-mma", "cyclic-mma", "cyclic-cmma", "unit", "burn"]


def checks(session, group, filters, names):
    """Runs a part of the selftest; gives whether it came to its end. With several names, a verdict by the rows of each."""
    done = session.run(session.command(["selftest", "--backend", BACKEND, *filters]), 75, kernels="selftest")
    lines = [line for line in done["out"].splitlines() if line.startswith(("ok ", "FAILED"))]
    failed = [line[:400] for line in lines if line.startswith("FAILED")]
    whole = any(" checks, " in line for line in done["out"].splitlines())
    problem = failed[0] if failed else None if whole else done["problem"]
    session.row("selftest", group, "recua", problem=problem, text=f"{len(lines)} checks, {len(failed)} failed", failed=failed[:20],
                stderr=done["err"] if problem else "", seconds=done.get("seconds"))
    for name in names:
        own = lines if len(names) == 1 else [line for line in lines if f", {name} " in line]
        session.verdict(name, whole and own and not any(line.startswith("FAILED") for line in own))
    return whole


def curve(session):
    if session.verdicts.get("curve"):
        return
    work = session.work
    texts = os.environ.get("TEXTS", str(ROOT / "crates/core/src"))
    for arguments in (["tokenizer", "train", "--input", texts, "--out", work / "tokenizer.json", "--vocab-size", 1024],
                      ["data", "tokenize", "--input", texts, "--tokenizer", work / "tokenizer.json", "--out", work / "tokens"]):
        done = session.run(session.command(arguments), 30)
        if done["problem"]:
            session.row("curve", "300 steps", "recua", problem=done["problem"], stderr=done["err"])
            return
    settings = ["model.dim=128", "model.n_layers=4", "train.seq_len=128", "optim.lr=1e-3", "optim.warmup_steps=30",
                "train.checkpoint_every=0", "sample.every=0"]
    runs = {"f32": (BACKEND, "f32"), "bf16": (BACKEND, "bf16"), "cpu": ("flex", "f32")}
    results = {}

    def one(name, backend, precision):
        command = session.command(["train", "--data", work / "tokens", "--run", work / name, "--preset", "debug", "--steps", CURVE_STEPS,
                                   "--backend", backend, "--precision", precision, *(x for s in settings for x in ("--set", s))])
        results[name] = session.run(command, 75)

    threads = [threading.Thread(target=one, args=(name, *what)) for name, what in runs.items()]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    ends, problems = {}, [f"{name}: {done['problem']}" for name, done in results.items() if done["problem"] and name != "cpu"]
    for name in runs:
        file = work / name / "metrics.jsonl"
        losses = [json.loads(line)["loss"] for line in file.read_text().splitlines()] if file.exists() else []
        if len(losses) == CURVE_STEPS and None not in losses:
            ends[name] = sum(losses[-10:]) / 10
    for name in ("bf16", "cpu"):
        if "f32" in ends and name in ends and not abs(ends["f32"] - ends[name]) <= CURVE_DIFFERENCE:
            problems.append(f"float32 ends at {ends['f32']:.4f}, {name} at {ends[name]:.4f}: more than {CURVE_DIFFERENCE} apart")
    if "f32" not in ends or "bf16" not in ends:
        problems.append("losses are missing or not finite")
    text = "mean of the last 10 losses: " + ", ".join(f"{name} {loss:.4f}" for name, loss in ends.items())
    session.row("curve", f"{CURVE_STEPS} steps", "recua", problem="; ".join(problems) or None, text=text, ends=ends,
                stderr="".join(done["err"] for done in results.values()) if problems else "")
    session.verdict("curve", not problems)


# ---- speed

def lacks(session, *needs):
    missing = [name for name in needs if not session.verdicts.get(name)]
    return f"not measured: these have not passed: {', '.join(missing)}" if missing else None


def flags_that_fit(session, preset, seq, batch):
    """The flags with which a step fits into the device's memory; why none does; the number of parameters."""
    plan = {}
    for flags in ([], ["--update-in-backward"], ["--update-in-backward", "--keep", "block"]):
        arguments = ["plan", "--preset", preset, "--seq", seq, "--batch", batch, "--precision", "bf16", "--backend", BACKEND, *flags, "--json"]
        if session.memory_mib:
            arguments += ["--memory", f"{session.memory_mib // 1024 - 2}.5"]
        done = session.run(session.command(arguments), 20)
        if done["problem"]:
            return [], None, 0 # what cannot be planned is tried
        plan = json.loads(done["out"].splitlines()[-1])
        if not session.memory_mib or plan["fits"]:
            return flags, None, plan["parameters"]
    return [], f"does not fit: planned {plan['needed_bytes'] / 2**30:.1f} GiB of {session.memory_mib // 1024}", plan["parameters"]


def train(session):
    gate = lacks(session, "f32", "bf16", "auto", "curve")
    presets = [preset for preset in PRESETS if not (QUICK and preset == "7b")]
    steps, peers = (3 if QUICK else 8), []
    for preset in presets:
        seq, batch, vocab, dim, layers, heads, kv, ffn = PRESETS[preset]
        shape = f"{preset}, {batch}x{seq}"
        flags, full, parameters = flags_that_fit(session, preset, seq, batch)
        command = session.command(["bench", "train", "--preset", preset, "--seq", seq, "--batch", batch, "--steps", steps, "--precision",
                                   "bf16", *flags, "--backend", BACKEND, "--peak-tflops", PEAK, "--json"])
        if gate or full:
            session.row("train", shape, "recua", problem=gate or full, command=" ".join(command[1:]))
        else:
            session.measured("train", shape, "recua", command, 120)
        if session.memory_mib and 16 * parameters > session.memory_mib << 20:
            problem = f"does not fit: float32 weights, gradients and moments alone are {16 * parameters / 2**30:.0f} GiB"
            session.row("train", shape, "torch eager", problem=problem)
            continue
        if not (session.torch and session.transformers):
            continue
        model = f"{preset}:{vocab},{dim},{layers},{heads},{kv},{ffn},{seq},{batch}"
        peer = [sys.executable, str(PEERS / "train_torch.py"), "--model", model, "--steps", str(steps), "--device", "cuda" if CUDA else "cpu",
                "--threads", str(os.cpu_count()), "--bf16", "--peak-tflops", str(PEAK)]
        session.measured("train", shape, "torch eager", peer, 90, peer=True)
        peers.append((shape, peer))
    # Last, and of the small ones first: compiling takes its time.
    for shape, peer in [] if QUICK else sorted(peers, key=lambda peer: peer[0].startswith("7b")):
        if left() > 60:
            session.measured("train", shape, "torch compile", [*peer, "--compile"], 120, peer=True)


def attention(session):
    gate = lacks(session, "f32", "bf16")
    for seq in (2048,) if QUICK else (2048, 8192):
        batch = 8192 // seq if CUDA else 1
        shape = f"{batch}x32x{seq}x128"
        for kernels in ("auto", "cubecl") if seq == 2048 and CUDA else ("auto",):
            command = session.command(["bench", "attention", "--dim", 4096, "--heads", 32, "--seq", seq, "--batch", batch, "--attention",
                                       kernels, "--backend", BACKEND, "--precision", "bf16", "--steps", 5, "--json"])
            if gate:
                session.row("attention", shape, f"recua {kernels}", problem=gate)
            else:
                session.measured("attention", shape, f"recua {kernels}", command, 45)
        if session.torch:
            ways = ("default", "flash", "cudnn") if CUDA else ("default",)
            peer = [sys.executable, str(PEERS / "attention_torch.py"), "--device", "cuda" if CUDA else "cpu", "--heads", "32", "--head-dim",
                    "128", "--seq", str(seq), "--batch", str(batch), "--by", *ways]
            done = session.run(peer, 45, peer=True)
            results = [json.loads(line) for line in done["out"].splitlines() if line.startswith("{")]
            for way, result in zip(ways, results):
                problem = result.get("problem")
                session.row("attention", shape, f"torch {way}", result=None if problem else result, problem=problem)
            if not results:
                session.row("attention", shape, "torch", problem=done["problem"] or "printed no JSON", stderr=done["err"])


def gemm(session):
    shapes = [(8192, 11008, 4096), (2048, 4096, 4096), (2048, 22016, 4096), (16384, 4096, 11008)] # m, n, k
    shapes = shapes[1:2] if QUICK else shapes
    names = [f"{m}x{k}x{n}" for m, n, k in shapes]
    for routine in ROUTINES if CUDA else ["auto"]:
        given = [x for m, n, k in shapes for x in ("--shape", f"{m}x{n}x{k}")]
        command = session.command(["bench", "gemm", *given, "--gemm", routine, "--backend", BACKEND, "--precision", "bf16", "--json"])
        if gate := lacks(session, routine):
            session.row("gemm", ", ".join(names), f"recua {routine}", problem=gate)
        else:
            session.measured("gemm", names[0], f"recua {routine}", command, 60, results=names)
    if session.torch:
        peer = [sys.executable, str(PEERS / "gemm_torch.py"), "--device", "cuda" if CUDA else "cpu", *names]
        session.measured("gemm", names[0], "torch", peer, 60, peer=True, results=names)


def decode(session):
    preset = "1b" if QUICK and CUDA else "7b" if CUDA else "15m"
    _, _, vocab, dim, layers, heads, kv, ffn = PRESETS[preset]
    batches, depth = ([1, 8] if QUICK else [1, 8, 64]), 128
    shapes = [f"{preset}, {batch} at once after {depth}" for batch in batches]
    gate = lacks(session, "f32", "bf16", "auto")
    # `auto`: few rows by our kernel that reads each weight once. By name: that routine for all.
    for routine in ("auto", *(name for name in ROUTINES if name != "wgmma")) if CUDA else ("auto",):
        who = "recua" if routine == "auto" else f"recua {routine}"
        command = session.command(["bench", "decode", "--preset", preset, "--dtype", "bf16" if CUDA else "f32", "--batch",
                                   ",".join(map(str, batches)), "--depth", depth, "--new-tokens", 64, "--backend", BACKEND,
                                   *(["--gemm", routine] if routine != "auto" else []), "--json"])
        problem = gate or (lacks(session, routine) if CUDA and routine != "auto" else None)
        shown = " ".join(command[1:])
        if problem:
            session.row("decode", shapes[0], who, problem=problem, command=f"recua {shown}")
            continue
        done = session.run(command, 120)
        line = next((line for line in done["out"].splitlines() if line.startswith("{")), None)
        result = json.loads(line) if line else {}
        for shape, row in zip(shapes, result.get("rows", [])):
            row = {**row, "read_gb_s": result["weight_bytes"] / row["step_s"] / 1e9, "bandwidth": result["bandwidth"]}
            session.row("decode", shape, who, command=f"recua {shown}", result=row, problem=None,
                        **{key: done[key] for key in ("device_mib", "mhz", "watt", "celsius", "seconds") if key in done})
        if not result:
            session.row("decode", shapes[0], who, command=f"recua {shown}", problem=done["problem"] or "printed no JSON", stderr=done["err"])
    if not (session.torch and session.transformers):
        return
    for compiled in (False,) if QUICK or not CUDA else (False, True):
        who = "torch compile" if compiled else "torch eager"
        peer = [sys.executable, str(PEERS / "decode_torch.py"), "--model", f"{preset}:{vocab},{dim},{layers},{heads},{kv},{ffn}", "--batch",
                *map(str, batches), "--depth", str(depth), "--device", "cuda" if CUDA else "cpu", *([] if CUDA else ["--f32"]),
                *(["--compile"] if compiled else [])]
        done = session.run(peer, 120, peer=True)
        results = [json.loads(line) for line in done["out"].splitlines() if line.startswith("{")]
        for shape, result in zip(shapes, results):
            problem = result.get("problem")
            session.row("decode", shape, who, result=None if problem else result, problem=problem)
        if not results:
            session.row("decode", shapes[0], who, problem=done["problem"] or "printed no JSON", stderr=done["err"])


# ---- several cards

def cards():
    done = subprocess.run(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True)
    return len(done.stdout.split())


def ranks(session):
    if not CUDA:
        session.row("ranks", "", "", text="NCCL is CUDA's: left out")
        return
    there = cards()
    for n in [n for n in (1, 2, 4, 8) if n <= there]:
        command = session.command(["bench", "collectives", "--backend", "cuda", "--json", "--mib", "1,64" if QUICK else "1,16,256,1024",
                                   *(["--nproc", n] if n > 1 else [])])
        done = session.run(command, 90)
        results = [json.loads(line) for line in done["out"].splitlines() if line.startswith("{")]
        if done["problem"] or not results:
            session.row("ranks", f"{n} ranks, operations", "recua", problem=done["problem"] or "printed no JSON", stderr=done["err"])
            return
        for m in results:
            text = f"{1e6 * m['seconds']:.0f} us, {m['bus_gb_s']:.1f} GB/s on the bus, " + ("right" if m["wrong"] == 0 else f"{m['wrong']} WRONG")
            shape = f"{n} ranks, {m['operation']} {m['bytes'] / 2**20:.0f} MiB {m['dtype']}"
            session.row("ranks", shape, "recua", text=text, problem=None if m["wrong"] == 0 else text, command=f"recua {' '.join(command[1:])}")
    gate = lacks(session, "f32", "bf16", "curve")
    for n, tp in [(1, 1), (2, 1), (2, 2), (4, 1), (4, 4), (8, 1), (8, 2), (8, 8)]:
        if n > there or (there == 1 and n == 1):
            continue
        shape = f"{n} ranks, 1b, dp {n // tp} x tp {tp}"
        if gate:
            session.row("ranks", shape, "recua", problem=gate)
            continue
        run = session.work / f"ranks-{n}-{tp}"
        command = session.command(["train", "--data", session.work / "tokens", "--run", run, "--preset", "1b", "--steps", 12, "--backend", "cuda",
                                   "--precision", "bf16", "--set", "train.seq_len=2048", "--set", f"train.batch={4 * n}", "--set",
                                   "train.micro_batch=4", "--set", f"parallel.tp={tp}", "--set", f"parallel.sequence={str(tp > 1).lower()}",
                                   "--set", "train.checkpoint_every=0", "--set", "sample.every=0", *(["--nproc", n] if n > 1 else [])])
        done = session.run(command, 150)
        file = run / "metrics.jsonl"
        rates = sorted(row["tok_s"] for row in map(json.loads, file.read_text().splitlines()[4:]) if "tok_s" in row) if file.exists() else []
        problem = done["problem"] or (None if rates else "no step was measured")
        rate = rates[len(rates) // 2] if rates else 0
        session.row("ranks", shape, "recua", text=f"{rate:.0f} tok/s, {rate / n:.0f} a card", problem=problem,
                    stderr=done["err"] if problem else "", command=f"recua {' '.join(command[1:])}")


# ---- the table

def figure(row, rows):
    if row.get("problem"):
        return f"**{row['problem']}**"
    result = row.get("result")
    if not result:
        return row.get("text", "")
    if row["kind"] == "decode":
        share = f", {100 * result['read_gb_s'] * 1e9 / result['bandwidth']:.0f} % of a copy's bandwidth here" if "bandwidth" in result else ""
        parts = [f"{result['tok_s']:.1f} tok/s", f"{1e3 * result['step_s']:.2f} ms a step", f"weights at {result['read_gb_s']:.0f} GB/s{share}"]
        for peer in rows if row["who"].startswith("recua") else []:
            if peer["who"].startswith("torch") and (peer["kind"], peer["shape"]) == ("decode", row["shape"]) and peer.get("result"):
                parts.append(f"{result['tok_s'] / peer['result']['tok_s']:.2f} of {peer['who']}'s")
        return ", ".join(parts)
    rate = result["gflop_s"] / 1e3
    parts = [f"{result['tok_s']:.0f} tok/s"] if row["kind"] == "train" else []
    parts.append(f"{rate:.1f} TFLOP/s")
    if row["kind"] == "train":
        best = max((r["result"]["gflop_s"] / 1e3 for r in rows if r["kind"] == "gemm" and r.get("result")), default=None)
        parts.append(f"MFU {100 * rate / PEAK:.1f} % of {PEAK:.0f}" + (f", {100 * rate / best:.1f} % of the best product here" if best else ""))
        own = result.get("peak_gpu_mb", result.get("work_mb"))
        parts += [f"memory {own / 1024:.1f} GiB"] if own else []
        parts += ["autocast, float32 master weights"] if row["who"].startswith("torch") else []
    if "mhz" in row:
        parts.append(f"{row['mhz']:.0f} MHz, {row['watt']:.0f} W")
    if row["who"].startswith("recua"):
        for peer in rows:
            if peer["who"].startswith("torch") and (peer["kind"], peer["shape"]) == (row["kind"], row["shape"]) and peer.get("result"):
                parts.append(f"{result['gflop_s'] / peer['result']['gflop_s']:.2f} of {peer['who']}'s")
    return ", ".join(parts)


def table(out):
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    machine = next((row for row in rows if row["kind"] == "machine"), {})
    (out / "gpu.json").write_text(json.dumps({**machine, "rows": rows}, indent=1) + "\n")
    cell = lambda text: text.replace("|", "\\|").replace("\n", " ")
    where = f"{machine.get('machine')}, " + (f"torch {machine['torch']}" if machine.get("torch") else "no PyTorch to compare with")
    lines = ["| date | commit | machine | command | figure |", "|---|---|---|---|---|"]
    for row in rows:
        if row["kind"] == "machine":
            continue
        name = f"{row['kind']} {row['shape']}{', ' + row['who'] if row['who'] else ''}"
        command = row.get("command", "bash benches/gpu.sh")
        lines.append(f"| {machine.get('date')} | {machine.get('commit')} | {cell(where)} | `{cell(command)}` | {cell(name)}: {cell(figure(row, rows))} |")
        where = "same"
    (out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--table":
        return table(pathlib.Path(sys.argv[2]))
    if len(sys.argv) not in (2, 3) or not os.access(sys.argv[1], os.X_OK):
        stop("usage: bash benches/gpu.sh RECUA_BINARY [OUT_DIR]")
    recua = pathlib.Path(sys.argv[1]).resolve()
    session = Session(recua, pathlib.Path(sys.argv[2] if len(sys.argv) == 3 else "gpu-results").resolve())
    size = recua.stat().st_size
    if CUDA and size > MOST_BYTES:
        stop(f"{size // 1000000} MB of binary: strip it")
    try:
        preflight(session, size)
        parts = {"check": check, "selftest": selftest, "curve": curve, "train": train, "attention": attention, "gemm": gemm, "decode": decode, "ranks": ranks}
        for part in PARTS:
            if part not in parts:
                stop(f"PARTS: there is no part {part}; take some of {' '.join(parts)}")
            say(part)
            parts[part](session)
    finally:
        if session.rows.exists():
            table(session.out)
        shutil.rmtree(session.work, ignore_errors=True)
    say(f"done; {session.out}")


if __name__ == "__main__":
    main()
