#!/usr/bin/env bash
# What is run on a machine with an NVIDIA GPU: first whether recua computes right there, then how fast, beside PyTorch.
#
#     bash benches/gpu.sh RECUA_BINARY [OUT_DIR]
#
# Nothing is built there. The binary comes from a machine without a GPU, and needs no CUDA toolkit to be built:
#
#     CUDARC_CUDA_VERSION=13000 cargo build --release --no-default-features --features cli,cuda && strip target/release/recua
#
# It travels with tests/golden and benches/peers, under 60 MB together, and with a folder of text (crates/, this project's sources). The
# driver has to be 580 or later. The peers need python3 with torch and transformers, and are left out where those are missing.
#
# In this order: the machine; `recua selftest`, whose failure ends it all; 300 steps of training in float32 and in bfloat16,
# whose last losses have to agree within 0.02; matrix products; attention; training steps. A command that fails or has no time
# left is a row that says so. All of it takes less than 9 minutes. Leaves OUT_DIR/gpu.json (default OUT_DIR: gpu-results),
# and prints rows for benches/RESULTS.md.
#
# Variables: QUICK=1 (few shapes, few steps, no torch.compile), PARTS="gemm attention train" (which of the speeds), TEXTS=DIR
# (text to train on), COMMIT=HASH, PEAK_TFLOPS=989 (dense bfloat16, H100 and H200), PYTHON=python3, LIMIT=520 (seconds until
# nothing more is begun), BACKEND=cuda (another one needs no GPU: a rehearsal).
set -euo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ] || [ ! -x "$1" ]; then
    echo 'usage: bash benches/gpu.sh RECUA_BINARY [OUT_DIR]' >&2
    exit 2
fi
recua="$(realpath "$1")"
mkdir -p "${2:-gpu-results}"
out="$(realpath "${2:-gpu-results}")"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

backend="${BACKEND:-cuda}" python="${PYTHON:-python3}" peak="${PEAK_TFLOPS:-989}" quick="${QUICK:-0}"
parts="${PARTS:-gemm attention train}" deadline="${LIMIT:-520}"
work="$(mktemp -d)"
watch=''
trap '[ -z "$watch" ] || kill "$watch"; rm -rf "$work"' EXIT
mkdir "$work/rows"

say() { echo "==> $SECONDS s: $*" >&2; }

# ---- the machine ----

bytes="$(cat "$recua" $(find tests/golden benches/peers -type f) | wc -c)"
say "binary, tests/golden and benches/peers: $((bytes / 1000000)) MB"
if [ "$bytes" -ge 60000000 ]; then
    echo 'more than 60 MB: strip the binary' >&2
    exit 1
fi

memory_mib=0 machine="$(uname -m), $(nproc) cores"
if [ "$backend" = cuda ]; then
    command -v nvidia-smi >/dev/null || { echo 'no nvidia-smi, and so no NVIDIA GPU here' >&2 && exit 1; }
    machine="$(nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader | sed -n '1s/\(.*\), /\1, driver /p')"
    memory_mib="$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | sed -n 1p)"
fi
commit="${COMMIT:-$(git describe --always --dirty 2>/dev/null || echo unknown)}"

