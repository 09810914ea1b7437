#!/usr/bin/env bash
# Every benchmark at a small size, some ten minutes on two quiet cores: benchmarks/cpu.sh [FOLDER for the JSON files]
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}
run() { echo "+ $*"; python "$@" --out "$out"; }
run benchmarks/start.py --rounds 3
run benchmarks/views.py --rounds 5
run benchmarks/momentum_update.py --rounds 9
run benchmarks/optimizer_step.py --models resnet18
run benchmarks/step_profile.py
run benchmarks/judging.py --small --rounds 5
run benchmarks/loop_share.py --backbones resnet10w16 --batch-size 64 --rounds 2
run benchmarks/placement_cost.py --rounds 5
run benchmarks/monitor_cost.py --batch-size 128 --rounds 2
run benchmarks/decoding.py --images 128 --rounds 2
run benchmarks/peers.py --methods simclr --batch-size 32 --rounds 2
