"""kNN beside its matrix product, faiss and scikit-learn; the linear probe beside scikit-learn at equal accuracy.

python benchmarks/judging.py              # the full sizes, some minutes
python benchmarks/judging.py --small

The probe at one penalty is the library's own path, rotation included, against scikit-learn at the same penalty; the
whole probe, which looks for the penalty by itself, is beside it.
"""

import argparse
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import in_turn, ratio, save, spread, words
from torch import Tensor

from tailfin.compute.device import find_device, keep_freed_memory
from tailfin.judging.knn import nearest
from tailfin.judging.linear import SWEEP, linear_probe

K = 20
PRODUCT = "matrix product alone"
L2 = 1e-3
Data = tuple[Tensor, Tensor, Tensor, Tensor]
"""Training features and labels, test features and labels."""


def main() -> None:
    """Measure and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tenth of the samples")
    parser.add_argument("--tiny", action="store_true", help="a hundredth of them")
    parser.add_argument("--rounds", type=int, default=5, help="of kNN")
    parser.add_argument("--probe-rounds", type=int, default=3)
    parser.add_argument("--skip-sklearn", action="store_true", help="it takes most of the time")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    device = find_device(asked.device)
    keep_freed_memory()
    share = 100 if asked.tiny else 10 if asked.small else 1
    sklearn = not asked.skip_sklearn and find_spec("sklearn") is not None
    data = clusters(50_000 // share, 10_000 // share, 512, 100)
    figures = {
        "samples": [len(data[0]), len(data[2])],
        "knn": knn(data[0].to(device), data[2].to(device), asked.rounds, device, sklearn=sklearn),
        "probe": probe(data, asked.probe_rounds, device, sklearn=sklearn),
    }
    save("judging", device, figures, asked.out)


def clusters(train: int, test: int, width: int, classes: int) -> Data:
    """Noisy classes, about as hard as a trained encoder's features."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, width, generator=generator)
    labels = torch.randint(classes, (train + test,), generator=generator)
    features = centres[labels] + 4 * torch.randn(train + test, width, generator=generator)
    features = F.normalize(features.relu(), dim=1) * width**0.5
    return features[:train], labels[:train], features[train:], labels[train:]


def knn(train: Tensor, test: Tensor, rounds: int, device: torch.device, *, sklearn: bool) -> dict[str, Any]:
    """Seconds of the k nearest of every test sample."""
    keys, queries = F.normalize(train, dim=1), F.normalize(test, dim=1)

    def product() -> None:
        for rows in queries.split(max(1, 2**25 // len(keys))):
            rows @ keys.T

    arms: dict[str, Callable[[], Any]] = {PRODUCT: product, "ours": lambda: nearest(train, test, K)}
    if device.type == "cpu":
        a, b = keys.numpy(), queries.numpy()
        if find_spec("faiss"):
            import faiss

            index = faiss.IndexFlatIP(a.shape[1])
            index.add(a)
            arms["faiss-cpu, flat"] = lambda: index.search(b, K)
        if sklearn:
            from sklearn.neighbors import NearestNeighbors

            found = NearestNeighbors(n_neighbors=K, metric="cosine", algorithm="brute").fit(a)
            arms["scikit-learn"] = lambda: found.kneighbors(b)
    seconds = in_turn(arms, rounds, device, warm=1)
    figures: dict[str, Any] = {}
    for name, times in seconds.items():
        over = ratio(times, seconds[PRODUCT])
        figures[name] = {"seconds": spread(times), "over_product": over}
        print(
            f"kNN {len(train)} x {len(test)}: {name:<22}{figures[name]['seconds']['median']:>8.3f} s, {words(over)} "
            f"of the product, n = {rounds}",
            flush=True,
        )
    figures["disturbed"] = disturbed = figures["ours"]["over_product"]["median"] < 1
    if disturbed:
        print("ours holds that product and cannot take less: the machine was not quiet; measure again")
    return figures


def probe(data: Data, rounds: int, device: torch.device, *, sklearn: bool) -> dict[str, Any]:
    """Seconds and test accuracy (%) of the penalised logistic regression."""
    here = [tensor.to(device) for tensor in data]
    accuracy: dict[str, float] = {}

    def ours(name: str, sweep: tuple[float, ...]) -> None:
        accuracy[name] = linear_probe(here[0], here[1], here[2], here[3], sweep=sweep).accuracy

    one, whole = f"ours, l2 = {L2:g}", f"ours, {len(SWEEP)} penalties"
    arms: dict[str, Callable[[], Any]] = {
        one: partial(ours, one, (L2,)),
        whole: partial(ours, whole, SWEEP),
    }
    if sklearn:
        other = f"scikit-learn, l2 = {L2:g}"
        arms[other] = partial(by_sklearn, data, accuracy, other)
    seconds = in_turn(arms, rounds, device, warm=1)
    figures = {}
    for name, times in seconds.items():
        row = {"seconds": spread(times), "over_ours": ratio(times, seconds[one]), "accuracy": accuracy[name]}
        figures[name] = row
        print(
            f"probe {len(data[0])} x 512 x 100: {name:<24}{row['seconds']['median']:>8.2f} s, "
            f"{words(row['over_ours'])} of ours, {accuracy[name]:.2f} %, n = {rounds}",
            flush=True,
        )
    return figures


def by_sklearn(data: Data, accuracy: dict[str, float], name: str) -> None:
    """The same regression: features standardised, the mean loss penalised by L2."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    train, labels, test, test_labels = (tensor.numpy() for tensor in data)
    scaler = StandardScaler().fit(train)
    model = LogisticRegression(C=1 / (len(train) * L2), max_iter=1000, tol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(scaler.transform(train), labels)
    accuracy[name] = 100 * float(model.score(scaler.transform(test), test_labels))


if __name__ == "__main__":
    main()
