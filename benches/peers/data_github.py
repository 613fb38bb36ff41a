#!/usr/bin/env python3
"""The GitHub rules against RedPajama's, written again from their description: agreement and speed.

    pip install regex
    python benches/peers/data_github.py TOOL FOLDER [--files 4000]

TOOL is the example `data_peers`, which takes `gh` and, of lines [text, path] on stdin, makes lines [text without header, lines, longest line, characters,
alphanumerics, letters, pieces, reason or null] by RedPajama's rules, and on stderr its CPU seconds. FOLDER is any source tree. Tokens are the
pieces of GPT-2's pre-tokenizer without contractions on both sides: pythia's vocabulary is not needed. Prints how often each field is equal,
and the CPU seconds of both, one thread (md5 in the peer, xxh3 in the tool, for the key of exact copies).
"""
import argparse
import hashlib
import json
import os
import random
import re
import subprocess
import time

import regex

BLOCK = re.compile(r"/\*.*?\*/", re.DOTALL)
PIECES = regex.compile(r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
ENDS = tuple((
    ".asm .bat .cmd .c .h .cs .cpp .hpp .c++ .h++ .cc .hh .C .H .cmake .css .dockerfile .f90 .f .f03 .f08 .f77 .f95 .for .fpp .go .hs .html "
    ".java .js .jl .lua .md .markdown .php .php3 .php4 .php5 .phps .phpt .pl .pm .pod .perl .ps1 .psd1 .psm1 .py .rb .rs .sql .scala .sh "
    ".bash .command .zsh .ts .tsx .tex .vb Dockerfile Makefile .xml .rst .m .smali").split())


def without_header(text):
    found = BLOCK.search(text)
    if found:
        return text[: found.start()] + text[found.end():] if "copyright" in found.group().lower() else text
    lines = text.split("\n")
    kept = 0
    while kept < len(lines) and (not lines[kept] or lines[kept].startswith(("//", "#", "--"))):
        kept += 1
    return "\n".join(lines[kept:])


def peer(text, path):
    hashlib.md5(text.encode()).hexdigest()
    if path.endswith(".crt"):
        return None, "certificate"
    if path == "LICENSE":
        return None, "licence_text"
    text = without_header(text)
    lengths = [len(line) for line in text.splitlines()]
    alphanumeric = sum(c.isalnum() for c in text)
    shape = [text, len(lengths), max(lengths, default=0), len(text), alphanumeric]
    if not text:
        return shape, "empty"
    if not path.endswith(ENDS):
        return shape, "extension"
    if max(lengths) > 1000:
        return shape, "long_line"
    if len(text) / len(lengths) > 100:
        return shape, "long_lines"
    if alphanumeric / len(text) < 0.25:
        return shape, "few_alphanumeric"
    letters = sum(c.isalpha() for c in text)
    pieces = len(PIECES.findall(text))
    return shape + [letters, pieces], "few_letters_per_token" if letters / pieces < 1.5 else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool")
    parser.add_argument("folder")
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--show", type=int, default=0)
    args = parser.parse_args()
    paths = sorted(os.path.join(folder, name) for folder, _, names in os.walk(args.folder) for name in names)
    random.Random(0).shuffle(paths)
    files = []
    for path in paths:
        try:
            files.append((open(path, encoding="utf-8", newline="").read(), os.path.relpath(path, args.folder)))
        except (OSError, UnicodeDecodeError):
            continue
        if len(files) == args.files:
            break
    run = subprocess.run([args.tool, "gh"], input="".join(json.dumps(f) + "\n" for f in files), capture_output=True, text=True, check=True)
    ours = [json.loads(line) for line in run.stdout.splitlines()]
    start = time.process_time()
    theirs = [peer(*file) for file in files]
    seconds = time.process_time() - start
    names = ["header", "lines", "max_line", "chars", "alphanumeric", "letters", "pieces"]
    equal, compared = dict.fromkeys(names + ["reason"], 0), dict.fromkeys(names + ["reason"], 0)
    for (text, path), mine, (shape, reason) in zip(files, ours, theirs):
        for name, a, b in list(zip(names, mine, shape or [])) + [("reason", mine[7], reason)]:
            compared[name] += 1
            equal[name] += a == b
            if a != b and args.show > 0:
                args.show -= 1
                print(path, name, repr(a)[:200], repr(b)[:200])
    print(json.dumps({"equal": {name: f"{equal[name]}/{compared[name]}" for name in compared}, "peer_s": round(seconds, 3),
                      "peer_files_per_s": round(len(files) / seconds), "tool": [json.loads(line) for line in run.stderr.splitlines()]}))


if __name__ == "__main__":
    main()
