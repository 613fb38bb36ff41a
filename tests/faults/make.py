"""Prompts as `tokenizers` encodes them (what transformers' AutoTokenizer gives for a prompt): tests/faults/prompts.json.

    pip install tokenizers==0.23.3 sentencepiece==0.2.3; python make.py
"""
import json
import pathlib

import sentencepiece
import tokenizers

here = pathlib.Path(__file__).parent


def template(single, ids):
    special = {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in single if token != "$A"}
    piece = lambda t, n="A": {"Sequence": {"id": n, "type_id": 0}} if t == "$A" else {"SpecialToken": {"id": t, "type_id": 0}}
    pair = [piece(t) for t in single] + [{"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": [piece(t) for t in single], "pair": pair, "special_tokens": special}


cases = []
for base, bos, eos in [("smollm", None, None), ("llama2", "<s>", "</s>"), ("llama3", "<|begin_of_text|>", "<|eot_id|>")]:
    data = json.loads((here / f"{base}.json").read_text())
    ids = tokenizers.Tokenizer.from_file(str(here / f"{base}.json")).get_vocab()
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    processors = {"as it is": data["post_processor"], "none": None, "byte level": byte_level}
    if bos:
        processors["bos in a sequence"] = {"type": "Sequence", "processors": [byte_level, template([bos, "$A"], ids)]}
        processors["two tokens"] = template([bos, eos, "$A"], ids)
        processors["around"] = template([bos, "$A", eos], ids)
        processors["only after"] = template(["$A", eos], ids)
        roberta = {"type": "RobertaProcessing", "sep": [eos, ids[eos]], "cls": [bos, ids[bos]], "trim_offsets": True}
        processors["roberta"] = {**roberta, "add_prefix_space": False}
        processors["bert"] = {"type": "BertProcessing", "sep": [eos, ids[eos]], "cls": [bos, ids[bos]]}
    specials = [token["content"] for token in data["added_tokens"] if token["special"]]
    texts = ["The old llama walks", "", " two  spaces", "\n\nline", "1984", "\u65e5\U0001f999"]
    for name, processor in processors.items():
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps({**data, "post_processor": processor}))
        prompts = []
        for special in [False, True]:
            tokenizer.encode_special_tokens = not special
            for text in texts + [f"{specials[-1]}The{specials[0]} old"]:
                if special and tokenizer.encode(text, add_special_tokens=False).ids[:1] == [ids.get(bos)]:
                    continue  # begins with BOS already: ours puts no second one
                got = tokenizer.encode(text).ids
                if name in ("around", "only after", "roberta", "bert"):
                    got = got[:-1]  # what stands after a text does not stand after a prompt
                prompts.append({"text": text, "special": special, "ids": got})
        cases.append({"tokenizer": f"{base}.json", "name": name, "post_processor": processor, "prompts": prompts})
sp = sentencepiece.SentencePieceProcessor(model_file=str(here / "llama.model"))
texts = ["The old", "The old llama walks home.", " two  spaces", "1984"]
prompts = [{"text": text, "special": False, "ids": [sp.bos_id()] + sp.encode(text)} for text in texts]
cases.append({"tokenizer": "llama.model", "name": "sentencepiece", "post_processor": None, "prompts": prompts})
(here / "prompts.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
