#!/usr/bin/env python3
"""Makes a golden case folder with Hugging Face's LlamaForCausalLM, an implementation that is not ours.

generate.py OUT --seed 1 --dim 48 --heads 4 --kv-heads 2 ...     makes a case (float32, eager attention, one thread)
generate.py --check CASE [--dtype float64] [--attention sdpa]    computes a case again from its own weights, inputs and
    train.json, and prints how far the results are from its files: against another dtype or attention kernel that is the
    noise floor of the case. Exit code 1 if a difference is beyond the tolerances of README.md.

Needs: pip install torch transformers. What the files hold: README.md."""
import argparse
import json
import math
import pathlib
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

RULE = "step s (from 0): s < warmup: max*(s+1)/warmup; else min + (max-min)/2*(1+cos(pi*(s-warmup)/(total-warmup)))"
# name: (tolerance, noise floor of tiny_llama); of README.md.
LIMITS = {
    "blocks": (2e-5, 2e-6),
    "logits": (2e-5, 2e-6),
    "loss": (3e-6, 3e-7),
    "gradients (of each tensor's largest)": (1.2e-5, 1.2e-6),
    "losses of the steps": (2e-5, 1.6e-6),
    "gradient norms (relative)": (6e-5, 5.5e-6),
    "trained weights, 99.9th percentile": (1e-5, 7e-7),
    "trained weights, largest": (3e-3, 2.5e-4),
}


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", nargs="?", type=pathlib.Path)
    p.add_argument("--check", type=pathlib.Path, metavar="CASE")
    p.add_argument("--weights", type=pathlib.Path, metavar="DIR", help="config and weights of a Hugging Face folder")
    sizes = dict(seed=1, dim=64, layers=3, heads=4, ffn=172, vocab=512, batch=2, seq=96, max_seq_len=256)
    for name, value in sizes.items():
        p.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    p.add_argument("--kv-heads", type=int, help="default: as many as --heads")
    p.add_argument("--norm-eps", type=float, default=1e-6)
    p.add_argument("--std", type=float, default=0.06, help="of the matrices; gains are 1 + 5 std * normal")
    p.add_argument("--theta", type=float, default=10000.0)
    p.add_argument("--rope-scaling", choices=["llama3", "linear"])
    p.add_argument("--factor", type=float, default=8.0)
    p.add_argument("--low-freq-factor", type=float, default=1.0)
    p.add_argument("--high-freq-factor", type=float, default=4.0)
    p.add_argument("--original-max-seq-len", type=int, default=32)
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--warmup", type=int, default=5)
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--weight-decay", type=float, default=0.1)
    p.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    p.add_argument("--attention", choices=["eager", "sdpa"], default="eager")
    a = p.parse_args()
    if (a.out is None) == (a.check is None):
        p.error("give OUT or --check CASE")
    if a.out and (a.dtype, a.attention) != ("float32", "eager"):
        p.error("cases are float32 with eager attention; --dtype and --attention go with --check")
    return a


def new_model(a):
    rope = {"rope_type": "default", "rope_theta": a.theta}
    if a.rope_scaling:
        rope |= {"rope_type": a.rope_scaling, "factor": a.factor}
    if a.rope_scaling == "llama3":
        rope |= {"low_freq_factor": a.low_freq_factor, "high_freq_factor": a.high_freq_factor,
                 "original_max_position_embeddings": a.original_max_seq_len}
    config = LlamaConfig(
        vocab_size=a.vocab, hidden_size=a.dim, intermediate_size=a.ffn, num_hidden_layers=a.layers,
        num_attention_heads=a.heads, num_key_value_heads=a.kv_heads or a.heads, max_position_embeddings=a.max_seq_len,
        rms_norm_eps=a.norm_eps, rope_parameters=rope, tie_word_embeddings=False, attn_implementation="eager",
        use_cache=False)
    torch.manual_seed(a.seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():  # gains other than 1, so that a gain that is left out shows
            p.copy_(torch.randn_like(p) * a.std if p.dim() > 1 else 1 + 5 * a.std * torch.randn_like(p))
    return model


def load_model(folder, a):
    model = LlamaForCausalLM.from_pretrained(folder, attn_implementation=a.attention, dtype=torch.float32)
    model.config.use_cache = False
    return model.to(getattr(torch, a.dtype))


def cross_entropy(logits, targets):
    return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1).long())


def forward(model, ids, targets):
    """The tensors of forward.safetensors and of grads.safetensors."""
    out, hooks = {}, []
    for i, layer in enumerate(model.model.layers):
        def keep(_module, _args, y, i=i):
            out[f"block.{i}.out"] = (y[0] if isinstance(y, tuple) else y).detach().clone()
        hooks.append(layer.register_forward_hook(keep))
    model.zero_grad()
    logits = model(input_ids=ids.long()).logits
    loss = cross_entropy(logits, targets)
    loss.backward()
    for hook in hooks:
        hook.remove()
    out |= {"input_ids": ids, "targets": targets, "logits": logits.detach(), "loss": loss.detach().reshape(1)}
    return out, {name: p.grad.clone() for name, p in model.named_parameters()}


