#!/usr/bin/env python3
"""Writes one random LLaMA as GGUF in several types, so that every program reads the very same file.

    pip install gguf numpy
    python make_models.py [--folder models] [--sizes 7b,large,mid,tiny] [--types f32,bf16,f16,q8_0,q4_0]

`7b`: LLaMA 7B's shape, for memory.sh; `large`: TinyLlama's shape, 1.1 G parameters (22 layers, width 2,048, 32 heads of which 4 for keys and values, 32,000 tokens);
`mid`: 220 M (12 layers, width 1,024); `tiny`: 5 M, for trying things out. All types of a size hold the same numbers, rounded:
matrices, embedding and output included, have the file's type ("pure"), gains of norms are float32. Tensors are made, quantized by
gguf-py and written one by one: the peak is about 1 GiB, mostly one embedding.

Random weights give flat logits and greedy ties: the embedding's deviation is .5 and the output's 9.6 / sqrt(width), so logits deviate
by 9.6 and the likeliest token stands out; everything else .6 / sqrt(width).
"""

import argparse
import math
import pathlib
import time

import gguf
import numpy as np

SIZES = {
    "7b": dict(layers=32, dim=4096, heads=32, kv=32, ffn=11008, vocab=32000),
    "large": dict(layers=22, dim=2048, heads=32, kv=4, ffn=5632, vocab=32000),
    "mid": dict(layers=12, dim=1024, heads=16, kv=16, ffn=2816, vocab=32000),
    "tiny": dict(layers=4, dim=256, heads=4, kv=2, ffn=768, vocab=2000),
}
TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
CONTEXT = 2048


def tensors(s: dict) -> list[tuple[str, tuple[int, ...], float]]:
    """Name, shape, deviation (of a gain: 0)."""
    d, f, kv = s["dim"], s["ffn"], s["kv"] * (s["dim"] // s["heads"])
    std = 0.6 / math.sqrt(d)
    all = [("token_embd.weight", (s["vocab"], d), 0.5), ("output_norm.weight", (d,), 0.0),
           ("output.weight", (s["vocab"], d), 9.6 / math.sqrt(d))]
    for i in range(s["layers"]):
        p = f"blk.{i}."
        all += [(p + "attn_norm.weight", (d,), 0.0), (p + "attn_q.weight", (d, d), std), (p + "attn_k.weight", (kv, d), std),
                (p + "attn_v.weight", (kv, d), std), (p + "attn_output.weight", (d, d), std), (p + "ffn_norm.weight", (d,), 0.0),
                (p + "ffn_gate.weight", (f, d), std), (p + "ffn_up.weight", (f, d), std), (p + "ffn_down.weight", (d, f), std)]
    return all


def byte_shape(shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> tuple[int, ...]:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    assert shape[-1] % block == 0, shape
    return (*shape[:-1], shape[-1] // block * size)


def writer(path: pathlib.Path, size: str, s: dict, kind: str) -> gguf.GGUFWriter:
    w = gguf.GGUFWriter(str(path), "llama")
    w.add_name(f"random {size} {kind}")
    w.add_context_length(CONTEXT)
    w.add_embedding_length(s["dim"])
    w.add_block_count(s["layers"])
    w.add_feed_forward_length(s["ffn"])
    w.add_head_count(s["heads"])
    w.add_head_count_kv(s["kv"])
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(s["dim"] // s["heads"])
    w.add_vocab_size(s["vocab"])
    w.add_file_type(TYPES[kind][1])
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    # llama.cpp wants a vocabulary; prompts are token ids.
    words = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    words += [f"w{i}" for i in range(len(words), s["vocab"])]
    w.add_tokenizer_model("llama")
    w.add_token_list(words)
    w.add_token_scores([-float(i) for i in range(s["vocab"])])
    w.add_token_types([1] * s["vocab"])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    for name, shape, std in tensors(s):
        ggml = TYPES[kind][0] if std else gguf.GGMLQuantizationType.F32
        bytes_ = byte_shape(shape, ggml)
        w.add_tensor_info(name, bytes_, np.dtype(np.uint8), math.prod(bytes_), raw_dtype=ggml)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    return w


def quantized(x: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    if kind == gguf.GGMLQuantizationType.F32 or x.ndim == 1:
        return x
    rows = max(1, (8 << 20) // x.shape[1])
    return np.concatenate([gguf.quantize(x[i:i + rows], kind).view(np.uint8) for i in range(0, len(x), rows)])


def path(folder: pathlib.Path, size: str, kind: str) -> pathlib.Path:
    return folder / f"{size}-{kind}.gguf"


def write(folder: pathlib.Path, size: str, kinds: list[str]) -> None:
    kinds = [k for k in kinds if not path(folder, size, k).exists()]
    if not kinds:
        return
    folder.mkdir(parents=True, exist_ok=True)
    s, start = SIZES[size], time.time()
    part = {k: path(folder, size, k).with_suffix(".part") for k in kinds}
    writers = {k: writer(part[k], size, s, k) for k in kinds}
    for i, (name, shape, std) in enumerate(tensors(s)):
        x = np.random.default_rng([5, i]).standard_normal(shape, dtype=np.float32)
        x = x * np.float32(std) if std else np.float32(1) + np.float32(0.1) * x
        for kind, w in writers.items():
            w.write_tensor_data(quantized(x, TYPES[kind][0]).view(np.uint8))
    for kind, w in writers.items():
        w.close()
        part[kind].rename(path(folder, size, kind))
        print(f"{path(folder, size, kind)}: {path(folder, size, kind).stat().st_size / 1e9:.3f} GB")
    print(f"{time.time() - start:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path(__file__).parent / "models")
    parser.add_argument("--sizes", default="large,mid,tiny")
    parser.add_argument("--types", default=",".join(TYPES))
    a = parser.parse_args()
    for size in a.sizes.split(","):
        write(a.folder, size, a.types.split(","))


if __name__ == "__main__":
    main()
