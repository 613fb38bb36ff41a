#!/usr/bin/env python3
"""MinHash signatures and the near-duplicates that they find, beside datasketch.

    pip install datasketch
    RECUA_DATA=samples python benches/peers/data_minhash.py target/release/examples/data_peers

Documents are pieces of 200 to 2,000 words of the sample books, each with a copy in which a share of the words is replaced. Both sides
have 112 hash functions over shingles of five words, in 14 bands of 8. Compared: the estimates of the Jaccard similarity with the
exact one, the copies found with what the theory expects, and the speed of making signatures, one thread each. Exit code 1 if our
error is larger than 1.2 times datasketch's, or copies are missed that the theory has.
"""
import glob, json, math, os, random, re, subprocess, sys, tempfile, time

from datasketch import MinHash, MinHashLSH

BANDS, ROWS = 14, 8


def shingles(text):
    words = re.findall(r"[^\W_]+", text.lower())
    return {" ".join(words[i : i + 5]).encode() for i in range(max(len(words) - 4, 1))}


def documents():
    rng = random.Random(1)
    words = []
    for path in sorted(glob.glob(f"{os.environ['RECUA_DATA']}/books/*.txt")):
        words += open(path, encoding="utf-8-sig").read().split()
    texts, at = [], 0
    while len(texts) < 3000 and at + 2000 < len(words):
        piece = words[at : at + rng.randint(200, 2000)]
        at += len(piece)
        share = rng.choice([0.0, 0.01, 0.02, 0.04, 0.08, 0.16])
        copy = [rng.choice(words) if rng.random() < share else word for word in piece]
        texts += [" ".join(piece), " ".join(copy)]
    return texts


def main():
    peers = sys.argv[1]
    texts = documents()
    size = sum(len(t.encode()) for t in texts)
    lines = "".join(json.dumps(t) + "\n" for t in texts)
    done = subprocess.run([peers, "signatures"], input=lines, stdout=subprocess.PIPE, text=True, check=True)
    ours = [json.loads(line) for line in done.stdout.splitlines()]
    first = MinHash(num_perm=BANDS * ROWS)
    theirs_s, ours_s = [], []
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.write(lines)
        file.flush()
        for _ in range(5):
            start = time.perf_counter()
            theirs = []
            for text in texts:
                m = first.copy()
                m.update_batch(list(shingles(text)))
                theirs.append(m)
            theirs_s.append(time.perf_counter() - start)
            out = subprocess.run([peers, "time", "minhash", file.name, "1"], stdout=subprocess.PIPE, text=True, check=True).stdout
            ours_s.append(float(out.split()[0]))
    a, b = sorted(theirs_s)[2], sorted(ours_s)[2]
    ratios = sorted(x / y for x, y in zip(theirs_s, ours_s))
    print(f"{len(texts)} documents, {size / 1e6:.1f} MB: datasketch {len(texts) / a:.0f} docs/s, {size / 1e6 / a:.2f} MB/s; "
          f"recua {len(texts) / b:.0f} docs/s, {size / 1e6 / b:.1f} MB/s; {ratios[2]:.1f} times (median of {len(ratios)} pairs)")
    lsh = MinHashLSH(params=(BANDS, ROWS), num_perm=BANDS * ROWS)
    for i in range(0, len(texts), 2):
        lsh.insert(i, theirs[i])
    errors = {"datasketch": [], "recua": []}
    found = {"datasketch": 0, "recua": 0}
    expected, variance = 0.0, 0.0
    for i in range(0, len(texts), 2):
        x, y = shingles(texts[i]), shingles(texts[i + 1])
        exact = len(x & y) / len(x | y)
        errors["datasketch"].append(theirs[i].jaccard(theirs[i + 1]) - exact)
        errors["recua"].append(sum(p == q for p, q in zip(ours[i], ours[i + 1])) / (BANDS * ROWS) - exact)
        found["datasketch"] += i in lsh.query(theirs[i + 1])
        bands = range(0, BANDS * ROWS, ROWS)
        found["recua"] += any(ours[i][k : k + ROWS] == ours[i + 1][k : k + ROWS] for k in bands)
        p = 1 - (1 - exact**ROWS) ** BANDS
        expected, variance = expected + p, variance + p * (1 - p)
    rms = {name: math.sqrt(sum(e * e for e in all) / len(all)) for name, all in errors.items()}
    bias = {name: sum(all) / len(all) for name, all in errors.items()}
    print(f"estimates of {len(errors['recua'])} pairs: root mean square error {rms['datasketch']:.4f} (datasketch), {rms['recua']:.4f} (recua); "
          f"mean error {bias['datasketch']:+.5f}, {bias['recua']:+.5f}")
    print(f"copies found: {found['datasketch']} (datasketch), {found['recua']} (recua); expected {expected:.1f} +- {math.sqrt(variance):.1f}")
    sys.exit(rms["recua"] > 1.2 * rms["datasketch"] or found["recua"] < expected - 4 * math.sqrt(variance))


if __name__ == "__main__":
    main()
