#!/usr/bin/env python3
"""recua beside llama.cpp (native and the wheel xllamacpp) and candle on CPU, on the very same GGUF files: F32, BF16, F16, Q8_0, Q4_0.

    V=VENV                                            # python -m venv V; V/bin/pip install gguf numpy xllamacpp
    V/bin/python narrow.py [--size large|mid|tiny] [--types f32,bf16,f16,q8_0,q4_0] [--peers ...] [--rounds 3] [--out RESULT.json]

make_models.py writes the files, build_llama.sh and llama_driver.cpp are the native llama.cpp, candle_bench is candle: see README.md.

Each row of --peers is PROGRAM[/KV[/FA]][+passive]:
  recua      `recua bench`; KV: --kv-cache-dtype (f32, bf16, f16, int8)
  native     llama.cpp built here with -march=native (OpenMP)
  npm        llama.cpp's release build for Zen 4 and later, from npm's @node-llama-cpp/linux-x64 (threads of its own, no OpenMP)
  xllamacpp  the wheel from PyPI (AVX2, OpenMP), through its server
  candle     candle-transformers' quantized_llama; keys and values float32
KV: f32, f16, ... (llama.cpp's default: f16); FA: flash attention off, on or auto (default auto). +passive: OMP_WAIT_POLICY=passive,
for a machine with neighbours: OpenMP's threads spin while they wait.

1. The gate, greedy on four prompts, against `native/f32/off` (or npm): of F32 files the ids must be equal and log-probabilities
   within 1e-3, with a float32 cache and without flash attention. Other types are only told: programs round activations differently
   (llama.cpp and candle make 8-bit blocks of them for Q8_0 and Q4_0, F16 for F16).
2. Speeds: rounds A B C, C B A, ..., one process at a time, on CPUs 0 and 1, two threads each; medians over rounds. prefill: 512
   tokens; decode: 64 new tokens after one; deep: the same behind 1,024; many: 8 sequences at once, their sum. A warm-up each, of 64 or 4
   tokens.

Only a quiet machine gives fair figures: load and CPU flags are printed with them, and a run during which other processes took more
than --max-others CPUs is told but does not count. Bandwidth is read_bw's (and recua's own).
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
PINNED = ["taskset", "-c", "0,1"]
WHAT = {"prefill": "prefill of {prefill}", "decode": "decode", "deep": "decode at {depth}", "many": "{many} at once"}
PEERS = "recua/f32,recua/f16,native/f16/auto,native/f32/off,xllamacpp/f16/auto,candle"
BOUND = 1e-3


def prompts_of(vocab: int) -> list[list[int]]:
    import random

    r = random.Random(100)
    return [[r.randrange(300, vocab) for _ in range(n)] for n in (1, 17, 64, 200)]


# One process at a time


OTHERS: list[float] = []  # of each process since the list was emptied: CPUs that others took meanwhile


def busy() -> float:
    """Seconds of CPU time that were used or stolen since the machine's start."""
    user, nice, system, _, _, irq, soft, steal, *_ = map(int, pathlib.Path("/proc/stat").read_text().split()[1:11])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def wait_quiet(limit: float) -> None:
    """Until others take less than a tenth of a CPU for two seconds, or `limit` seconds at most."""
    end = time.time() + limit
    while time.time() < end:
        before, start = busy(), time.time()
        time.sleep(2)
        if (busy() - before) / (time.time() - start) < 0.1:
            return


