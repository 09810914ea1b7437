#!/usr/bin/env bash
# The benchmarks on one GPU, no network: benchmarks/gpu.sh CIFAR10 [FOLDER for the JSON files]
# CIFAR10 is a folder of its Parquet files. Peers that are not installed are left out.
set -euo pipefail
cd "$(dirname "$0")/.."
data=$1
out=${2:-benchmarks/results}
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"
run() { echo "+ $*"; python "$@" --out "$out"; }
run benchmarks/placement_cost.py --device cuda --backbone resnet18 --batch-size 512
run benchmarks/placement_cost.py --device cuda --backbone resnet18 --batch-size 512 --method byol
run benchmarks/monitor_cost.py --device cuda --backbone resnet18 --batch-size 512
run benchmarks/momentum_update.py --device cuda
run benchmarks/views.py --device cuda --rounds 5
run benchmarks/loop_share.py --device cuda --batch-size 512 --steps 40
run benchmarks/judging.py --device cuda
if python -c "import lightly" 2>/dev/null; then
  run benchmarks/peers.py --device cuda --data "$data" --batch-size 512 --steps 20 --workers "$(nproc)"
fi
python -m tailfin bench --data "$data" --backbone resnet18 --batch-size 512 --device cuda
