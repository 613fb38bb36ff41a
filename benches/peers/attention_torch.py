#!/usr/bin/env python3
"""The peer for attention: PyTorch's scaled_dot_product_attention, causal, forward and backward, on random q, k, v of one layer.
Prints one JSON line for each way of --by (default: SDPA's own choice; flash, cudnn): median seconds of both together, tok/s, and GFLOP/s by recua's count, 12 * heads * head_dim * seq FLOP a
token (the whole square: a causal kernel computes half of it). attention_torch.py [--device cuda] [--f32]. Needs: pip install torch."""
import argparse, contextlib, json, statistics, time
import torch
from torch.nn.functional import scaled_dot_product_attention
a = argparse.ArgumentParser()
for k, v in dict(heads=32, kv_heads=0, head_dim=128, seq=2048, batch=1, reps=10, warmup=3).items():
    a.add_argument(f"--{k.replace('_', '-')}", type=int, default=v)
a.add_argument("--by", nargs="+", default=["default"], choices=("default", "flash", "cudnn")); a.add_argument("--device", default="cuda"); a.add_argument("--f32", action="store_true"); a = a.parse_args()
torch.manual_seed(0); dev = torch.device(a.device); dtype = torch.float32 if a.f32 else torch.bfloat16
kv = a.kv_heads or a.heads
def random(heads, grad=True):
    return torch.randn(a.batch, heads, a.seq, a.head_dim, device=dev, dtype=dtype, requires_grad=grad)
q, k, v, dout = random(a.heads), random(kv), random(kv), random(a.heads, False)
def both():
    out = scaled_dot_product_attention(q, k, v, is_causal=True, **(dict(enable_gqa=True) if kv != a.heads else {}))
    torch.autograd.grad(out, (q, k, v), dout)
def seconds(call):                                 # on the device's own clock, where it has one
    if dev.type != "cuda":
        t = time.perf_counter(); call(); return time.perf_counter() - t
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record(); call(); end.record(); end.synchronize()
    return begin.elapsed_time(end) / 1e3
from torch.nn.attention import SDPBackend, sdpa_kernel
kernels = dict(flash=SDPBackend.FLASH_ATTENTION, cudnn=SDPBackend.CUDNN_ATTENTION)
for by in a.by:
    try:
        with contextlib.nullcontext() if by == "default" else sdpa_kernel(kernels[by]):
            t = statistics.median([seconds(both) for _ in range(a.warmup + a.reps)][a.warmup:])
    except RuntimeError as e:                      # this kernel does not take these operands
        print(json.dumps(dict(peer="torch " + torch.__version__, by=by, problem=str(e)[:200])), flush=True)
        continue
    tok_s = a.batch * a.seq / t
    out = dict(peer="torch " + torch.__version__, by=by, dtype=str(dtype).removeprefix("torch."), step_s=t, tok_s=round(tok_s, 1),
               gflop_s=round(tok_s * 12 * a.heads * a.head_dim * a.seq / 1e9, 1))
    if dev.type == "cuda": out["peak_gpu_mb"] = torch.cuda.max_memory_allocated() // 2**20
    print(json.dumps(out), flush=True)
