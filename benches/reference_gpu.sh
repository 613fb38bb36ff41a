#!/usr/bin/env bash
# The same for one NVIDIA GPU: 110m in bfloat16, beside PyTorch with torch.compile, autocast, SDPA and fused AdamW. It has been rehearsed
# on a CPU; it has not run on a card yet. First `recua selftest --backend cuda`, or benches/gpu.sh.
#
#     cargo build --release --features cuda
#     bash benches/reference_gpu.sh RECUA_BINARY OUT_DIR TEXTS HELD_OUT [flags of reference.py]
#
# TEXTS and HELD_OUT are files or folders of text. A step is 32,768 tokens; some 50 M tokens of text are seen a few times in the 30
# minutes. `--set train.batch=64` for a card with more memory, `--set train.micro_batch=8` for one with less; another model with --preset.
set -euo pipefail
recua="$1" out="$2" texts="$3" held_out="$4"
shift 4
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/reference.py" "$recua" "$out" --texts "$texts" --held-out "$held_out" \
    --backend cuda --preset 110m --precision bf16 --pair-minutes 60 --set train.batch=32 --set optim.lr=6e-4 "$@"
