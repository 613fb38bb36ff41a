#!/usr/bin/env python3
"""The LaTeX cleaner against RedPajama-1T's rules: same bytes with `rp_compat`, and how the two modes differ in size and speed.

    RECUA_DATA=samples python benches/peers/data_arxiv.py 'target/release/examples/data_peers clean rp' ['target/release/recua data clean --source arxiv']

The commands read a JSON string a line and write {"text": .., "dropped": ..} a line. The rules are stated below as regular
expressions (RedPajama-Data, branch rp_v1, data_prep/arxiv/arxiv_cleaner.py), one function a step. Needs only Python. Exit code 1
if a byte differs.
"""
import glob, gzip, io, json, os, random, re, shlex, subprocess, sys, tarfile, time

SEPARATOR = "\x1c"
HEADS = "|".join(
    rf"\\\b{name}\b\*?(?:\[(?:.*?)\])?\{{(?:.*?)\}}" for name in ["chapter", "part", "section", "subsection", "subsubsection"]
)
# An alternative bar is missing between these two, as in the original.
PARAGRAPH = "".join(rf"\\\b{name}\b\*?(?:\[(?:.*?)\])?\{{(?:.*?)\}}" for name in ["paragraph", "subparagraph"])
FIRST = re.compile(rf"^(?:.*?)({HEADS}|{PARAGRAPH})", re.DOTALL)
COMMENT_LINE = re.compile(r"^%.*\n?", re.MULTILINE)
COMMENT = re.compile(r"[^\\]%.+$", re.MULTILINE)
END = re.compile(
    r"(?:\\appendix|\\begin\{references\}|\\begin\{REFERENCES\}|\\begin\{thebibliography\}|\\bibliography\{.*\}).*$", re.DOTALL
)
DEFINITIONS = [
    re.compile(r"\\\bnewcommand\b\*?\{(\\[a-zA-Z0-9]+?)\}\{(.*?)\}$", re.MULTILINE),
    re.compile(r"\\def\s*(\\[a-zA-Z0-9]+?)\s*\{(.*?)\}$", re.MULTILINE),
]


def escaped(text):
    return text.encode("unicode-escape").decode("utf-8")


def one(tex, macros):
    if not FIRST.search(tex):
        return ""
    tex = FIRST.sub(r"\1", tex)
    tex = COMMENT.sub("", COMMENT_LINE.sub("", tex))
    tex = END.sub("", tex)
    for name, value in macros.items():
        tex = re.sub(rf"({name})([^a-zA-Z0-9])", value + r"\2", tex)
    return tex


def peer(tex):
    files, macros = tex.split(SEPARATOR), {}
    for file in files:
        for pattern in DEFINITIONS:
            for match in pattern.finditer(file):
                macros[escaped(match.group(1))] = escaped(match.group(2))
    try:
        return "\n".join(one(file, macros) for file in files)
    except re.error:  # a value that Python cannot use as a replacement: RedPajama drops the paper
        return ""


def samples():
    data = os.environ["RECUA_DATA"]
    for path in sorted(glob.glob(f"{data}/arxiv/**/*.tex", recursive=True)):
        yield path, open(path, "rb").read().decode("utf-8", "replace")
    # All the recipes as one paper of many files.
    yield "hogg", SEPARATOR.join(
        open(p, "rb").read().decode("utf-8", "replace") for p in sorted(glob.glob(f"{data}/arxiv/hogg*/**/*.tex", recursive=True))
    )
    for path in glob.glob(f"{data}/arxiv/**/*.tar", recursive=True):
        for member in tarfile.open(path):
            raw = gzip.decompress(tarfile.open(path).extractfile(member).read())
            try:
                inner = tarfile.open(fileobj=io.BytesIO(raw))
                texts = [inner.extractfile(m).read().decode() for m in inner if m.name.endswith(".tex")]
            except tarfile.ReadError:
                texts = [raw.decode("utf-8", "replace")]
            yield member.name, SEPARATOR.join(texts)


def mutants(texts, count):
    """Cuts, copies and splices of the samples with what the rules look for: each must come out the same too."""
    pieces = [
        "%", "\\%", "% a\n", "\n%\n", "{", "}", "[", "]", "]{", "\\", "\n", "\\section", "\\section*{A}", "\\section[b]{c}", "\\part{",
        "\\paragraph{x}", "\\subparagraph{y}", "}\\subparagraph*[z]{y}", "\\bibliography{", "\\appendix", "\\begin{references}",
        "\\newcommand{\\ab}{x\\ab}\n", "\\newcommand*{\\c1}{$y$}\n", "\\def\\ab{\\c1}\n", "\\def \\q\n {\\\\1}\n", "\\ab", "\\ab\\ab ", "\\c1",
        "\\newcommand{\\e}{é}\n", "é", SEPARATOR, "\t", "\\def\\t{a\tb}\n", "\\t.", "\r\n",
    ]
    rng = random.Random(1)
    for n in range(count):
        text = rng.choice(texts)
        start = rng.randrange(len(text) + 1)
        text = text[start : start + rng.randrange(3000)]
        for _ in range(rng.randrange(12)):
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(pieces) + text[at:]
        yield f"mutant {n}", text


def ours(command, texts):
    lines = "".join(json.dumps(t) + "\n" for t in texts)
    started = time.perf_counter()
    done = subprocess.run(shlex.split(command), input=lines, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()], time.perf_counter() - started


def main():
    documents = list(samples())
    documents += mutants([t for _, t in documents], 20_000)
    names, texts = zip(*documents)
    started = time.perf_counter()
    wanted = [peer(t) for t in texts]
    theirs = time.perf_counter() - started
    got, seconds = ours(sys.argv[1], texts)
    differ = 0
    for name, text, answer in zip(names, wanted, got, strict=True):
        if answer["text"] != text and answer["dropped"] not in ("macros_too_large", "macros_too_many"):
            differ += 1
            if differ <= 5:
                at = next((i for i, (a, b) in enumerate(zip(text, answer["text"])) if a != b), min(len(text), len(answer["text"])))
                print(f"{name}: differs at {at}: {text[at - 40 : at + 40]!r} / {answer['text'][at - 40 : at + 40]!r} {answer['dropped']}")
    kept = sum(bool(t) for t in wanted)
    print(f"{len(texts)} documents, {kept} kept by RedPajama's rules, {differ} differ; peer {theirs:.2f} s, ours {seconds:.2f} s with start and JSON")
    for command in sys.argv[2:]:
        got, _ = ours(command, texts[: len(texts) - 20_000])
        for name, before, text, answer in zip(names, texts, wanted, got):
            print(f"{name[-50:]:50} source {len(before):7} RedPajama {len(text):7} ours {len(answer['text']):7} {answer['dropped'] or ''}")
    sys.exit(differ > 0)


if __name__ == "__main__":
    main()
