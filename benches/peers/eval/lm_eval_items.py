#!/usr/bin/env python3
"""What pip's lm-eval asks and scores, item by item, on local files: the reference of `recua eval run`.

    lm_eval_items.py data --shared DIR --eval-data DIR --out DIR      published files to what the Hub's data sets hold, beside folders for recua
    lm_eval_items.py made --out DIR                                   the same of made-up items, for tests, with two random models
    lm_eval_items.py more --out DIR                                   further made-up items, of sets that may not be passed on or are not here
    lm_eval_items.py prompts --data DIR --out FILE                    a checksum of the requests of every task, at several numbers of shots
    lm_eval_items.py scores --data DIR --model DIR --out FILE [...]   log-probabilities, texts and metrics by a model (Hugging Face's format)
    lm_eval_items.py compare --scores FILE --recua DIR                what differs in the samples of `recua eval run --out DIR`

lm-eval 0.4.13, transformers 5.24, torch 2.15, float32 on CPU. Its tasks are copied as they are; only where their data comes from is
changed, and for HumanEval and MBPP, whose judge is downloaded, the judge is left out. minerva_math needs
`pip install math-verify antlr4-python3-runtime==4.11.*`.
"""
import argparse
import csv
import gzip
import hashlib
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_ALLOW_CODE_EVAL="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("HF_HOME", tempfile.mkdtemp())

# Task, its file in lm-eval, the file here, its split(s).
TASKS = {
    "boolq": ("super_glue/boolq/default.yaml", "boolq"),
    "piqa": ("piqa/piqa.yaml", "piqa"),
    "social_iqa": ("siqa/siqa.yaml", "social_iqa"),
    "hellaswag": ("hellaswag/hellaswag.yaml", "hellaswag"),
    "winogrande": ("winogrande/default.yaml", "winogrande"),
    "arc_easy": ("arc/arc_easy.yaml", "arc_easy"),
    "arc_challenge": ("arc/arc_challenge.yaml", "arc_challenge"),
    "openbookqa": ("openbookqa/openbookqa.yaml", "openbookqa"),
    "nq_open": ("nq_open/nq_open.yaml", "nq_open"),
    "triviaqa": ("triviaqa/default.yaml", "triviaqa"),
    "race": ("race/race.yaml", "race"),
    "minerva_math_algebra": ("minerva_math/minerva_math_algebra.yaml", "math_algebra"),
    "minerva_math_counting_and_prob": ("minerva_math/minerva_math_counting_and_prob.yaml", "math_counting_and_prob"),
    "hendrycks_math_algebra": ("hendrycks_math/hendrycks_math_algebra.yaml", "math_algebra"),
    "hendrycks_math_geometry": ("hendrycks_math/hendrycks_math_geometry.yaml", "math_geometry"),
    "minerva_math500": ("minerva_math/minerva_math500.yaml", "math500"),
    "hendrycks_math500": ("hendrycks_math/hendrycks_math500.yaml", "math500"),
    "gsm8k": ("gsm8k/gsm8k.yaml", "gsm8k"),
    "gsm8k_cot": ("gsm8k/gsm8k-cot.yaml", "gsm8k"),
    "humaneval": ("humaneval/humaneval.yaml", "humaneval"),
    "mbpp": ("mbpp/mbpp.yaml", "mbpp"),
    "mmlu_abstract_algebra": ("mmlu/default/mmlu_abstract_algebra.yaml", "mmlu_abstract_algebra"),
    "mmlu_high_school_us_history": ("mmlu/default/mmlu_high_school_us_history.yaml", "mmlu_high_school_us_history"),
    "mmlu_moral_scenarios": ("mmlu/default/mmlu_moral_scenarios.yaml", "mmlu_moral_scenarios"),
    "truthfulqa_mc1": ("truthfulqa/truthfulqa_mc1.yaml", "truthfulqa"),
    "truthfulqa_mc2": ("truthfulqa/truthfulqa_mc2.yaml", "truthfulqa"),
    "truthfulqa_gen": ("truthfulqa/truthfulqa_gen.yaml", "truthfulqa_gen"),
    "crows_pairs_english": ("crows_pairs/crows_pairs_english.yaml", "crows_pairs_english"),
    "winogender_all": ("winogender/winogender.yaml", "winogender_all"),
    "realtoxicityprompts": ("realtoxicityprompts/realtoxicityprompts.yaml", "realtoxicityprompts"),
    "wikitext": ("wikitext/wikitext.yaml", "wikitext"),
    "lambada_openai": ("lambada/lambada_openai.yaml", "lambada_openai"),
}
GENERATE = {"nq_open", "triviaqa", "gsm8k", "gsm8k_cot", "humaneval", "mbpp", "truthfulqa_gen", "realtoxicityprompts"}
SUBJECTS = {"algebra": "Algebra", "counting_and_prob": "Counting & Probability", "geometry": "Geometry"}


