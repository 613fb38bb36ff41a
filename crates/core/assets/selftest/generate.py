"""Makes golden.safetensors: a tiny LLaMA by Hugging Face transformers, float32, on the CPU. See README.md."""

import os

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

DIM, LAYERS, HEADS, KV, VOCAB, FFN, BATCH, SEQ, STEPS = 32, 2, 4, 2, 80, 88, 2, 24, 3
LR, BETAS, EPS, DECAY, CLIP = 1e-3, (0.9, 0.95), 1e-8, 0.1, 1.0
MASK = (1 << 64) - 1


def splitmix(seed):
    """SplitMix64's upper 16 bits as a number in [-1, 1): exact in float32. The self-test makes the weights the same way."""
    while True:
        seed = (seed + 0x9E3779B97F4A7C15) & MASK
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        yield (((z ^ (z >> 31)) >> 48) - 32768) / 32768


def draw(seed, shape):
    numbers = splitmix(seed)
    n = torch.Size(shape).numel()
    return torch.tensor([next(numbers) for _ in range(n)], dtype=torch.float64).reshape(shape).float()


def to_hf(x, heads):
    """Rows of a query or key projection, adjacent pairs (Meta) to halves (Hugging Face)."""
    return x.reshape(heads, -1, 2, x.shape[-1]).transpose(1, 2).reshape(x.shape)


def to_meta(x, heads):
    return x.reshape(heads, 2, -1, x.shape[-1]).transpose(1, 2).reshape(x.shape)


NAMES = [("model.embed_tokens.weight", "tok_embeddings.weight")]
for i in range(LAYERS):
    for hf, meta in [
        ("input_layernorm", "attention_norm"),
        ("self_attn.q_proj", "attention.wq"),
        ("self_attn.k_proj", "attention.wk"),
        ("self_attn.v_proj", "attention.wv"),
        ("self_attn.o_proj", "attention.wo"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.gate_proj", "feed_forward.w1"),
        ("mlp.down_proj", "feed_forward.w2"),
        ("mlp.up_proj", "feed_forward.w3"),
    ]:
        NAMES.append((f"model.layers.{i}.{hf}.weight", f"layers.{i}.{meta}.weight"))
NAMES += [("model.norm.weight", "norm.weight"), ("lm_head.weight", "output.weight")]


def heads_of(meta):
    return HEADS if ".wq." in meta else KV if ".wk." in meta else None


torch.set_num_threads(1)
model = LlamaForCausalLM(
    LlamaConfig(
        hidden_size=DIM, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV, vocab_size=VOCAB,
        intermediate_size=FFN, rms_norm_eps=1e-5, max_position_embeddings=SEQ, tie_word_embeddings=False,
        attn_implementation="eager",
    )
).float()
parameters = dict(model.named_parameters())
assert len(parameters) == len(NAMES)
with torch.no_grad():
    for index, (hf, meta) in enumerate(NAMES):
        p = parameters[hf]
        u = draw(index + 1, p.shape)
        value = 1 + u / 4 if p.ndim == 1 else u / 4
        if heads_of(meta):
            value = to_hf(value, heads_of(meta))
        p.copy_(value)

# Ids of step s: from the stream 1000 + s. Targets are the ids that follow; every fifth one does not count.
ids = torch.stack([((draw(1000 + s, (BATCH, SEQ + 1)).double() + 1) / 2 * VOCAB).long() for s in range(STEPS)])
tokens = ids.clone()
targets = ids[:, :, 1:].clone()
targets[:, :, ::5] = -100
inputs = ids[:, :, :-1]


def forward(step):
    logits = model(inputs[step]).logits
    return logits, torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), targets[step].reshape(-1), ignore_index=-100)


out = {"tokens": tokens.to(torch.int32)}
decayed = [p for p in model.parameters() if p.ndim == 2]
plain = [p for p in model.parameters() if p.ndim == 1]
optim = torch.optim.AdamW(
    [{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}], lr=LR, betas=BETAS, eps=EPS, foreach=False
)
losses, norms = [], []
for step in range(STEPS):
    optim.zero_grad()
    logits, loss = forward(step)
    loss.backward()
    if step == 0:
        out["logits"] = logits.detach()
        for hf, meta in NAMES:
            grad = parameters[hf].grad.clone()
            out["grad." + meta] = to_meta(grad, heads_of(meta)) if heads_of(meta) else grad
    losses.append(loss.item())
    norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item())
    optim.step()
out["losses"] = torch.tensor(losses)
out["grad_norms"] = torch.tensor(norms)
out["trained_logits"] = forward(0)[0].detach()
path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden.safetensors")
save_file({k: v.contiguous() for k, v in out.items()}, path)
print(losses, norms, os.path.getsize(path), "torch", torch.__version__)
