#!/usr/bin/env python3
"""N-gram models and pieces: recua against kenlm and sentencepiece (pip install kenlm sentencepiece).

RECUA_DATA=FOLDER data_lm.py DATA_PEERS [--lmplz F] [--build-binary F] [--timecpp F] [--lines 20000] [--rounds 7]; run from the project's
root. DATA_PEERS is the example of that name.
1. scores of the sample models, of a model of all books, and of each binary layout, word by word;
2. what `recua` trains against what lmplz trains (with --lmplz, from kenlm's sources: not in the pip package);
3. binary files byte by byte against build_binary (with --build-binary);
4. cc_net's normalisation, written again here from its description, on all lines;
5. ids of sentencepiece for our pieces and for its own, and the cost of held-out text;
6. speed: the Python package's loop, and (--timecpp: MODEL FILE ROUNDS, its ScoreSentence in a loop) C++, in turn with recua.
Prints a line a check and, last, one JSON line. Ends with 1 where a difference is beyond its bound."""
import argparse, glob, gzip, json, os, random, re, statistics, subprocess, sys, tempfile, time, unicodedata
import kenlm, sentencepiece
a = argparse.ArgumentParser(); a.add_argument("tool")
for name in ("lmplz", "build-binary", "timecpp"): a.add_argument(f"--{name}")
a.add_argument("--lines", type=int, default=20_000); a.add_argument("--rounds", type=int, default=7); a = a.parse_args()
data, rng, bad, out = os.environ["RECUA_DATA"], random.Random(0), [], {}
work = tempfile.mkdtemp(prefix="data_lm"); os.chdir(work)
run = lambda *args, **o: subprocess.run([str(x) for x in args], capture_output=True, text=True, check=True, **o).stdout
def report(name, value, bound):
    out[name] = value; ok = value <= bound; print(f"{name}: {value:.3g} (bound {bound:g}){'' if ok else '  <-- BROKEN'}", flush=True)
    if not ok: bad.append(name)

paragraphs = []
for path in sorted(glob.glob(f"{data}/books/*.txt")):
    text = open(path, encoding="utf-8", errors="replace").read()
    paragraphs += [p for p in re.split(r"\n\s*\n", text) if p.strip()]
lines = [" ".join(re.findall(r"\w+|[^\w\s]", p.lower())) for p in paragraphs]
lines = sorted({l for l in lines if l}, key=lambda l: l[::-1]); rng.shuffle(lines)
train, test = lines[:-2000], lines[-2000:][: a.lines]
open("train.txt", "w").write("\n".join(train) + "\n"); open("all.txt", "w").write("\n".join(lines[: a.lines]) + "\n")

def compare(name, ours, theirs, words, n=2000):
    """The largest difference of a word's or line's log10; lengths and unknown words must be equal."""
    model, worst, differ = kenlm.Model(theirs), 0.0, 0
    tests = [" ".join(rng.choices(words, k=rng.randint(0, 12))) for _ in range(n)] + (test if len(words) > 1000 else [])
    got = [json.loads(l) for l in run(a.tool, "score", ours, input="\n".join(tests) + "\n").split("\n")[:-1]]
    for line, g in zip(tests, got, strict=True):
        want = list(model.full_scores(line))
        worst = max(worst, abs(g["score"] - model.score(line)), *(abs(w["log10"] - p) for w, (p, _, _) in zip(g["words"], want, strict=True)))
        differ += any((w["ngram_length"], w["oov"]) != (n, o) for w, (_, n, o) in zip(g["words"], want))
    report(f"score {name}", worst, 1e-5); report(f"lengths {name}", differ, 0)

def words_of(arpa):
    section = arpa.split("\\1-grams:")[-1].split("\\2-grams:")[0]
    return [l.split()[1] for l in section.splitlines() if len(l.split()) > 1 and l.split()[1] not in ("<s>", "</s>")] + ["never-seen"]
for name in ("test.arpa", "test_nounk.arpa", "toy0.arpa", "toy1.arpa"):
    path = f"{data}/kenlm/{name}"; compare(name, path, path, words_of(open(path).read()))
# kenlm takes neither this one's preamble nor spaces for tabs.
text = gzip.open(f"{data}/kenlm/100.lm.gz", "rt").read(); body = text[text.index("\n\\data\\") + 1 :]; order, fixed = 0, []
for line in body.splitlines():
    order = int(line[1]) if re.fullmatch(r"\\\d-grams:", line) else order
    f = line.split()
    fixed.append("\t".join([f[0], " ".join(f[1 : order + 1]), *f[order + 1 :]]) if order and len(f) > 1 else line)
open("100.arpa", "w").write("\n".join(fixed) + "\n"); compare("100.lm.gz", f"{data}/kenlm/100.lm.gz", "100.arpa", words_of("\n".join(fixed)))

print(run(a.tool, "train", "train.txt", "ours.arpa", 5, 64).strip())
words = words_of(open("ours.arpa").read(40_000_000)); compare("books", "ours.arpa", "ours.arpa", words)
if a.lmplz:
    def read(path):
        return {c[1]: [float(x) for x in (c[0], *c[2:])] for c in (l.rstrip("\n").split("\t") for l in open(path, newline="\n")) if len(c) > 1}
    for order, prune in ((5, []), (3, [0, 0, 1]), (2, []), (4, [0, 1, 2])):
        run(a.tool, "train", "train.txt", "x.arpa", order, 64, *prune)
        run(a.lmplz, "-o", order, "-S", "1G", "--discount_fallback", "--text", "train.txt", "--arpa", "y.arpa", *(["--prune", *prune] if prune else []))
        x, y = read("x.arpa"), read("y.arpa")
        report(f"lmplz order {order} prune {prune}: n-grams", len(x.keys() ^ y.keys()), 0)
        report(f"lmplz order {order} prune {prune}: log10", max(abs(p - q) for k in x.keys() & y.keys() for p, q in zip(x[k], y[k])), 1e-5)
