#!/usr/bin/env bash
# What takes too long for every change: an hour of random requests at the engine. The last minute must be as fast as the first, the
# memory flat, the cache whole at the end (benches/soak.rs).
#
#     bash benches/long.sh [MINUTES] [BACKEND]
set -euo pipefail
cd "$(dirname "$0")/.."
cargo run --release --example soak -- "${1:-60}" "${2:-flex}"
