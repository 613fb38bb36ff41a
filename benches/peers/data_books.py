#!/usr/bin/env python3
"""Book cleaning and book overlap against references.

    pip install simhash gutenberg-cleaner
    RECUA_DATA=samples python benches/peers/data_books.py \
        'target/release/recua data clean --source books' 'target/release/examples/data_peers clean simhash'

The commands read a JSON string a line and write {"text": ..} a line; the second's text is RedPajama's SimHash of a book, in decimal.
Compared: the cleaned text with gutenberg-cleaner's (which lines differ is shown; its output also drops what looks like notes), and
the SimHash with that of the package that RedPajama uses. Exit code 1 if a SimHash differs.
"""
import glob, json, os, re, shlex, subprocess, sys, time

from gutenberg_cleaner import simple_cleaner
from simhash import Simhash


def features(text):
    """RedPajama-Data, data_prep/book/dedup.py: windows of 6 characters, in lower case, of what is left without [^\\w]."""
    text = re.sub(r"[^\w]+", "", text.lower())
    return [text[i : i + 6] for i in range(max(len(text) - 5, 1))]


def ours(command, texts):
    lines = "".join(json.dumps(t) + "\n" for t in texts)
    started = time.perf_counter()
    done = subprocess.run(shlex.split(command), input=lines, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line)["text"] for line in done.stdout.splitlines()], time.perf_counter() - started


def main():
    paths = sorted(glob.glob(f"{os.environ['RECUA_DATA']}/books/*.txt"))
    texts = [open(p, encoding="utf-8-sig", newline="").read().replace("\r\n", "\n") for p in paths]
    started = time.perf_counter()
    peers = [simple_cleaner(t) for t in texts]
    theirs = time.perf_counter() - started
    cleaned, seconds = ours(sys.argv[1], texts)
    for path, peer, text in zip(paths, peers, cleaned, strict=True):
        a = [line.strip() for line in peer.splitlines() if line.strip()]
        b = [line.strip() for line in text.splitlines() if line.strip()]
        in_a, in_b = set(a), set(b)
        only_peer, only_ours = [l for l in a if l not in in_b], [l for l in b if l not in in_a]
        print(f"{os.path.basename(path):50} lines {len(a):6} {len(b):6} only peer {len(only_peer):3} {only_peer[:3]} only ours {len(only_ours):3} {only_ours[:3]}")
    print(f"cleaning: peer {theirs:.3f} s, ours {seconds:.3f} s with start and JSON")
    odd = ["", "a", "Straße ΣΑΣ ǅ ²½ Ⅻ ⓐ कि 中文 _x_ ͅ", "aaa bbb", "é" * 10]
    started = time.perf_counter()
    wanted = [Simhash(features(t)).value for t in odd + texts]
    theirs = time.perf_counter() - started
    got, seconds = ours(sys.argv[2], odd + texts)
    differ = sum(str(w) != g for w, g in zip(wanted, got, strict=True))
    print(f"simhash: {len(wanted)} texts, {differ} differ; peer {theirs:.2f} s, ours {seconds:.2f} s with start and JSON")
    sys.exit(differ > 0)


if __name__ == "__main__":
    main()
