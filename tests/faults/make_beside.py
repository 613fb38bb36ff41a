"""What transformers makes of a tokenizer with files beside it: tests/faults/beside.json.

    pip install transformers==5.24.0 tokenizers==0.23.3 sentencepiece==0.2.3 protobuf; python make_beside.py
"""
import json
import os
import pathlib
import shutil
import tempfile

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
from transformers import AutoTokenizer

here = pathlib.Path(__file__).parent
CONFIG, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
fast = {"tokenizer_class": "PreTrainedTokenizerFast"}


def token(content, **properties):
    defaults = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    return {"content": content, **defaults, **properties}


def cases(n):
    """Of a tokenizer with n tokens."""
    named = {**fast, "bos_token": None, "eos_token": None}
    yield "nothing", {CONFIG: named}
    yield "two more", {CONFIG: {**named, "eos_token": "<|im_end|>", "added_tokens_decoder": {n: token("<|im_start|>"), n + 1: token("<|im_end|>")}}}
    yield "listed out of order", {CONFIG: {**named, "added_tokens_decoder": {n + 1: token("<|im_end|>"), n: token("<|im_start|>")}}}
    yield "no special one", {CONFIG: {**named, "added_tokens_decoder": {n: token("llama walk", special=False)}}}
    yield "normalized", {CONFIG: {**named, "added_tokens_decoder": {n: token("old llama", special=False, normalized=True)}}}
    yield "takes spaces", {CONFIG: {**named, "added_tokens_decoder": {n: token("<|im_end|>", lstrip=True, rstrip=True)}}}
    yield "another id", {CONFIG: {**named, "added_tokens_decoder": {n + 40: token("<|im_start|>")}}}
    yield "named only", {CONFIG: {**named, "pad_token": "<|pad|>", "bos_token": "<|im_start|>"}}
    yield "named as object", {CONFIG: {**named, "pad_token": {"__type": "AddedToken", **token("<|im_end|>", rstrip=True)}}}
    yield "one name, two tokens", {CONFIG: {**named, "pad_token": "<|im_end|>", "eos_token": "<|im_end|>"}}
    yield "additional", {CONFIG: {**named, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}}
    yield "extra", {CONFIG: {**named, "extra_special_tokens": ["<|im_end|>", "<|im_start|>"]}}
    yield "extra with names", {CONFIG: {**named, "extra_special_tokens": {"image_token": "<|im_start|>"}}}
    yield "a name of its own", {CONFIG: {**named, "turn_token": "<|im_start|>", "turn_count": 3}}
    yield "of the vocabulary", {CONFIG: {**named, "added_tokens_decoder": {300: "there"}}}
    yield "map alone", {MAP: {"bos_token": "<|im_start|>", "eos_token": token("<|im_end|>")}, CONFIG: fast}
    yield "map over config", {MAP: {"eos_token": "<|im_end|>"}, CONFIG: {**named, "eos_token": "<|im_start|>"}}
    yield "config with a list over map", {MAP: {"eos_token": "<|im_end|>"}, CONFIG: {**named, "added_tokens_decoder": {n: token("<|im_start|>")}}}
    yield "added alone", {ADDED: {"<|im_end|>": n + 1, "<|im_start|>": n}, CONFIG: named}
    yield "added and map", {ADDED: {"<|im_end|>": n, "llama walk": n + 1}, MAP: {"eos_token": "<|im_end|>"}, CONFIG: fast}
    yield "added with a list", {ADDED: {"<|im_end|>": n}, CONFIG: {**named, "added_tokens_decoder": {n: token("<|im_start|>")}}}


TEXTS = ["The old llama walks", "<|im_start|>The <|im_end|> old llama walks", "a<|im_end|>\n<|pad|>llama walk<|im_start|>", "there<|im_start|>"]
out = []
for base in ["llama2.json", "llama3.json", "own.json"]:
    file = here / base
    n = 1 + max([t["id"] for t in json.loads(file.read_text())["added_tokens"]] + list(json.loads(file.read_text())["model"]["vocab"].values()))
    vocab = {i: t for t, i in json.loads(file.read_text())["model"]["vocab"].items()}
    for name, files in cases(n):
        decoder = files.get(CONFIG, {}).get("added_tokens_decoder", {})
        if decoder.get(300) == "there":
            decoder = files[CONFIG]["added_tokens_decoder"] = {300 if 300 in vocab else 290: token(vocab.get(300, vocab[290]))}
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(file, folder + "/tokenizer.json")
            pathlib.Path(folder, "config.json").write_text('{"model_type": "llama"}')
            for beside, content in files.items():
                pathlib.Path(folder, beside).write_text(json.dumps(content))
            tokenizer = AutoTokenizer.from_pretrained(folder)
        rows = []
        for special in [False, True]:
            tokenizer._tokenizer.encode_special_tokens = not special
            for text in TEXTS:
                ids = tokenizer._tokenizer.encode(text, add_special_tokens=False).ids
                rows.append({"text": text, "special": special, "ids": ids, "decoded": tokenizer._tokenizer.decode(ids)})
        ends = [tokenizer.bos_token_id, tokenizer.eos_token_id]
        out.append({"tokenizer": base, "name": name, "files": files, "size": 1 + max(tokenizer.get_vocab().values()), "ends": ends, "rows": rows})
(here / "beside.json").write_text("[\n" + ",\n".join(json.dumps(case) for case in out) + "\n]\n")
