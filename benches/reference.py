#!/usr/bin/env python3
"""The reference run, then the same training in recua and in PyTorch, in turn. docs/reference.md says how to read it.

    bash benches/reference.sh RECUA OUT [--minutes 30] [--pair-minutes 50]
    bash benches/reference_gpu.sh RECUA OUT TEXTS HELD_OUT [--minutes 30]

1. The reference: `recua quickstart --minutes M --run OUT/reference`. `--reference RUN` takes a finished one. With `--preset` there is no
   quickstart: a tokenizer and token datasets are made of `--texts` and `--held-out`, and the run of the pair is the reference.
2. The first weights: `recua train` with a learning rate of zero, converted for Hugging Face. It also tells the time of a step.
3. The pair: both train from these weights, on the same batches in the same order, with the same schedule and the same held-out windows.
   One runs for `--slice` seconds while the other is stopped. There are as many steps as fit into `--pair-minutes`, for both together.

Writes OUT/pair.json, OUT/pair.md, OUT/pair.svg. The exit code is 1 if the losses of the first steps differ (float32 only).
Needs Linux, and torch and transformers in the Python that runs it."""
import argparse
import importlib.util
import json
import os
import pathlib
import platform
import signal
import statistics
import subprocess
import sys
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "peers")]

if missing := [name for name in ("numpy", "torch", "transformers") if importlib.util.find_spec(name) is None]:
    sys.exit(f"reference: {sys.executable} lacks {', '.join(missing)}; pip install torch transformers, or set PYTHON")

from pair_report import report  # noqa: E402
from train_curve import optim_of  # noqa: E402
from turns import Program, take_turns  # noqa: E402

VALIDATIONS = 20
START_STEPS = 12


def say(text):
    print(f"==> {text}", file=sys.stderr, flush=True)


def recua(a, *arguments, capture=False):
    """Runs a verb of recua to its end."""
    process = subprocess.Popen([str(a.recua), *map(str, arguments)], stdout=subprocess.PIPE if capture else sys.stderr, text=True)
    try:
        out, _ = process.communicate()
    except BaseException:
        process.send_signal(signal.SIGINT)  # it saves, then ends
        process.wait()
        raise
    if process.returncode:
        sys.exit(f"reference: recua {arguments[0]} failed with {process.returncode}")
    return out


def computes(a):
    return ["--backend", a.backend, "--threads", a.threads]


def prepare(a):
    """Text, tokens, and for a quickstart the reference run. Returns the arguments of `recua train` that say the data and the model."""
    if not a.preset:
        run = a.reference or a.out / "reference"
        if (run / "outcome.json").exists():
            say(f"{run} is there")
        else:
            say(f"the reference run, {a.minutes:g} minutes")
            recua(a, "quickstart", "--minutes", a.minutes, "--run", run, *computes(a))
        return ["--config", run / "config.toml", "--set", "sample.every=0", "--set", "eval.every=0"]
    data = a.out / "data"
    if not (data / "tokenizer.json").exists():
        say("a tokenizer")
        recua(a, "tokenizer", "train", "--input", *a.texts, "--out", data / "tokenizer.json", "--vocab-size", a.vocab_size)
    for name, inputs in (("train", a.texts), ("valid", a.held_out)):
        if not (data / name / "dataset.json").exists():
            say(f"tokens: {name}")
            recua(a, "data", "tokenize", "--input", *inputs, "--tokenizer", data / "tokenizer.json", "--out", data / name, "--force")
    return ["--data", data / "train", "--valid", data / "valid", "--tokenizer", data / "tokenizer.json", "--preset", a.preset,
            "--precision", a.precision, "--set", f"model.vocab_size={a.vocab_size}"]


def first_weights(a, base):
    """A Hugging Face folder of the weights that the run begins with, and the seconds of a step."""
    run, folder = a.out / "start", a.out / "start-hf"
    say("the first weights")
    recua(a, "train", *base, "--run", run, "--steps", START_STEPS, *computes(a), "--set", "optim.lr=0", "--set", "optim.warmup_steps=1",
          "--set", "train.val_every=0", "--set", "train.checkpoint_every=0", "--set", "sample.every=0", "--set", "eval.every=0")
    recua(a, "convert", run, folder, "--to", "hf")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return folder, statistics.median(r["step_s"] for r in records[2:])


def settings_of(a, base):
    """The resolved settings of the pair; their schedule is not used."""
    steps = ["--steps", "1000"] if a.preset else []  # a finished reference has its own, which are the most that are compared
    shown = recua(a, "train", *base, "--run", a.out / "recua", *steps, "--dry-run", *computes(a), capture=True)
    return tomllib.loads(shown)


def for_torch(a, config, weights):
    """What train_pair.py reads."""
    train, data = config["train"], config["data"]
    if data.get("weights") or not isinstance(data["valid"], str):
        sys.exit("reference: a mixture or several held-out sets are not compared")
    return {"init": str(weights), "train": data["train"], "weights": None, "valid": data["valid"], "seed": train["seed"],
            "seq_len": train.get("seq_len") or config["model"]["max_seq_len"], "batch": train["batch"],
            "micro_batch": train.get("micro_batch") or train["batch"], "val_windows": train.get("val_windows"), "optim": optim_of(config),
            "threads": a.threads, "device": a.backend if a.backend.startswith("cuda") else "cpu", "bf16": train["precision"] == "bf16",
            "compile": not a.eager, "mode": a.compile_mode}