# CUDA's headers, where CubeCL looks for them, and the folder of NVRTC: of a toolkit, else of pip's nvidia packages.
mapfile -t pip_cuda < <("$python" -c '
import glob, nvidia
for path in nvidia.__path__:
    # CUDA 13 lies in one folder, earlier ones in one a package.
    print(*sorted(glob.glob(path + "/*/"), key=lambda p: ("/cu1" not in p, p)), sep="\n")' 2>/dev/null || true)
roots=(${CUDA_PATH:+"$CUDA_PATH"} /usr/local/cuda /opt/cuda "${pip_cuda[@]}")
libraries=''
for root in "${roots[@]}"; do
    if [ -n "$root" ] && [ -e "${root%/}/include/cuda_runtime.h" ]; then
        export CUDA_PATH="${root%/}"
        break
    fi
done
for root in ${CUDA_PATH:+"$CUDA_PATH"} "${roots[@]}"; do
    for folder in "${root%/}/lib64" "${root%/}/lib"; do
        if compgen -G "$folder/libnvrtc.so*" >/dev/null; then
            libraries="$folder"
            break 2
        fi
    done
done
# cuBLASLt lies beside NVRTC since CUDA 13, in a package of its own before.
for root in "${roots[@]}"; do
    for folder in "${root%/}/lib64" "${root%/}/lib"; do
        if [ "$folder" != "$libraries" ] && compgen -G "$folder/libcublasLt.so*" >/dev/null; then
            libraries="$libraries${libraries:+:}$folder"
            break 2
        fi
    done
done
libraries="$libraries${LD_LIBRARY_PATH:+${libraries:+:}$LD_LIBRARY_PATH}"

# PyTorch keeps its own libraries: the path is recua's only.
recua() { env ${libraries:+LD_LIBRARY_PATH="$libraries"} "$recua" "$@"; }

device=cuda
[ "$backend" = cuda ] || device=cpu
torch='' transformers=''
if torch="$("$python" -c "
import torch
assert '$device' == 'cpu' or torch.cuda.is_available(), 'no GPU'
print(torch.__version__)" 2>"$work/torch.err")"; then
    "$python" -c 'import transformers; print(transformers.__version__)' >"$work/transformers" 2>"$work/torch.err" || true
    transformers="$(cat "$work/transformers")"
fi
[ -n "$torch" ] || say "no peers: no usable torch in $python ($(tail -n 1 "$work/torch.err"))"
[ -z "$torch" ] || [ -n "$transformers" ] || say "no peers for training: no transformers in $python"

version="$(recua --version)"
cat >"$work/machine" <<END
machine=$machine
date=$(date -u +%F)
commit=$commit
version=$version
torch=$torch
transformers=$transformers
cuda_path=${CUDA_PATH:-}
bytes=$bytes
peak_tflops=$peak
END
sed 's/^/    /' "$work/machine" >&2

# ---- right before fast ----

# limited SECONDS COMMAND...: with a time limit, and never beyond the deadline. Functions do not pass through `timeout`.
limited() {
    local limit=$1 left=$((deadline - SECONDS))
    shift
    [ "$left" -ge 5 ] || return 124
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$1" = recua ]; then
        shift
        set -- env ${libraries:+LD_LIBRARY_PATH="$libraries"} "$recua" "$@"
    fi
    timeout -k 5 "$limit" "$@"
}

say 'selftest'
if ! limited 240 recua selftest --backend "$backend" >"$out/selftest.txt" 2>"$work/selftest.err"; then
    grep '^FAILED' "$out/selftest.txt" || tail -n 3 "$out/selftest.txt"
    tail -n 5 "$work/selftest.err"
    echo 'the selftest failed: nothing is measured'
    exit 1
fi
tail -n 1 "$out/selftest.txt" | tee "$work/selftest" >&2

say 'float32 and bfloat16: 300 steps each'
data() {
    limited 60 recua tokenizer train --input "${TEXTS:-crates}" --out "$work/tokenizer.json" --vocab-size 1024
    limited 60 recua data tokenize --input "${TEXTS:-crates}" --tokenizer "$work/tokenizer.json" --out "$work/tokens"
}
if ! data >"$work/data.log" 2>&1; then
    tail -n 5 "$work/data.log"
    echo 'no tokens to train on: nothing is measured'
    exit 1
fi
for precision in f32 bf16; do
    if ! limited 90 recua train --data "$work/tokens" --run "$work/$precision" --preset debug --steps 300 --backend "$backend" \
        --precision "$precision" --set model.dim=128 --set model.n_layers=4 --set train.seq_len=128 --set optim.lr=1e-3 \
        --set optim.warmup_steps=30 --set train.checkpoint_every=0 --set sample.every=0 >"$work/train.log" 2>&1; then
        tail -n 5 "$work/train.log"
        echo "training in $precision failed: nothing is measured"
        exit 1
    fi
done
if ! "$python" - "$work" <<'END'
import json, pathlib, sys
work = pathlib.Path(sys.argv[1])
ends = {}
for precision in ("f32", "bf16"):
    losses = [json.loads(line)["loss"] for line in (work / precision / "metrics.jsonl").read_text().splitlines()]
    if len(losses) != 300 or None in losses:
        sys.exit(f"{precision}: {len(losses)} losses of 300, {losses.count(None)} of them not finite")
    ends[precision] = sum(losses[-10:]) / 10
ends["difference"] = abs(ends["f32"] - ends["bf16"])
ends["allowed"] = 0.02
(work / "losses").write_text(json.dumps(ends))
print("mean of the last 10 losses: float32 {f32:.4f}, bfloat16 {bf16:.4f}, difference {difference:.4f}".format(**ends))
sys.exit(not ends["difference"] <= ends["allowed"])
END
then
    echo 'bfloat16 does not train as float32 does: nothing is measured'
    exit 1
fi

# ---- speed ----

# row KIND SHAPE WHO COMMAND...: begins a row of the table; what is in the four files is put together at the end.
row() {
    at="$work/rows/$(printf %03d "$(find "$work/rows" -name '*.row' | wc -l)")"
    local kind=$1 shape=$2 who=$3
    shift 3
    local command="$*"
    printf '%s\n' "$kind" "$shape" "$who" "${command/#"$python"/python3}" >"$at.row"
}

# refuse KIND SHAPE WHO REASON COMMAND...: a row that is not run.
refuse() {
    local reason=$4
    row "$1" "$2" "$3" "${@:5}"
    echo "$reason" >"$at.problem"
}

# measure KIND SHAPE WHO SECONDS COMMAND...: runs it. The GPU's memory in use is watched, since the programs' own counts differ.
measure() {
    local limit=$4 code=0
    row "$1" "$2" "$3" "${@:5}"
    if [ $((deadline - SECONDS)) -lt 5 ]; then
        echo 'not run: no time left' >"$at.problem"
        return
    fi
    say "${*:5}"
    if [ "$backend" = cuda ] && [ "$1" = train ]; then
        nvidia-smi -i 0 --query-gpu=memory.used --format=csv,noheader,nounits -lms 250 >"$at.memory" 2>/dev/null &
        watch=$!
    fi
    limited "$limit" "${@:5}" >"$at.out" 2>"$at.err" || code=$?
    if [ -n "$watch" ]; then
        kill "$watch" 2>/dev/null || true
        wait "$watch" 2>/dev/null || true
        watch=''
    fi
    case $code in
    0) ;;
    124 | 137) echo 'timed out' >"$at.problem" ;;
    *) echo "exit code $code: $(grep -v '^[[:space:]]*$' "$at.err" | tail -n 1 | cut -c 1-300)" >"$at.problem" ;;
    esac
}

