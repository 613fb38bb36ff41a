#!/usr/bin/env python3
"""How `recua data build` grows: time and memory of every stage, on 1 times and 10 times as much.

    RECUA_DATA=samples python benches/peers/data_volume.py target/release/recua WORK [--mb 6] [--threads 2] [--set KEY=VALUE]...

Makes dumps of all seven sources in WORK from the samples, again and again, a seventh of the words of running text replaced by others
(MB of raw text a source, then ten times that), and runs a build on each, a stage a process. Prints documents and MB a second and core
(of the process's processor time), its largest resident memory, and what their ratios are.
Near-duplicates, masks and decontamination are on.
"""
import argparse, bz2, glob, gzip, io, json, os, random, re, shutil, subprocess, tarfile, time

STAGES = ["read", "clean", "dedup", "score", "mix", "tokenize", "report"]
DATA = os.environ["RECUA_DATA"]
WORD = re.compile(r"(?<= )[a-z]{4,}(?= )")


def text(path):
    return open(path, encoding="utf-8", errors="replace").read()


class Volume:
    def __init__(self, out, size):
        self.out, self.size, self.rng = out, size, random.Random(size)
        books = [text(p).replace("\r\n", "\n") for p in sorted(glob.glob(f"{DATA}/books/*.txt"))]
        self.pool = [w for w in set(WORD.findall(" ".join(books)))]
        self.pool.sort()
        self.books = books

    def other(self, text):
        return WORD.sub(lambda m: self.rng.choice(self.pool) if self.rng.random() < 1 / 7 else m[0], text)

    def again(self, items):
        """Items, changed each time, until there are enough bytes."""
        done, n = 0, 0
        while done < self.size:
            item = self.other(items[n % len(items)])
            done += len(item)
            yield n, item
            n += 1

    def files(self, source, items, name, write, a_file=4_000_000):
        os.makedirs(f"{self.out}/{source}")
        part, size, number = [], 0, 0
        for n, item in self.again(items):
            part.append((n, item))
            size += len(item)
            if size >= a_file:
                write(f"{self.out}/{source}/{name.format(number)}", part)
                part, size, number = [], 0, number + 1
        if part:
            write(f"{self.out}/{source}/{name.format(number)}", part)

    def make(self):
        pages = [text(p) for p in sorted(glob.glob(f"{DATA}/html-pages/pages/*.html"))]
        self.files("commoncrawl", pages, "CC-{:05}.warc.gz", write_warc)
        rows = [json.loads(l)["text"] for p in sorted(glob.glob(f"{DATA}/c4/*.json.gz")) for l in gzip.open(p, "rt") if "text" in l]
        self.files("c4", rows, "c4-{:05}.json.gz", write_c4)
        code = [text(p) for p in sorted(glob.glob("src/**/*.rs", recursive=True))]
        self.files("github", code, "code-{:05}.jsonl", write_code)
        dump = bz2.open(sorted(glob.glob(f"{DATA}/wikipedia/enwiki-latest*.bz2"))[0], "rt", encoding="utf-8").read()
        self.head, wiki = dump[: dump.index("<page>")], re.findall(r"<page>.*?</page>", dump, re.S)
        self.files("wikipedia", wiki, "enwiki-pages-articles-{:05}.xml.bz2", self.write_wiki, 20_000_000)
        self.files("books", self.books, "{:05}.txt", lambda path, part: open(path, "w").write(part[0][1]), 1)
        papers = [text(p) for p in sorted(glob.glob(f"{DATA}/arxiv/**/*.tex", recursive=True)) if os.path.getsize(p) > 10_000]
        self.files("arxiv", papers, "arXiv_src_{:05}.tar", write_arxiv)
        posts = [p for p in glob.glob(f"{DATA}/stackexchange/**/Posts.xml", recursive=True)]
        rows = [r for p in sorted(posts) for r in re.findall(r"  <row .*", text(p)) if 'PostTypeId="1"' in r]
        os.makedirs(f"{self.out}/stackexchange/site.stackexchange.com")
        with open(f"{self.out}/stackexchange/site.stackexchange.com/Posts.xml", "w") as file:
            file.write('<?xml version="1.0" encoding="utf-8"?>\n<posts>\n')
            for n, row in self.again(rows):
                file.write(re.sub(r' Id="\d+"', f' Id="{n + 1}"', row, count=1) + "\n")
            file.write("</posts>\n")

    def write_wiki(self, path, part):
        page = lambda n, p: re.sub(r"<title>(.*?)</title>", rf"<title>\1 {n}</title>", re.sub(r"<id>\d+</id>", f"<id>{n + 1}</id>", p, count=1), count=1)
        with bz2.open(path, "wt", encoding="utf-8") as file:
            file.write(self.head + "\n".join(page(n, p) for n, p in part) + "\n</mediawiki>\n")


