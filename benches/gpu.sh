#!/usr/bin/env bash
# What is run on a machine with an NVIDIA GPU: whether recua computes right there, then how fast, beside PyTorch. gpu.py says all.
#
#     bash benches/gpu.sh RECUA_BINARY [OUT_DIR]
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/gpu.py" "$@"
