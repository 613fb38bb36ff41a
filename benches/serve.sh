#!/usr/bin/env bash
# The server under load, with its own generator (`recua bench serve`), which takes its share of the same processors. Each part fails where
# a request is lost, something is left behind, or the server does not end well. Some eight minutes.
#
#     bash benches/serve.sh RECUA MODEL [PART...]      # parts: ratio load overload leave memory stop kill
set -euo pipefail
recua="$1" model="$2"
shift 2
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(ratio load overload leave memory stop kill)
work="$(mktemp -d)"
server=""
trap '[ -z "$server" ] || kill -9 "$server" 2>/dev/null; rm -rf "$work"' EXIT

up() {
    "$recua" serve --model "$model" --port 0 --quiet "$@" >"$work/address" 2>"$work/log" &
    server=$!
    until url=$(head -1 "$work/address") && [ -n "$url" ] && curl -sfo /dev/null "$url/health"; do
        kill -0 "$server" || { cat "$work/log"; exit 1; }
        sleep 0.1
    done
}

down() {
    kill -TERM "$server"
    wait "$server"
    server=""
}

metric() { curl -s "$url/metrics" | awk -v name="vllm:$1{" 'index($0, name) == 1 { sum += $NF } END { print sum + 0 }'; }

# Nothing is computed, waits, or holds the cache, within ten seconds.
idle() {
    for _ in $(seq 100); do
        if [ "$(metric num_requests_running) $(metric num_requests_waiting) $(metric kv_cache_usage_perc)" = "0 0 0" ]; then return; fi
        sleep 0.1
    done
    echo "left behind: $(metric num_requests_running) running, $(metric num_requests_waiting) waiting, cache $(metric kv_cache_usage_perc)" >&2
    return 1
}

resident() { awk '/^VmRSS/ { printf "%.1f", $2 / 1024 }' "/proc/$server/status"; }

# Eight at once, over HTTP and in the engine alone, in turn: the same lengths, the same number of requests.
ratio() {
    local rounds="${ROUNDS:-5}" requests="${REQUESTS:-64}" new="${NEW:-64}" prompt="${PROMPT:-32}" i
    up
    for i in $(seq "$rounds"); do
        "$recua" bench serve-sim --model "$model" --rate inf --requests "$requests" --batch 8 --prompt-tokens "$prompt" \
            --new-tokens "$new" --repeat 1 --json >"$work/engine.$i"
        "$recua" bench serve --url "$url" --clients 8 --requests "$requests" --prompt-len "$prompt" --max-tokens "$new" --seed "$i" \
            --json >"$work/http.$i"
    done
    down
    python3 - "$work" "$rounds" <<'PY'
import json, statistics, sys
work, rounds = sys.argv[1], int(sys.argv[2])
engine = [json.load(open(f"{work}/engine.{i}"))["rows"][0]["tok_s"] for i in range(1, rounds + 1)]
http = [json.load(open(f"{work}/http.{i}"))[0]["tok_s"] for i in range(1, rounds + 1)]
ratios = sorted(h / e for h, e in zip(http, engine))
print(f"8 at once: engine {statistics.median(engine):.0f} tok/s, over HTTP {statistics.median(http):.0f}; ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
PY
}

load() {
    up
    "$recua" bench serve --url "$url" --clients 1,8,64 --requests "${REQUESTS:-256}"
    idle
    down
}

# A minute of ten times as many requests as it can answer.
overload() {
    up --max-queue 32
    "$recua" bench serve --url "$url" --clients 16 --duration "${SECONDS_OF_OVERLOAD:-60}" --overload 10
    idle
    down
}

# A thousand clients, 64 at once, each of which goes at a random moment.
leave() {
    up
    "$recua" bench serve --url "$url" --clients 64 --requests "${REQUESTS:-1000}" --leave 1
    idle
    "$recua" bench serve --url "$url" --clients 8 --requests 64
    down
}

# Ten thousand requests: the memory after 2,000 is the memory after all.
memory() {
    up
    "$recua" bench serve --url "$url" --clients 16 --requests 2000 --prompt-len 16 --max-tokens 16
    local before after
    before=$(resident)
    for i in 2 3 4 5; do
        "$recua" bench serve --url "$url" --clients 16 --requests 2000 --prompt-len 16 --max-tokens 16 --seed "$i" --json >"$work/row"
        after=$(resident)
        echo "resident after $((i * 2000)) requests: $after MiB (after 2000: $before)"
    done
    awk -v a="$after" -v b="$before" 'BEGIN { exit !(a < b * 1.05 + 2) }'
    idle
    down
}

# SIGTERM in the middle: what is there ends, what comes is refused.
stop() {
    up
    "$recua" bench serve --url "$url" --clients 16 --duration 30 --max-tokens 128 &
    local load=$!
    sleep 5
    down
    wait "$load"
}

# A client that is killed in mid-stream.
kill_client() {
    up
    for _ in $(seq 5); do
        "$recua" bench serve --url "$url" --clients 8 --duration 60 --max-tokens 200 --json >/dev/null 2>&1 &
        local load=$!
        sleep 2
        kill -9 "$load"
        wait "$load" 2>/dev/null || true
        idle
    done
    echo "five generators of 8 clients killed: nothing left behind"
    down
}

for part in "${parts[@]}"; do
    echo "==> $part"
    if [ "$part" = kill ]; then kill_client; else "$part"; fi
done