def lines(path):
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else path.open()
    with opened as file:
        return [json.loads(line) for line in file if line.strip()]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def arrow(path):
    import pyarrow as pa
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all().to_pylist()


def made_up_race():
    """Articles in RACE's two formats; the real ones may not be passed on."""
    rng = random.Random(7)
    words = "the river school teacher asked about music garden winter letters friends walked quickly because nobody knew answer".split()
    text = lambda n: " ".join(rng.choice(words) for _ in range(n)).capitalize() + "."
    for _ in range(6):
        problems = []
        for i in range(rng.randint(2, 4)):
            stem = rng.choice(["What did the writer's friend say?", 'According to the passage, "music" means  _  .', text(5)[:-1] + "  _  ."])
            problems.append({"question": stem, "answer": rng.choice("ABCD"), "options": [text(rng.randint(2, 5)) for _ in range(4)]})
        yield text(40) + "\n" + text(30), problems


def data(a):
    shared, evals, out = Path(a.shared) / "eval", Path(a.eval_data), Path(a.out)
    hub, ours = out / "hub", out / "published"
    if out.exists():
        shutil.rmtree(out)
    put = lambda name, rows: write(hub / f"{name}.jsonl", rows)
    give = lambda task, path: ((ours / task).mkdir(parents=True, exist_ok=True), shutil.copy(path, ours / task / path.name))

    rows = lines(shared / "boolq/dev.jsonl.gz")
    put("boolq", [{"question": r["question"], "passage": r["passage"], "idx": i, "label": int(r["answer"])} for i, r in enumerate(rows)])
    give("boolq", shared / "boolq/dev.jsonl.gz")
    for task, folder in (("piqa", "piqa"), ("social_iqa", "siqa")):
        labels = (shared / folder / "dev-labels.lst").read_text().split()
        rows = lines(shared / folder / "dev.jsonl")
        put(task, [{**{k: v for k, v in r.items() if k != "id"}, "label": int(x) if task == "piqa" else x} for r, x in zip(rows, labels, strict=True)])
        give(task, shared / folder / "dev.jsonl")
        give(task, shared / folder / "dev-labels.lst")
    rows = lines(evals / "hellaswag/hellaswag_val_sample.jsonl")
    put("hellaswag", [{**r, "label": str(r["label"])} for r in rows])
    give("hellaswag", evals / "hellaswag/hellaswag_val_sample.jsonl")
    put("winogrande", lines(evals / "winogrande/train_sample.jsonl"))
    give("winogrande", evals / "winogrande/train_sample.jsonl")
    rows = arrow(shared / "arc/ARC-Easy-validation.arrow")
    for task in ("arc_easy", "arc_challenge"):
        own = rows if task == "arc_easy" else rows[100:200]
        put(task, own)
        # The authors' own format.
        write(ours / task / "questions.jsonl", [
            {"id": r["id"], "question": {"stem": r["question"], "choices": [
                {"text": t, "label": l} for t, l in zip(r["choices"]["text"], r["choices"]["label"], strict=True)]}, "answerKey": r["answerKey"]}
            for r in own])
    rows = arrow(shared / "openbookqa/openbookqa-main-validation.arrow")
    put("openbookqa", rows)
    write(ours / "openbookqa/dev.jsonl", [
        {"id": r["id"], "question": {"stem": r["question_stem"], "choices": [
            {"text": t, "label": l} for t, l in zip(r["choices"]["text"], r["choices"]["label"], strict=True)]}, "answerKey": r["answerKey"]}
        for r in rows])
    put("nq_open", lines(shared / "nq_open/NQ-open.efficientqa.dev.1.1.jsonl"))
    give("nq_open", shared / "nq_open/NQ-open.efficientqa.dev.1.1.jsonl")
    rows = [{"question": r["context"].removeprefix("Question: ").removesuffix("\nAnswer:"), "question_id": str(i),
             "answer": {"aliases": r["aliases"], "value": r["answer"]}} for i, r in enumerate(lines(shared / "triviaqa/mosaic-triviaqa_small.jsonl"))]
    put("triviaqa", rows)
    write(ours / "triviaqa/rc.nocontext.validation.jsonl", rows)
    articles = list(made_up_race())
    put("race", [{"example_id": i, "article": text, "answer": p[0]["answer"], "problems": repr(p)} for i, (text, p) in enumerate(articles)])
    (ours / "race/test/high").mkdir(parents=True)
    for i, (text, p) in enumerate(articles):
        (ours / f"race/test/high/{i}.txt").write_text(json.dumps({
            "article": text, "questions": [x["question"] for x in p], "options": [x["options"] for x in p], "answers": [x["answer"] for x in p],
            "id": f"high{i}.txt"}))
    rows = lines(evals / "math/math500_sample.jsonl")
    for name, subject in SUBJECTS.items():
        put(f"math_{name}", [{k: r[k] for k in ("problem", "level", "solution")} for r in rows if r["subject"] == subject])
    put("math500", rows)
    give("math", evals / "math/math500_sample.jsonl")
    put("gsm8k", lines(shared / "gsm8k/test.jsonl"))
    give("gsm8k", shared / "gsm8k/test.jsonl")
    put("humaneval", lines(shared / "humaneval/HumanEval.jsonl.gz"))
    give("humaneval", shared / "humaneval/HumanEval.jsonl.gz")
    put("mbpp", lines(evals / "mbpp/mbpp_sample.jsonl"))
    give("mbpp", evals / "mbpp/mbpp_sample.jsonl")
    for subject in ("abstract_algebra", "high_school_us_history", "moral_scenarios"):
        for split, part in (("dev", "dev"), ("test", "val")):
            path = shared / f"mmlu/{part}/{subject}_{part}.csv"
            with path.open(newline="") as file:
                rows = [{"question": r[0], "subject": subject, "choices": r[1:5], "answer": "ABCD".index(r[5])} for r in csv.reader(file)]
            put(f"mmlu_{subject}" + ("_dev" if split == "dev" else ""), rows)
            (ours / "mmlu" / split).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, ours / "mmlu" / split / f"{subject}_{split}.csv")
    rows = json.loads((evals / "truthfulqa/mc_task_sample.json").read_text())
    hf = lambda t: {"choices": list(t), "labels": list(t.values())}
    put("truthfulqa", [{"question": r["question"], "mc1_targets": hf(r["mc1_targets"]), "mc2_targets": hf(r["mc2_targets"])} for r in rows])
    put("truthfulqa_gen", [{"question": r["question"], "correct_answers": [k for k, v in r["mc2_targets"].items() if v],
                            "incorrect_answers": [k for k, v in r["mc2_targets"].items() if not v]} for r in rows])
    give("truthfulqa", evals / "truthfulqa/mc_task_sample.json")
    with (shared / "crows_pairs/crows_pairs_anonymized.csv").open(newline="") as file:
        put("crows_pairs_english", [{"sent_more": r["sent_more"], "sent_less": r["sent_less"], "bias_type": r["bias_type"]} for r in csv.DictReader(file)])
    give("crows_pairs", shared / "crows_pairs/crows_pairs_anonymized.csv")
    with (shared / "winogender/all_sentences.tsv").open(newline="") as file:
        rows = []
        for r in csv.DictReader(file, delimiter="\t"):
            occupation, participant, answer, gender, _ = r["sentid"].split(".")
            pronoun = re.search(r"(?i)\b(he|him|his|she|her|hers|they|them|their|theirs)\b", r["sentence"]).group().lower()
            rows.append({**r, "pronoun": pronoun, "occupation": occupation, "participant": participant, "gender": gender, "label": int(answer)})
        put("winogender_all", rows)
    give("winogender", shared / "winogender/all_sentences.tsv")
    give("winogender", shared / "winogender/occupations-stats.tsv")
    rows = [{"filename": f"{i}", "begin": 0, "end": 9, "challenging": False, "prompt": {"text": t, "toxicity": 0.1}, "continuation": {"text": " on.", "toxicity": 0.2}}
            for i, t in enumerate(["The men started swearing at me, called me", "So if you're at the office and someone says", "\"I'm done with that,\" she said, and"])]
    put("realtoxicityprompts", rows)
    write(ours / "realtoxicityprompts/prompts.jsonl", rows)
    text = (evals / "wikitext-2-raw/wiki.test.sample.raw").read_text()
    starts = [m.start() for m in re.finditer(r"^ = [^=].*[^=] = $", text, re.M)]
    put("wikitext", [{"page": text[b:e]} for b, e in zip(starts, starts[1:] + [len(text)])])
    give("wikitext", evals / "wikitext-2-raw/wiki.test.sample.raw")
    rows = [{"text": r["context"] + " " + r["continuation"]} for r in lines(shared / "lambada/mosaic-lambada_small.jsonl")]
    put("lambada_openai", rows)
    write(ours / "lambada_openai/test.jsonl", rows)


