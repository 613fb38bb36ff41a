#!/usr/bin/env bash
# The reference run on two cores, and the same training in PyTorch beside it, in at most 90 minutes. reference.py says all.
#
#     bash benches/reference.sh RECUA_BINARY OUT_DIR [--minutes 30] [--pair-minutes 50]
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/reference.py" "$@"
