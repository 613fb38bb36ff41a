#!/usr/bin/env python3
"""The peer for matrix products: torch.matmul of random x [m, k] and w [n, k] as x w^T, as a linear layer computes it. Prints one JSON
line a shape: median seconds, GFLOP/s (2 m k n). A measurement is ten products in a row, as in `recua bench gemm`. gemm_torch.py [--device cuda] [--f32] 2048x4096x11008 ... (m x k x n). Needs: pip install torch."""
import argparse, json, statistics, time
import torch
a = argparse.ArgumentParser(); a.add_argument("shapes", nargs="+", metavar="MxKxN"); a.add_argument("--device", default="cuda")
a.add_argument("--reps", type=int, default=6); a.add_argument("--warmup", type=int, default=2); a.add_argument("--f32", action="store_true"); a = a.parse_args()
torch.manual_seed(0); dev = torch.device(a.device); dtype = torch.float32 if a.f32 else torch.bfloat16
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
    def ten():
        for _ in range(10): torch.matmul(x, w.t(), out=out)
    times = [seconds(ten) / 10 for _ in range(a.warmup + a.reps)][a.warmup:]
    t = statistics.median(times)
    print(json.dumps(dict(peer="torch " + torch.__version__, shape=shape, dtype=str(dtype).removeprefix("torch."), step_s=t, gflop_s=round(2 * m * k * n / t / 1e9, 1))), flush=True)
    del x, w, out
