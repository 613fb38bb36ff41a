#!/usr/bin/env bash
# The CPU bodies' tests under valgrind: reads of what was not written, and reads and writes out of bounds, in the AVX2 bodies (valgrind
# knows no AVX-512, so that the program takes those). Some minutes; by hand, after a change of crates/core/src/ops/cpu.
#
#   cargo test --release --test main --no-run && benches/valgrind.sh [FILTER ...]
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
binary=$(ls -t "$target"/release/deps/main-* | grep -v '\.d$' | head -1)
export RAYON_NUM_THREADS=2
for filter in "${@:-ops::}"; do
    # rayon's pool is never joined: its threads' memory is reachable at the end, and no leak.
    valgrind --error-exitcode=9 --leak-check=no --errors-for-leak-kinds=none "$binary" --test-threads 1 "$filter"
done