# budget SECONDS: the part that follows ends then, whatever the whole's deadline.
whole=$deadline
budget() {
    deadline=$((SECONDS + $1))
    [ "$deadline" -le "$whole" ] || deadline=$whole
}

gemm() {
    local shape m k n routine
    local shapes=(8192x4096x11008 2048x4096x4096 2048x4096x22016 16384x11008x4096)
    local routines=(cublaslt wgmma tma-mma cyclic-mma cyclic-cmma burn unit)
    if [ "$quick" = 1 ]; then shapes=("${shapes[@]:0:2}") routines=(cublaslt wgmma tma-mma); fi
    # One row here, one a shape in the table.
    [ -z "$torch" ] || measure gemm "${shapes[*]}" torch 60 "$python" benches/peers/gemm_torch.py --device "$device" "${shapes[@]}"
    # By routine, best first: what the time does not reach is the least.
    for routine in "${routines[@]}"; do
        for shape in "${shapes[@]}"; do
            IFS=x read -r m k n <<<"$shape"
            measure gemm "$shape" "recua $routine" 30 recua bench gemm --m "$m" --n "$n" --k "$k" --gemm "$routine" \
                --backend "$backend" --precision bf16 --json
        done
    done
}

attention() {
    local seq batch kernels
    for seq in 2048 8192; do
        batch=$((8192 / seq))
        if [ "$quick" = 1 ] && [ "$seq" != 2048 ]; then continue; fi
        [ -z "$torch" ] || measure attention "${batch}x32x${seq}x128" torch 45 "$python" benches/peers/attention_torch.py \
            --device "$device" --heads 32 --head-dim 128 --seq "$seq" --batch "$batch"
        for kernels in auto cubecl; do
            # The kernels on the units are there for what the others do not take: once is enough.
            if [ "$kernels" != auto ] && { [ "$seq" != 2048 ] || [ "$quick" = 1 ]; }; then continue; fi
            measure attention "${batch}x32x${seq}x128" "recua $kernels" 45 recua bench attention --dim 4096 --heads 32 \
                --seq "$seq" --batch "$batch" --attention "$kernels" --backend "$backend" --precision bf16 --json
        done
    done
}

