"""CommonCrawl, CCNet's text rules and C4 beside the reference implementations: same output, and how fast.

By hand, from the project's root, with an interpreter that has warcio, datatrove and nltk, and NLTK's `punkt_tab` under NLTK_DATA:

    RECUA_DATA=... NLTK_DATA=... python benches/peers/data_crawl.py warc  OURS.jsonl FILE...
    RECUA_DATA=... NLTK_DATA=... python benches/peers/data_crawl.py ccnet OURS.jsonl FILE...
    RECUA_DATA=... NLTK_DATA=... python benches/peers/data_crawl.py c4    OURS.jsonl DOCS.jsonl
    RECUA_DATA=... NLTK_DATA=... python benches/peers/data_crawl.py sentences OURS.jsonl LINES.jsonl
    python benches/peers/data_crawl.py speed target/release/examples/data_peers FILE...

FILE are WARC or WET files. OURS.jsonl is what the Rust side wrote for the same input:
warc: an object a record, {"file", "type", "uri", "date", "digest", "length", "sha1"}, sha1 being of the block;
ccnet: an object a WET document, {"url", "date", "digest", "title", "text", "hashes"};
c4: an object a document, {"text", "dropped"}; DOCS.jsonl has a JSON string a line;
sentences: a number a line; LINES.jsonl has a JSON string a line.
Times are of one thread and of the reference alone.
speed: reading records beside warcio, and of WET files parsing and hashing beside CCNet's, in turn, one thread each, and ours on two
files at once (two cores) beside one thread of theirs; medians of five.

`ccnet` has no package: what is compared with is written here from the published description of its parser, normaliser and hash.
"""

import gzip
import hashlib
import json
import re
import sys
import time
from pathlib import Path


def load(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]



def warc(ours, files):
    import logging

    from warcio.archiveiterator import ArchiveIterator

    logging.disable(logging.CRITICAL)
    by_file = {}
    for record in load(ours):
        by_file.setdefault(record["file"], []).append(record)
    same = total = 0
    for path in files:
        theirs, problem = [], ""
        start = time.perf_counter()
        with open(path, "rb") as stream:
            try:
                for record in ArchiveIterator(stream, no_record_parse=True):
                    theirs.append((record.rec_type, record.rec_headers, record.raw_stream.read()))
            except Exception as error:  # warcio stops at what it cannot read
                problem = " ".join(str(error).split())[:80]
        seconds = time.perf_counter() - start
        rows = [
            {
                "file": path,
                "type": kind,
                "uri": head.get_header("WARC-Target-URI"),
                "date": head.get_header("WARC-Date"),
                "digest": head.get_header("WARC-Payload-Digest") or head.get_header("WARC-Block-Digest"),
                "length": len(block),
                "sha1": hashlib.sha1(block).hexdigest(),
            }
            for kind, head, block in theirs
        ]
        mine = by_file.get(path, [])
        equal = sum(a == b for a, b in zip(mine, rows))
        same, total = same + equal, total + max(len(mine), len(rows))
        note = "" if equal == len(mine) == len(rows) else f"  DIFFERS: ours {len(mine)}; warcio says: {problem}"
        print(f"{Path(path).name:56} {len(rows):5} records {equal:5} equal {seconds * 1e3:8.2f} ms{note}")
    print(f"{same} of {total} records equal")


PUNCT = "，。、„”“«»１」「《》´∶：？！（）；–—．～’…━〈〉【】％►"
DROP = re.compile("[" + PUNCT + "\x00-\x1f\x7f-\x9f]")
DIGIT = re.compile(r"\d")


def normal(line):
    line = line.strip()
    return DROP.sub("", DIGIT.sub("0", line.lower())) if line else line


def key(line):
    return int.from_bytes(hashlib.sha1(normal(line).encode()).digest()[:8], "little")


def wet_documents(lines):
    """Documents of a WET file, as CCNet cuts them: line by line; the headers by name, as its newer forks take them."""
    head, body, in_head = {}, [], True
    for line in [*lines, "WARC/1.0"]:
        line = line.strip()
        if line == "WARC/1.0":
            if head.get("WARC-Type") == "conversion" and body:
                end = -2 if body[-2:] == ["", ""] else None
                yield head, body[0], "\n".join(body[1:end])
            head, body, in_head = {}, [], True
        elif in_head:
            name, colon, value = line.partition(":")
            if colon:
                head[name] = value.strip()
            in_head = line != ""
        else:
            body.append(line)


