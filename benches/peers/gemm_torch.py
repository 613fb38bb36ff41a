#!/usr/bin/env python3
"""The peer for matrix products: torch.matmul of random x [m, k] and w [n, k] as x w^T, as a linear layer computes it, with float32 sums
throughout. Prints one JSON line a shape: median seconds, GFLOP/s (2 m k n). Warm-up and measurements as in `recua bench gemm`: 0.3 s, and as
many products as take 20 ms. gemm_torch.py [--device cuda] [--f32] 2048x4096x11008 ... (m x k x n). Needs: pip install torch."""
import argparse, json, math, statistics, time
import torch
a = argparse.ArgumentParser(); a.add_argument("shapes", nargs="+", metavar="MxKxN"); a.add_argument("--device", default="cuda")
a.add_argument("--reps", type=int, default=6); a.add_argument("--f32", action="store_true"); a = a.parse_args()
torch.manual_seed(0); dev = torch.device(a.device); dtype = torch.float32 if a.f32 else torch.bfloat16
torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
def seconds(call):                                 # on the device's own clock, where it has one
    if dev.type != "cuda":
        t = time.perf_counter(); call(); return time.perf_counter() - t
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record(); call(); end.record(); end.synchronize()
    return begin.elapsed_time(end) / 1e3
for shape in a.shapes:
    m, k, n = map(int, shape.split("x"))
    x, w = torch.randn(m, k, device=dev, dtype=dtype), torch.randn(n, k, device=dev, dtype=dtype)
    out = torch.empty(m, n, device=dev, dtype=dtype)
    def many(calls):
        for _ in range(calls): torch.matmul(x, w.t(), out=out)
    began, once = time.perf_counter(), 0.0
    while time.perf_counter() - began < 0.3 or not once: once = seconds(lambda: many(1))
    calls = max(1, min(1000, math.ceil(0.02 / once)))
    t = statistics.median([seconds(lambda: many(calls)) / calls for _ in range(a.reps)])
    print(json.dumps(dict(peer="torch " + torch.__version__, shape=shape, dtype=str(dtype).removeprefix("torch."), step_s=t, gflop_s=round(2 * m * k * n / t / 1e9, 1))), flush=True)
    del x, w, out