# Presets: seq, batch, and for the peer vocab, dim, layers, heads, key/value heads, feed-forward width.
declare -A presets=(
    [110m]='1024 16 32000 768 12 12 12 2048'
    [1b]='2048 4 32000 2048 22 32 4 5632'
    [7b]='2048 1 32000 4096 32 32 32 11008'
)

# room PRESET SEQ BATCH: the flags with which a step fits into the device's memory (less 1.5 GiB for the context), in $flags; in
# $lacks why none does, in $params the model's size.
room() {
    local plan fits need attempt
    flags=() lacks='' params=0
    [ "$memory_mib" -gt 0 ] || return 0
    for attempt in '' '--update-in-backward' '--update-in-backward --keep block'; do
        read -ra flags <<<"$attempt"
        plan="$(recua plan --preset "$1" --seq "$2" --batch "$3" --precision bf16 --backend "$backend" \
            --memory $((memory_mib / 1024 - 2)).5 "${flags[@]}" --json)" || { flags=() && return 0; }
        read -r fits need params < <("$python" -c 'import json, sys; p = json.load(sys.stdin)
print(p["fits"], round(p["needed_bytes"] / 2**30, 1), p["parameters"])' <<<"$plan") || { flags=() && return 0; }
        [ "$fits" != True ] || return 0
    done
    lacks="does not fit: planned $need GiB of $((memory_mib / 1024))"
}

train() {
    local preset how steps=8 seq batch vocab dim layers heads kv ffn shape peer
    local names=(110m 1b 7b) passes=(recua eager compile)
    if [ "$quick" = 1 ]; then names=(110m 1b) passes=(recua eager) steps=3; fi
    # All of ours, then PyTorch's, smallest first: torch.compile of the large ones is the first to find no time left.
    for how in "${passes[@]}"; do
        for preset in "${names[@]}"; do
            read -r seq batch vocab dim layers heads kv ffn <<<"${presets[$preset]}"
            shape="$preset, ${batch}x$seq"
            room "$preset" "$seq" "$batch"
            if [ "$how" = recua ]; then
                local ours=(recua bench train --preset "$preset" --seq "$seq" --batch "$batch" --steps "$steps" --precision bf16
                    "${flags[@]}" --backend "$backend" --peak-tflops "$peak" --json)
                if [ -n "$lacks" ]; then
                    refuse train "$shape" recua "$lacks" "${ours[@]}"
                else
                    measure train "$shape" recua 120 "${ours[@]}"
                fi
                continue
            fi
            [ -n "$torch" ] && [ -n "$transformers" ] || continue
            peer=("$python")
            [ "$kv" = "$heads" ] || peer+=(benches/peers/grouped.py "$kv")
            peer+=(benches/peers/train_torch.py --vocab "$vocab" --dim "$dim" --layers "$layers" --heads "$heads" --ffn "$ffn"
                --seq "$seq" --batch "$batch" --steps "$steps" --device "$device" --bf16 --peak-tflops "$peak")
            [ "$how" = eager ] || peer+=(--compile)
            if [ "$memory_mib" -gt 0 ] && [ $((16 * params / 1048576)) -gt "$memory_mib" ]; then
                refuse train "$shape" "torch $how" \
                    "does not fit: float32 weights, gradients and moments alone are $((16 * params / 1073741824)) GiB" "${peer[@]}"
            else
                measure train "$shape" "torch $how" 120 "${peer[@]}"
            fi
        done
    done
}

# table: OUT_DIR/gpu.json, and rows for RESULTS.md on stdout. Also of what there is when the script is stopped.
table() {
    "$python" - "$work" "$out" <<'END'
import json, pathlib, sys
work, out = map(pathlib.Path, sys.argv[1:])
top = dict(line.split("=", 1) for line in (work / "machine").read_text().splitlines())
peak = float(top["peak_tflops"])
losses = json.loads((work / "losses").read_text())
rows = []

def result(row, lines):
    """Fills in the last of the lines of JSON."""
    try:
        row["result"] = json.loads(lines[-1])
        row["tflop_s"] = float(row["result"]["gflop_s"]) / 1e3
        row["problem"] = None
    except (IndexError, ValueError, KeyError, TypeError) as e:
        row["result"] = None
        row["problem"] = row["problem"] or f"printed no JSON with gflop_s ({type(e).__name__})"

for path in sorted((work / "rows").glob("*.row")):
    kind, shape, who, command = path.read_text().splitlines()
    row = dict(kind=kind, shape=shape, who=who, command=command, result=None, problem=None)
    part = lambda name: path.with_suffix(name).read_text() if path.with_suffix(name).exists() else ""
    row["problem"] = part(".problem").strip() or None
    memory = [int(x) for x in part(".memory").split() if x.isdigit()]
    row["device_mib"] = max(memory, default=None)
    lines = [line for line in part(".out").splitlines() if line.startswith("{")]
    if (kind, who) == ("gemm", "torch"):
        alone = command.removesuffix(shape)
        for shape in shape.split():
            one = dict(row, shape=shape, command=alone + shape)
            result(one, [line for line in lines if f'"{shape}"' in line])
            rows.append(one)
        continue
    if not row["problem"]:
        result(row, lines)
    if row["problem"]:
        row["stderr"] = part(".err")[-2000:]
    rows.append(row)
(out / "gpu.json").write_text(json.dumps(dict(
    top, selftest=(work / "selftest").read_text().strip(), losses=losses, rows=rows), indent=1) + "\n")

def figure(row):
    if row["problem"]:
        return f"**{row['problem']}**"
    r, parts = row["result"], []
    if "tok_s" in r and row["kind"] == "train":
        parts.append(f"{r['tok_s']:.0f} tok/s")
    parts.append(f"{row['tflop_s']:.1f} TFLOP/s")
    mfu = r.get("mfu")
    if row["kind"] == "train":
        parts.append(f"MFU {100 * (row['tflop_s'] / peak if mfu is None else mfu):.1f} % of {peak:.0f}")
        own = r.get("peak_gpu_mb") if row["who"].startswith("torch") else r.get("work_mb")
        if own is not None:
            parts.append(f"memory {own / 1024:.1f} GiB " + ("allocated" if row["who"].startswith("torch") else "in the pool"))
        if row["device_mib"]:
            parts.append(f"device {row['device_mib'] / 1024:.1f} GiB")
    if row["who"].startswith("recua"):
        for peer in rows:
            if peer["who"].startswith("torch") and (peer["kind"], peer["shape"]) == (row["kind"], row["shape"]):
                if peer["result"]:
                    # By the rate that counts: tokens, or operations where there are no tokens.
                    key = "tok_s" if row["kind"] == "train" and "tok_s" in r else "gflop_s"
                    than = f" {peer['tflop_s']:.1f}" if key == "gflop_s" else ""
                    parts.append(f"{float(r[key]) / float(peer['result'][key]):.2f} of {peer['who']}'s{than}")
                else:
                    parts.append(f"{peer['who']}: none")
    return ", ".join(parts)

cell = lambda text: text.replace("|", "\\|").replace("\n", " ")
losses = "300 steps in float32 and bfloat16, mean of the last 10 losses {f32:.4f} and {bf16:.4f}".format(**losses)
lines = [("recua selftest", (work / "selftest").read_text().strip()), ("bash benches/gpu.sh", losses)]
for row in rows:
    name = row["shape"] + ("" if row["who"] == "recua" else ", " + row["who"].removeprefix("recua "))
    lines.append((row["command"], f"{row['kind']} {name}: {figure(row)}"))
machine = f"{top['machine']}, " + (f"torch {top['torch']}" if top["torch"] else "no PyTorch to compare with")
print("| date | commit | machine | command | figure |\n|---|---|---|---|---|")
for command, text in lines:
    print(f"| {top['date']} | {top['commit']} | {cell(machine)} | `{cell(command)}` | {cell(text)} |")
    machine = "same"
END
}
exec 3>&1 # where the trap finds stdout while a command's is redirected
trap 'trap - TERM INT; table >&3 || true; exit 130' TERM INT

for part in $parts; do
    case $part in
    gemm) budget $((quick == 1 ? 60 : 130)) && gemm ;;
    attention) budget $((quick == 1 ? 30 : 60)) && attention ;;
    train) budget "$whole" && train ;;
    *) say "PARTS: there is no part $part" ;;
    esac
done
table
say "done; $out/gpu.json"
