#!/usr/bin/env python3
"""lm-eval against a running `recua serve`: its scores are the model's own, item by item.

    python3 -m venv V && V/bin/pip install 'lm-eval[api]'
    V/bin/python tests/clients/lm_eval_scores.py http://127.0.0.1:8080 RECUA MODEL

Makes a small task of choices and one of whole texts as local files, runs lm-eval's `local-completions` with the server's own tokenizer
(`tokenizer_backend=remote`, several requests at once), and computes the same numbers with `recua eval score` from the model on disk.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import urllib.request

WORDS = "fn let mut pub struct impl self match return vec string error result option some none use crate test assert".split()
# Float32 sums are the same on both sides, but for the decimals of JSON.
BOUND = 1e-4


def ask(url: str, path: str, body: dict) -> dict:
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    return json.load(urllib.request.urlopen(request))


def direct(recua: str, model: str, rows: list[list[int]]) -> list[list[float]]:
    out = subprocess.run([recua, "eval", "score", "--model", model, "--json"], input="".join(json.dumps(r) + "\n" for r in rows),
                         capture_output=True, text=True, check=True)
    return [json.loads(line)["logprobs"] for line in out.stdout.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("recua")
    parser.add_argument("model")
    parser.add_argument("--items", type=int, default=24)
    a = parser.parse_args()
    url = a.url.rstrip("/")
    r = random.Random(7)
    text = lambda n: " ".join(r.choice(WORDS) for _ in range(n))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        items = [{"q": text(r.randint(1, 12)), "choices": [text(r.randint(1, 4)) + r.choice(["", " é", " 🦙", ";"]) for _ in range(4)],
                  "gold": r.randrange(4)} for _ in range(a.items)]
        (folder / "choices.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items))
        pages = [{"page": "\n".join(text(6) for _ in range(4))} for _ in range(4)]
        (folder / "pages.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pages))
        files = lambda which: f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / which}}}}}\ntest_split: test\n"
        (folder / "choices.yaml").write_text(
            "task: recua_choices\n" + files("choices.jsonl") + "output_type: multiple_choice\n"
            'doc_to_text: "{{q}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: gold\nmetric_list:\n  - metric: acc\n')
        (folder / "pages.yaml").write_text(
            "task: recua_pages\n" + files("pages.jsonl") + "output_type: loglikelihood_rolling\n"
            'doc_to_text: ""\ndoc_to_target: "{{page}}"\nmetric_list:\n  - metric: bits_per_byte\n')
        longest = json.load(urllib.request.urlopen(url + "/v1/models"))["data"][0].get("max_model_len", 256)
        arguments = f"model=any,base_url={url}/v1/completions,tokenizer_backend=remote,num_concurrent=4,max_length={longest},max_retries=1"
        ran = subprocess.run(
            [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments, "--tasks",
             "recua_choices,recua_pages", "--include_path", folder, "--log_samples", "--output_path", folder / "out"],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OPENAI_API_KEY": "none"},
            capture_output=True, text=True)
        if ran.returncode:
            sys.exit(ran.stdout[-2000:] + ran.stderr[-4000:])
        encode = lambda t: ask(url, "/tokenize", {"prompt": t, "add_special_tokens": False})["tokens"]
        worst, compared = 0.0, 0
        samples = lambda task: [json.loads(line) for file in (folder / "out").rglob(f"samples_{task}_*.jsonl") for line in file.open()]
        rows, begins, theirs = [], [], []
        for sample in samples("recua_choices"):
            for argument, answer in zip(sample["arguments"].values() if isinstance(sample["arguments"], dict) else sample["arguments"],
                                        sample["filtered_resps"], strict=True):
                context, more = (argument["arg_0"], argument["arg_1"]) if isinstance(argument, dict) else argument[:2]
                whole, start = encode(context + more), len(encode(context))
                rows.append(whole)
                begins.append(start)
                theirs.append(float(answer[0]))
        for ours, start, other in zip(direct(a.recua, a.model, rows), begins, theirs, strict=True):
            worst = max(worst, abs(sum(ours[start - 1:]) - other))
            compared += 1
        assert compared == 4 * a.items, compared
        eos = json.load(urllib.request.urlopen(url + "/tokenizer_info"))
        prefix = ask(url, "/tokenize", {"prompt": eos["bos_token"] or eos["eos_token"], "add_special_tokens": False, "parse_special": True})["tokens"]
        for sample in samples("recua_pages"):
            ours = direct(a.recua, a.model, [prefix + encode(sample["doc"]["page"])])[0]
            answer = sample["filtered_resps"][0]
            worst = max(worst, abs(sum(ours) - float(answer[0] if isinstance(answer, list) else answer)))
            compared += 1
        print(f"{compared} scores of lm-eval, the largest difference from the model's own {worst:.1e}")
        sys.exit(worst > BOUND)


if __name__ == "__main__":
    main()
