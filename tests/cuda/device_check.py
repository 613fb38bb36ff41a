#!/usr/bin/env python3
"""The CUDA C++ kernels of crates/core/src/ops/cube/cuda on a real GPU, without CubeCL: against float64 by torch, then timed beside torch.

    tests/cuda/device_check.py [--cubins DIR] [--only gemm|attention] [--quick]

Needs torch with CUDA. Takes CUBINs of DIR as tests/cuda/compile.py --save writes them, else compiles with NVRTC (tests/cuda/compile.py
must be importable: --compile tests/cuda). Inputs of products are multiples of 1/128 in [-1, 1): every float32 sum is exact, in any
order, so that float32 results must be equal to the bit. Outputs are poisoned with NaN, gaps between rows too, and guarded behind.
Ends with one line a failure, and exit code 1 if there is any. --dry: no GPU; launches are left out, references run.
"""
import argparse, ctypes, math, pathlib, sys, time
import torch

p = argparse.ArgumentParser()
p.add_argument("--source", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[2] / "crates/core/src/ops/cube/cuda")
p.add_argument("--cubins", type=pathlib.Path)
p.add_argument("--compile", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent)
p.add_argument("--only", choices=("gemm", "attention"))
p.add_argument("--quick", action="store_true")
p.add_argument("--dry", action="store_true")
p.add_argument("--emulate", type=pathlib.Path, help="no GPU: on the emulated block of this folder (tests/cuda), by g++")
args = p.parse_args()
cpu = args.dry or args.emulate is not None
dev = "cpu" if cpu else "cuda"
failures, rows = [], 0


def check(ok, text):
    global rows
    rows += 1
    if not ok:
        failures.append(text)
        print("FAILED", text, flush=True)


# ---- the driver

if not cpu:
    torch.zeros(1, device="cuda")
    major, minor = torch.cuda.get_device_capability()
    arch = f"sm_{major}{minor}" + ("a" if major >= 9 else "")
    cuda = ctypes.CDLL("libcuda.so.1")
    print(torch.cuda.get_device_name(), arch, "torch", torch.__version__)
else:
    major, minor, arch = 9, 0, "sm_90a"
hopper = (major, minor) == (9, 0)
nvrtc = None


def driver(code, what):
    if code:
        sys.exit(f"{what}: CUDA error {code} (nothing after this can be trusted)")


def cubin(file, macro, value):
    global nvrtc
    if args.cubins:
        path = args.cubins / f"{file}-{arch}-{macro}={value}.cubin"
        if path.exists():
            return path.read_bytes()
    if nvrtc is None:
        sys.path.insert(0, str(args.compile))
        import compile as tool
        nvrtc = (tool, tool.Nvrtc(tool.find_nvrtc()))
    tool, lib = nvrtc
    text = f"#define {macro} {value}\n" + tool.whole(args.source / file)
    good, log, data = lib.compile(text, file, [f"--gpu-architecture={arch}", f"--include-path={lib.root / 'include'}", f"--include-path={lib.root / 'include/cccl'}", "-lineinfo"])
    if not good:
        sys.exit(log)
    return data


loaded = {}


def emulated(macro, value):
    if (macro, value) not in loaded:
        import subprocess
        library = f"/tmp/emu-{macro}-{value}.so"
        here = pathlib.Path(__file__).resolve().parent
        subprocess.run(["g++", "-O2", "-std=c++20", "-pthread", "-shared", "-fPIC", "-Wno-unknown-pragmas", "-include", "string",
                        f"-D{macro}={value}", f"-I{args.source}", f"-I{args.emulate}", str(here / "device_check.cpp"), "-o", library], check=True)
        loaded[macro, value] = ctypes.CDLL(library)
    return loaded[macro, value]


def kernel(file, macro, value, entry, shared):
    if args.emulate:
        return emulated(macro, value), entry
    if args.dry:
        return None
    key = (file, value)
    if key not in loaded:
        image, module = cubin(file, macro, value), ctypes.c_void_p()
        driver(cuda.cuModuleLoadData(ctypes.byref(module), image), f"load {key}")
        loaded[key] = module
    f = ctypes.c_void_p()
    driver(cuda.cuModuleGetFunction(ctypes.byref(f), loaded[key], entry.encode()), f"function {entry}")
    driver(cuda.cuFuncSetAttribute(f, 8, ctypes.c_int(shared)), f"shared memory of {entry}")
    return f


