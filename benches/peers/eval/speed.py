#!/usr/bin/env python3
"""`recua eval run` and pip's lm-eval (`hf`, float32, CPU) in turn: the same questions, the same exported model, as many threads each.

    speed.py RECUA --model RUN --shared DIR --eval-data DIR [--rounds 5] [--threads 2] [--shots 0] [--work DIR] [--json FILE]

RUN is a run, a checkpoint or a Hugging Face folder; it is exported once. Each round asks both of every task, and each round the other one
begins. Times are of the answers alone: neither the start of a process, nor the reading of model and data, nor the writing of results. For
lm-eval that is the time in `loglikelihood` and `loglikelihood_rolling` of its `HFLM`, whose batch size is the fastest of --batches, tried
once before; for recua the `seconds` of its results, which count its judging too. Both must give the same metrics. The table has a row a task:
medians, and the median of the rounds' ratios with the least and the largest; the last rows are sums over the multiple-choice tasks.

lm-eval 0.4.13, transformers, torch, accelerate; see lm_eval_items.py, whose data this makes in --work.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import lm_eval_items as items

CHOICES = ["boolq", "piqa", "social_iqa", "hellaswag", "winogrande", "arc_easy", "openbookqa", "mmlu_abstract_algebra", "mmlu_moral_scenarios",
           "truthfulqa_mc2", "crows_pairs_english", "winogender_all"]
ROLLING = ["wikitext"]
# Questions of each task, so that a round takes a minute or two; of WikiText 6 pages are here.
LIMIT = {"boolq": 40, "truthfulqa_mc2": 40, "wikitext": 6}


def ours(a, model, published, task):
    """Seconds, and the first metric."""
    out = subprocess.run([a.recua, "eval", "run", "--model", model, "--tasks", task, "--data", published, "--shots", str(a.shots), "--limit", str(LIMIT.get(task, a.limit)),
                          "--threads", str(a.threads), "--json"], check=True, capture_output=True, text=True).stdout
    results = json.loads(out)
    one = results["tasks"][0]
    value = one["metrics"][one["info"]["metrics"][0]]["value"]
    return results["run"]["seconds"], value, results["run"]["parameters"]


class Theirs:
    def __init__(self, a, model, batch):
        import torch
        from lm_eval.models.huggingface import HFLM

        torch.set_num_threads(a.threads)
        self.spent = 0.0
        outer = self

        def timed(method):
            def call(self, *args, **kwargs):
                began = time.perf_counter()
                try:
                    return method(self, *args, **kwargs)
                finally:
                    outer.spent += time.perf_counter() - began
            return call

        timed_model = type("Timed", (HFLM,), {name: timed(getattr(HFLM, name)) for name in ("loglikelihood", "loglikelihood_rolling")})
        self.model = timed_model(pretrained=model, dtype="float32", device="cpu", batch_size=batch, add_bos_token=True if a.bos else None)
        self.managers = {}

    def run(self, a, task):
        import lm_eval

        if task not in self.managers:
            self.managers[task] = items.prepare(SimpleNamespace(data=a.work), [task])
        manager, names = self.managers[task]
        self.spent = 0.0
        ran = lm_eval.simple_evaluate(model=self.model, tasks=names, task_manager=manager, num_fewshot=a.shots, limit=LIMIT.get(task, a.limit), log_samples=False, bootstrap_iters=0)
        metrics = {key.split(",")[0]: value for key, value in ran["results"][names[0]].items() if key.endswith(",none") and "stderr" not in key}
        return self.spent, metrics


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recua")
    parser.add_argument("--model", required=True)
    parser.add_argument("--shared", required=True)
    parser.add_argument("--eval-data", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--shots", type=int, default=0, help="examples before each question; where there are some, name tasks that have any")
    parser.add_argument("--batches", type=lambda s: [int(x) for x in s.split(",")], default=[1, 8])
    parser.add_argument("--tasks", type=lambda s: s.split(","), default=CHOICES + ROLLING)
    parser.add_argument("--bos", action="store_true", help="lm-eval's add_bos_token, for tokenizers of recua's earlier versions, whose files do not say it")
    parser.add_argument("--work", default=None)
    parser.add_argument("--json", default=None)
    a = parser.parse_args()
    a.recua = str(Path(a.recua).resolve())
    a.work = a.work or tempfile.mkdtemp()
    os.environ.update(OMP_NUM_THREADS=str(a.threads), MKL_NUM_THREADS=str(a.threads))
    if not (Path(a.work) / "hub").is_dir():
        # `data` empties its folder.
        items.data(SimpleNamespace(shared=a.shared, eval_data=a.eval_data, out=a.work))
    model = str(Path(a.work) / "model")
    if not Path(model).is_dir():
        subprocess.run([a.recua, "convert", "--to", "hf", a.model, model], check=True, stdout=sys.stderr)
    published = str(Path(a.work) / "published")

    # The batch size that is best for it, by one round of a few tasks.
    tried = {}
    for batch in a.batches if len(a.batches) > 1 else []:
        theirs = Theirs(a, model, batch)
        tried[batch] = sum(theirs.run(a, task)[0] for task in a.tasks[:4])
        print(f"lm-eval, batch size {batch}: {tried[batch]:.1f} s over {', '.join(a.tasks[:4])}", file=sys.stderr)
    batch = min(tried, key=tried.get) if tried else a.batches[0]
    theirs = Theirs(a, model, batch)
    # What is made once (compiled templates, pages of memory) is made before.
    theirs.run(a, a.tasks[0])

    rows, parameters = {task: [] for task in a.tasks}, None
    for round_ in range(a.rounds):
        for task in a.tasks:
            pair = {}
            for who in ("recua", "lm-eval") if round_ % 2 == 0 else ("lm-eval", "recua"):
                if who == "recua":
                    pair[who], value, parameters = ours(a, model, published, task)
                else:
                    pair[who], metrics = theirs.run(a, task)
            known = [metric for metric in metrics.values() if isinstance(metric, float)]
            # Choices that are nearly equal may fall otherwise: one or two of a task's.
            near = min(abs(value - metric) / max(1.0, abs(metric)) for metric in known)
            assert near < 0.021, (task, value, metrics)
            rows[task].append(pair)
            print(f"round {round_ + 1} {task}: recua {pair['recua']:.2f} s, lm-eval {pair['lm-eval']:.2f} s", file=sys.stderr)

    choices = [task for task in a.tasks if task not in ROLLING]
    sums = [{who: sum(rows[task][i][who] for task in choices) for who in ("recua", "lm-eval")} for i in range(a.rounds)]
    config = json.loads((Path(model) / "config.json").read_text())
    size = f"{parameters:,} parameters, {config['hidden_size']} wide, {config['num_hidden_layers']} layers, vocabulary {config['vocab_size']:,}, context {config['max_position_embeddings']}"
    import torch
    import transformers
    about = f"{size}; {a.threads} threads each, {a.rounds} rounds, {a.shots} shots, lm-eval's batch size {batch}; torch {torch.__version__}, transformers {transformers.__version__}"
    print(about)
    print(f"\n| task | questions | recua s | lm-eval s | lm-eval / recua | least | largest |\n|---|---|---|---|---|---|---|")
    table = [(task, LIMIT.get(task, a.limit), rows[task]) for task in a.tasks]
    if len(choices) > 1:
        table.append(("multiple choice, sum", "", sums))
    for name, count, pairs in table:
        ratios = [pair["lm-eval"] / pair["recua"] for pair in pairs]
        mine, other = (statistics.median(pair[who] for pair in pairs) for who in ("recua", "lm-eval"))
        print(f"| {name} | {count} | {mine:.2f} | {other:.2f} | {statistics.median(ratios):.2f} | {min(ratios):.2f} | {max(ratios):.2f} |")
    if a.json:
        Path(a.json).write_text(json.dumps({"about": about, "rounds": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
