#!/usr/bin/env python3
"""Continuations of random LLaMAs by transformers: what tests/engine.rs holds the engine against.

    pip install torch transformers safetensors
    python tests/golden_generate/make.py [CASE ...]

Of each case: the greedy continuation of 40 prompts of 1 to 300 tokens (float32, eager attention, one sequence at a time, the whole
forward pass for each token), the log-probability of each token with the five likeliest, and those of the prompt's tokens.

The weights are not kept: they are a function of the parameter's name and the element's index, computed alike here and in
tests/engine_golden.rs (`Formula`). An element is a hash of both, an integer of 16 bits, times the parameter's scale, in float32.

A prompt is taken only if at each place the likeliest token leads by 2e-3 and float64 agrees; what float64 differs by is printed.
"""

import json
import math
import pathlib
import sys

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).parent
NEW, TOP, PROMPTS = 32, 5, 40
LEAD = 2e-3

BASE = dict(
    vocab_size=512, hidden_size=64, intermediate_size=172, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
    max_position_embeddings=512, rms_norm_eps=1e-6, tie_word_embeddings=False, hidden_act="silu", attention_bias=False,
    mlp_bias=False, bos_token_id=1, eos_token_id=2,
)
CASES = {
    "mha": dict(rope={"rope_type": "default", "rope_theta": 10000.0}),
    "gqa": dict(
        hidden_size=96, intermediate_size=200, num_attention_heads=6, num_key_value_heads=2, num_hidden_layers=3, rms_norm_eps=1e-5,
        rope={"rope_type": "default", "rope_theta": 500000.0},
    ),
    "tied": dict(
        hidden_size=128, intermediate_size=128, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
        rope={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "llama3": dict(
        num_attention_heads=2, num_key_value_heads=2,
        rope={"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 64},
    ),
}
MASK = (1 << 64) - 1


def mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def fnv(name: str) -> int:
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 & MASK
    return h


def weights(name: str, shape: tuple[int, ...], width: int, tied: bool) -> np.ndarray:
    n = math.prod(shape)
    index = np.arange(1, n + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        bits = mix(np.uint64(fnv(name)) + index * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(48)
    unit = (bits.astype(np.float32) - np.float32(32767.5)) / np.float32(32768)  # (-1, 1), exact
    if name.endswith("norm.weight"):
        return (np.float32(1) + np.float32(0.25) * unit).reshape(shape)
    if name.endswith("embed_tokens.weight"):
        scale = 0.25 if tied else 1.0
    elif name.endswith("lm_head.weight"):
        scale = 0.5
    else:
        scale = 2 / math.sqrt(width)
    return (np.float32(scale) * unit).reshape(shape)


def random_tokens(seed: str, n: int, vocab: int) -> list[int]:
    with np.errstate(over="ignore"):
        bits = mix(np.uint64(fnv(seed)) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return [int(x) for x in (bits >> np.uint64(33)) % np.uint64(vocab)]


def model_of(case: dict) -> tuple[LlamaForCausalLM, dict]:
    sizes = BASE | {k: v for k, v in case.items() if k != "rope"}
    config = LlamaConfig(**sizes, rope_parameters=case["rope"], attn_implementation="eager", use_cache=False)
    model = LlamaForCausalLM(config).eval()
    tied = sizes["tie_word_embeddings"]
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.from_numpy(weights(name, tuple(p.shape), sizes["hidden_size"], tied)))
    written = sizes | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_parameters": case["rope"]}
    return model, written


@torch.no_grad()
def logprobs(model, ids: list[int]) -> torch.Tensor:
    return torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], dim=-1)


def main() -> None:
    torch.set_num_threads(1)
    lengths = [1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 96, 127, 128, 129, 160, 191, 192, 193, 240, 255, 256,
               257, 288, 299, 300, 4, 11, 21, 40, 77, 100, 201]
    assert len(lengths) == PROMPTS
    for case in sys.argv[1:] or CASES:
        model, config = model_of(CASES[case])
        double, _ = model_of(CASES[case])
        double = double.double()
        vocab = config["vocab_size"]
        out = {k: [] for k in ("prompt", "tokens", "logprobs", "top_ids", "top_logprobs", "prompt_logprobs")}
        worst, refused, spread = 0.0, 0, []
        for i, n in enumerate(lengths):
            attempt = 0
            while True:
                prompt = random_tokens(f"{case} {i} {attempt}", n, vocab)
                context, found, lead = list(prompt), [], math.inf
                for _ in range(NEW):
                    row = logprobs(model, context)[-1]
                    top = torch.topk(row, TOP + 1)
                    # The five likeliest are compared one by one: they too must be apart.
                    lead = min(lead, (top.values[:-1] - top.values[1:]).min().item() * 20, (top.values[0] - top.values[1]).item())
                    found.append((int(top.indices[0]), top.values[0].item(), top.indices[:TOP].tolist(), top.values[:TOP].tolist()))
                    context.append(found[-1][0])
                if lead >= LEAD:
                    break
                attempt += 1
                refused += 1
            all32, all64 = logprobs(model, context[:-1]), logprobs(double, context[:-1])
            assert [int(t) for t in all64[n - 1:].argmax(-1)] == [f[0] for f in found]
            worst = max(worst, (all32.double() - all64).abs().max().item())
            spread.append(all32.std().item())
            of_prompt = [all32[k, prompt[k + 1]].item() for k in range(n - 1)]
            # The same by the pass over all tokens as token by token.
            assert max(abs(all32[n - 1 + k, f[0]].item() - f[1]) for k, f in enumerate(found)) < 5e-5
            out["prompt"] += prompt
            out["prompt_logprobs"] += of_prompt
            for token, logprob, ids, values in found:
                out["tokens"].append(token)
                out["logprobs"].append(logprob)
                out["top_ids"] += ids
                out["top_logprobs"] += values
        ints = lambda key, *shape: torch.tensor(out[key], dtype=torch.int32).reshape(*shape)
        floats = lambda key, *shape: torch.tensor(out[key], dtype=torch.float32).reshape(*shape)
        save_file({
            "lengths": torch.tensor(lengths, dtype=torch.int32), "prompts": ints("prompt", -1),
            "prompt_logprobs": floats("prompt_logprobs", -1), "tokens": ints("tokens", PROMPTS, NEW),
            "logprobs": floats("logprobs", PROMPTS, NEW), "top_ids": ints("top_ids", PROMPTS, NEW, TOP),
            "top_logprobs": floats("top_logprobs", PROMPTS, NEW, TOP),
        }, HERE / f"{case}.safetensors")
        (HERE / f"{case}.json").write_text(json.dumps(config, indent=1) + "\n")
        different = np.mean([len(set(out["tokens"][k * NEW:(k + 1) * NEW])) for k in range(PROMPTS)])
        print(f"{case}: float64 differs by {worst:.1e}; {refused} prompts refused; spread of the log-probabilities "
              f"{np.mean(spread):.2f}; {different:.1f} different tokens of {NEW}", flush=True)


if __name__ == "__main__":
    main()