run(a.tool, "binary", "ours.arpa", "ours.bin"); compare("our binary in kenlm", "ours.bin", "ours.bin", words, 200)
if a.build_binary:
    for name, options in {"probing": [], "p 2.0": ["-p", "2.0"], "trie": ["trie"], "array": ["-a", "22", "trie"], "quantised": ["-q", "8", "trie"], "both": ["-q", "8", "-b", "7", "-a", "22", "trie"]}.items():
        i = options.index("trie") if "trie" in options else len(options)
        run(a.build_binary, *options[:i], options[i] if i < len(options) else "probing", "ours.arpa", "k.bin")
        if name == "probing": report("bytes that differ from build_binary's", int(open("k.bin", "rb").read() != open("ours.bin", "rb").read()), 0)
        compare(name, "k.bin", "k.bin", words)

# cc_net's text_normalizer.normalize: strip, lower, no non-spacing marks, digits to 0, punctuation, no control characters.
table = {"，、": ",", "。": ".", "„”“«»」「《》": '"', "´’": "'", "∶：": ":", "？": "?", "！": "!", "（": "(", "）": ")", "；": ";", "–━►": "-", "—": " - ", "．": ". ", "～": "~", "…": "...", "〈": "<", "〉": ">", "【": "[", "】": "]", "％": "%"}
table = {c: to for signs, to in table.items() for c in signs}
def normalize(line):
    line = "".join(c for c in unicodedata.normalize("NFD", line.strip().lower()) if unicodedata.category(c) != "Mn")
    line = re.sub(r"\d", "0", line)
    return "".join(table.get(c, c) for c in line if not (ord(c) < 32 or 127 <= ord(c) < 160))
pages = [json.loads(l)["text"] for f in sorted(glob.glob(f"{data}/c4/c4*.gz")) for l in gzip.open(f, "rt")]
odd = ["".join(chr(rng.choice([rng.randrange(0x20, 0x250), rng.randrange(0x300, 0x2e80), rng.randrange(0x3000, 0xd7ff), rng.randrange(0x10000, 0x11000)])) for _ in range(40)) for _ in range(2000)]
odd = ["".join(c for c in s if unicodedata.category(c) != "Cn") for s in odd]
texts = paragraphs + pages + odd
got = [json.loads(l) for l in run(a.tool, "normalize", input="\n".join(map(json.dumps, texts)) + "\n").split("\n")[:-1]]
normal = [normalize(t) for t in texts]
report("texts normalised otherwise", sum(g != n for g, n in zip(got, normal, strict=True)), 0)
for g, n, t in [(g, n, t) for g, n, t in zip(got, normal, texts) if g != n][:3]: print(ascii(t), ascii(g), ascii(n), sep="\n  ")

for vocab in (4000, 16000):
    begun = time.perf_counter(); run(a.tool, "pieces", "train.txt", "ours.model", vocab); ours = time.perf_counter() - begun
    begun = time.perf_counter()
    sentencepiece.SentencePieceTrainer.train(input="train.txt", model_prefix="theirs", vocab_size=vocab, character_coverage=0.9995, model_type="unigram", normalization_rule_name="identity", num_threads=1, max_sentence_length=1 << 20, minloglevel=2)
    theirs = time.perf_counter() - begun
    held = [normalize(l) for l in test]; cost = {}
    for name in ("ours", "theirs"):
        sp = sentencepiece.SentencePieceProcessor(model_file=f"{name}.model"); ids = [sp.encode(l) for l in held]
        mine = [json.loads(l) for l in run(a.tool, "encode", f"{name}.model", input="\n".join(held) + "\n").split("\n")[:-1]]
        report(f"vocabulary {vocab}, {name}: lines cut otherwise than by sentencepiece", sum(x != y for x, y in zip(ids, mine, strict=True)), 0)
        cost[name] = sum(map(len, ids))
    report(f"vocabulary {vocab}: pieces of held-out text, ours / theirs", cost["ours"] / cost["theirs"], 1.02)
    print(f"vocabulary {vocab}: trained in {ours:.1f} s, sentencepiece {theirs:.1f} s"); out[f"pieces {vocab} speed"] = theirs / ours

model, speed = kenlm.Model("ours.bin"), {"recua": [], "python": [], "c++": []}
content = open("all.txt").read().splitlines(); n = sum(len(l.split(" ")) + 1 for l in content)
for _ in range(a.rounds):
    begun = time.perf_counter(); total = sum(map(model.score, content)); speed["python"].append(time.perf_counter() - begun)
    for name, tool in (("recua", [a.tool, "time", "lm"]), ("c++", [a.timecpp])):
        if tool[0]:
            # The second round: the first one reads the file.
            line = run(*tool, "ours.bin", "all.txt", 2).splitlines()[-1].split(); speed[name].append(float(line[1]))
            report("difference of the sum over all lines", abs(float(line[0]) - total), 0.01)
for name, seconds in speed.items():
    if seconds: print(f"{name}: median {n / statistics.median(seconds) / 1e6:.2f} M words/s, best {n / min(seconds) / 1e6:.2f}")
for name in ("python", "c++"):
    if speed[name]: out[f"speed against {name}"] = statistics.median(t / o for t, o in zip(speed[name], speed["recua"])); print(f"recua / {name}, median of pairs: {out[f'speed against {name}']:.2f}")
print(json.dumps(out | {"broken": bad})); sys.exit(bool(bad))
