#!/usr/bin/env python3
"""Stack Exchange against RedPajama's way (ElementTree, four replacements, BeautifulSoup on lxml): agreement and speed.

    pip install beautifulsoup4 lxml py7zr
    RECUA_DATA=... python benches/peers/data_stackexchange.py TOOL

TOOL is the example `data_peers`, which takes `html` and, of JSON strings on stdin, makes lines {"text", "rp"} (`clean_html` and `redpajama_text`) and on
stderr the CPU seconds of each. Prints, over all posts of the samples: how many RedPajama texts are equal, the mean and least similarity of
`clean_html` by words, the posts below 0.8, and the CPU seconds of both (one thread). `--show N` prints N posts of the least similarity.
"""
import argparse
import difflib
import glob
import json
import os
import subprocess
import time
import xml.etree.ElementTree as ET

from bs4 import BeautifulSoup


def peer(html):
    """The rule of post_processing.py (branch rp_v1), in own words."""
    for old, new in (("<li>", "\n*"), ("</li>", ""), ("<ol>", "\n*"), ("</ol>", "")):
        html = html.replace(old, new)
    return BeautifulSoup(html, "lxml").get_text()


def bodies(folder):
    for path in sorted(glob.glob(os.path.join(folder, "stackexchange", "*", "Posts.xml"))):
        for line in open(path, encoding="utf-8-sig"):
            if line.lstrip().startswith("<row"):
                row = ET.fromstring(line).attrib
                if row.get("PostTypeId") in ("1", "2"):
                    yield os.path.basename(os.path.dirname(path)) + "/" + row["Id"], row.get("Body", "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool")
    parser.add_argument("--show", type=int, default=0)
    args = parser.parse_args()
    ids, html = zip(*bodies(os.environ["RECUA_DATA"]))
    run = subprocess.run([args.tool, "html"], input="".join(json.dumps(h) + "\n" for h in html), capture_output=True, text=True, check=True)
    ours = [json.loads(line) for line in run.stdout.splitlines()]
    start = time.process_time()
    theirs = [peer(h) for h in html]
    seconds = time.process_time() - start
    equal = [a["rp"] == b for a, b in zip(ours, theirs)]
    ratios = [difflib.SequenceMatcher(None, a["text"].split(), b.split(), autojunk=False).ratio() for a, b in zip(ours, theirs)]
    for at in sorted(range(len(ids)), key=lambda at: ratios[at])[: args.show]:
        print("=" * 20, ids[at], round(ratios[at], 3), "\n" + ours[at]["text"], "\n" + "-" * 20 + "\n" + theirs[at])
    for at in [at for at, same in enumerate(equal) if not same][: args.show]:
        print("=" * 20, ids[at], "redpajama differs\n", repr(ours[at]["rp"]), "\n", repr(theirs[at]))
    timing = json.loads(run.stderr.splitlines()[-1])
    print(json.dumps({
        "posts": len(ids), "redpajama_equal": sum(equal), "similarity_mean": round(sum(ratios) / len(ratios), 4), "similarity_min": round(min(ratios), 4),
        "below_0.8": sum(r < 0.8 for r in ratios), "peer_s": round(seconds, 4), "clean_s": timing["clean_s"], "redpajama_s": timing["redpajama_s"],
        "times_faster": round(seconds / timing["clean_s"], 1),
    }))


if __name__ == "__main__":
    main()