def launch(f, grid, threads, shared, buffers, words):
    if args.dry:
        return
    if args.emulate:
        library, entry = f
        arrays = (ctypes.c_void_p * len(buffers))(*[x.data_ptr() for x in buffers])
        sizes = (ctypes.c_uint64 * len(buffers))(*[x.numel() * x.element_size() for x in buffers])
        library.run(entry.encode(), (ctypes.c_uint * 3)(*grid), threads, shared, arrays, sizes, (ctypes.c_uint64 * len(words))(*words))
        return
    pointers = [ctypes.c_uint64(x.data_ptr()) for x in buffers]
    struct = (ctypes.c_uint64 * len(words))(*words)
    params = (ctypes.c_void_p * (len(pointers) + 1))(*[ctypes.addressof(x) for x in pointers], ctypes.addressof(struct))
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    driver(cuda.cuLaunchKernel(f, *grid, threads, 1, 1, shared, stream, params, None), "launch")


def sync(what):
    if not cpu:
        try:
            torch.cuda.synchronize()
        except Exception as e:  # sticky: nothing can run after it in this process
            sys.exit(f"FAILED {what}: {e}")


def seconds(call, repeat=10):
    if cpu:
        return float("nan")
    for _ in range(3):
        call()
    times = []
    for _ in range(repeat):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        call()
        b.record()
        b.synchronize()
        times.append(a.elapsed_time(b) / 1e3)
    return sorted(times)[len(times) // 2]


# ---- products

def gemm_launch(kind, a, b, c, m, n, k, row_a, row_b, accumulate):
    wide = kind & 8
    tile_m, tile_n, shared = (128, 256, 4 * 384 * 128) if wide else (128, 128, 3 * 256 * 128)
    f = kernel("gemm.cu", "GEMM", kind, "gemm", shared)
    launch(f, (-(-m // tile_m) * -(-n // tile_n), 1, 1), 256, shared, (a, b, c), (m, n, k, row_a, row_b, int(accumulate)))


def strided(x, pad):
    """Rows of a multiple of 8 elements and `pad` more; what is between them is NaN."""
    rows, columns = x.shape
    width = -(-columns // 8) * 8 + pad
    out = torch.full((rows, width), float("nan"), dtype=x.dtype, device=x.device)
    out[:, :columns] = x
    return out, width


def exact(rows, columns):
    return torch.randint(-128, 128, (rows, columns), device=dev).to(torch.float64) / 128


def gemm():
    shapes = [(1, 1, 1, 0), (1, 2, 8, 8), (33, 65, 48, 0), (33, 65, 80, 8), (130, 257, 72, 0), (64, 256, 64, 0), (129, 258, 288, 0),
              (300, 40, 500, 16), (16, 700, 129, 0), (1200, 300, 16, 0), (200, 136, 4096, 0), (1027, 1031, 520, 8)]
    kinds = range(16 if hopper else 8)
    for kind in kinds:
        for m, n, k, pad in shapes:
            for accumulate in (False, True):
                A, B, there = exact(m, k), exact(k, n), exact(m, n)
                a, row_a = strided((A.T if kind & 1 else A).to(torch.bfloat16), pad)
                b, row_b = strided((B if kind & 2 else B.T).to(torch.bfloat16), pad)
                dtype = torch.bfloat16 if kind & 4 else torch.float32
                store = torch.full((m * n + 256,), float("nan"), dtype=dtype, device=dev)
                c = store[: m * n].view(m, n)
                guard = 777.0
                store[m * n:] = guard
                if accumulate:
                    c.copy_(there)
                gemm_launch(kind, a, b, store, m, n, k, row_a, row_b, accumulate)
                sync(f"gemm {kind} {m}x{n}x{k}")
                want = A @ B + (there if accumulate else 0)
                want = want.to(torch.float32).to(dtype)  # the sum is exact in float32, and rounded once
                name = f"gemm kind {kind} m {m} n {n} k {k} pad {pad}{' added' if accumulate else ''}"
                check(bool((store[m * n:] == guard).all()), name + ": wrote behind the end")
                same = torch.equal(c, want) or args.dry
                if not same:
                    bad = (c != want) | torch.isnan(c.float())
                    where = bad.nonzero()[0].tolist()
                    name += f": {int(bad.sum())} of {m * n} differ, first at {where}: {c[tuple(where)].item()} not {want[tuple(where)].item()}"
                check(same, name)
    # The same bits from run to run, with sums that are rounded.
    for kind in (8, 11, 14) if hopper else (0, 3, 6):
        m = n = k = 640
        a, b = (torch.randn(m, k, device=dev).to(torch.bfloat16) for _ in range(2))
        outs = []
        for _ in range(2 if cpu else 5):
            c = torch.empty(m, n, device=dev, dtype=torch.bfloat16 if kind & 4 else torch.float32).fill_(float("nan"))
            gemm_launch(kind, a, b, c, m, n, k, k, k, False)
            outs.append(c)
        sync("gemm determinism")
        check(args.dry or all(torch.equal(outs[0], c) for c in outs), f"gemm kind {kind}: other bits in another run")
    if cpu:
        return
    print("products, TFLOP/s: shape, kind (8 forward NT float32, 12 NT bf16, 14 NN bf16, 11 TN float32; less 8: mma), this, torch bf16")
    for m, n, k in [(8192, 11008, 4096), (2048, 22016, 4096), (2048, 4096, 4096)][: 1 if args.quick else 3]:
        for kind in (12, 14, 11, 4) if hopper else (4, 6, 3):
            a = torch.randn((k, m) if kind & 1 else (m, k), device=dev).to(torch.bfloat16)
            b = torch.randn((k, n) if kind & 2 else (n, k), device=dev).to(torch.bfloat16)
            c = torch.empty(m, n, device=dev, dtype=torch.bfloat16 if kind & 4 else torch.float32)
            ours = seconds(lambda: gemm_launch(kind, a, b, c, m, n, k, a.shape[1], b.shape[1], False))
            x, y = (a.T if kind & 1 else a), (b if kind & 2 else b.T)
            theirs = seconds(lambda: x @ y)
            print(f"  {m} x {k} x {n} kind {kind:2}: {2e-12 * m * n * k / ours:6.1f} {2e-12 * m * n * k / theirs:6.1f}", flush=True)


# ---- attention

TILE = 128


def attention_launches(D, qkv, starts, out, lse, dout, delta, dqkv, heads, kv, scale):
    batch, seq = qkv.shape[:2]
    words = [batch, seq, heads, kv, int(starts is not None)]
    words.append(ctypes.c_uint64.from_buffer(ctypes.c_double(scale)).value)
    s = starts if starts is not None else qkv
    tiles = -(-seq // TILE)
    rows_of = 128 if D <= 16 else 64 if D <= 32 else 32 if D <= 64 else 16
    sizes = {"f": 640 * D, "kv": 1024 * D + 1536, "q": (1024 if D <= 80 else 768) * D}
    F, B = ("attention_forward.cu", "HEAD_DIM", D), ("attention_backward.cu", "HEAD_DIM", D)

    def forward():
        launch(kernel(*F, "attention_forward", sizes["f"]), (tiles, heads, batch), 128, sizes["f"], (qkv, s, out, lse), words)

    def backward():
        launch(kernel(*B, "attention_delta", 0), (-(-seq // rows_of), heads, batch), 256, 0, (out, dout, delta), words)
        buffers = (qkv, s, dout, lse, delta, dqkv)
        launch(kernel(*B, "attention_backward_kv", sizes["kv"]), (tiles, kv, batch), 128 if D <= 64 else 256, sizes["kv"], buffers, words)
        launch(kernel(*B, "attention_backward_q", sizes["q"]), (tiles, heads, batch), 128, sizes["q"], buffers, words)

    return forward, backward


def documents(batch, seq):
    starts = torch.zeros(batch, seq, dtype=torch.int32)
    for b in range(batch):
        first = left = 0
        for i in range(seq):
            if left == 0:
                first, left = i, int(torch.randint(1, 170 if torch.randint(0, 3, ()) == 0 else 40, ()))
            left -= 1
            starts[b, i] = first
    return starts.to(dev)


def attention_case(D, batch, seq, heads, kv, docs, sink=False, logits=1.5):
    group, width, scale = heads // kv, heads + 2 * kv, logits / math.sqrt(D)
    qkv = torch.randn(batch, seq, width, D, device=dev)
    if sink:
        qkv[:, :, :heads] += 1
        qkv[:, 0, heads: heads + kv] = 0.5
    qkv = qkv.to(torch.bfloat16)
    dout = torch.randn(batch, seq, heads, D, device=dev).to(torch.bfloat16)
    starts = documents(batch, seq) if docs else None
    nan = float("nan")
    results = []
    for _ in range(2):
        out = torch.full((batch, seq, heads, D), nan, dtype=torch.bfloat16, device=dev)
        lse, delta = (torch.full((batch, heads, seq), nan, device=dev) for _ in range(2))
        dqkv = torch.full(qkv.shape, nan, dtype=torch.bfloat16, device=dev)
        forward, backward = attention_launches(D, qkv, starts, out, lse, dout, delta, dqkv, heads, kv, scale)
        forward()
        backward()
        results.append((out, lse, dqkv))
    name = f"attention D {D} batch {batch} seq {seq} heads {heads}/{kv}{' documents' if docs else ''}{' sink' if sink else ''}"
    sync(name)
    (out, lse, dqkv), again = results
    if not args.dry:
        check(all(torch.equal(x.view(torch.int16 if x.dtype == torch.bfloat16 else torch.int32),
                              y.view(torch.int16 if y.dtype == torch.bfloat16 else torch.int32)) for x, y in zip(results[0], again)),
              name + ": other bits in another run")
    worst = {}

    def compare(what, got, want, bound, size=0.0):
        size = max(float(want.abs().max()), size, 1e-30)
        error = float((got.double() - want).abs().max()) / size
        worst[what] = max(worst.get(what, 0.0), error) if error == error else error
        check(args.dry or error <= bound, f"{name}: {what} off by {error:.2e} of its largest, allowed {bound:.2e}")

    i = torch.arange(seq, device=dev)
    for b in range(batch):
        mask = i[None, :] <= i[:, None]
        if docs:
            mask &= i[None, :] >= starts[b].long()[:, None]
        dk, dv = (torch.zeros(kv, seq, D, dtype=torch.float64, device=dev) for _ in range(2))
        for h in range(heads):
            q, k, v = (qkv[b, :, x].double() for x in (h, heads + h // group, heads + kv + h // group))
            scores = (q @ k.T * scale).masked_fill(~mask, -math.inf)
            want_lse = scores.logsumexp(-1)
            weights = (scores - want_lse[:, None]).exp()
            want = weights @ v
            compare("out", out[b, :, h], want, 2**-8)
            compare("lse", lse[b, h], want_lse, 2**-14, 1.0)
            go = dout[b, :, h].double()
            ds = weights * (go @ v.T - (go * want).sum(-1)[:, None]) * scale
            compare("dq", dqkv[b, :, h], ds @ k, 2**-5, 1.0)
            dk[h // group] += ds.T @ q
            dv[h // group] += weights.T @ go
        for h in range(kv):
            compare("dk", dqkv[b, :, heads + h], dk[h], 2**-5, 1.0)
            compare("dv", dqkv[b, :, heads + kv + h], dv[h], 2**-5, 1.0)
    return worst


def attention():
    torch.manual_seed(0)
    total = {}
    dims = (16, 64, 80, 128) if not args.cubins else [d for d in (16, 32, 48, 64, 80, 96, 112, 128)
                                                      if (args.cubins / f"attention_forward.cu-{arch}-HEAD_DIM={d}.cubin").exists()]
    for D in dims:
        for seq in (1, 63, 65, 130, 257, 600):
            for heads, kv in ((2, 2), (4, 2), (4, 1)):
                for docs in (False, True):
                    for what, e in attention_case(D, 2, seq, heads, kv, docs).items():
                        total[what] = max(total.get(what, 0.0), e)
        if not cpu:
            for seq, docs, sink in ((4096, False, False), (4096, False, True), (4096, True, False)):
                worst = attention_case(D, 1, seq, 2, 1, docs, sink)
                print(f"  D {D} seq {seq}{' documents' if docs else ''}{' sink' if sink else ''}:",
                      " ".join(f"{k} {e:.1e}" for k, e in worst.items()), flush=True)
    print("attention, largest errors:", " ".join(f"{k} {e:.1e}" for k, e in total.items()))
    if cpu:
        return
    print("attention, causal, TFLOP/s (half the square): shape, forward, backward (5 products counted), torch's forward")
    for batch, seq in ((4, 2048), (1, 8192))[: 1 if args.quick else 2]:
        heads = kv = 32
        D = 128
        qkv = torch.randn(batch, seq, 3 * heads, D, device=dev).to(torch.bfloat16)
        out, dout = (torch.randn(batch, seq, heads, D, device=dev).to(torch.bfloat16) for _ in range(2))
        lse, delta = (torch.zeros(batch, heads, seq, device=dev) for _ in range(2))
        dqkv = torch.empty_like(qkv)
        forward, backward = attention_launches(D, qkv, None, out, lse, dout, delta, dqkv, heads, kv, 1 / math.sqrt(D))
        one = 2 * batch * heads * seq * seq * D / 2
        q, k, v = (qkv[:, :, i * heads:(i + 1) * heads].transpose(1, 2).contiguous() for i in range(3))
        theirs = seconds(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))
        forward()
        print(f"  {batch} x {heads} x {seq} x {D}: {2e-12 * one / seconds(forward):6.1f} {5e-12 * one / seconds(backward):6.1f}"
              f" {2e-12 * one / theirs:6.1f}", flush=True)


start = time.time()
if args.only != "attention":
    gemm()
if args.only != "gemm":
    attention()
print(f"{rows} checks, {len(failures)} failed, {time.time() - start:.0f} s")
for text in failures[:20]:
    print("FAILED", text)
sys.exit(1 if failures else 0)
