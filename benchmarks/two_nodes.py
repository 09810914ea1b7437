"""Two "nodes" on this machine, as network namespaces: one run of four processes, and the death and return of a node.

python benchmarks/two_nodes.py            # as root, where `ip netns` is allowed

Each node is a namespace of its own with two processes under torchrun, which finds the other across a veth pair. In
mid-run the second node is killed, processes and launcher, and started again. The run has to end, and its weights and
metrics have to be those of a run that was never hurt.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file

NODES = ("tailfin-a", "tailfin-b")
ADDRESSES = ("10.99.0.1", "10.99.0.2")
RUN = (
    "pretrain --method byol --momentum projector --limit 400 --batch-size 40 --backbone resnet10w4 --image-size 16 "
    "--precision fp32 --memory-format contiguous --device cpu --checkpoint-minutes 0.001 --judge nothing"
)


@contextmanager
def network() -> Iterator[None]:
    """Two namespaces that see each other and nothing else."""
    commands = [f"ip netns add {node}" for node in NODES]
    commands.append(f"ip link add veth-a netns {NODES[0]} type veth peer name veth-b netns {NODES[1]}")
    for node, address, device in zip(NODES, ADDRESSES, ("veth-a", "veth-b"), strict=True):
        commands += [
            f"ip -n {node} address add {address}/24 dev {device}",
            f"ip -n {node} link set {device} up",
            f"ip -n {node} link set lo up",
        ]
    try:
        for command in commands:
            subprocess.run(command.split(), check=True)
        yield
    finally:
        for node in NODES:
            subprocess.run(["ip", "netns", "delete", node], check=False, stderr=subprocess.DEVNULL)


def start(node: int, out: Path, port: int, epochs: int) -> subprocess.Popen[bytes]:
    """torchrun on a node, in a session of its own."""
    launch = (
        f"--nnodes 2 --nproc-per-node 2 --max-restarts 3 --rdzv-backend c10d --rdzv-id two "
        f"--local-addr {ADDRESSES[node]} --rdzv-endpoint {ADDRESSES[0]}:{port} "
        f"--rdzv-conf is_host={int(node == 0)} -m tailfin"
    )
    words = [*launch.split(), *RUN.split(), "--epochs", str(epochs), "--out", str(out)]
    with out.with_suffix(f".{node}.log").open("ab") as log:
        return subprocess.Popen(
            ["ip", "netns", "exec", NODES[node], sys.executable, "-m", "torch.distributed.run", *words],
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": f"veth-{'ab'[node]}"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def kill(launcher: subprocess.Popen[bytes]) -> None:
    """A node's launcher and its processes, which have sessions of their own, at once."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(words[1])
    dead, grown = {launcher.pid}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in dead} - dead
        dead, grown = dead | more, bool(more)
    for pid in dead:
        os.kill(pid, signal.SIGKILL)
    launcher.wait()


def run(out: Path, port: int, epochs: int, *, hurt: bool) -> None:
    """A run on both nodes, one of which dies and comes back where it is to be hurt."""
    nodes = [start(node, out, port, epochs) for node in (0, 1)]
    try:
        if hurt:
            log = out / "metrics.jsonl"
            while not log.exists() or log.stat().st_size < 1500:
                if any(node.poll() is not None for node in nodes):
                    sys.exit(out.with_suffix(".0.log").read_text()[-3000:])
                time.sleep(0.05)
            kill(nodes[1])
            print(f"killed the second node after {log.read_text().count(chr(10))} log rows", flush=True)
            time.sleep(2)
            nodes[1] = start(1, out, port, epochs)
        codes = [node.wait() for node in nodes]
    finally:
        for node in nodes:
            if node.poll() is None:
                kill(node)
    if any(codes):
        sys.exit(f"ended with {codes}: {out.with_suffix('.0.log').read_text()[-3000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=60)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, network():
        whole, parts = Path(scratch) / "whole", Path(scratch) / "parts"
        run(whole, 29511, asked.epochs, hurt=False)
        run(parts, 29512, asked.epochs, hurt=True)
        first, second = (load_file(folder / "checkpoint.safetensors") for folder in (whole, parts))
        differing = [name for name in first if not first[name].equal(second[name])]
        same = (whole / "metrics.jsonl").read_bytes() == (parts / "metrics.jsonl").read_bytes()
        print(
            f"two nodes of two processes: {len(first)} tensors, {len(differing)} differ, metrics "
            f"{'identical' if same else 'differ'}"
        )
        sys.exit(bool(differing or not same))


if __name__ == "__main__":
    main()
