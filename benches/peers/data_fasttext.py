#!/usr/bin/env python3
"""fastText models: recua against the reference library (pip install fasttext), on lines of all samples.
RECUA_DATA=FOLDER data_fasttext.py RECUA_BINARY DATA_PEERS [--lines 50000] [--rounds 5] [--work FOLDER]; run from the project's root.
1. predictions of lid.176.ftz, line by line (labels, probabilities);
2. models trained by the reference (each loss, n-grams, quantised with and without norms, pruned, quantised output), read by recua;
3. models trained by recua, read by the reference; accuracy on held-out lines of both trainers' models;
4. speed of both on the same lines in turn, one thread, with the reference's own loop over lines in C++.
recua is called as `recua data lid --model F --top K`; DATA_PEERS, the example of that name, times and trains.
Prints a table and, last, one JSON line. Ends with 1 where a difference is beyond its bound."""
import argparse, bz2, glob, gzip, json, lzma, os, random, statistics, subprocess, sys, tempfile, time
import fasttext
a = argparse.ArgumentParser(); a.add_argument("recua"); a.add_argument("peers"); a.add_argument("--lines", type=int, default=50_000)
a.add_argument("--rounds", type=int, default=5); a.add_argument("--work"); a = a.parse_args()
data, rng = os.environ["RECUA_DATA"], random.Random(0)
work = a.work or tempfile.mkdtemp(); os.makedirs(work, exist_ok=True)
fasttext.FastText.eprint = lambda *_: None
bad = []

def reference(path, **options):
    """Trains by the reference; seconds. On one thread its 0.9.3 sets a tenth of the input matrix and leaves the rest as the memory
    was, which may be no numbers ("Encountered NaN"). In a process of its own that memory is zero, as its older versions made it."""
    code = "import fasttext, json, sys, time; o = json.loads(sys.argv[2]); t = time.perf_counter(); m = fasttext.train_supervised(**o); print(time.perf_counter() - t); m.save_model(sys.argv[1])"
    run = subprocess.run([sys.executable, "-c", code, path, json.dumps(options)], capture_output=True, text=True, check=True, env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "16384"})
    return float(run.stdout)

def read(path):
    opener = {"bz2": bz2.open, "xz": lzma.open, "gz": gzip.open}.get(path.rsplit(".", 1)[-1], open)
    try:
        return opener(path, "rb").read().decode("utf-8", "replace")
    except (EOFError, OSError):
        return ""
def lines_of(pattern):
    out = []
    for path in sorted(glob.glob(f"{data}/{pattern}")):
        for line in read(path).split("\n"):
            out += json.loads(line)["text"].split("\n") if "json" in path and line.strip() else [line]
    return out
sources = {"book": lines_of("books/*.txt"), "web": lines_of("c4/*json*"), "en": lines_of("wikipedia/enwiki*"), "bg": lines_of("wikipedia/bgwiki*"),
           "uk": lines_of("wikipedia/ukwiki*"), "small": lines_of("wikipedia/smallwiki*")}
every = [line for lines in sources.values() for line in lines]
rng.shuffle(every); every = every[:a.lines]

def ours(model, lines, k):
    run = subprocess.run([a.recua, "data", "lid", "--model", model, "--top", str(k)], input="".join(json.dumps(line) + "\n" for line in lines), capture_output=True, text=True, check=True)
    return [json.loads(line) for line in run.stdout.splitlines()]
def theirs(model, lines, k):
    labels, probs = model.f.multilinePredict([line + "\n" for line in lines], k, 0.0, "replace")
    return [dict(labels=[l.removeprefix("__label__") for l in ls], probs=[float(p) for p in ps]) for ls, ps in zip(labels, probs)]
def compare(name, path, lines, k, stepped=False):
    """Largest difference by rank; labels may change places only where they are equally probable within 1e-6. A sigmoid from a table
    (`stepped`) is a step apart, at most 1/128, where the last bit of a sum decides: at most one probability in 1000."""
    model = fasttext.load_model(path)
    most, apart, swapped, probs = 0.0, 0, 0, 0
    for line, x, y in zip(lines, ours(path, lines, k), theirs(model, lines, k), strict=True):
        if len(x["labels"]) != len(y["labels"]):
            bad.append(f"{name}: {line!r}: {x} {y}"); continue
        for i, (p, q) in enumerate(zip(x["probs"], y["probs"])):
            probs += 1; apart += abs(p - q) > 1e-4; most = max(most, abs(p - q))
            if x["labels"][i] != y["labels"][i]:
                swapped += 1
                if abs(p - q) > (1 / 128 if stepped else 1e-6): bad.append(f"{name}: {line!r}: {x} {y}")
    if apart > (probs / 1000 if stepped else 0) or most > (1.01 / 128 if stepped else 1e-4): bad.append(f"{name}: {apart} of {probs} apart, by {most}")
    print(f"{name:34} {len(lines)} lines, k {k}: most {most:.1e}, {apart} of {probs} beyond 1e-4, {swapped} labels in another place", flush=True)
    return dict(lines=len(lines), most=most, beyond=apart, swapped=swapped)
report = {"lid": [compare("lid.176.ftz", f"{data}/models/lid.176.ftz", every, k) for k in (1, 3)]}

