#!/usr/bin/env python3
"""recua's engine beside llama.cpp on CPU: the same random weights, two threads each, in turn.

    python3 -m venv V && V/bin/pip install xllamacpp gguf safetensors numpy
    V/bin/python benches/peers/serve_llamacpp.py target/release/recua [--model large|small] [--rounds 5] [--out RESULT.json]

1. Writes one random LLaMA as a Hugging Face folder and as GGUF, both float32 (`--work`, kept for the next run). `large`: 12 layers,
   width 1,024, 32,000 tokens, 220 M parameters, 880 MB: more than a cache holds. `small`: 4 layers, width 256, 5 M.
2. The gate: greedy tokens equal and log-probabilities within 1e-3, on four prompts. For it llama.cpp computes as we do: no flash
   attention, float32 cache (by default its keys and values are float16, which costs 6e-3).
3. Speeds, interleaved (all of a round before the next one), medians: decode at batch 1, decode with 1,024 tokens in the cache,
   prefill of 512 tokens, 8 sequences at once; seconds from the process's start to its first token; peak RSS.

Peers of a round: `recua`; `llama.cpp`, by its defaults (flash attention auto, float16 cache); `llama.cpp f32`, as in the gate; both
also with OMP_WAIT_POLICY=passive (`--peers`): its OpenMP threads spin while they wait, and with a neighbour on a core that ruins
decoding. Only a quiet machine gives a fair figure: the load is printed with the result.

llama.cpp's figures are its own (`timings` of its server: prompt_per_second, predicted_per_second), with a sampler that takes the
likeliest token and nothing else; of 8 at once their sum. The wheel is built for AVX2 without AVX-512: the CPU's flags are printed.
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

import numpy as np

MODELS = {
    "large": dict(layers=12, dim=1024, heads=16, kv=16, ffn=2816, vocab=32000),
    "small": dict(layers=4, dim=256, heads=4, kv=2, ffn=688, vocab=2000),
}
MAX_LEN = 2048
NEW, DEPTH, PREFILL, MANY = 64, 1024, 512, 8
PEERS = ["recua", "llama.cpp", "llama.cpp passive", "llama.cpp f32", "llama.cpp f32 passive"]
PINNED = ["taskset", "-c", "0,1"]


# The model


def write_model(folder: pathlib.Path, s: dict) -> None:
    import gguf
    from safetensors.numpy import save_file

    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(5)
    d, f, vocab, layers = s["dim"], s["ffn"], s["vocab"], s["layers"]
    head = d // s["heads"]
    kv = s["kv"] * head

    def matrix(rows: int, columns: int, std: float) -> np.ndarray:
        return random.standard_normal((rows, columns), dtype=np.float32) * np.float32(std)

    def gain() -> np.ndarray:
        return (1 + 0.1 * random.standard_normal(d)).astype(np.float32)

    # Random weights give flat logits, and greedy ties: wide embeddings and output.
    std = 0.6 / math.sqrt(d)
    hf = {"model.embed_tokens.weight": matrix(vocab, d, 0.5), "model.norm.weight": gain(), "lm_head.weight": matrix(vocab, d, 0.3)}
    for i in range(layers):
        p = f"model.layers.{i}."
        hf[p + "self_attn.q_proj.weight"] = matrix(d, d, std)
        hf[p + "self_attn.k_proj.weight"] = matrix(kv, d, std)
        hf[p + "self_attn.v_proj.weight"] = matrix(kv, d, std)
        hf[p + "self_attn.o_proj.weight"] = matrix(d, d, std)
        hf[p + "mlp.gate_proj.weight"] = matrix(f, d, std)
        hf[p + "mlp.up_proj.weight"] = matrix(f, d, std)
        hf[p + "mlp.down_proj.weight"] = matrix(d, f, std)
        hf[p + "input_layernorm.weight"] = gain()
        hf[p + "post_attention_layernorm.weight"] = gain()
    save_file(hf, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": d, "intermediate_size": f,
        "num_hidden_layers": layers, "num_attention_heads": s["heads"], "num_key_value_heads": s["kv"], "vocab_size": vocab,
        "max_position_embeddings": MAX_LEN, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "torch_dtype": "float32", "bos_token_id": 1, "eos_token_id": 2, "attention_bias": False, "mlp_bias": False,
    }, indent=1))

    w = gguf.GGUFWriter(str(folder / "model.gguf"), "llama")
    w.add_context_length(MAX_LEN)
    w.add_embedding_length(d)
    w.add_block_count(layers)
    w.add_feed_forward_length(f)
    w.add_head_count(s["heads"])
    w.add_head_count_kv(s["kv"])
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(head)
    w.add_vocab_size(vocab)
    w.add_file_type(gguf.LlamaFileType.ALL_F32)
    # llama.cpp wants a vocabulary; prompts are token ids.
    w.add_tokenizer_model("llama")
    words = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    words += [f"w{i}" for i in range(len(words), vocab)]
    w.add_token_list(words)
    w.add_token_scores([-float(i) for i in range(vocab)])
    w.add_token_types([1] * vocab)  # all of them text: of bytes that are no whole character it says nothing until they are
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)

    def adjacent(x: np.ndarray, heads: int) -> np.ndarray:
        """Hugging Face's halves of a rotation to adjacent pairs."""
        return x.reshape(heads, 2, x.shape[0] // heads // 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape)

    w.add_tensor("token_embd.weight", hf["model.embed_tokens.weight"])
    w.add_tensor("output_norm.weight", hf["model.norm.weight"])
    w.add_tensor("output.weight", hf["lm_head.weight"])
    for i in range(layers):
        p = f"model.layers.{i}."
        w.add_tensor(f"blk.{i}.attn_q.weight", adjacent(hf[p + "self_attn.q_proj.weight"], s["heads"]))
        w.add_tensor(f"blk.{i}.attn_k.weight", adjacent(hf[p + "self_attn.k_proj.weight"], s["kv"]))
        for ours, theirs in [("self_attn.v_proj", "attn_v"), ("self_attn.o_proj", "attn_output"), ("mlp.gate_proj", "ffn_gate"),
                             ("mlp.up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down"), ("input_layernorm", "attn_norm"),
                             ("post_attention_layernorm", "ffn_norm")]:
            w.add_tensor(f"blk.{i}.{theirs}.weight", hf[f"{p}{ours}.weight"])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    (folder / "done").write_text("")


def prompt_of(n: int, vocab: int, seed: int) -> list[int]:
    return [int(x) for x in np.random.default_rng(seed).integers(300, vocab, n)]


# llama.cpp, in a process of its own: `--llama JOB`


def llama(gguf: str, job: dict) -> None:
    import xllamacpp as x

    start = time.time()
    slots = job.get("slots", 1)
    p = x.CommonParams()
    p.model.path = gguf
    p.n_parallel = slots
    p.n_ctx = slots * job["context"]
    p.n_batch, p.n_ubatch = 2048, 512
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 2
    p.warmup = True
    p.cache_ram_mib = 0
    p.verbosity = 0
    if job["f32"]:
        p.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        p.cache_type_k = p.cache_type_v = x.ggml_type.GGML_TYPE_F32
    server = x.Server(p)
    loaded = time.time() - start

    def complete(prompt: list[int], new: int, **more) -> dict:
        body = {"prompt": prompt, "n_predict": new, "temperature": 0.0, "top_k": 1, "samplers": ["top_k"], "ignore_eos": True,
                "cache_prompt": False, **more}
        request = urllib.request.Request(
            server.listening_address + "/completion", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    vocab, result = job["vocab"], {"loaded_s": loaded}
    if job["what"] == "gate":
        result["answers"] = []
        for prompt in job["prompts"]:
            answer = complete(prompt, job["new"], n_probs=1, post_sampling_probs=False)
            rows = answer["completion_probabilities"]
            result["answers"].append({"tokens": [r["id"] for r in rows], "logprobs": [r["logprob"] for r in rows]})
    elif job["what"] == "first":
        complete(prompt_of(1, vocab, 0), 1)
    elif job["what"] == "solo":
        complete(prompt_of(8, vocab, 0), 8)
        result["decode"] = complete(prompt_of(1, vocab, 1), NEW)["timings"]["predicted_per_second"]
        result["deep"] = complete(prompt_of(DEPTH, vocab, 2), NEW)["timings"]["predicted_per_second"]
        result["prefill"] = complete(prompt_of(PREFILL, vocab, 3), 1)["timings"]["prompt_per_second"]
    elif job["what"] == "many":
        complete(prompt_of(8, vocab, 0), 8)
        speeds: list[float] = []
        threads = [
            threading.Thread(target=lambda i=i: speeds.append(
                complete(prompt_of(1, vocab, 10 + i), NEW)["timings"]["predicted_per_second"]))
            for i in range(MANY)
        ]
        began = time.time()
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        result["many"] = sum(speeds)
        result["many_wall"] = MANY * NEW / (time.time() - began)
    print("RESULT " + json.dumps(result), flush=True)
    os._exit(0)  # its destructors take their time


# The two sides


def child(command: list[str], **env: str) -> tuple[str, float, float]:
    """Standard output, seconds, peak RSS in MiB."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.time()
        process = subprocess.Popen(PINNED + command, stdout=out, stderr=err, env=os.environ | env)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.time() - start
        out.seek(0), err.seek(0)
        if status:
            sys.exit(f"{command} failed:\n{err.read().decode()[-2000:]}")
        return out.read().decode(), seconds, usage.ru_maxrss / 1024


def run_llama(folder: pathlib.Path, job: dict, passive: bool) -> tuple[dict, float, float]:
    env = {"OMP_NUM_THREADS": "2"} | ({"OMP_WAIT_POLICY": "passive"} if passive else {})
    out, seconds, rss = child([sys.executable, __file__, "--llama", str(folder / "model.gguf"), json.dumps(job)], **env)
    line = next(line for line in out.splitlines() if line.startswith("RESULT "))
    return json.loads(line[7:]), seconds, rss


def run_recua(recua: str, arguments: str) -> tuple[dict, float, float]:
    out, seconds, rss = child([recua, *arguments.split()], RAYON_NUM_THREADS="2")
    lines = [json.loads(line) for line in out.strip().splitlines() if line.startswith("{")]
    return (lines[0] if len(lines) == 1 else {"lines": lines}), seconds, rss


def gate(recua: str, folder: pathlib.Path, vocab: int) -> dict:
    prompts = [prompt_of(n, vocab, 100 + n) for n in (1, 17, 64, 200)]
    new = 24
    job = dict(what="gate", prompts=prompts, new=new, vocab=vocab, context=512, f32=True)
    theirs = run_llama(folder, job, passive=True)[0]["answers"]
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(p) + "\n" for p in prompts))
    arguments = f"generate --model {folder} --prompts {file} --tokens {new} --temperature 0 --ignore-eos --bos never --logprobs 1 --json"
    ours = run_recua(recua, arguments)[0]["lines"]
    worst = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["tokens"] == other["tokens"], f"greedy tokens differ: {mine['tokens']} and {other['tokens']}"
        worst = max(worst, *(abs(a["logprob"] - b) for a, b in zip(mine["logprobs"], other["logprobs"], strict=True)))
    assert worst < 1e-3, f"log-probabilities differ by {worst}"
    return {"prompts": len(prompts), "tokens": new, "largest_logprob_difference": worst}


def measure(peer: str, recua: str, folder: pathlib.Path, vocab: int) -> dict:
    if peer == "recua":
        common = f"--model {folder} --new-tokens {NEW} --repeat 1 --threads 2 --json"
        flat, _, rss = run_recua(recua, f"bench decode {common} --batch 1,{MANY}")
        deep, *_ = run_recua(recua, f"bench decode {common} --depth {DEPTH}")
        prefill, *_ = run_recua(recua, f"bench prefill --model {folder} --prompt-tokens {PREFILL} --repeat 1 --threads 2 --json")
        (folder / "one.jsonl").write_text(json.dumps(prompt_of(1, vocab, 0)) + "\n")
        _, first, rss = run_recua(
            recua,
            f"generate --model {folder} --prompts {folder / 'one.jsonl'} --tokens 1 --temperature 0 --bos never "
            "--threads 2 --max-len 128 --max-batch 1 --json")
        return {
            "decode": flat["rows"][0]["tok_s"], "many": flat["rows"][1]["tok_s"], "deep": deep["rows"][0]["tok_s"],
            "prefill": prefill["rows"][0]["tok_s"], "first_s": first, "rss_mib": rss,
            "bandwidth_gb_s": flat["bandwidth"] / 1e9, "weights_share": flat["rows"][0]["weights_share"],
            "product_share": prefill["rows"][0]["product_share"],
        }
    f32, passive = "f32" in peer, "passive" in peer
    base = dict(vocab=vocab, f32=f32)
    solo, *_ = run_llama(folder, base | dict(what="solo", context=DEPTH + 2 * NEW), passive)
    many, *_ = run_llama(folder, base | dict(what="many", slots=MANY, context=2 * NEW), passive)
    _, first, rss = run_llama(folder, base | dict(what="first", context=2 * NEW), passive)
    return {k: solo[k] for k in ("decode", "deep", "prefill")} | {
        "many": many["many"], "many_wall": many["many_wall"], "first_s": first, "rss_mib": rss, "loaded_s": solo["loaded_s"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recua")
    parser.add_argument("--model", choices=list(MODELS), default="large")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", default=",".join(PEERS[:3]), help=f"of {', '.join(PEERS)}")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()) / "recua-serve-peers")
    parser.add_argument("--gate-only", action="store_true")
    parser.add_argument("--out", type=pathlib.Path)
    a = parser.parse_args()
    sizes = MODELS[a.model]
    folder = a.work / a.model
    write_model(folder, sizes)
    cpu = pathlib.Path("/proc/cpuinfo").read_text()
    field = lambda key: next((line.split(":")[1].strip() for line in cpu.splitlines() if line.startswith(key)), "")
    flags = [flag for flag in field("flags").split() if flag.startswith(("avx", "fma", "f16c", "amx"))]
    result = {"model": a.model, **sizes, "cpu": field("model name"), "flags": flags, "load_before": os.getloadavg()[0]}
    print(f"{a.model}: {sizes}; {result['cpu']}, {' '.join(flags)}; load {result['load_before']:.1f}")
    result["gate"] = gate(a.recua, folder, sizes["vocab"])
    print(f"gate: {json.dumps(result['gate'])}", flush=True)
    if not a.gate_only:
        peers = [p.strip() for p in a.peers.split(",")]
        assert all(p in PEERS for p in peers), peers
        runs: dict[str, list[dict]] = {p: [] for p in peers}
        for i in range(a.rounds):
            for peer in peers if i % 2 == 0 else peers[::-1]:
                runs[peer].append(measure(peer, a.recua, folder, sizes["vocab"]))
                print(f"round {i}, {peer}: " + ", ".join(f"{k} {v:.4g}" for k, v in runs[peer][-1].items()), file=sys.stderr, flush=True)
        medians = {p: {k: statistics.median(r[k] for r in rs) for k in rs[0]} for p, rs in runs.items()}
        result |= {"runs": runs, "medians": medians, "load_after": os.getloadavg()[0]}
        rows = [("decode", f"decode, batch 1, tok/s"), ("deep", f"decode at {DEPTH}, tok/s"), ("prefill", f"prefill of {PREFILL}, tok/s"),
                ("many", f"{MANY} at once, tok/s"), ("first_s", "start to first token, s"), ("rss_mib", "peak RSS, MiB")]
        print("| |" + "|".join(peers) + "|\n|---|" + "---|" * len(peers))
        for key, name in rows:
            print(f"| {name} | " + " | ".join(f"{medians[p][key]:.4g}" for p in peers) + " |")
        print("| depth costs | " + " | ".join(f"{1 - medians[p]['deep'] / medians[p]['decode']:.1%}" for p in peers) + " |")
        print(f"| {MANY} at once to one | " + " | ".join(f"{medians[p]['many'] / medians[p]['decode']:.2f}x" for p in peers) + " |")
        if "recua" in peers:
            for key, name in rows[:4]:
                best = max((medians[p][key] for p in peers if p != "recua"), default=math.nan)
                print(f"{name}: recua / best of llama.cpp {medians['recua'][key] / best:.2f}")
    if a.out:
        a.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "--llama":
        llama(sys.argv[2], json.loads(sys.argv[3]))
    else:
        main()
