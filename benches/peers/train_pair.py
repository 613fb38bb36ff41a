#!/usr/bin/env python3
"""The PyTorch side of benches/reference.py: Hugging Face's LLaMA from given weights, on recua's batches, schedule and held-out windows.

train_pair.py FOLDER        reads FOLDER/pair.json, writes FOLDER/metrics.jsonl as recua does

First it loads, compiles and tries a few passes without an update, writes ready.json (seconds of each) and stops itself. Continued, it
reads go.json (steps, warm-up, how often to validate) and trains.

`step_s` of a record is the time of forward, backward, clip and update, up to the loss as a number. The batch is made before the clock
starts, and validation after it has stopped. Needs: pip install torch transformers."""
import json
import os
import pathlib
import signal
import statistics
import sys
import time

import numpy as np
import torch
from transformers import AttentionMaskInterface, LlamaForCausalLM

from train_curve import Order, adamw_of, lr_at, read_tokens

TRIED = 10


def held_out_windows(tokens, seq_len, limit, batch):
    """recua's validation batches: of `limit` equal parts of the set, the window in the middle of each."""
    there = (len(tokens) - 1) // seq_len
    count = min(limit or there, there)
    at = [(2 * i + 1) * there // (2 * count) * seq_len for i in range(count)]
    rows = np.stack([tokens[start:start + seq_len + 1] for start in at]).astype(np.int64)
    return [torch.from_numpy(rows[i:i + batch]) for i in range(0, count, batch)]


class Training:
    def __init__(self, how):
        self.how = how
        self.device = torch.device(how["device"])
        self.cuda = self.device.type == "cuda"
        self.model = LlamaForCausalLM.from_pretrained(how["init"], dtype=torch.float32, attn_implementation="sdpa").to(self.device)
        self.model.config.use_cache = False
        self.model.train()
        self.adamw = adamw_of(self.model, how["optim"], fused=True)
        streams = [read_tokens(pathlib.Path(folder)) for folder in how["train"]]
        self.order = Order(streams, how["weights"], how["seq_len"], how["seed"])
        valid = read_tokens(pathlib.Path(how["valid"]))
        self.valid = held_out_windows(valid, how["seq_len"], how["val_windows"], how["micro_batch"])
        self.loss_of = torch.compile(self.plain_loss, mode=how["mode"]) if how["compile"] else self.plain_loss

    def plain_loss(self, rows):
        logits = self.model(input_ids=rows[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), rows[:, 1:].reshape(-1))

    def batch(self, step):
        """The micro-batches of a step."""
        batch, size = self.how["batch"], self.how["micro_batch"]
        rows = torch.from_numpy(self.order.batch(step * batch, batch))
        return [(rows[i:i + size].pin_memory() if self.cuda else rows[i:i + size]) for i in range(0, batch, size)]

    def backward(self, parts):
        """Gradients of the mean over the parts; loss and gradient norm."""
        total = 0.0
        for rows in parts:
            rows = rows.to(self.device, non_blocking=True)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.how["bf16"]):
                loss = self.loss_of(rows) / len(parts)
            loss.backward()
            total = total + loss.detach()
        return total, torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.how["optim"]["clip"])

    def step(self, parts, lr):
        for group in self.adamw.param_groups:
            group["lr"] = lr
        loss, norm = self.backward(parts)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return loss.item(), norm

    def try_passes(self):
        """Compiles; then the seconds of a pass, once nothing is compiled any more."""
        began = time.perf_counter()
        times = []
        for _ in range(TRIED + 2):
            at = time.perf_counter()
            self.backward(self.batch(0))[0].item()
            self.adamw.zero_grad(set_to_none=True)
            times.append(time.perf_counter() - at)
        return time.perf_counter() - began - sum(times[2:]), statistics.median(times[2:])

    @torch.no_grad()
    def validate(self):
        """Mean loss over the held-out windows, in float32."""
        sums = [self.plain_loss(rows.to(self.device)).item() * rows.shape[0] for rows in self.valid]
        return sum(sums) / sum(rows.shape[0] for rows in self.valid)


def main():
    began = time.perf_counter()
    folder = pathlib.Path(sys.argv[1])
    how = json.loads((folder / "pair.json").read_text())
    torch.set_num_threads(how["threads"])
    # No mask: while it traces, transformers makes one of [batch, 1, seq, seq], which rules out the kernels that know `is_causal`.
    AttentionMaskInterface.register("sdpa", lambda *args, **named: None)
    training = Training(how)
    loaded = time.perf_counter() - began
    compiled, step_s = training.try_passes()
    ready = {"torch": torch.__version__, "load_s": loaded, "compile_s": compiled, "step_s": step_s}
    ready["params"] = sum(p.numel() for p in training.model.parameters())
    (folder / "ready.tmp").write_text(json.dumps(ready))
    (folder / "ready.tmp").rename(folder / "ready.json")
    os.kill(os.getpid(), signal.SIGSTOP)

    go = json.loads((folder / "go.json").read_text())
    optim = how["optim"] | {"warmup_steps": go["warmup_steps"]}
    tokens = how["batch"] * how["seq_len"]
    if training.cuda:
        torch.cuda.reset_peak_memory_stats()
    with (folder / "metrics.jsonl").open("w", buffering=1) as file:
        for step in range(go["steps"]):
            parts, lr = training.batch(step), lr_at(optim, step, go["steps"])
            at = time.perf_counter()
            loss, norm = training.step(parts, lr)
            step_s = time.perf_counter() - at
            record = {"step": step + 1, "tokens": (step + 1) * tokens, "loss": loss, "lr": lr, "grad_norm": norm.item(), "step_s": step_s}
            if (step + 1) % go["val_every"] == 0 or step + 1 == go["steps"]:
                record["val_loss"] = training.validate()
                if training.cuda:
                    record["peak_gpu_mb"] = torch.cuda.max_memory_allocated() // 2**20
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