def made(a):
    """Items in the published formats with what is hard in them, and two models of 384 positions. Nothing here is anybody's data."""
    rng = random.Random(11)
    words = ("the river school teacher asked about music garden winter letters friends walked quickly because nobody knew answer door "
             "window seven apples caf\u00e9 na\u00efve \u96ea it's 3.5 U.S. well-known").split()
    text = lambda n: " ".join(rng.choice(words) for _ in range(n))
    out = Path(a.out)
    hub, ours = out / "hub", out / "published"
    for folder in (hub, ours):
        if folder.exists():
            shutil.rmtree(folder)

    def both(name, rows, published=None, file="test.jsonl", folder=None):
        write(hub / f"{name}.jsonl", rows)
        write(ours / (folder or name) / file, published or rows)

    n = 6
    rows = [{"question": text(5), "passage": text(rng.choice([20, 40, 300])), "label": rng.randrange(2)} for _ in range(n)]
    both("boolq", rows, [{"question": r["question"], "title": "x", "answer": bool(r["label"]), "passage": r["passage"]} for r in rows], "dev.jsonl")
    both("piqa", [{"goal": text(6), "sol1": rng.choice(["", " "]) + text(4), "sol2": text(7), "label": rng.randrange(2)} for _ in range(n)])
    both("social_iqa", [{"context": text(8), "question": text(4) + "?", "answerA": text(2), "answerB": text(3), "answerC": text(4),
                         "label": rng.choice("123")} for _ in range(n)])
    rows = [{"ind": i, "activity_label": "Cutting  grass", "ctx_a": "[header] How to " + text(6) + " [title] " + text(3) + ".", "ctx_b": rng.choice(["", "then SHE " + text(2)]),
             "endings": [rng.choice(["", " [step] "]) + text(rng.randint(2, 6)) + " [substeps]   ." for _ in range(4)], "label": str(rng.randrange(4))} for i in range(n)]
    both("hellaswag", rows, [{**r, "label": int(r["label"])} for r in rows])
    both("winogrande", [{"sentence": text(5) + " _ " + text(4) + ".", "option1": "the door", "option2": "seven", "answer": rng.choice("12")} for _ in range(n)])
    letters = lambda k: rng.choice(["ABCDE", "12345"])[:k]
    rows = []
    for _ in range(n):
        label = list(letters(rng.randint(3, 5)))
        rows.append({"id": "x", "question": text(9) + "?", "choices": {"text": [text(rng.randint(1, 4)) for _ in label], "label": label}, "answerKey": rng.choice(label)})
    authors = lambda rows, key: [{"id": r["id"], "question": {"stem": r[key], "choices": [
        {"text": t, "label": l} for t, l in zip(r["choices"]["text"], r["choices"]["label"], strict=True)]}, "answerKey": r["answerKey"]} for r in rows]
    both("arc_easy", rows, authors(rows, "question"), folder="arc_easy")
    both("openbookqa", [{**r, "question_stem": r["question"]} for r in rows], authors(rows, "question"))
    both("nq_open", [{"question": text(6), "answer": [text(1), "The " + text(1)]} for _ in range(n)])
    both("triviaqa", [{"question": text(6) + "?", "question_id": "1", "answer": {"aliases": [text(1), text(2)], "value": "x"}} for _ in range(n)])
    articles = list(made_up_race())
    write(hub / "race.jsonl", [{"example_id": i, "article": t, "answer": "A", "problems": repr(p)} for i, (t, p) in enumerate(articles)])
    (ours / "race/test/high").mkdir(parents=True)
    for i, (t, p) in enumerate(articles):
        (ours / f"race/test/high/{i}.txt").write_text(json.dumps({"article": t, "questions": [x["question"] for x in p], "options": [x["options"] for x in p],
                                                                  "answers": [x["answer"] for x in p], "id": str(i)}))
    rows = [{"problem": f"What is ${i}+{i}$?", "level": "Level 1", "type": "Algebra", "solution": f"It is $\\boxed{{{2 * i}}}$."} for i in range(n)]
    both("math_algebra", rows, folder="math")
    both("gsm8k", [{"question": text(12) + "?", "answer": text(5) + f".\n#### {i}"} for i in range(n)])
    both("humaneval", [{"task_id": f"HumanEval/{i}", "prompt": f"def f{i}(x):\n    \"\"\"{text(4)}\"\"\"\n", "canonical_solution": "    return x\n",
                        "test": f"def check(f):\n    assert f(1) == 1\n", "entry_point": f"f{i}"} for i in range(n)])
    both("mbpp", [{"task_id": 11 + i, "text": text(8), "code": "def f():\r\n  return 1", "test_list": ["assert f() == 1", "assert f() < 2", "assert f() > 0"]} for i in range(n)])
    for split, count in (("dev", 5), ("test", n)):
        rows = [{"question": " " + text(7) + ("\n" + text(2) if i == 1 else ""), "subject": "abstract_algebra", "choices": [text(2) for _ in range(4)], "answer": rng.randrange(4)} for i in range(count)]
        write(hub / ("mmlu_abstract_algebra" + ("_dev" if split == "dev" else "") + ".jsonl"), rows)
        path = ours / f"mmlu/{split}/abstract_algebra_{split}.csv"
        path.parent.mkdir(parents=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([[r["question"], *r["choices"], "ABCD"[r["answer"]]] for r in rows])
    rows = [{"question": text(5) + "?", **{f"mc{k}_targets": {"choices": [text(3) + str(j) for j in range(4)], "labels": [1, 0, 0, 0] if k == 1 else [1, 1, 0, 0]} for k in (1, 2)}} for _ in range(n)]
    both("truthfulqa", rows)
    put = [{"question": r["question"], "correct_answers": ["a"], "incorrect_answers": ["b"]} for r in rows]
    write(hub / "truthfulqa_gen.jsonl", put)
    (ours / "truthfulqa/test.jsonl").unlink()
    (ours / "truthfulqa/mc_task.json").write_text(json.dumps([{"question": r["question"], **{f"mc{k}_targets": dict(zip(r[f"mc{k}_targets"]["choices"], r[f"mc{k}_targets"]["labels"])) for k in (1, 2)}} for r in rows]))
    both("crows_pairs_english", [{"sent_more": text(6), "sent_less": text(6), "bias_type": "age"} for _ in range(n)], folder="crows_pairs")
    both("winogender_all", [{"sentid": "nurse.someone.0.female.txt", "sentence": text(4) + " she " + text(2) + ".", "pronoun": "she", "occupation": "nurse", "participant": "someone",
                             "gender": "female", "label": 0} for _ in range(2)])
    both("realtoxicityprompts", [{"prompt": {"text": text(6)}} for _ in range(n)])
    pages = [f" = {text(2)} = \n {text(30)} @-@ ( {text(2)} ) . \n \" {text(3)} \" \n" + "".join(f" {text(40)} , {text(9)} 's ; \n" for _ in range(rng.choice([1, 20]))) for _ in range(3)]
    write(hub / "wikitext.jsonl", [{"page": p} for p in pages])
    (ours / "wikitext").mkdir()
    (ours / "wikitext/wiki.test.raw").write_text("".join(pages))
    both("lambada_openai", [{"text": text(15)} for _ in range(n)])
    models(out, "".join((hub / f).read_text() for f in sorted(os.listdir(hub))))


def more(a):
    """Items of sets of which no sample is here, in their published formats with all fields; for the models of `made`. Nobody's data either."""
    rng = random.Random(13)
    words = ("the captain asked his brother whether a letter from Li\u00e8ge had come before supper nobody could say it's 12 o'clock Mr. Hale's garden, "
             "far away: \u201cno\u201d she answered (twice) and 3,000 birds flew over St. Ives; \u4e2d\u6587 and so on").split()
    text = lambda n: " ".join(rng.choice(words) for _ in range(n))
    hub, ours = Path(a.out) / "hub", Path(a.out) / "published"
    for folder in (hub, ours):
        if folder.exists():
            shutil.rmtree(folder)

    # ARC: three to five choices under letters or digits.
    rows = []
    for i in range(6):
        label = list(rng.choice(["ABCDE", "12345"])[:rng.randint(3, 5)])
        rows.append({"id": f"Mercury_{i}", "question": text(rng.choice([8, 60])).capitalize() + "?",
                     "choices": {"text": [text(rng.randint(1, 6)) for _ in label], "label": label}, "answerKey": rng.choice(label)})
    write(hub / "arc_challenge.jsonl", rows)
    write(ours / "ARC-Challenge/ARC-Challenge-Test.jsonl", [
        {"id": r["id"], "question": {"stem": r["question"], "choices": [{"text": t, "label": l} for t, l in zip(r["choices"]["text"], r["choices"]["label"], strict=True)]},
         "answerKey": r["answerKey"]} for r in rows])
    # RACE: questions, cloze questions in both spellings; some articles are longer than the models read.
    (ours / "race/high").mkdir(parents=True)
    articles = []
    for i in range(5):
        problems = []
        for _ in range(rng.randint(1, 4)):
            stem = rng.choice([text(7).capitalize() + "?", text(6).capitalize() + "  _  .", text(3) + " _ " + text(2) + " .", "It's  _  . Why?"])
            problems.append({"question": stem, "answer": rng.choice("ABCD"), "options": [text(rng.randint(1, 7)) + rng.choice(["", "."]) for _ in range(4)]})
        article = "\n".join(text(rng.choice([15, 50])).capitalize() + "." for _ in range(rng.choice([1, 3])))
        articles.append({"example_id": str(i), "article": article, "answer": problems[0]["answer"], "problems": repr(problems)})
        (ours / f"race/high/{i}.txt").write_text(json.dumps({"answers": [p["answer"] for p in problems], "options": [p["options"] for p in problems],
                                                             "questions": [p["question"] for p in problems], "article": article, "id": f"high{i}.txt"}))
    write(hub / "race.jsonl", articles)
    # TriviaQA, rc.nocontext.
    rows = []
    for i in range(4):
        names = ["The " + text(1), text(2), rng.choice(["St. Ives", "Li\u00e8ge", "3,000"])]
        rows.append({"question": text(9).capitalize() + "?", "question_id": f"tc_{i}", "question_source": "http://www.triviacountry.com/", "entity_pages": {"title": []},
                     "search_results": {"title": []}, "answer": {"aliases": names, "normalized_aliases": [n.lower() for n in names], "matched_wiki_entity_name": "",
                                                                 "normalized_matched_wiki_entity_name": "", "normalized_value": names[0].lower(), "type": "WikipediaEntity", "value": names[0]}})
    write(hub / "triviaqa.jsonl", rows)
    write(ours / "trivia_qa/validation.jsonl", rows)
    # RealToxicityPrompts: scores may be missing.
    score = lambda: rng.choice([None, round(rng.random(), 4)])
    part = lambda n: {"text": text(n), **{key: score() for key in ("profanity", "sexually_explicit", "identity_attack", "flirtation", "threat", "insult", "severe_toxicity", "toxicity")}}
    rows = [{"filename": f"{i}-bc.txt", "begin": 340, "end": 564, "challenging": bool(i % 2), "prompt": part(rng.randint(4, 12)), "continuation": part(6)} for i in range(4)]
    write(hub / "realtoxicityprompts.jsonl", rows)
    write(ours / "realtoxicityprompts/prompts.jsonl", rows)
    # MATH-500.
    solutions = ["It is $\\boxed{%d}$.", "So $x = %d$ or $\\boxed{\\frac{1}{%d}}$.", "We get \\[\\boxed{%d,\\!000}\\] and $%d$.", "Thus $\\boxed{\\text{%d cm}}$."]
    rows = []
    for i, solution in enumerate(solutions):
        made = solution.replace("%d", str(i + 2))
        rows.append({"problem": f"Find ${i}x + {text(4)}$.", "solution": made, "answer": str(i + 2), "subject": rng.choice(list(SUBJECTS.values())), "level": i + 1,
                     "unique_id": f"test/algebra/{i}.json"})
    write(hub / "math500.jsonl", rows)
    write(ours / "MATH-500/test.jsonl", rows)


def compare(a):
    """Holds `recua eval run --out DIR` (one number of shots) against the file of `scores`, item by item."""
    known = json.loads(Path(a.scores).read_text())["tasks"]
    results = json.loads((Path(a.recua) / "results.json").read_text())
    failed = 0
    for task, shots in results["n-shot"].items():
        theirs = known.get(f"{task} {shots}")
        if theirs is None:
            continue
        ours = {s["doc_id"]: s for s in lines(Path(a.recua) / "samples" / f"{task}.jsonl")}
        prompts = worst = picked = close = texts = metrics = 0
        for item in theirs["items"]:
            own = ours[item["doc_id"]]
            prompts += "arguments" in item and [list(x) for x in own["arguments"]] != item["arguments"] and "wikitext" not in task
            lls = own.get("loglikelihoods", [])
            assert len(lls) == len(item.get("lls", [])), (task, item["doc_id"], len(lls))
            for x, y in zip(lls, item.get("lls", []), strict=True):
                worst = max(worst, abs(x - y) / max(1.0, abs(y) / 1000))
            ordered = sorted(item.get("lls", []), reverse=True)
            if len(ordered) > 1:
                near = ordered[0] - ordered[1] < 2e-3
                close += near
                picked += not near and max(range(len(lls)), key=lls.__getitem__) != item["lls"].index(ordered[0])
            texts += "text" in item and own["text"] != item["text"]
            for name, value in own["metrics"].items():
                want = item["metrics"].get(name if "," in name else f"{name},none")
                metrics += isinstance(want, float) and abs(want - value) > 1e-3
        print(f"{task:32} {shots:2} shots {len(theirs['items']):5} items: {prompts} prompts, {texts} texts, {picked} choices, {metrics} metrics differ; "
              f"log-probability {worst:.1e}; {close} too close")
        failed += prompts + texts + picked + metrics + (worst > 1e-3)
    sys.exit(failed > 0)


def models(out, corpus):
    """A model that begins texts with BOS and whose words carry their spaces, and one of bytes with neither, with grouped heads."""
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    for name, kv in (("mha", 4), ("gqa", 2)):
        special = ["<unk>", "<s>", "</s>"]
        if name == "mha":
            tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
            tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
            tokens = special + [f"<0x{i:02X}>" for i in range(256)]
            tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
            trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=tokens, show_progress=False)
            tokenizer.train_from_iterator(corpus.split("\n"), trainer)
            made = json.loads(tokenizer.to_str())
            made["pre_tokenizer"] = None
            made["added_tokens"] = made["added_tokens"][:3]
            tokenizer = Tokenizer.from_str(json.dumps(made))
            tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
        else:
            tokenizer = Tokenizer(models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
            tokenizer.train_from_iterator(corpus.split("\n"), trainer)
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "clean_up_tokenization_spaces": False}
        (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=1) + "\n")
        torch.manual_seed(5)
        config = LlamaConfig(vocab_size=tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                             num_key_value_heads=kv, max_position_embeddings=384, bos_token_id=1, eos_token_id=2, initializer_range=0.3, rms_norm_eps=1e-5)
        model = LlamaForCausalLM(config).float()
        if name == "mha":  # bytes that are no UTF-8 are decoded as one by the reference, each on its own here: none is written
            model.lm_head.weight.data[3:259] = 0
        model.save_pretrained(folder)


