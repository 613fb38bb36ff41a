#!/usr/bin/env python3
"""Does training do as well as PyTorch? Trains Hugging Face's LLaMA from the weights that a recua run began with, on the
batches that it took, and compares the two loss curves.

train_curve.py RUN --init HF_FOLDER [--data DIR...] [--out losses.json] [--plot curves.svg]

RUN is a finished run directory (config.toml, metrics.jsonl). HF_FOLDER holds the run's first weights: either what the run
was started from (`recua train --init HF_FOLDER`), or `recua convert` of its checkpoint of step 0. The batches are made
here from the token shards by the documented order, written anew; so is the schedule; AdamW and the clip are PyTorch's.
float32 throughout.

Exit code 1 if the losses differ by more than 2e-5 at one of the steps 0 to 20 or by 0.005 or more at a later one, or if
either curve ends (mean of the last 10 steps) at or above the unigram entropy of the training tokens.
Steps count from 0 here: step s is the loss before update s, record s + 1 of metrics.jsonl.

Needs: pip install torch transformers."""
import argparse
import json
import math
import pathlib
import struct
import sys
import time
import tomllib

import numpy as np

EARLY, EARLY_BOUND, LATE_BOUND, ENDING = 20, 2e-5, 5e-3, 10
U64 = (1 << 64) - 1


def mix(x):  # SplitMix64's output function
    x = (x + 0x9E3779B97F4A7C15) & U64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & U64
    x = (x ^ x >> 27) * 0x94D049BB133111EB & U64
    return x ^ x >> 31


def mix_key(*parts):
    key = 0x243F6A8885A308D3
    for part in parts:
        key = mix((key << 23 & U64 | key >> 41) ^ mix(part))
    return key