# A task: which source a line is from. Labels by counts that differ, so that trees are no balanced ones.
labelled = [f"__label__{name} {line.strip()}" for name in ("book", "web", "en", "bg", "uk") for line in rng.sample([l for l in sources[name] if len(l) > 20], min(4000, len([l for l in sources[name] if len(l) > 20])))]
rng.shuffle(labelled); cut = len(labelled) * 4 // 5
train, test = f"{work}/train.txt", labelled[cut:]
open(train, "w").write("\n".join(labelled[:cut]) + "\n")
many = f"{work}/many.txt"                        # 300 labels: what a quantised output needs
open(many, "w").write("".join(f"__label__{hash_ % 300} {line.split(' ', 1)[1]}\n" for hash_, line in enumerate(labelled[:cut])))
ask = [line.split(" ", 1)[1] for line in test[:2000]] + every[:2000]
base = dict(epoch=5, dim=20, thread=1, verbose=0, bucket=50_000)
kinds = {"softmax, word 2-grams": dict(wordNgrams=2), "softmax, chars 2-4": dict(minn=2, maxn=4, loss="softmax"), "ova": dict(loss="ova", wordNgrams=2), "hs": dict(loss="hs", minn=3, maxn=5),
         "ns, chars, words": dict(loss="ns", minn=2, maxn=3, wordNgrams=3), "hs, 300 labels": dict(loss="hs", input=many), "softmax, dim 100": dict(dim=100)}
quantised = {"softmax, word 2-grams": [dict(), dict(qnorm=True, cutoff=5000), dict(dsub=3)], "softmax, chars 2-4": [dict(qnorm=True), dict(cutoff=3000, qnorm=True, retrain=True)],
             "hs, 300 labels": [dict(qout=True, qnorm=True), dict(qout=True)], "ova": [dict(qnorm=True, cutoff=8000)]}
report["their_models"] = {}
for name, options in kinds.items():
    path = f"{work}/{name.replace(' ', '_').replace(',', '')}"
    reference(path + ".bin", **(dict(input=train) | base | options))
    stepped = options.get("loss") in ("ova", "ns")
    report["their_models"][name] = compare(name, path + ".bin", ask, 5, stepped)
    for number, how in enumerate(quantised.get(name, [])):
        model = fasttext.load_model(path + ".bin"); model.quantize(input=options.get("input", train), thread=1, verbose=0, **how); model.save_model(f"{path}{number}.ftz")
        full = f"{name} {' '.join(f'{k}={v}' for k, v in how.items()) or 'quantised'}"
        report["their_models"][full] = compare(full, f"{path}{number}.ftz", ask, 5, stepped)

def accuracy(model):
    right = theirs(model, [line.split(" ", 1)[1] for line in test], 1)
    return 100 * sum(line.startswith(f"__label__{x['labels'][0] if x['labels'] else ''} ") for line, x in zip(test, right)) / len(test)
report["training"] = {}
for name, options in {"defaults": dict(), "word 2-grams": dict(wordNgrams=2, bucket=200_000, lr=0.5), "chars 2-4": dict(minn=2, maxn=4, bucket=200_000, dim=20), "hs": dict(loss="hs"),
                      "ova": dict(loss="ova"), "ns": dict(loss="ns")}.items():
    flag = {"wordNgrams": "word-ngrams"}
    path = f"{work}/ours_{name.replace(' ', '_')}.bin"
    call = [a.peers, "classify", train, path] + [f"{flag.get(k, k)}={v}" for k, v in options.items()]
    t = time.perf_counter(); subprocess.run(call, check=True, capture_output=True); seconds = time.perf_counter() - t
    their_seconds = reference(f"{work}/reference.bin", input=train, thread=1, verbose=0, **options)
    row = dict(ours=accuracy(fasttext.load_model(path)), reference=accuracy(fasttext.load_model(f"{work}/reference.bin")), seconds=round(seconds, 2), reference_seconds=round(their_seconds, 2))
    print(f"trained, {name:20} accuracy on {len(test)} lines: ours {row['ours']:.2f} %, reference {row['reference']:.2f} %; {row['seconds']} s, {row['reference_seconds']} s", flush=True)
    if row["ours"] < row["reference"] - 1: bad.append(f"training, {name}: {row}")
    report["training"][name] = row | dict(read_back=compare(f"  read by both: {name}", path, ask, 5, options.get("loss") in ("ova", "ns")))

# In turn, so that the ratio holds while the machine's speed drifts.
report["speed"] = {}
for name, path in {"lid.176.ftz": f"{data}/models/lid.176.ftz", **{n: f"{work}/{n.replace(' ', '_').replace(',', '')}.bin" for n in ("softmax, chars 2-4", "softmax, dim 100")}}.items():
    model = fasttext.load_model(path)
    asked = [line + "\n" for line in every]; size = sum(len(line.encode()) for line in every); given = "".join(json.dumps(line) + "\n" for line in every)
    pairs = []
    for _ in range(a.rounds):
        t = time.perf_counter(); model.f.multilinePredict(asked, 1, 0.0, "replace"); their = time.perf_counter() - t
        run = subprocess.run([a.peers, "lid", path, "1"], input=given, capture_output=True, text=True, check=True)
        pairs.append((float(run.stdout.split()[0]), their))
    mine, their = (statistics.median(x) for x in zip(*pairs)); ratio = statistics.median(t / m for m, t in pairs)
    report["speed"][name] = dict(ours_lines_s=round(len(every) / mine), reference_lines_s=round(len(every) / their), ratio=round(ratio, 2))
    print(f"speed, {name:20} ours {len(every) / mine:9.0f} lines/s {size / mine / 1e6:6.1f} MB/s, reference {len(every) / their:9.0f} lines/s {size / their / 1e6:6.1f} MB/s: {ratio:.2f} x")
    if ratio < 1: bad.append(f"speed, {name}: {ratio}")
for problem in bad[:20]: print("BAD", problem[:400])
print(json.dumps(report | {"bad": len(bad)}))
sys.exit(bool(bad))
