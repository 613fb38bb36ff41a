#!/usr/bin/env python3
"""What the type of keys and values costs: bits per byte of a text, and the largest difference of a token's log-probability.

    python3 benches/kv_types.py RECUA MODEL TEXT_FILE ... [--bytes 200000]

The texts are cut at line ends into pieces that fit the model; each piece is scored as a prompt (`generate --tokens 0 --echo`), whose
keys and values are read from the cache in its type.
"""

import argparse
import json
import math
import pathlib
import statistics
import subprocess
import tempfile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recua")
    parser.add_argument("model")
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--bytes", type=int, default=200_000)
    parser.add_argument("--piece", type=int, default=450, help="bytes of a piece, about")
    a = parser.parse_args()
    pieces, size = [], 0
    for path in a.texts:
        piece = ""
        for line in pathlib.Path(path).read_text().splitlines(keepends=True):
            if piece and len(piece) + len(line) > a.piece:
                pieces.append(piece)
                size += len(piece.encode())
                piece = ""
            piece += line[: a.piece]
            if size > a.bytes:
                break
    scores: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        prompts = pathlib.Path(folder) / "prompts"
        prompts.write_text("".join(json.dumps(p) + "\n" for p in pieces))
        for dtype in ("f32", "bf16", "f16", "int8"):
            out = subprocess.run(
                [a.recua, "generate", "--model", a.model, "--prompts", str(prompts), "--tokens", "0", "--echo", "--bos", "always",
                 "--json", "--kv-cache-dtype", dtype],
                capture_output=True, text=True)
            if out.returncode:
                raise SystemExit(out.stderr)
            rows = [json.loads(line) for line in out.stdout.splitlines()]
            scores[dtype] = [token["logprob"] for row in rows for token in row["prompt_logprobs"] if token]
    total = sum(len(p.encode()) for p in pieces)
    exact = scores["f32"]
    print(f"{len(exact)} tokens, {total} bytes in {len(pieces)} pieces")
    print("| keys and values | bits per byte | to float32 | largest difference of a log-probability | mean |\n|---|---|---|---|---|")
    base = -sum(exact) / math.log(2) / total
    for dtype, got in scores.items():
        bits = -sum(got) / math.log(2) / total
        differences = [abs(x - y) for x, y in zip(got, exact, strict=True)]
        print(f"| {dtype} | {bits:.5f} | {bits - base:+.5f} | {max(differences):.1e} | {statistics.mean(differences):.1e} |")


if __name__ == "__main__":
    main()