def write_warc(path, part):
    with open(path, "wb") as file:
        for n, page in part:
            body = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + page.encode()
            head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: https://example.org/{n}\r\nWARC-Date: 2023-01-01T00:00:00Z\r\n"
            head += f"WARC-Record-ID: <urn:uuid:{n}>\r\nContent-Type: application/http; msgtype=response\r\nContent-Length: {len(body)}\r\n\r\n"
            file.write(gzip.compress(head.encode() + body + b"\r\n\r\n", 6))


def write_c4(path, part):
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps({"text": t, "url": f"https://example.org/{n}", "timestamp": "2019-04-25T12:57:54Z"}) + "\n" for n, t in part)


def write_code(path, part):
    with open(path, "w") as file:
        file.writelines(json.dumps({"content": t, "path": f"src/{n}.rs", "repo_name": f"a/{n % 100}", "license": "mit"}) + "\n" for n, t in part)


def write_arxiv(path, part):
    with tarfile.open(path, "w") as tar:
        for n, paper in part:
            packed = gzip.compress(paper.encode())
            info = tarfile.TarInfo(f"2101/2101.{n:05}.gz")
            info.size = len(packed)
            tar.addfile(info, io.BytesIO(packed))


def build(recua, work, volume, args):
    out = f"{work}/build"
    shutil.rmtree(out, ignore_errors=True)
    sources = ["commoncrawl", "c4", "github", "wikipedia", "books", "arxiv", "stackexchange"]
    config = f'out = "{out}"\n[models]\nlid = "{DATA}/models/lid.176.ftz"\n[mix]\ntokenizer = "{DATA}/models/tokenizer.model"\n'
    config += f'[decontaminate]\nfiles = ["{DATA}/eval/mmlu"]\n'
    for source in sources:
        config += f'[sources.{source}]\ninputs = ["{volume}/{source}"]\nnear_duplicates = true\nmask_pii = true\nmax_epochs = 1000\n'
        config += "languages = []\n" * (source == "commoncrawl") + 'min_english = 0\n' * (source == "c4")
    open(f"{work}/config.toml", "w").write(config)
    rows = {}
    for stage in STAGES:
        command = [recua, "data", "build", "--config", f"{work}/config.toml", "--stage", stage, "--threads", str(args.threads)]
        command += [x for s in args.set for x in ("--set", s)]
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=open(f"{work}/{stage}.log", "w"))
        peak = done = 0
        while not done:  # ru_maxrss would have this process's memory in it, from before exec
            try:
                peak = max([peak, *(int(l.split()[1]) for l in open(f"/proc/{child.pid}/status") if l.startswith("VmHWM"))])
            except OSError:
                pass
            time.sleep(0.01)
            done, status, usage = os.wait4(child.pid, os.WNOHANG)
        if status:
            raise SystemExit(f"{' '.join(command)}: failed\n" + open(f"{work}/{stage}.log").read()[-2000:])
        docs = size = 0
        for path in glob.glob(f"{out}/{stage}/*/*.manifest.json"):
            counts = json.load(open(path))["counts"]
            docs, size = docs + counts["docs_in"], size + counts["bytes_in"]
        rows[stage] = (docs, size / 1e6, time.perf_counter() - start, usage.ru_utime + usage.ru_stime, peak / 1024)
    return rows


def main():
    parse = argparse.ArgumentParser()
    parse.add_argument("recua")
    parse.add_argument("work")
    parse.add_argument("--mb", type=float, default=6)
    parse.add_argument("--threads", type=int, default=2)
    parse.add_argument("--set", action="append", default=[])
    args = parse.parse_args()
    os.makedirs(args.work, exist_ok=True)
    all_rows = []
    for times in (1, 10):
        volume = f"{args.work}/{times}x"
        if not os.path.exists(volume):
            Volume(volume + ".part", int(args.mb * 1e6 * times)).make()
            os.rename(volume + ".part", volume)
        all_rows.append(build(args.recua, args.work, volume, args))
    print("stage      docs 1x, 10x      MB 1x, 10x      wall s        docs/s/core        MB/s/core     MiB resident      time x  memory x")
    for stage in STAGES:
        (d, m, w, c, r), (d2, m2, w2, c2, r2) = all_rows[0][stage], all_rows[1][stage]
        print(f"{stage:9} {d:6} {d2:8} {m:8.1f} {m2:8.1f} {w:6.1f} {w2:7.1f} {d / c:8.0f} {d2 / c2:8.0f} {m / c:8.1f} {m2 / c2:8.1f} {r:7.0f} {r2:7.0f} {c2 / c:8.1f} {r2 / r:8.2f}")


if __name__ == "__main__":
    main()
