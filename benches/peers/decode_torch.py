#!/usr/bin/env python3
"""The peer for decoding: transformers' LlamaForCausalLM with random weights, greedy, a static cache; new tokens one by one after --depth
positions. Prints one JSON line for each batch: median seconds of a step, tok/s of all sequences together. --compile: the step compiled with
CUDA graphs ("reduce-overhead"). decode_torch.py --model NAME:vocab,dim,layers,heads,kv_heads,ffn --batch 1 8 64. Needs: pip install torch transformers."""
import argparse, json, statistics, time
import torch, transformers
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache
a = argparse.ArgumentParser()
a.add_argument("--model", required=True); a.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
a.add_argument("--depth", type=int, default=128); a.add_argument("--steps", type=int, default=64); a.add_argument("--warmup", type=int, default=8)
a.add_argument("--device", default="cuda"); a.add_argument("--f32", action="store_true"); a.add_argument("--compile", action="store_true"); a = a.parse_args()
torch.manual_seed(0); dev = torch.device(a.device); dtype = torch.float32 if a.f32 else torch.bfloat16
vocab, dim, layers, heads, kv, ffn = map(int, a.model.split(":")[1].split(","))
longest = a.depth + a.warmup + a.steps + 1
config = LlamaConfig(vocab_size=vocab, hidden_size=dim, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv,
                     intermediate_size=ffn, max_position_embeddings=max(2048, longest), tie_word_embeddings=False)
torch.set_default_dtype(dtype)
with torch.device(dev):
    model = LlamaForCausalLM(config).eval()
weights = sum(p.numel() for n, p in model.named_parameters() if "embed_tokens" not in n)
def wait():
    if dev.type == "cuda": torch.cuda.synchronize()
def step(tokens, at, cache):
    logits = model(tokens, past_key_values=cache, cache_position=at, use_cache=True).logits
    return logits[:, -1].argmax(-1, keepdim=True)
once = torch.compile(step, mode="reduce-overhead") if a.compile else step
for batch in a.batch:
    try:
        with torch.inference_mode():
            cache = StaticCache(config=config, max_batch_size=batch, max_cache_len=longest, device=dev, dtype=dtype)
            tokens = step(torch.randint(vocab, (batch, a.depth), device=dev), torch.arange(a.depth, device=dev), cache)
            times = []
            for i in range(a.warmup + a.steps):
                wait(); t = time.perf_counter()
                tokens = once(tokens, torch.tensor([a.depth + i], device=dev), cache).clone()
                wait(); times.append(time.perf_counter() - t)
        t = statistics.median(times[a.warmup:])
        out = dict(peer=f"transformers {transformers.__version__}, torch {torch.__version__}", batch=batch, step_s=t, tok_s=round(batch / t, 1),
                   read_gb_s=round(weights * dtype.itemsize / t / 1e9, 1))
        if dev.type == "cuda": out["peak_gpu_mb"] = torch.cuda.max_memory_allocated() // 2**20
    except Exception as e:                         # out of memory, or a cache that this version makes otherwise
        out = dict(peer="torch " + torch.__version__, batch=batch, problem=f"{type(e).__name__}: {e}"[:300])
    print(json.dumps(out), flush=True)
