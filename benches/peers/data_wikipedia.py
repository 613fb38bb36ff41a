"""Wikipedia cleaning: recua against mwparserfromhell.

Takes every page (namespace 0, no redirects) of every dump in $RECUA_DATA/wikipedia through both, compares the texts over
normalised white space (rapidfuzz's ratio) and the processor time (of ours with its start and its JSON). The peer is the published recipe: of each section, files and the
tags `ref` and `table` are removed, category links become their names, then `strip_code`, then `__[A-Z]*__` goes.

Run from the project's root, with an interpreter that has mwparserfromhell and rapidfuzz:

    RECUA_DATA=... python benches/peers/data_wikipedia.py \
        --command "target/release/recua data clean --source wikipedia --language {language}" --below 0.8 --show out/

The command gets the wikitext of a page as a JSON string a line and gives {"text": ..., "dropped": ...} a line.
Last line: one JSON object with the figures. Exit code 1 if the mean is below --mean.
"""

import argparse
import bz2
import json
import lzma
import os
import pathlib
import re
import resource
import subprocess
import sys
import time
import xml.etree.ElementTree as ET

import mwparserfromhell
from rapidfuzz import fuzz

# siteinfo's namespaces -2 and 6, and 14, beside the English names.
MEDIA = {"bg": "Медия|Файл|Картинка", "en": "", "ltg": "Medeja|Fails", "uk": "Медіа|Медиа|Файл|Изображение|Зображення"}
CATEGORY = {"bg": "Категория", "en": "", "ltg": "Kategoreja", "uk": "Категория|Категорія"}


def pages(path):
    """(language, id, title, wikitext) of a dump."""
    raw = path.read_bytes()
    if raw[:3] == b"BZh":
        raw = bz2.decompress(raw)
    elif raw[:6] == b"\xfd7zXZ\0":
        raw = lzma.decompress(raw)
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    text = raw.decode(encoding)
    language = re.search(r'xml:lang="([^"]*)"', text).group(1)
    for page in re.findall(r"<page>.*?</page>", text, re.S):
        element = ET.fromstring(page)
        if element.findtext("ns") != "0" or element.find("redirect") is not None:
            continue
        yield language, element.findtext("id"), element.findtext("title"), element.findtext("revision/text") or ""


def recipe(wikitext, language):
    code = mwparserfromhell.parse(wikitext)
    media = re.compile("^(?:%s):" % "|".join(filter(None, ["File", "Image", "Media", MEDIA.get(language)])), re.I)
    category = re.compile("^(?:%s):" % "|".join(filter(None, ["Category", CATEGORY.get(language)])), re.I)
    texts = []
    for section in code.get_sections(flat=True, include_lead=True, include_headings=True):
        for link in section.ifilter_wikilinks(recursive=True):
            title = str(link.title)
            if media.match(title):
                remove(section, link)
            elif category.match(title):
                link.text = category.sub("", link.__strip__())
        for tag in section.ifilter_tags(matches=lambda t: str(t.tag) in {"ref", "table"}, recursive=True):
            remove(section, tag)
        texts.append(re.sub("__[A-Z]*__", "", section.strip_code().strip()))
    return "\n\n".join(texts)


def remove(section, node):
    try:
        section.remove(node)
    except ValueError:
        pass  # it went with another


def child_time():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def normal(text):
    return " ".join(text.split())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", required=True)
    parser.add_argument("--mean", type=float, default=0.95)
    parser.add_argument("--below", type=float, default=0.8, help="list the pages below this similarity")
    parser.add_argument("--show", type=pathlib.Path, help="write both texts of those pages here")
    parser.add_argument("--cache", type=pathlib.Path, help="keep the peer's texts here")
    args = parser.parse_args()
    folder = pathlib.Path(os.environ["RECUA_DATA"]) / "wikipedia"
    figures, ratios = {}, []
    for path in sorted(p for p in folder.iterdir() if ".xml" in p.name):
        found = list(pages(path))
        if not found:
            continue
        language = found[0][0]
        cached = args.cache / (path.name + ".json") if args.cache else None
        if cached and cached.exists():
            theirs, their_time = json.loads(cached.read_text())
        else:
            start = time.process_time()
            theirs = [recipe(text, language) for _, _, _, text in found]
            their_time = time.process_time() - start
            if cached:
                cached.write_text(json.dumps([theirs, their_time]))
        lines = "".join(json.dumps(text) + "\n" for _, _, _, text in found)
        start = child_time()
        command = args.command.format(language=language).split()
        done = subprocess.run(command, input=lines.encode(), capture_output=True, check=True)
        our_time = child_time() - start
        ours = [json.loads(line)["text"] for line in done.stdout.splitlines()]
        assert len(ours) == len(found), (len(ours), len(found))
        scores = []
        for (_, page, title, _), left, right in zip(found, ours, theirs):
            score = fuzz.ratio(normal(left), normal(right)) / 100 if normal(left) or normal(right) else 1.0
            scores.append(score)
            if score < args.below:
                print(f"{score:.3f} {path.name[:20]} {page} {title}: {len(left)} against {len(right)}")
                if args.show:
                    args.show.mkdir(parents=True, exist_ok=True)
                    (args.show / f"{language}-{page}.ours.txt").write_text(left)
                    (args.show / f"{language}-{page}.peer.txt").write_text(right)
        ratios += scores
        figures[path.name] = {
            "pages": len(scores),
            "bytes": sum(len(text.encode()) for _, _, _, text in found),
            "mean": round(sum(scores) / len(scores), 4),
            "least": round(min(scores), 4),
            "below": sum(score < args.below for score in scores),
            "our_s": round(our_time, 3),
            "peer_s": round(their_time, 3),
        }
        print(path.name, figures[path.name])
    total = {
        "pages": len(ratios),
        "mean": round(sum(ratios) / len(ratios), 4),
        "below": sum(score < args.below for score in ratios),
        "our_s": round(sum(f["our_s"] for f in figures.values()), 3),
        "peer_s": round(sum(f["peer_s"] for f in figures.values()), 3),
    }
    total["times_faster"] = round(total["peer_s"] / total["our_s"], 1)
    print(json.dumps(total))
    sys.exit(total["mean"] < args.mean)


if __name__ == "__main__":
    main()
