#!/usr/bin/env python3
"""The GGUF files of this folder, by gguf-py, llama.cpp's own reader and writer.

    python3 -m venv V && V/bin/pip install gguf numpy
    V/bin/python tests/golden/gguf/make.py

codecs.gguf: for each type random blocks (`TYPE.raw`) and what gguf-py makes of them (`TYPE.f32`); for Q8_0 and Q4_0 also values
    (`values`) and the blocks that gguf-py makes of them (`TYPE.made`).
spm.gguf: a model with a SentencePiece tokenizer, and values of every type that GGUF has.
bpe-0000N-of-00002.gguf: a model with a byte-level tokenizer, tied, with Llama 3's rotary factors, in two parts.
expected.json: the tensors of both as sums of their elements.
"""

import json
import pathlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q

HERE = pathlib.Path(__file__).parent
READ = [Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q5_0, Q.Q4_K, Q.Q5_K, Q.Q6_K]


def codecs() -> None:
    random = np.random.default_rng(1)
    w = gguf.GGUFWriter(str(HERE / "codecs.gguf"), "llama")
    for q in READ:
        length, size = gguf.GGML_QUANT_SIZES[q]
        rows, width = 4, 256
        raw = random.integers(0, 256, (rows, width // length * size), dtype=np.uint8)
        # Factors of common sizes, so that sums are no noise; one is subnormal, one zero, one negative.
        halves = {Q.F16: [0], Q.BF16: [], Q.Q8_0: [0], Q.Q4_0: [0], Q.Q5_0: [0], Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208]}[q]
        blocks = raw.reshape(-1, size)
        for at in halves:
            d = random.normal(0, 0.1, len(blocks)).astype(np.float16)
            d[0], d[1], d[2] = 3e-7, 0, -0.5
            blocks[:, at : at + 2] = d.view(np.uint8).reshape(-1, 2)
        if q == Q.BF16:
            blocks[:, 1] = blocks[:, 1] & 0xBF  # no infinities and NaN, whose bits compare badly
        w.add_tensor(f"{q.name}.raw", raw, raw_dtype=q)
        w.add_tensor(f"{q.name}.f32", gguf.dequantize(raw, q).astype(np.float32))
    values = random.normal(0, 1, (6, 256)).astype(np.float32)
    values[0, :32] = 0
    values[0, 32:64] = -1
    values[0, 64:96] = np.arange(32) - 16  # ties
    values[0, 96:128] = (np.arange(32) - 15.5) / 4
    values[1, :32] *= 1e-30
    values[1, 32:64] *= 1e6
    values[1, 64:96] = 0
    values[1, 70] = 1e-3
    values[1, 96] = values[1, 97] = -5
    values[1, 98] = 5
    values[1, 128:160] = 127 * np.sign(np.arange(32) - 10.5) * 0.5
    values[1, 160:192] = np.arange(32) * 0.5 - 8
    w.add_tensor("values", values)
    for q in [Q.Q8_0, Q.Q4_0]:
        w.add_tensor(f"{q.name}.made", gguf.quantize(values, q), raw_dtype=q)
    finish(w)


def finish(w: gguf.GGUFWriter) -> None:
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def settings(w: gguf.GGUFWriter, s: dict) -> None:
    w.add_block_count(s["layers"])
    w.add_context_length(96)
    w.add_embedding_length(s["dim"])
    w.add_feed_forward_length(s["ffn"])
    w.add_head_count(s["heads"])
    w.add_head_count_kv(s["kv"])
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(s["dim"] // s["heads"])
    w.add_rope_freq_base(s["theta"])
    w.add_vocab_size(s["vocab"])


def tensors(w: gguf.GGUFWriter, s: dict, seed: int) -> dict:
    random = np.random.default_rng(seed)
    sums = {}

    def add(name: str, rows: int, width: int | None, q: Q) -> None:
        shape = (rows,) if width is None else (rows, width)
        x = random.normal(0, 0.5, shape).astype(np.float32)
        raw = gguf.quantize(x, q)
        w.add_tensor(name, raw, raw_dtype=None if q in (Q.F32, Q.F16) else q)
        sums[name] = [q.name, list(shape), float(gguf.dequantize(raw, q).astype(np.float64).sum())]

    d, head = s["dim"], s["dim"] // s["heads"]
    add("token_embd.weight", s["vocab"], d, s["embedding"])
    for i in range(s["layers"]):
        p, q = f"blk.{i}.", s["types"][i % len(s["types"])]
        add(p + "attn_norm.weight", d, None, Q.F32)
        add(p + "attn_q.weight", d, d, q)
        add(p + "attn_k.weight", s["kv"] * head, d, q)
        add(p + "attn_v.weight", s["kv"] * head, d, q)
        add(p + "attn_output.weight", d, d, q)
        add(p + "ffn_norm.weight", d, None, Q.F32)
        add(p + "ffn_gate.weight", s["ffn"], d, q)
        add(p + "ffn_down.weight", d, s["ffn"], q)
        add(p + "ffn_up.weight", s["ffn"], d, q)
    add("output_norm.weight", d, None, Q.F32)
    if not s["tied"]:
        add("output.weight", s["vocab"], d, s["embedding"])
    return sums


def spm() -> dict:
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{b:02X}>", 0.0, 6) for b in range(256)]
    words = ["\u2581l", "la", "ma", "\u2581la", "\u2581llama", "lla", "llama", "\u2581a", "an", "\u2581and", "nd", "am", "\u2581the", "he", "th"]
    pieces += [(word, -float(i), 1) for i, word in enumerate(words)]
    letters = "\u2581lamndthe.,!s"
    pieces += [(c, -float(len(words) + i), 1) for i, c in enumerate(letters)]
    pieces += [("<ud>", 0.0, 4), ("old", 0.0, 5)]
    s = dict(dim=32, layers=3, heads=4, kv=2, ffn=32, vocab=len(pieces), theta=10000.0, embedding=Q.Q8_0, tied=False,
             types=[Q.F32, Q.F16, Q.Q4_0])
    w = gguf.GGUFWriter(str(HERE / "spm.gguf"), "llama")
    settings(w, s)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    w.add_uint8("test.u8", 200)
    w.add_int8("test.i8", -100)
    w.add_uint16("test.u16", 60000)
    w.add_int16("test.i16", -30000)
    w.add_uint32("test.u32", 4000000000)
    w.add_int32("test.i32", -2000000000)
    w.add_uint64("test.u64", 2**63 + 1)
    w.add_int64("test.i64", -(2**62))
    w.add_float32("test.f32", 0.1)
    w.add_float64("test.f64", 0.1)
    w.add_bool("test.bool", True)
    w.add_string("test.string", "\u00e9 \u4f60")
    w.add_array("test.nested", [[1, 2], [3]])
    w.add_array("test.strings", ["", "a", "\u2581"])
    w.add_array("test.floats", [0.5, -1.5])
    w.add_tokenizer_model("llama")
    w.add_token_list([p[0] for p in pieces])
    w.add_token_scores([p[1] for p in pieces])
    w.add_token_types([p[2] for p in pieces])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    w.add_add_bos_token(True)
    w.add_add_space_prefix(True)
    w.add_chat_template("{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}")
    sums = tensors(w, s, 2)
    finish(w)
    return sums


def byte_letters() -> list[str]:
    """The letter of each byte, as GPT-2 spells bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (b for b in range(256) if b not in plain)
    letters = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [letters[b] for b in range(256)]


def bpe() -> dict:
    tokens, merges = byte_letters(), []
    for left, right in [("\u0120", "l"), ("l", "l"), ("a", "m"), ("am", "a"), ("\u0120l", "lama"), ("ll", "ama"), ("\u00c3", "\u00a9"), ("t", "h"), ("th", "e"),
                        ("\u0120", "the"), ("1", "2"), ("12", "3"), ("\u010a", "\u010a"), ("\u0120", "\u0120")]:
        merged = left + right
        if left in tokens and right in tokens:
            merges.append(f"{left} {right}")
            if merged not in tokens:
                tokens.append(merged)
    types = [1] * len(tokens)
    tokens += ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    types += [3, 3, 3]
    s = dict(dim=32, layers=2, heads=2, kv=1, ffn=32, vocab=len(tokens), theta=500000.0, embedding=Q.Q4_0, tied=True, types=[Q.Q8_0, Q.BF16])
    first, second = HERE / "bpe-00001-of-00002.gguf", HERE / "bpe-00002-of-00002.gguf"
    for old in (first, second):
        old.unlink(missing_ok=True)
    w = gguf.GGUFWriter(str(HERE / "bpe.gguf"), "llama", split_max_tensors=12)
    settings(w, s)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("llama-bpe")
    w.add_token_list(tokens)
    w.add_token_types(types)
    w.add_token_merges(merges)
    w.add_bos_token_id(len(tokens) - 3)
    w.add_eos_token_id(len(tokens) - 2)
    w.add_eot_token_id(len(tokens) - 1)
    sums = tensors(w, s, 3)
    # Llama 3.2's factors, as llama.cpp's converter computes them.
    head = s["dim"] // s["heads"]
    freqs = 1.0 / s["theta"] ** (np.arange(0, head, 2, dtype=np.float32) / head)
    factors = []
    for freq in freqs:
        length = 2 * np.pi / freq
        if length < 8192 / 4:
            factors.append(1)
        elif length > 8192 / 1:
            factors.append(32)
        else:
            smooth = (8192 / length - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / 32 + smooth))
    w.add_tensor("rope_freqs.weight", np.array(factors, dtype=np.float32))
    finish(w)
    return sums


if __name__ == "__main__":
    codecs()
    expected = {"spm": spm(), "bpe": bpe()}
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
