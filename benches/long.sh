#!/usr/bin/env bash
# What takes too long for every change: an hour of random requests at the engine. The last minute must be as fast as the first, the
# memory flat, the cache whole at the end (benches/soak.rs).
#
#     bash benches/long.sh [MINUTES] [BACKEND]
#
# With the folder of a quickstart: twenty ranks killed or stopped at random, as in CI two (tests/parallel/ranks.py); as root also a disk
# that is really full, and a link that goes down under two ranks (benches/link.py).
#
#     bash benches/long.sh ranks RUN
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${1:-}" = ranks ]; then
    cargo build --release --features mpi
    recua="${CARGO_TARGET_DIR:-target}/release/recua"
    root=()
    if [ "$(id -u)" = 0 ]; then root=(--tmpfs); fi
    python3 tests/parallel/ranks.py "$recua" "$2/data/train" "$2/data/valid" --kills 20 --steps 50 "${root[@]}"
    if [ "$(id -u)" = 0 ]; then python3 benches/link.py "$recua" "$2" down --timeout 5; fi
    exit
fi
cargo run --release --example soak -- "${1:-60}" "${2:-flex}"
