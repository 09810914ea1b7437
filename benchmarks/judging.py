"""kNN beside its matrix product, faiss and scikit-learn; the linear probe beside scikit-learn at equal accuracy.

python benchmarks/judging.py              # the full sizes, some minutes
python benchmarks/judging.py --small
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from common import in_turn, ratio, save, wait
from torch import Tensor

from tailfin.evaluation.knn import nearest
from tailfin.evaluation.linear import fit_logistic
from tailfin.training.device import find_device, keep_freed_memory

K = 20


def main() -> None:
    """Measure and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tenth of the samples")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    device = find_device(asked.device)
    keep_freed_memory()
    share = 10 if asked.small else 1
    train, labels, test, test_labels = clusters(50_000 // share, 10_000 // share, 512, 100)
    figures = {
        "knn": knn(train.to(device), test.to(device), asked.rounds, device),
        "probe": probe(train, labels, test, test_labels, device),
    }
    save("judging", device, figures, asked.out)


def clusters(train: int, test: int, width: int, classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy classes, about as hard as a trained encoder's features."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, width, generator=generator)
    labels = torch.randint(classes, (train + test,), generator=generator)
    features = centres[labels] + 4 * torch.randn(train + test, width, generator=generator)
    features = F.normalize(features.relu(), dim=1) * width**0.5
    return features[:train], labels[:train], features[train:], labels[train:]


def knn(train: Tensor, test: Tensor, rounds: int, device: torch.device) -> dict[str, Any]:
    """Seconds of the k nearest of every test sample."""
    keys, queries = F.normalize(train, dim=1), F.normalize(test, dim=1)

    def product() -> None:
        for rows in queries.split(max(1, 2**25 // len(keys))):
            rows @ keys.T

    arms: dict[str, Callable[[], Any]] = {
        "matrix product alone": product,
        "ours": lambda: nearest(train, test, K),
    }
    if device.type == "cpu":
        a, b = keys.numpy(), queries.numpy()
        try:
            import faiss

            index = faiss.IndexFlatIP(a.shape[1])
            index.add(a)
            arms["faiss-cpu, flat"] = lambda: index.search(b, K)
        except ImportError:
            print("faiss-cpu is not installed: left out")
        from sklearn.neighbors import NearestNeighbors

        sklearn = NearestNeighbors(n_neighbors=K, metric="cosine", algorithm="brute").fit(a)
        arms["scikit-learn"] = lambda: sklearn.kneighbors(b)
    seconds = in_turn(arms, rounds, device, warm=1)
    figures = {}
    for name, times in seconds.items():
        spread = ratio(times, seconds["matrix product alone"])
        figures[name] = {"seconds": median(times), "over_product": spread}
        print(
            f"kNN {len(train)} x {len(test)}: {name:<22}{median(times):>8.2f} s, {spread['median']:.2f} "
            f"({spread['low']:.2f} to {spread['high']:.2f}) of the product",
            flush=True,
        )
    return figures


def probe(
    train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, device: torch.device
) -> dict[str, Any]:
    """Seconds and test accuracy (%) of one penalised logistic regression, l2 = 1e-3."""
    from sklearn.linear_model import LogisticRegression

    l2 = 1e-3
    mean, std = train.mean(dim=0), train.std(dim=0)
    x, z = (train - mean) / std, (test - mean) / std
    xd, yd, zd = x.to(device), labels.to(device), z.to(device)

    def ours() -> float:
        found = fit_logistic(xd, yd, int(labels.max()) + 1, l2)
        wait(device)
        return 100 * float((found.logits(zd).argmax(dim=1).cpu() == test_labels).double().mean())

    def sklearn() -> float:
        model = LogisticRegression(C=1 / (len(x) * l2), max_iter=1000, tol=1e-4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(x.numpy(), labels.numpy())
        return float(100 * model.score(z.numpy(), test_labels.numpy()))

    figures = {}
    for name, run in (("ours", ours), ("scikit-learn", sklearn)):
        start = time.perf_counter()
        accuracy = run()
        figures[name] = {"seconds": time.perf_counter() - start, "accuracy": accuracy}
        print(
            f"probe {len(train)} x 512 x 100: {name:<14}{figures[name]['seconds']:>8.1f} s, {accuracy:.2f} %"
        )
    return figures


if __name__ == "__main__":
    main()
