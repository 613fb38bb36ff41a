#!/usr/bin/env bash
# From raw dumps to a chat, all of it: docs/tutorial.md says what each command prints and what to change for more.
#
#     cargo build --release --features data,mpi
#     bash examples/whole_path.sh DUMPS OUT
#
# DUMPS has a folder for each source, as in the tutorial. Needs mpirun, and a Python (PYTHON=...) with the package `openai` for the last
# step. STEPS sets how long to train: 2,000 steps take a minute or two on two cores.
set -euo pipefail

dumps="$(cd "${1:?the folder of dumps}" && pwd)"
out="${2:?a folder to make}"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-python3}"
steps="${STEPS:-2000}"
export PATH="${CARGO_TARGET_DIR:-$here/../target}/release:$PATH"
mkdir -p "$out"
cd "$out"

say() { printf '\n## %s\n' "$*"; }

say 'a tokenizer'
recua tokenizer train --input "$dumps/books" --out tokenizer.json --vocab-size 2048

say 'dumps to tokens'
cat >mixture.toml <<TOML
out = "data-build"
[mix]
tokenizer = "tokenizer.json"
valid = 0.05
[sources.commoncrawl]
weight = 1
inputs = ["$dumps/commoncrawl/*.wet.gz"]
languages = []
[sources.c4]
weight = 2
inputs = ["$dumps/c4"]
[sources.github]
weight = 25
inputs = ["$here/../crates", "$here/../src"]
read = { check_licence = false }
[sources.wikipedia]
weight = 20
inputs = ["$dumps/wikipedia/enwiki-*"]
rules = { languages = [] }
[sources.books]
weight = 30
inputs = ["$dumps/books"]
[sources.arxiv]
weight = 10
inputs = ["$dumps/arxiv/*"]
[sources.stackexchange]
weight = 12
inputs = ["$dumps/stackexchange"]
TOML
recua data build --config mixture.toml

say 'training on two ranks, one of which is killed'
recua train --config data-build/train.toml --run run --preset debug --steps "$steps" --nproc 2 --comm-timeout 20 \
    --set model.dim=128 --set model.max_seq_len=256 --set train.batch=8 --set optim.lr=3e-3 --set optim.warmup_steps=30 \
    --set train.checkpoint_every=100 &
until [ -d run/checkpoints/step-100 ]; do
    kill -0 $! # the job has failed on its own
    sleep 0.2
done
kill -KILL "$(pgrep --parent "$(pgrep --parent $! mpirun)" | tail -1)"
if wait $!; then
    echo 'the job did not notice that a rank was killed' >&2
    exit 1
fi

say 'the same run goes on, on one'
recua train --run run --resume --set parallel.dp=1

say 'what it has learnt'
recua eval run --model run --suite quick --out eval

say 'a file of 8 bits'
recua convert run model.gguf --quantize q8_0

say 'the server, and what a client gets of it'
recua serve --model model.gguf --port 0 >address 2>serve.log &
trap 'kill $!' EXIT
until [ -s address ] && curl --silent --fail --output /dev/null "$(head -1 address)/health"; do
    kill -0 $!
    sleep 0.2
done
prompt='The history of '
recua generate --model model.gguf --tokens 24 --temperature 0 --json "$prompt" >generated.json
"$python" - "$(head -1 address)" "$prompt" <<'PY'
import json
import sys

import openai

url, prompt = sys.argv[1:]
client = openai.OpenAI(base_url=url + "/v1", api_key="none")
model = client.models.list().data[0].id
answer = client.completions.create(model=model, prompt=prompt, max_tokens=24, temperature=0).choices[0].text
expected = json.load(open("generated.json"))["text"]
print(answer)
assert answer in (expected, expected.removeprefix(prompt)), f"generate wrote {expected!r}"
PY
