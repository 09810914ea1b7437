"""Nearest neighbours by cosine similarity: a judge of features that needs no training."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Similarities held at once: 2**25 in float32 are 128 MiB.
_MOST_SIMILARITIES = 2**25


def nearest(train_features: Tensor, query_features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` most similar training samples of each query, best first.

    Args:
        train_features: [N, D].
        query_features: [M, D], on the same device.
        k: Neighbours; at most N are returned.

    Returns:
        Cosine similarity float32 [M, min(k, N)] and index int64 [M, min(k, N)].

    Raises:
        ValueError: If `k` is below 1, or one of the two sets is empty or of another width.
    """
    if k < 1:
        raise ValueError(f"k = {k}; must be 1 or more")
    if len(train_features) == 0 or train_features.shape[1:] != query_features.shape[1:]:
        raise ValueError(
            f"train features {list(train_features.shape)} and query features {list(query_features.shape)}: "
            "both must be [samples, D] with the same D and at least one training sample"
        )
    keys = F.normalize(train_features.float(), dim=1)
    k = min(k, len(keys))
    similarity = keys.new_empty(len(query_features), k)
    index = torch.empty(len(query_features), k, dtype=torch.int64, device=keys.device)
    step = max(1, _MOST_SIMILARITIES // len(keys))
    for start in range(0, len(query_features), step):
        rows = slice(start, start + step)
        queries = F.normalize(query_features[rows].float(), dim=1)
        similarity[rows], index[rows] = (queries @ keys.T).topk(k, dim=1)
    return similarity, index


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Accuracy in percent of `knn_classify`.

    Args:
        train_features, train_labels: [N, D] and int64 [N].
        test_features, test_labels: [M, D] and int64 [M].
        k, temperature: As there.

    Raises:
        ValueError: As there.
    """
    found = knn_classify(train_features, train_labels, test_features, k=k, temperature=temperature)
    return 100 * float((found == test_labels).double().mean())


def knn_classify(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """Labels int64 [M] by the weighted vote of the `k` nearest training samples.

    Each neighbour votes for its class with weight exp(cosine / temperature) (arXiv 1805.01978, section 3.4).
    `k` larger than the training set means all of it; of classes with equal votes the first wins.

    Args:
        train_features, train_labels: [N, D] and int64 [N].
        test_features: [M, D].
        k: Neighbours that vote. The source uses 200 on ImageNet; 20 suits small training sets.
        temperature: Sharpness of the weights.

    Raises:
        ValueError: As `nearest`, or if there is nothing to test.
    """
    if len(test_features) == 0:
        raise ValueError("no test samples to classify")
    similarity, index = nearest(train_features, test_features, k)
    # Relative to the best neighbour: the same vote, and no temperature makes it overflow.
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    classes, labels = train_labels.unique(return_inverse=True)
    votes = weights.new_zeros(len(weights), len(classes)).scatter_add_(1, labels[index], weights)
    winners: Tensor = classes[votes.argmax(dim=1)]
    return winners