def ccnet(ours, files):
    import io

    mine = {}
    for document in load(ours):
        mine.setdefault(document["url"], []).append(document)
    same = total = 0
    seconds = size = 0
    for path in files:
        start = time.perf_counter()
        stream = gzip.open(path, "rb") if open(path, "rb").read(2) == b"\x1f\x8b" else open(path, "rb")
        with io.TextIOWrapper(stream, encoding="utf-8", errors="replace") as lines:
            documents = [(head, title, text, [key(line) for line in text.split("\n")]) for head, title, text in wet_documents(lines)]
        seconds += time.perf_counter() - start
        for head, title, text, hashes in documents:
            size += len(text.encode())
            total += 1
            url = head["WARC-Target-URI"]
            document = mine.get(url, [{}]).pop(0) if mine.get(url) else {}
            theirs = {"url": url, "date": head.get("WARC-Date"), "title": title, "text": text, "hashes": hashes}
            differ = [k for k, v in theirs.items() if document.get(k, "") != v]
            same += not differ
            if differ and total - same <= 5:
                print(f"{url}: {differ}")
    print(f"{same} of {total} documents equal (title, text, every line's hash); {seconds:.3f} s, {size / 1e6 / seconds:.2f} MB/s of text, {total / seconds:.0f} documents/s")


def punkt():
    from nltk.tokenize import PunktTokenizer

    return PunktTokenizer("english").tokenize


def c4(ours, docs):
    import datatrove.pipeline.filters.c4_filters as theirs
    from datatrove.data import Document

    split = punkt()
    theirs.split_into_sentences = lambda text, language: split(text)
    theirs.END_PUNCTUATION = (".", "?", "!", '"')  # C4's own four; datatrove adds the apostrophe
    rules = theirs.C4QualityFilter(min_num_sentences=3, min_words_per_line=5)  # its defaults are 5 and 3
    docs, ours = load(docs[0]), load(ours)
    results = []
    start = time.perf_counter()
    for text in docs:
        document = Document(text=text, id="")
        verdict = rules.filter(document)
        results.append((document.text, None) if verdict is True else ("", verdict[1]))
    seconds = time.perf_counter() - start
    verdicts = sum((a[1] is None) == (b["dropped"] is None) for a, b in zip(results, ours))
    kept = [(a[0], b["text"]) for a, b in zip(results, ours) if a[1] is None and b["dropped"] is None]
    texts = sum(a == b for a, b in kept)
    size = sum(len(text.encode()) for text in docs)
    print(f"{verdicts} of {len(docs)} verdicts equal, {texts} of {len(kept)} kept texts equal; {seconds:.3f} s, {size / 1e6 / seconds:.2f} MB/s, {len(docs) / seconds:.0f} documents/s")
    for a, b in [pair for pair in kept if pair[0] != pair[1]][:5]:
        print("  only theirs:", [line[:80] for line in a.split("\n") if line not in b.split("\n")][:2], "only ours:", [line[:80] for line in b.split("\n") if line not in a.split("\n")][:2])


def sentences(ours, lines):
    split, lines, ours = punkt(), load(lines[0]), load(ours)
    start = time.perf_counter()
    counts = [len(split(line)) for line in lines]
    seconds = time.perf_counter() - start
    equal = sum(a == b for a, b in zip(counts, ours))
    print(f"{equal} of {len(lines)} lines equal, {sum(counts)} sentences, ours {sum(ours)}; {seconds:.3f} s")


def speed(peers, files):
    import logging
    import subprocess

    from warcio.archiveiterator import ArchiveIterator

    logging.disable(logging.CRITICAL)

    def records(path):
        with open(path, "rb") as stream:
            for record in ArchiveIterator(stream, no_record_parse=True):
                record.raw_stream.read()

    def hashes(path):
        stream = gzip.open(path, "rb") if open(path, "rb").read(2) == b"\x1f\x8b" else open(path, "rb")
        with io.TextIOWrapper(stream, encoding="utf-8", errors="replace") as lines:
            for _, _, text in wet_documents(lines):
                [key(line) for line in text.split("\n")]

    def rounds(work, seconds=0.3):
        """Seconds a round, over at least `seconds`."""
        start, n = time.perf_counter(), 0
        while (took := time.perf_counter() - start) < seconds:
            work()
            n += 1
        return took / n

    import io

    for path in files:
        for what, work in [("warc", records)] + [("ccnet", hashes)] * (".wet" in path):
            pairs = []
            for _ in range(5):
                theirs = rounds(lambda: work(path))
                command = [peers, "time", what, path, str(max(5, int(3 / theirs)))]
                ours = []
                for at_once in (1, 2):
                    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(at_once)]
                    times = [sorted(float(line.split()[0]) for line in r.communicate()[0].splitlines()) for r in running]
                    ours.append(max(t[len(t) // 2] for t in times) / at_once)
                pairs.append((theirs / ours[0], theirs / ours[1], theirs, ours[0]))
            one, two, theirs, ours = sorted(pairs)[2]
            mb = Path(path).stat().st_size / 1e6
            print(f"{Path(path).name:42} {what:6} {theirs * 1e3:9.3f} ms {ours * 1e3:9.3f} ms {mb / ours:8.1f} MB/s {one:6.1f} times; two at once {two:6.1f}")


if __name__ == "__main__":
    {"warc": warc, "ccnet": ccnet, "c4": c4, "sentences": sentences, "speed": speed}[sys.argv[1]](sys.argv[2], sys.argv[3:])