def torch_environment(a, folder):
    """What makes PyTorch fastest here, unless it is wanted as it comes; and what that is, in words."""
    environment = {"OMP_NUM_THREADS": str(a.threads), "MKL_NUM_THREADS": str(a.threads), "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
    if a.stock or a.backend.startswith("cuda"):
        return environment, []
    # glibc gives large arrays back to the system and gets them again at every step.
    environment |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}
    done = ["glibc keeps its memory"]
    if "AuthenticAMD" in pathlib.Path("/proc/cpuinfo").read_text():
        # MKL takes its AVX-512 code on Intel's processors only. It asks this function.
        source, library = folder / "amd.c", folder / "amd.so"
        source.write_text("int mkl_serv_intel_cpu_true(void) { return 1; }\n")
        try:
            subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            say("no C compiler (cc): on this AMD processor MKL, and so PyTorch, is slower than it could be")
        else:
            environment["LD_PRELOAD"] = str(library)
            done.append("MKL takes its AVX-512 code on AMD")
    return environment, done


def pair(a, base, config, weights, recua_step_s):
    """Both trainings. Returns them, with what PyTorch said at its start and what was asked of both."""
    folder = a.out / "torch"
    folder.mkdir(parents=True, exist_ok=True)
    how = for_torch(a, config, weights)
    (folder / "pair.json").write_text(json.dumps(how, indent=1))
    (folder / "ready.json").unlink(missing_ok=True)
    programs = []
    try:
        say("PyTorch loads and compiles")
        environment, helped = torch_environment(a, folder)
        torch = Program("torch", [sys.executable, str(HERE / "peers/train_pair.py"), str(folder)], folder / "metrics.jsonl",
                        a.out / "torch.log", environment)
        programs.append(torch)
        torch.wait_for(lambda: (folder / "ready.json").exists())
        ready = json.loads((folder / "ready.json").read_text()) | {"helped": helped}
        fit = int(60 * a.pair_minutes / (recua_step_s + ready["step_s"]))
        steps = max(a.steps or min(fit, a.most_steps or fit, *([] if a.preset else [config["train"]["steps"]])), VALIDATIONS)
        every = -(-steps // VALIDATIONS)
        go = {"steps": steps, "warmup_steps": max(steps // 20, 1), "val_every": every}
        (folder / "go.json").write_text(json.dumps(go))
        say(f"a step takes {1e3 * recua_step_s:.0f} ms in recua, {1e3 * ready['step_s']:.0f} ms in PyTorch: {steps} steps, "
            f"some {steps * (recua_step_s + ready['step_s']) / 60:.0f} minutes for both")
        run = a.out / "recua"
        command = ["train", *base, "--init", weights, "--run", run, "--steps", steps, *computes(a), "--set", f"optim.warmup_steps={go['warmup_steps']}",
                   "--set", f"train.val_every={every}", "--set", "train.checkpoint_every=0"]
        if a.preset:
            few = -(-steps // 8)
            command += ["--set", f"eval.every={few}", "--set", f"sample.every={few}"]
        ours = Program("recua", [str(a.recua), *map(str, command)], run / "metrics.jsonl", a.out / "recua.log")
        programs.append(ours)
        take_turns([ours, torch], a.slice, say)
    finally:
        for program in programs:
            program.kill()
    return ours, torch, ready, how | go


def machine():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {os.cpu_count()} cores"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("recua", type=pathlib.Path, help="the binary")
    p.add_argument("out", type=pathlib.Path, help="the folder to make")
    p.add_argument("--minutes", type=float, default=30, help="of the reference run")
    p.add_argument("--pair-minutes", type=float, default=50, help="of both trainings of the pair together")
    p.add_argument("--slice", type=float, default=20, help="seconds of a turn")
    p.add_argument("--reference", type=pathlib.Path, help="a finished quickstart in place of a new one")
    p.add_argument("--steps", type=int, help="so many steps of the pair, however long they take")
    p.add_argument("--most-steps", type=int, help="so many at most")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--backend", default="flex")
    p.add_argument("--preset", help="a larger model, on texts of one's own")
    p.add_argument("--texts", type=pathlib.Path, nargs="+", default=[])
    p.add_argument("--held-out", type=pathlib.Path, nargs="+", default=[])
    p.add_argument("--vocab-size", type=int, default=32000)
    p.add_argument("--precision", default="f32", choices=["f32", "bf16"])
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of recua, for both")
    p.add_argument("--stock", action="store_true", help="PyTorch as pip gives it, without what makes it faster here")
    p.add_argument("--eager", action="store_true", help="PyTorch without torch.compile")
    p.add_argument("--compile-mode", help="of torch.compile")
    a = p.parse_args()
    if a.preset and not (a.texts and a.held_out):
        p.error("--preset needs --texts and --held-out")
    if not os.access(a.recua, os.X_OK):
        p.error(f"{a.recua} is no program")
    a.recua, a.out = a.recua.resolve(), a.out.resolve()
    if (a.out / "recua/metrics.jsonl").exists():
        p.error(f"{a.out} holds a finished pair: give another folder")
    a.out.mkdir(parents=True, exist_ok=True)
    # One that is told to end ends its programs first; in the background of a script too, where SIGINT is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))

    base = prepare(a) + [x for one in a.set for x in ("--set", one)]
    config = settings_of(a, base)
    weights, step_s = first_weights(a, base)
    ours, torch, ready, asked = pair(a, base, config, weights, step_s)
    facts = {"machine": machine(), "recua": recua(a, "--version", capture=True).strip(), "backend": a.backend, "slice_s": a.slice,
             "settings": asked, "model": config["model"], "torch_start": ready}
    return report(a.out, facts, ours, torch)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
