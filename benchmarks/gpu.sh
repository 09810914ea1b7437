#!/usr/bin/env bash
# The benchmarks on one GPU, without network, the most wanted first:
#
#   benchmarks/gpu.sh CIFAR10 [FOLDER]                          # CIFAR10: a folder of its Parquet files
#   GPU_ONLY="views judging" benchmarks/gpu.sh CIFAR10 [FOLDER] # these lines alone
#   GPU_DEVICE=cpu benchmarks/gpu.sh --tiny shapes FOLDER       # every line at its least size, to see that it works
#
# FOLDER, benchmarks/results if it is not given, gets the JSON files and, in gpu-DEVICE.txt, what the lines print, call
# after call; gpu-DEVICE.tar holds both, for machines that give few files back. A call ends after GPU_MINUTES (9), a line
# after its own seconds, and a line whose seconds are not left is not begun. Two calls are enough for all: the seconds of
# the lines down to to_accuracy are one call's, those of the others a second one's. After a line that fails the next one
# runs; at the end those that failed are named, and those that were not reached, for the next call. to_accuracy goes on
# where its minutes ended, if FOLDER is the same: GPU_ONLY=to_accuracy. tailfin need not be installed, but what it imports
# must be. Peers that are not installed are left out.
set -uo pipefail
tiny=false
if [ "${1:-}" = --tiny ]; then tiny=true; shift; fi
if [ $# -lt 1 ]; then echo "usage: benchmarks/gpu.sh [--tiny] CIFAR10 [FOLDER]" >&2; exit 2; fi
root=$(cd "$(dirname "$0")/.." && pwd)
data=$1
if [ -e "$data" ]; then data=$(realpath "$data"); fi
out=${2:-$root/benchmarks/results}
mkdir -p "$out" && out=$(realpath "$out") && cd "$root" || exit 1
python=${PYTHON:-$(command -v python3 || command -v python)}
device=${GPU_DEVICE:-cuda}
end=$((60 * ${GPU_MINUTES:-9}))
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
failed=() unreached=() absent=() cores=$(nproc)

wanted() { case " ${GPU_ONLY:-$1} " in *" $1 "*) ;; *) return 1 ;; esac; }

# line NAME SECONDS "OPTIONS" "TINY OPTIONS" COMMAND...
line() {
  local name=$1 most=$2 options=$3 left=$((end - SECONDS)) words
  if $tiny; then options=$4 most=$((left < 15 ? 15 : left)); fi  # the seconds are a GPU's
  shift 4
  if ! wanted "$name"; then return; fi
  if [ "$left" -lt "$most" ]; then unreached+=("$name"); return; fi
  read -ra words <<<"$options"
  echo "+ $name ${words[*]}"
  timeout -k 10 "$most" "$python" "$@" --device "$device" "${words[@]}" 2>&1 |
    tee -a "$out/gpu-$device.txt" || failed+=("$name")
}

# peers NAME SECONDS "OPTIONS" "TINY OPTIONS"
peers() {
  if ! wanted "$1"; then return; fi
  if "$python" -c 'import sys, importlib.util as u; sys.exit(u.find_spec("lightly") is None)' >/dev/null; then
    line "$@" benchmarks/peers.py --out "$out" --data "$data"
  else
    absent+=("$1")
  fi
}

# bench NAME SECONDS "OPTIONS" "TINY OPTIONS" SCRIPT
bench() { line "${@:1:4}" "benchmarks/$5" --out "$out"; }

few="--batch-size 4 --steps 1 --rounds 1 --workers 1"
small="--backbone resnet10w4 --batch-size 4 --rounds 1"
placements="--placements none stopgrad projector layer4: all"
big="--backbone resnet18 --batch-size 512"
bench placement_cost 75 "$big --rounds 9 $placements" "$small --placements stopgrad projector" placement_cost.py
bench loop_share 105 "--batch-size 512 --rounds 2" "--backbones resnet10w4 --batch-size 4 --steps 4 --rounds 1" \
  loop_share.py
bench momentum_update 50 "--rounds 7" "--models resnet18 --step-batch 2 --rounds 1 --step-rounds 1" \
  momentum_update.py
peers peers_simclr 90 "--methods simclr --batch-size 512 --rounds 2 --workers $cores" "--methods simclr $few"
line to_accuracy 205 "--backbone resnet18 --batch-size 512 --epochs 30 100 --limit-minutes 3.2" \
  "--backbone resnet10w4 --limit 200 --batch-size 50 --epochs 1" \
  benchmarks/to_accuracy.py --out "$out" --runs "$out/to-accuracy-runs" --data "$data"

peers peers_simclr_4_workers 55 "--methods simclr --batch-size 512 --rounds 2 --workers 4" "--methods simclr $few"
peers peers_byol 55 "--methods byol --batch-size 512 --rounds 2 --workers $cores" "--methods byol $few"
peers peers_mocov2plus 55 "--methods mocov2plus --batch-size 512 --rounds 2 --workers $cores" \
  "--methods mocov2plus $few"
bench judging 40 "--skip-sklearn" "--tiny --skip-sklearn --rounds 1 --probe-rounds 1" judging.py
bench placement_cost_byol 60 "--method byol $big --rounds 5 $placements" \
  "--method byol $small --placements stopgrad projector" placement_cost.py
bench monitor_cost 60 "$big --rounds 3" "$small" monitor_cost.py
bench step_profile 30 "--batch-size 512" "--backbone resnet10w4 --batch-size 4 --steps 1" step_profile.py
bench optimizer_step 35 "--rounds 5" "--models resnet18 --rounds 1" optimizer_step.py
bench views 45 "--rounds 3" "--rounds 1" views.py
bench start 40 "--rounds 2" "--rounds 1 --batch-size 8" start.py
line bench 55 "$big" "--backbone resnet10w4 --batch-size 8 --limit 64" -m tailfin bench --data "$data"

for name in ${absent[@]+"${absent[@]}"}; do echo "left out, for lightly is not installed: $name"; done
(cd "$out" && find . -maxdepth 1 \( -name "*-$device.json" -o -name "*-$device.txt" \) | tar -cf "gpu-$device.tar" -T -)
if [ ${#unreached[@]} -gt 0 ]; then echo "not reached in time; for them: GPU_ONLY=\"${unreached[*]}\""; fi
if [ ${#failed[@]} -gt 0 ]; then echo "failed: ${failed[*]}"; exit 1; fi