def child(command: list[str], nice: int, **env: str) -> tuple[str, float]:
    """Standard output, peak RSS in MiB."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pre = ["nice", "-n", str(nice)] if nice else []
        start, before = time.time(), busy()
        process = subprocess.Popen(pre + PINNED + command, stdout=out, stderr=err, env=os.environ | env)
        _, status, usage = os.wait4(process.pid, 0)
        OTHERS.append((busy() - before - usage.ru_utime - usage.ru_stime) / (time.time() - start))
        out.seek(0), err.seek(0)
        if status:
            raise RuntimeError(f"{' '.join(command)[:300]} failed:\n{err.read().decode(errors='replace')[-1500:]}")
        return out.read().decode(), usage.ru_maxrss / 1024


def json_lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


class Peer:
    def __init__(self, name: str, a: argparse.Namespace):
        self.name, self.a = name, a
        base, _, omp = name.partition("+")
        self.program, self.kv, self.fa = (base.split("/") + ["", ""])[:3]
        self.env = {"OMP_NUM_THREADS": "2", "RAYON_NUM_THREADS": "2"} | ({"OMP_WAIT_POLICY": "passive"} if omp == "passive" else {})

    def child(self, command: list, **env: str) -> tuple[str, float]:
        return child([str(x) for x in command], self.a.nice, **self.env | env)

    def sizes(self) -> list[str]:
        a = self.a
        return ["--prefill", a.prefill, "--new", a.new, "--depth", a.depth, "--many", a.many, "--repeat", a.repeat]

    def command(self, model: pathlib.Path, kv: str, fa: str) -> list:
        a = self.a
        if self.program == "candle":
            return [a.candle, model]
        common = [model, "--threads", 2, "--kv", kv or "f16", "--fa", fa or "auto"]
        return [a.native, *common] if self.program == "native" else [a.npm, *common, "--backends", a.npm_backends]

    def gate(self, model: pathlib.Path, prompts: list[list[int]], new: int) -> list[dict]:
        """Of each prompt: tokens, logprobs. Float32 cache, no flash attention."""
        passive = {"OMP_WAIT_POLICY": "passive"}  # so that a gate needs no quiet machine
        if self.program == "recua":
            return recua_gate(self, model, prompts, new)
        if self.program == "xllamacpp":
            job = dict(what=["gate"], kv="f32", fa="off", prompts=prompts, new=new)
            return json_lines(self.child([sys.executable, __file__, "--xllamacpp", model, json.dumps(job)], **passive)[0])[-1]["answers"]
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("".join(" ".join(map(str, p)) + "\n" for p in prompts))
            file.flush()
            out, _ = self.child([*self.command(model, "f32", "off"), "--gate", file.name, "--gate-new", new], **passive)
        return json_lines(out)[-1]["answers"]

    def measure(self, model: pathlib.Path, what: list[str]) -> dict:
        """Tokens a second of each, rss_mib, loaded_s where it is told."""
        if self.program == "recua":
            return recua_measure(self, model, what)
        if self.program == "xllamacpp":
            a = self.a
            job = dict(kv=self.kv or "f16", fa=self.fa or "auto", prefill=a.prefill, new=a.new, depth=a.depth, many=a.many,
                       vocab=vocabulary(model))
            result: dict = {}
            solo = [w for w in what if w != "many"]
            for part in [solo, ["many"] if "many" in what else []]:
                if part:
                    out, rss = self.child([sys.executable, __file__, "--xllamacpp", model, json.dumps(job | {"what": part})])
                    result = json_lines(out)[-1] | result | {"rss_mib": max(rss, result.get("rss_mib", 0))}
            return result
        out, rss = self.child([*self.command(model, self.kv, self.fa), *self.sizes(), "--what", ",".join(what)])
        return json_lines(out)[-1] | {"rss_mib": rss}


# recua: the place to adapt


def recua_measure(peer: Peer, model: pathlib.Path, what: list[str]) -> dict:
    a, result = peer.a, {}
    common = f"--model {model} --kv-cache-dtype {peer.kv or 'f32'} --repeat {a.repeat} --threads 2 --json {a.recua_flags}".split()

    def bench(*arguments) -> dict:
        out, rss = peer.child([a.recua, "bench", *arguments, *common])
        # Either one document over several lines or a document a line.
        document = json.loads(out) if out.lstrip().startswith("{\n") else json_lines(out)[-1]
        result["rss_mib"] = max(rss, result.get("rss_mib", 0))
        result["bandwidth"] = document["bandwidth"]
        return document

    if "prefill" in what:
        document = bench("prefill", "--prompt-tokens", a.prefill)
        result |= {"prefill": document["rows"][0]["tok_s"], "product_ceiling": document["product_ceiling"],
                   "product_share": document["rows"][0]["product_share"]}
    batches = [b for w, b in (("decode", 1), ("many", a.many)) if w in what]
    if batches:
        document = bench("decode", "--new-tokens", a.new, "--batch", ",".join(map(str, batches)))
        for row in document["rows"]:
            result["decode" if row["batch"] == 1 else "many"] = row["tok_s"]
        result |= {"weights_share": document["rows"][0]["weights_share"], "dtype": document["dtype"]}
    if "deep" in what:
        result["deep"] = bench("decode", "--new-tokens", a.new, "--depth", a.depth)["rows"][0]["tok_s"]
    return result


def recua_gate(peer: Peer, model: pathlib.Path, prompts: list[list[int]], new: int) -> list[dict]:
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.write("".join(json.dumps(p) + "\n" for p in prompts))
        file.flush()
        arguments = (f"generate --model {model} --prompts {file.name} --tokens {new} --temperature 0 --ignore-eos --bos never "
                     f"--logprobs 1 --json --threads 2 {peer.a.recua_flags}")
        out, _ = peer.child([peer.a.recua, *arguments.split()])
    return [{"tokens": row["tokens"], "logprobs": [x["logprob"] for x in row["logprobs"]]} for row in json_lines(out)]


# xllamacpp, in a process of its own: `--xllamacpp MODEL JOB`


def xllamacpp(model: str, job: dict) -> None:
    import xllamacpp as x

    start = time.time()
    slots = job["many"] if job["what"] == ["many"] else 1
    context = {"gate": 512, "many": job["new"] + 64}.get(job["what"][0]) or max(job["prefill"], job["depth"] + job["new"]) + 64
    p = x.CommonParams()
    p.model.path = model
    p.n_parallel, p.n_ctx = slots, slots * context
    p.n_batch, p.n_ubatch = 2048, 512
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 2
    p.warmup, p.cache_ram_mib, p.verbosity = True, 0, 0
    p.n_gpu_layers = 0
    flash = x.llama_flash_attn_type
    p.flash_attn_type = {"off": flash.LLAMA_FLASH_ATTN_TYPE_DISABLED, "on": flash.LLAMA_FLASH_ATTN_TYPE_ENABLED,
                         "auto": flash.LLAMA_FLASH_ATTN_TYPE_AUTO}[job["fa"]]
    p.cache_type_k = p.cache_type_v = getattr(x.ggml_type, f"GGML_TYPE_{job['kv'].upper()}")
    server = x.Server(p)
    result: dict = {"loaded_s": time.time() - start, "system": x.get_system_info()}

    def complete(prompt: list[int], new: int, **more) -> dict:
        body = {"prompt": prompt, "n_predict": new, "temperature": 0.0, "top_k": 1, "samplers": ["top_k"], "ignore_eos": True,
                "cache_prompt": False, **more}
        request = urllib.request.Request(
            server.listening_address + "/completion", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def prompt(n: int, seed: int) -> list[int]:
        import random

        r = random.Random(seed)
        return [r.randrange(300, job["vocab"]) for _ in range(n)]

    def decode(prompt: list[int], new: int) -> float:
        return complete(prompt, new + 1)["timings"]["predicted_per_second"]

    for what in job["what"]:
        if what == "gate":
            result["answers"] = []
            for ids in job["prompts"]:
                rows = complete(ids, job["new"], n_probs=1, post_sampling_probs=False)["completion_probabilities"]
                result["answers"].append({"tokens": [r["id"] for r in rows], "logprobs": [r["logprob"] for r in rows]})
        elif what == "decode":
            decode(prompt(8, 0), 4)
            result[what] = decode(prompt(1, 1), job["new"])
        elif what == "deep":
            result[what] = decode(prompt(job["depth"], 2), job["new"])
        elif what == "prefill":
            if "deep" not in job["what"]:
                complete(prompt(64, 0), 1)
            result[what] = complete(prompt(job["prefill"], 3), 1)["timings"]["prompt_per_second"]
        elif what == "many":
            decode(prompt(8, 0), 4)
            speeds: list[float] = []
            threads = [threading.Thread(target=lambda i=i: speeds.append(decode(prompt(1, 10 + i), job["new"]))) for i in range(slots)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            result[what] = sum(speeds)
    print(json.dumps(result), flush=True)
    os._exit(0)  # its destructors take their time


# The models and the machine


def vocabulary(model: pathlib.Path) -> int:
    return 2000 if model.name.startswith("tiny") else 32000


def weight_bytes(model: pathlib.Path) -> int:
    """What a step reads: all tensors but the embedding."""
    from gguf import GGUFReader

    return sum(int(t.n_bytes) for t in GGUFReader(model).tensors if t.name != "token_embd.weight")


def machine(a: argparse.Namespace) -> dict:
    cpu = pathlib.Path("/proc/cpuinfo").read_text()
    field = lambda key: next((line.split(":")[1].strip() for line in cpu.splitlines() if line.startswith(key)), "")
    flags = [flag for flag in field("flags").split() if flag.startswith(("avx", "fma", "f16c", "amx"))]
    result = {"cpu": field("model name"), "family": field("cpu family"), "model": field("model\t"), "flags": flags, "load": os.getloadavg()[0]}
    if a.read_bw.exists():
        result["bandwidth_gb_s"] = float(child([str(a.read_bw), "2"], a.nice)[0]) / 1e9
    return result


# The gate


def gate(peers: list[Peer], model: pathlib.Path, kind: str, new: int) -> dict:
    prompts = prompts_of(vocabulary(model))
    programs = {p.program: p for p in reversed(peers)}  # of each program the first
    first = next((name for name in ("native", "npm", "xllamacpp") if name in programs), None)
    if first is None:
        return {}
    result: dict = {"reference": first}
    reference = programs.pop(first).gate(model, prompts, new)
    for name, peer in programs.items():
        answers = peer.gate(model, prompts, new)
        same, worst, total = 0, 0.0, 0
        for mine, other in zip(answers, reference, strict=True):
            total += new
            for t, u, l, m in zip(mine["tokens"], other["tokens"], mine["logprobs"], other["logprobs"], strict=True):
                if t != u:
                    break
                same, worst = same + 1, max(worst, abs(l - m))
        result[name] = {"equal": same, "of": total, "largest_logprob_difference": worst}
        if kind == "f32" and (same < total or worst >= BOUND):
            sys.exit(f"the gate of float32: {name} beside {first}: {result[name]}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="large", choices=["large", "mid", "tiny"])
    parser.add_argument("--types", default="f32,bf16,f16,q8_0,q4_0")
    parser.add_argument("--peers", default=PEERS, help=f"[{PEERS}]")
    parser.add_argument("--what", default=",".join(WHAT), help=f"of {', '.join(WHAT)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=1, help="measurements in a process, after one that warms up")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--depth", type=int, default=1024)
    parser.add_argument("--many", type=int, default=8)
    parser.add_argument("--gate-new", type=int, default=24)
    parser.add_argument("--gate", default="also", choices=["also", "only", "no"])
    parser.add_argument("--max-others", type=float, default=0.15, help="a run during which others took more CPUs than this does not count")
    parser.add_argument("--wait-quiet", type=float, default=0, help="before each run wait for a quiet machine, at most this many seconds")
    parser.add_argument("--nice", type=int, default=0)
    parser.add_argument("--models", type=pathlib.Path, default=HERE / "models")
    parser.add_argument("--recua", default="target/release/recua")
    parser.add_argument("--recua-flags", default="", help="more flags for `recua bench` and `recua generate`")
    parser.add_argument("--native", type=pathlib.Path, default=HERE / "llama_driver")
    parser.add_argument("--npm", type=pathlib.Path, default=HERE / "llama_driver_npm")
    parser.add_argument("--npm-backends", type=pathlib.Path, default=HERE / "npm/package/bins/linux-x64")
    parser.add_argument("--candle", type=pathlib.Path, default=HERE / "candle_bench/target/release/candle_bench")
    parser.add_argument("--read-bw", type=pathlib.Path, default=HERE / "read_bw")
    parser.add_argument("--show", action="store_true", help="measure nothing: the tables of --out")
    parser.add_argument("--out", type=pathlib.Path, help="a JSON document; an existing one gets further rounds")
    a = parser.parse_args()

    peers = [Peer(name.strip(), a) for name in a.peers.split(",")]
    what = [w for w in WHAT if w in a.what.split(",")]
    names = {w: WHAT[w].format(**vars(a)) for w in what}
    result = json.loads(a.out.read_text()) if a.out and a.out.exists() else {"types": {}, "machines": []}
    if a.show:
        for key, entry in result["types"].items():
            table(*key.split("-"), entry, names)
            print(f"gate: {json.dumps(entry.get('gate'))}")
        return
    result["machines"].append(machine(a))
    m = result["machines"][-1]
    print(f"{m['cpu']} (family {m['family']} model {m['model']}), {' '.join(m['flags'])}; load {m['load']:.1f}; "
          f"{m.get('bandwidth_gb_s', math.nan):.1f} GB/s read by two threads", flush=True)

    def save() -> None:
        if a.out:
            a.out.write_text(json.dumps(result, indent=1) + "\n")

    for kind in a.types.split(","):
        model = a.models / f"{a.size}-{kind}.gguf"
        entry = result["types"].setdefault(f"{a.size}-{kind}", {"weight_bytes": weight_bytes(model), "runs": {}})
        if a.gate != "no":
            entry["gate"] = gate(peers, model, kind, a.gate_new)
            print(f"{a.size} {kind}: gate {json.dumps(entry['gate'])}", flush=True)
        for i in range(a.rounds if a.gate != "only" else 0):
            for peer in peers if i % 2 == 0 else peers[::-1]:
                wait_quiet(a.wait_quiet)
                OTHERS.clear()
                try:
                    run = peer.measure(model, what)
                except (RuntimeError, OSError, ValueError) as e:
                    print(f"{a.size} {kind}: {peer.name}: {e}", file=sys.stderr, flush=True)
                    continue
                run["others"] = max(OTHERS)
                if run["others"] < a.max_others:
                    entry["runs"].setdefault(peer.name, []).append(run)
                if "system" in run:
                    result.setdefault("system", {})[peer.name] = run["system"]
                save()
                shown = {} if run["others"] < a.max_others else {"DISTURBED": run["others"]}
                shown |= {k: v for k, v in run.items() if isinstance(v, (int, float))}
                print(f"{a.size} {kind} {i} {peer.name}: " + ", ".join(f"{k} {v:.4g}" for k, v in shown.items()), file=sys.stderr, flush=True)
        save()
        table(a.size, kind, entry, names)
    for name, system in result.get("system", {}).items():
        print(f"{name}: {system}")


def table(size: str, kind: str, entry: dict, names: dict) -> None:
    runs = entry["runs"]
    if not runs:
        return
    medians = {
        p: {k: statistics.median(r[k] for r in rs if k in r) for k in [*names, "rss_mib"] if any(k in r for r in rs)} for p, rs in runs.items()}
    gb = entry["weight_bytes"] / 1e9
    print(f"\n| {size} {kind}, {gb:.3f} GB a step, tok/s | " + " | ".join(runs) + " |\n|---" + "|---" * len(runs) + "|")
    cell = lambda x: "" if x is None else f"{x:.4g}"
    for key, name in names.items():
        print(f"| {name} | " + " | ".join(cell(medians[p].get(key)) for p in runs) + " |")
    if "decode" in names:
        print("| decode, GB/s of weights | " + " | ".join(cell(gb * medians[p]["decode"] if "decode" in medians[p] else None) for p in runs) + " |")
    print("| peak RSS, MiB | " + " | ".join(cell(medians[p].get("rss_mib")) for p in runs) + " |")
    print("| rounds | " + " | ".join(str(len(runs[p])) for p in runs) + " |\n", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "--xllamacpp":
        xllamacpp(sys.argv[2], {"many": 8, "new": 64, "prefill": 512, "depth": 1024, "vocab": 32000} | json.loads(sys.argv[3]))
    else:
        main()