def train(model, batches, plan):
    """Trains in place by `plan`; returns the records of the steps."""
    s, w = plan["schedule"], plan["adamw"]
    groups = [{"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": w["weight_decay"]},
              {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(w["beta_1"], w["beta_2"]), eps=w["eps"])
    warmup, total, most, least = s["warmup_steps"], s["total_steps"], s["max_lr"], s["min_lr"]
    records = []
    for step, rows in enumerate(batches):
        lr = most * (step + 1) / warmup if step < warmup else \
            least + (most - least) / 2 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        loss = cross_entropy(model(input_ids=rows[:, :-1].long()).logits, rows[:, 1:])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), plan["clip_global_norm"])
        optimizer.step()
        records.append({"step": step, "lr": lr, "loss": loss.item(), "grad_norm": norm.item()})
    return records


def make(a):
    model = load_model(a.weights, a) if a.weights else new_model(a)
    vocab = model.config.vocab_size
    torch.manual_seed(a.seed + 1)
    rows = torch.randint(0, vocab, (a.batch, a.seq + 1), dtype=torch.int32)
    batches = torch.randint(0, vocab, (a.steps, a.batch, a.seq + 1), dtype=torch.int32)
    plan = {
        "steps": [],
        "schedule": {"warmup_steps": a.warmup, "total_steps": a.steps, "max_lr": a.lr, "min_lr": 0.1 * a.lr, "rule": RULE},
        "adamw": {"beta_1": 0.9, "beta_2": 0.95, "eps": 1e-8, "weight_decay": a.weight_decay,
                  "decay_on": "parameters of 2 or more dimensions only"},
        "clip_global_norm": 1.0,
    }

    def save(name, tensors):
        save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, a.out / f"{name}.safetensors")

    def dump(name, value):
        (a.out / name).write_text(json.dumps(value, indent=1) + "\n")

    model.save_pretrained(a.out)
    out, grads = forward(model, rows[:, :-1], rows[:, 1:])
    save("forward", out)
    save("grads", grads)
    save("train_batches", {"batches": batches})
    plan["steps"] = train(model, batches, plan)
    dump("train.json", plan)
    save("trained", dict(model.named_parameters()))
    options = [x for x in sys.argv[1:] if pathlib.Path(x) != a.out]
    dump("provenance.json", {"torch": torch.__version__, "transformers": transformers.__version__, "seed": a.seed,
                             "dtype": a.dtype, "attention": a.attention, "options": " ".join(options)})


def check(a):
    files = {name: load_file(a.check / f"{name}.safetensors") for name in ("forward", "grads", "train_batches", "trained")}
    plan = json.loads((a.check / "train.json").read_text())
    model = load_model(a.check, a)
    out, grads = forward(model, files["forward"]["input_ids"], files["forward"]["targets"])
    records = train(model, files["train_batches"]["batches"], plan)

    def worst(got, want):
        assert got.shape == want.shape
        return (got.double() - want.double()).abs().max().item()

    expected = files["forward"]
    blocks = [k for k in expected if k.startswith("block.")]
    assert len(blocks) == model.config.num_hidden_layers and grads.keys() == files["grads"].keys()
    pairs = list(zip(records, plan["steps"], strict=True))
    assert all(abs(got["lr"] - want["lr"]) <= 1e-12 for got, want in pairs)
    weights = torch.cat([(p.detach().double() - files["trained"][name].double()).abs().flatten()
                         for name, p in model.named_parameters()]).sort().values
    got = dict(zip(LIMITS, [
        max(worst(out[k], expected[k]) for k in blocks),
        worst(out["logits"], expected["logits"]),
        worst(out["loss"], expected["loss"]),
        max(worst(g, files["grads"][k]) / files["grads"][k].abs().max().item() for k, g in grads.items()),
        max(abs(g["loss"] - w["loss"]) for g, w in pairs),
        max(abs(g["grad_norm"] - w["grad_norm"]) / w["grad_norm"] for g, w in pairs),
        weights[int(len(weights) * 0.999)].item(),
        weights[-1].item(),
    ], strict=True))
    print(f"{a.check}, {a.dtype}, {a.attention}: largest differences")
    for name, value in got.items():
        tolerance, floor = LIMITS[name]
        note = "BEYOND THE TOLERANCE" if value > tolerance else "above tiny_llama's floor" if value > floor else ""
        print(f"  {name:37s} {value:8.1e}   allowed {tolerance:7.1e}   {note}".rstrip())
    return int(any(value > LIMITS[name][0] for name, value in got.items()))


if __name__ == "__main__":
    args = arguments()
    torch.set_num_threads(1)
    sys.exit(check(args) if args.check else make(args))