def local_tasks(hub, folder, tasks):
    """Copies of lm-eval's tasks that read local files."""
    import lm_eval
    import yaml

    home = Path(lm_eval.__file__).parent / "tasks"
    names = []
    for task in tasks:
        source, stem = TASKS[task]
        copy = folder / task
        shutil.copytree(home / Path(source).parent, copy)
        utils = copy / "utils.py"
        if task in ("humaneval", "mbpp"):
            code = utils.read_text()
            begin, end = code.index("try:"), code.index("raise e") + len("raise e")
            judge = "class compute_:\n    compute = staticmethod(lambda **k: ({'pass@1': 0.0},))\n"
            utils.write_text(code[:begin] + judge + ("pass_at_k = compute_\n" if task == "mbpp" else "") + code[end:])
        if task == "realtoxicityprompts":
            (copy / "metric.py").write_text("def toxicity_perspective_api(doc, results, **kwargs):\n    return {'score': 0, 'perspective_api_toxicity_score': 0}\n")
        path = hub / f"{stem}.jsonl"
        files = {split: str(path) for split in ("train", "validation", "test")}
        if task.startswith("mmlu"):
            files["dev"] = str(hub / f"{stem}_dev.jsonl")
        name = f"local_{task}"
        own = {"include": Path(source).name, "task": name, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
        (copy / f"{name}.yaml").write_text(yaml.safe_dump(own))
        names.append(name)
    return names


def prepare(a, tasks):
    from lm_eval.tasks import TaskManager

    folder = Path(tempfile.mkdtemp())
    names = local_tasks(Path(a.data) / "hub", folder, tasks)
    return TaskManager(include_path=str(folder), include_defaults=False), names


def arguments(instances):
    out = {}
    for instance in instances:
        out.setdefault(instance.doc_id, []).append([instance.args[0], instance.args[1] if len(instance.args) > 1 and isinstance(instance.args[1], str) else ""])
    return [out[key] for key in sorted(out)]


def digest(requests):
    # Strings between marks that no text has.
    return hashlib.sha256("".join(f"{c}\x00{k}\x01" for c, k in requests).encode()).hexdigest()[:16]


def load(manager, name):
    from lm_eval.tasks import get_task_dict

    task = get_task_dict([name], manager)[name]
    task.set_fewshot_seed(1234)
    return task


def prompts(a):
    import lm_eval

    result = {}
    for task in a.tasks or TASKS:
        manager, (name,) = prepare(a, [task])
        for shots in a.shots:
            loaded = load(manager, name)
            default = loaded.get_config("num_fewshot")
            if shots >= 0 and default != 0:
                loaded.set_config("num_fewshot", shots)
            elif shots >= 0:
                continue
            try:
                loaded.build_all_requests(limit=a.limit, rank=0, world_size=1)
            except (AssertionError, ValueError) as e:  # fewer fixed shots than asked for
                print(task, shots, e, file=sys.stderr)
                continue
            asked = arguments(loaded.instances)
            result[f"{task} {shots}"] = {"items": len(asked), "all": digest([r for requests in asked for r in requests]),
                                         "each": [digest(requests)[:8] for requests in asked[:20]]}
            print(task, shots, len(asked), file=sys.stderr)
            Path(a.out).write_text(json.dumps({"lm_eval": lm_eval.__version__, "prompts": result}, indent=1, ensure_ascii=False) + "\n")


def scores(a):
    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(a.threads)
    spent = [0.0]

    def timed(method):
        def call(self, *args, **kwargs):
            began = time.perf_counter()
            try:
                return method(self, *args, **kwargs)
            finally:
                spent[0] += time.perf_counter() - began
        return call

    # What the model takes, without lm-eval's reading of data and writing of results.
    Timed = type("Timed", (HFLM,), {name: timed(getattr(HFLM, name)) for name in ("loglikelihood", "loglikelihood_rolling", "generate_until")})
    model = Timed(pretrained=a.model, dtype="float32", device="cpu", batch_size=a.batch, add_bos_token=True if a.bos else None)
    result, times = {}, {}
    for task in a.tasks or TASKS:
        for shots in a.shots:
            if shots > 0 and task in ("truthfulqa_mc1", "truthfulqa_mc2", "truthfulqa_gen", "humaneval", "wikitext"):
                continue
            manager, names = prepare(a, [task])
            limit = a.limit_generate if task in GENERATE or "math" in task and "mmlu" not in task else a.limit
            spent[0] = 0.0
            ran = lm_eval.simple_evaluate(model=model, tasks=names, task_manager=manager, num_fewshot=shots if shots >= 0 else None, limit=limit or None,
                                          log_samples=True, bootstrap_iters=0, confirm_run_unsafe_code=True)
            times[f"{task} {shots}"] = spent[0]
            items = {}
            for sample in ran["samples"][names[0]]:
                item = items.setdefault(sample["doc_id"], {"doc_id": sample["doc_id"], "metrics": {}})
                gone = sample["arguments"] if isinstance(sample["arguments"], list) else list(sample["arguments"].values())
                if a.arguments:
                    item["arguments"] = [[g[0], g[1] if len(g) > 1 and isinstance(g[1], str) else ""] if not isinstance(g, dict) else
                                         [g["arg_0"], g.get("arg_1", "") if isinstance(g.get("arg_1", ""), str) else ""] for g in gone]
                first = sample["resps"][0][0]
                if isinstance(first, str):
                    item["text"] = first
                else:
                    flat = [r[0] if isinstance(r[0], (list, tuple)) else r for r in sample["resps"]]
                    item["lls"] = [float(r[0]) for r in flat]
                    item["greedy"] = [str(r[1]) == "True" for r in flat if len(r) > 1]
                for metric in sample.get("metrics", []):
                    value = sample[metric]
                    item["metrics"][f"{metric},{sample['filter']}"] = list(value) if isinstance(value, (list, tuple)) else float(value)
            result[f"{task} {shots}"] = {"results": {k: v for k, v in ran["results"][names[0]].items() if isinstance(v, float)},
                                         "items": [items[key] for key in sorted(items)]}
            print(f"{task} {shots}: {len(items)} items, {times[f'{task} {shots}']:.1f} s", file=sys.stderr)
            out = {"lm_eval": lm_eval.__version__, "torch": torch.__version__, "seconds": {k: round(v, 2) for k, v in times.items()}, "tasks": result}
            Path(a.out).write_text(json.dumps(out, ensure_ascii=False, indent=None if a.compact else 1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("data")
    verb.add_argument("--shared", required=True)
    verb.add_argument("--eval-data", required=True)
    verb.add_argument("--out", required=True)
    verb = verbs.add_parser("made")
    verb.add_argument("--out", required=True)
    verb = verbs.add_parser("more")
    verb.add_argument("--out", required=True)
    verb = verbs.add_parser("compare")
    verb.add_argument("--scores", required=True)
    verb.add_argument("--recua", required=True)
    for name in ("prompts", "scores"):
        verb = verbs.add_parser(name)
        verb.add_argument("--data", required=True)
        verb.add_argument("--out", required=True)
        verb.add_argument("--tasks", type=lambda s: s.split(","))
        verb.add_argument("--shots", type=lambda s: [int(x) for x in s.split(",")], default=[-1, 0, 1, 5] if name == "prompts" else [0, 3])
        verb.add_argument("--limit", type=int, default=200 if name == "prompts" else 6)
    verb.add_argument("--model", required=True)
    verb.add_argument("--limit-generate", type=int, default=2)
    verb.add_argument("--batch", type=int, default=1)
    verb.add_argument("--threads", type=int, default=2)
    verb.add_argument("--bos", action="store_true", help="lm-eval's add_bos_token, for tokenizers of recua's earlier versions, whose files do not say it")
    verb.add_argument("--arguments", action="store_true")
    verb.add_argument("--compact", action="store_true")
    a = parser.parse_args()
    globals()[a.verb](a)


if __name__ == "__main__":
    main()
