#!/usr/bin/env bash
# What a model of 7B's shape takes in memory, and how long it takes to start: the file is mapped and read where it lies.
#
#     V/bin/python make_models.py --sizes 7b --types q4_0        # 3.8 GB
#     bash memory.sh PATH/recua models/7b-q4_0.gguf
#
# Prints the file's size, the largest resident size, its excess over file and cache, and the time from start to end of two tokens.
set -euo pipefail
recua="$1" model="$2" cache=$((512 << 20))
report="$(mktemp)"
trap 'rm -f "$report"' EXIT
cat "$model" >/dev/null # into the page cache: a start from the disk is the disk's
/usr/bin/time -o "$report" -f '%M %e' "$recua" generate --model "$model" '[1,5,9,20]' --tokens 2 --kv-cache-bytes "$cache" --max-len 512
read -r kib seconds <"$report"
size="$(stat -c %s "$model")"
awk -v kib="$kib" -v s="$seconds" -v size="$size" -v cache="$cache" 'BEGIN {
    resident = kib * 1024
    printf "file %.0f MB, cache %.0f MB at most, resident %.0f MB: %+.1f %% of file and cache, %s s\n", size / 1e6, cache / 1e6,
        resident / 1e6, 100 * (resident / (size + cache) - 1), s
    exit resident > 1.05 * (size + cache) + 100e6
}'
