#!/usr/bin/env python3
"""What types cost in quality: bits per byte of a text, and the largest difference of a token's log-probability against float32.

    python3 benches/weight_types.py RECUA MODEL TEXT_FILE ... [--bytes 200000] [--weights f32,bf16,f16,q8_0,q4_0] [--kv f32,bf16,f16,int8]
                             [--gguf FILE ...]

The texts are cut at line ends into pieces that fit the model; each piece is scored as a prompt (`generate --tokens 0 --echo`), whose
keys and values are read from the cache in its type. `--gguf`: other files of the same model, in whatever types they are.
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
    parser.add_argument("--weights", default="f32,bf16,f16,q8_0,q4_0")
    parser.add_argument("--kv", default="f32,bf16,f16,int8")
    parser.add_argument("--gguf", nargs="*", default=[])
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
    rows: list[tuple[str, str, list[str]]] = [("float32", a.model, [])]
    for dtype in filter(lambda d: d and d != "f32", a.weights.split(",")):
        rows.append((f"weights {dtype}", a.model, ["--quantize" if dtype.startswith("q") else "--dtype", dtype]))
    for dtype in filter(lambda d: d and d != "f32", a.kv.split(",")):
        rows.append((f"keys and values {dtype}", a.model, ["--kv-cache-dtype", dtype]))
    rows += [(f"weights of {pathlib.Path(file).name}", file, []) for file in a.gguf]
    total = sum(len(p.encode()) for p in pieces)
    exact: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        prompts = pathlib.Path(folder) / "prompts"
        prompts.write_text("".join(json.dumps(p) + "\n" for p in pieces))
        for name, model, flags in rows:
            out = subprocess.run(
                [a.recua, "generate", "--model", model, "--prompts", str(prompts), "--tokens", "0", "--echo", "--bos", "always",
                 "--json", *flags],
                capture_output=True, text=True)
            if out.returncode:
                raise SystemExit(out.stderr)
            lines = [json.loads(line) for line in out.stdout.splitlines()]
            got = [token["logprob"] for line in lines for token in line["prompt_logprobs"] if token]
            if not exact:
                exact = got
                print(f"{len(exact)} tokens, {total} bytes in {len(pieces)} pieces")
                print("| type | bits per byte | to float32 | largest difference of a log-probability | mean |\n|---|---|---|---|---|")
            bits, base = (-sum(x) / math.log(2) / total for x in (got, exact))
            differences = [abs(x - y) for x, y in zip(got, exact, strict=True)]
            print(f"| {name} | {bits:.5f} | {bits - base:+.5f} | {max(differences):.1e} | {statistics.mean(differences):.1e} |", flush=True)


if __name__ == "__main__":
    main()