def permuted(n, key, x):
    """The image of x under the keyed permutation of 0..n: eight Feistel rounds on (x % a, x // a), walking the cycle."""
    a = max(math.isqrt(n - 1) + 1, 16)
    b = max(-(-n // a), 16)
    while True:
        left, right = x % a, x // a
        for pair in range(4):
            left = (left + (mix(mix_key(key, 2 * pair) ^ right) * a >> 64)) % a
            right = (right + (mix(mix_key(key, 2 * pair + 1) ^ left) * b >> 64)) % b
        x = left + right * a
        if x < n:
            return x


class Order:
    """The samples of a run: a pure function of the seed and the global sample index."""

    def __init__(self, streams, weights, seq_len, seed):
        self.streams, self.seq_len, self.seed = streams, seq_len, seed
        self.windows = [(len(s) - 1) // seq_len for s in streams]
        # By size, or in millionths.
        self.weights = [math.floor(w * 1e6 + 0.5) for w in weights] if weights else self.windows
        assert len(self.weights) == len(streams), "one weight a dataset"

    def place(self, index):
        """(source, window) of a sample. Each source takes its evenly spaced share of what those before it left."""
        for source, weight in enumerate(self.weights):
            total = sum(self.weights[source:])
            phase = mix_key(self.seed, source, U64) % total
            before, after = ((i * weight + phase) // total for i in (index, index + 1))
            if after > before:
                break
            index -= before
        n = self.windows[source]
        epoch, at = divmod(before, n)
        return source, permuted(n, mix_key(self.seed, source, epoch), at)

    def batch(self, first, rows):
        """int64 [rows, seq_len + 1]"""
        out = []
        for index in range(first, first + rows):
            source, window = self.place(index)
            start = window * self.seq_len
            out.append(self.streams[source][start:start + self.seq_len + 1])
        return np.stack(out).astype(np.int64)


def read_tokens(folder):
    """All token ids of a dataset folder, in order."""
    index = json.loads((folder / "dataset.json").read_text())
    parts = []
    for entry in index["shards"]:
        path = folder / entry["file"]
        header = path.open("rb").read(72)
        magic, version, width, vocab, _hash, tokens = struct.unpack_from("<8sIIQQQ", header)
        assert (magic, version) == (b"RECUATOK", 1), f"{path}: no token shard of version 1"
        ids = np.fromfile(path, dtype={2: "<u2", 4: "<u4"}[width], count=tokens, offset=72)
        assert len(ids) == tokens == entry["tokens"] and ids.max(initial=0) < vocab, f"{path}: damaged"
        parts.append(ids)
    return np.concatenate(parts)


def unigram_entropy(streams):
    """In nats a token, over the datasets as they are."""
    counts = sum(np.bincount(s, minlength=1 + max(int(t.max()) for t in streams)) for s in streams)
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def lr_at(optim, step, total):
    lr, warmup = optim["lr"], optim["warmup_steps"]
    if step < warmup:
        return lr * (step + 1) / warmup
    least = lr * optim["min_lr_ratio"]
    if step >= total:
        return least
    return least + (lr - least) / 2 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def optim_of(config):
    """The optimizer's settings of a config.toml, with the defaults of recua."""
    return {"lr": 3e-4, "min_lr_ratio": 0.1, "warmup_steps": 2000, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8,
            "weight_decay": 0.1, "clip": 1.0} | config.get("optim", {})


def adamw_of(model, optim, **how):
    """PyTorch's AdamW with recua's groups: only matrices decay."""
    import torch

    groups = [{"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": optim["weight_decay"]},
              {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(optim["beta1"], optim["beta2"]), eps=optim["eps"], **how)


def train_torch(a, optim, total, order, batch):
    """Losses, rates and gradient norms of the first a.steps steps of PyTorch."""
    import torch
    from transformers import LlamaForCausalLM

    torch.set_num_threads(a.threads)
    model = LlamaForCausalLM.from_pretrained(a.init, dtype=torch.float32, attn_implementation=a.attention)
    model.config.use_cache = False
    model.train()
    print(f"torch {torch.__version__}, {sum(p.numel() for p in model.parameters())} parameters", file=sys.stderr)
    adamw = adamw_of(model, optim)
    records, began = [], time.monotonic()
    for step in range(a.steps):
        rows = torch.from_numpy(order.batch(step * batch, batch))
        rate = lr_at(optim, step, total)
        for group in adamw.param_groups:
            group["lr"] = rate
        logits = model(input_ids=rows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), rows[:, 1:].reshape(-1))
        adamw.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optim["clip"])
        adamw.step()
        records.append({"step": step, "loss": loss.item(), "lr": rate, "grad_norm": norm.item()})
        if step % 20 == 0:
            print(f"torch step {step}: {loss.item():.4f}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return records


def svg_line(points, style):
    return f'<polyline fill="none" {style} points="{" ".join(f"{px:.1f},{py:.1f}" for px, py in points)}"/>'


def svg_text(px, py, words, more=""):
    return f'<text x="{px:.0f}" y="{py:.0f}" {more}>{words}</text>'


def write_svg(path, width, height, parts):
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">\n'
                    f'<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n")


def plot(path, ours, peer, entropy):
    """Both curves, and their difference on a logarithmic scale, as an SVG."""
    width, high, low, left, top = 860, 300, 170, 60, 30
    n = len(ours)
    floor, ceiling = min(ours + peer + [entropy]) - 0.1, max(ours + peer) + 0.1

    def x(i):
        return left + i * (width - left - 20) / max(n - 1, 1)

    def y(v):
        return top + (ceiling - v) / (ceiling - floor) * high

    def z(d):  # 1e-8 .. 1e-1
        return top + high + 50 + (-1 - math.log10(min(max(d, 1e-8), 1e-1))) / 7 * low

    dashed, right = 'stroke="#999" stroke-dasharray="4 4"', 'text-anchor="end"'
    parts = [svg_line([(x(0), y(entropy)), (x(n - 1), y(entropy))], dashed), svg_text(x(n - 1), y(entropy) - 5, "unigram entropy", right),
             svg_line([(x(i), y(v)) for i, v in enumerate(peer)], 'stroke="#d95f02" stroke-width="4" opacity="0.5"'),
             svg_line([(x(i), y(v)) for i, v in enumerate(ours)], 'stroke="#1b4f9c" stroke-width="1.2"'),
             svg_text(left, 18, "loss, nats a token: PyTorch (orange, wide), recua (blue)"),
             svg_text(left, top + high + 40, "absolute difference; dashed: the bounds"),
             svg_line([(x(i), z(abs(p - q))) for i, (p, q) in enumerate(zip(ours, peer))], 'stroke="#333"')]
    early = min(EARLY, n - 1)
    parts += [svg_line([(x(0), z(EARLY_BOUND)), (x(early), z(EARLY_BOUND))], dashed), svg_line([(x(early), z(LATE_BOUND)), (x(n - 1), z(LATE_BOUND))], dashed)]
    parts += [svg_text(left - 6, y(floor + k * (ceiling - floor) / 4) + 4, f"{floor + k * (ceiling - floor) / 4:.2f}", right) for k in range(5)]
    parts += [svg_text(left - 6, z(10.0 ** -k) + 4, f"1e-{k}", right) for k in (1, 3, 5, 7)]
    parts += [svg_text(x(i), top + high + low + 68, i, 'text-anchor="middle"') for i in range(0, n, max(n // 6, 1))]
    write_svg(path, width, top + high + low + 80, parts)


def compare(ours, peer, entropy):
    """Prints both curves and the verdict; whether every bound holds."""
    n = len(peer)
    shown = sorted({s for s in (0, 1, 2, 5, 10, 15, 20, *range(40, n, 20), n - 1) if s < n})
    print("step      recua      torch  difference  grad norm recua      torch")
    for s in shown:
        o, p = ours[s], peer[s]
        print(f"{s:4d} {o['loss']:10.6f} {p['loss']:10.6f} {o['loss'] - p['loss']:11.2e} {o['grad_norm']:16.5f} {p['grad_norm']:10.5f}")
    # A null in metrics.jsonl (not finite) breaks a bound.
    differences = [abs(o["loss"] - p["loss"]) if math.isfinite(o["loss"] - p["loss"]) else math.inf for o, p in zip(ours, peer)]
    rate = max(abs(o["lr"] - p["lr"]) / max(p["lr"], 1e-30) for o, p in zip(ours, peer))
    ends = {name: sum(r["loss"] for r in records[-ENDING:]) / len(records[-ENDING:]) for name, records in (("recua", ours), ("torch", peer))}
    checks = []

    def bound(what, values, limit, ok):
        at = max(range(len(values)), key=lambda i: values[i][1])
        step, worst = values[at]
        checks.append(ok(worst))
        print(f"{what}: largest difference {worst:.2e} at step {step}, allowed {limit}: {'ok' if checks[-1] else 'FAILED'}")

    pairs = list(enumerate(differences))
    bound(f"steps 0 to {min(EARLY, n - 1)}", pairs[:EARLY + 1], f"{EARLY_BOUND:.0e}", lambda d: d <= EARLY_BOUND)
    if n > EARLY + 1:
        bound(f"steps {EARLY + 1} to {n - 1}", pairs[EARLY + 1:], f"below {LATE_BOUND}", lambda d: d < LATE_BOUND)
    checks.append(rate <= 1e-9)
    print(f"learning rates: largest relative difference {rate:.1e}: {'ok' if checks[-1] else 'FAILED'}")
    for name, end in ends.items():
        checks.append(end < entropy)
        print(f"{name} ends at {end:.4f} (mean of the last {ENDING} steps), unigram entropy {entropy:.4f}: {'ok' if checks[-1] else 'FAILED'}")
    return all(checks)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=pathlib.Path)
    p.add_argument("--init", type=pathlib.Path, help="Hugging Face folder of the first weights")
    p.add_argument("--data", type=pathlib.Path, nargs="+", help="token datasets; default: those of config.toml")
    p.add_argument("--steps", type=int, default=300, help="how many steps to compare")
    p.add_argument("--batch", type=int, help="default: of config.toml, as are the rest")
    p.add_argument("--seq-len", type=int)
    p.add_argument("--seed", type=int, help="of the data order")
    p.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--out", type=pathlib.Path, help="write both curves as JSON")
    p.add_argument("--plot", type=pathlib.Path, help="write both curves as SVG")
    p.add_argument("--rows", type=int, help="print the first ROWS samples as JSON, one a line, and stop")
    a = p.parse_args()

    config = tomllib.loads((a.run / "config.toml").read_text())
    train, data, model = (config.get(section, {}) for section in ("train", "data", "model"))
    optim = optim_of(config)
    folders = a.data or [pathlib.Path(d) for d in data["train"]]
    seq_len = a.seq_len or train.get("seq_len") or model["max_seq_len"]
    batch = a.batch or train["batch"]
    seed = train.get("seed", 1) if a.seed is None else a.seed
    streams = [read_tokens(d) for d in folders]
    order = Order(streams, data.get("weights"), seq_len, seed)
    if a.rows is not None:
        for row in order.batch(0, a.rows):
            print(json.dumps(row.tolist()))
        return 0
    if a.init is None:
        p.error("--init is needed")

    null = {"loss": math.nan, "grad_norm": math.nan, "lr": math.nan}
    lines = [json.loads(line) for line in (a.run / "metrics.jsonl").read_text().splitlines()]
    ours = [r | {k: v for k, v in null.items() if r.get(k) is None} for r in lines if 1 <= r["step"] <= a.steps]
    if [r["step"] for r in ours] != list(range(1, a.steps + 1)):
        p.error(f"{a.run}/metrics.jsonl: expected the steps 1 to {a.steps}, got {len(ours)} records")
    if skipped := ours[-1].get("skipped"):
        p.error(f"the run skipped {skipped} updates: PyTorch does not")
    tokens = batch * seq_len
    if ours[0].get("tokens", tokens) != tokens:
        p.error(f"a step of the run had {ours[0]['tokens']} tokens, here {batch} * {seq_len}: pass --batch and --seq-len")

    entropy = unigram_entropy(streams)
    peer = train_torch(a, optim, train.get("steps", a.steps), order, batch)
    if a.out:
        keys = ("loss", "lr", "grad_norm")
        curve = {name: {k: [r[k] for r in records] for k in keys} for name, records in (("recua", ours), ("torch", peer))}
        a.out.write_text(json.dumps(curve | {"unigram_entropy": entropy}, indent=1) + "\n")
    ok = compare(ours, peer, entropy)
    if a.plot:
        plot(a.plot, [r["loss"] for r in ours], [r["loss"] for r in peer], entropy)
    print("training does as well as PyTorch" if ok else "a bound is broken")
    return int(not ok)


if __name__ == "__main__":
    sys.exit(main())
