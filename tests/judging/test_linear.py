"""The probe against scikit-learn, and where it must not break."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from tailfin.judging import logistic
from tailfin.judging.linear import SWEEP, linear_probe
from tailfin.judging.logistic import fit_logistic


def blobs(n: int, d: int, classes: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Overlapping classes with correlated features, as those of an encoder."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator) @ torch.diag(torch.logspace(0, -1.5, d))
    centres = torch.randn(classes, d, generator=generator)
    draw = torch.Generator().manual_seed(seed + 1)
    labels = torch.randint(classes, (n,), generator=draw)
    return (0.5 * centres[labels] + torch.randn(n, d, generator=draw)) @ mix + 3, labels


def slow_objective(x: np.ndarray, y: np.ndarray, weight: np.ndarray, bias: np.ndarray, l2: float) -> float:
    logits = x.astype(np.float64) @ weight + bias
    top = logits.max(axis=1, keepdims=True)
    log_sum = (top + np.log(np.exp(logits - top).sum(axis=1, keepdims=True)))[:, 0]
    return float(
        (log_sum - logits[np.arange(len(y)), y]).mean() + l2 / 2 * (weight.astype(np.float64) ** 2).sum()
    )


@pytest.mark.parametrize(("n", "d", "classes"), [(1500, 24, 5), (60, 90, 3), (400, 10, 2)])
@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_same_objective_and_accuracy_as_scikit_learn(n: int, d: int, classes: int, l2: float) -> None:
    x, y = blobs(n + 500, d, classes)
    x = torch.from_numpy(StandardScaler().fit(x[:n]).transform(x)).float()
    train, test = (x[:n], y[:n]), (x[n:], y[n:])
    oracle = LogisticRegression(C=1 / (n * l2), tol=1e-8, max_iter=5000)
    # scikit-learn folds two classes into one weight vector, whose penalty is half that of the softmax pair.
    if classes == 2:
        oracle.C *= 2
    oracle.fit(*(part.numpy() for part in train))
    weight, bias = oracle.coef_.T, oracle.intercept_
    if classes == 2:
        weight, bias = np.hstack((-weight / 2, weight / 2)), np.array([-bias[0] / 2, bias[0] / 2])
    want = slow_objective(train[0].numpy(), train[1].numpy(), weight, bias, l2)
    ours = fit_logistic(*train, classes, l2)
    assert ours.objective == pytest.approx(want, rel=1e-4)
    got = slow_objective(train[0].numpy(), train[1].numpy(), ours.weight.numpy(), ours.bias.numpy(), l2)
    assert got == pytest.approx(want, rel=1e-4)
    accuracy = 100 * float((ours.logits(test[0]).argmax(dim=1) == test[1]).double().mean())
    assert accuracy == pytest.approx(100 * oracle.score(*(part.numpy() for part in test)), abs=0.2)


@pytest.mark.parametrize(("n", "d", "classes"), [(1500, 24, 5), (60, 90, 3)])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-4, 1e-6])
def test_tolerance_is_the_share_of_the_objective_still_to_gain(
    n: int, d: int, classes: int, tolerance: float
) -> None:
    x, y = blobs(n, d, classes)
    x = torch.from_numpy(StandardScaler().fit_transform(x)).float()
    # A column that is constant and labels in order, at the weakest penalty of the sweep.
    order = y.argsort()
    x, y = torch.cat((x, torch.zeros(n, 1)), dim=1)[order], y[order]
    oracle = LogisticRegression(C=1 / (n * 1e-5), tol=1e-10, max_iter=1000, solver="newton-cholesky")
    oracle.fit(x.double().numpy(), y.numpy())
    want = slow_objective(x.numpy(), y.numpy(), oracle.coef_.T, oracle.intercept_, 1e-5)
    ours = fit_logistic(x, y, classes, 1e-5, tolerance=tolerance)
    got = slow_objective(x.numpy(), y.numpy(), ours.weight.numpy(), ours.bias.numpy(), 1e-5)
    assert ours.objective == pytest.approx(got, rel=1e-4)
    # and float32's own resolution of a loss of 1
    assert want * (1 - 1e-6) <= got <= want * (1 + 30 * tolerance) + 1e-7


def test_many_classes_far_apart_are_fitted_to_the_end() -> None:
    """After one step most of the objective is gone, and what L-BFGS foresees at first is too little."""
    generator = torch.Generator().manual_seed(0)
    centres, y = torch.randn(60, 64, generator=generator), torch.arange(1200) % 60
    x = (centres[y] + torch.randn(1200, 64, generator=generator)).relu()
    x = torch.from_numpy(StandardScaler().fit_transform(x)).float()
    want = fit_logistic(x.double(), y, 60, 1e-5, tolerance=1e-10).objective
    for tolerance in (1e-3, 1e-4):
        got = fit_logistic(x, y, 60, 1e-5, tolerance=tolerance).objective
        assert want * (1 - 1e-4) <= got <= want * (1 + 20 * tolerance)


def test_a_line_search_without_a_downhill_step_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = blobs(100, 5, 3)
    for broken in (float("nan"), 1e30):
        monkeypatch.setattr(logistic, "_step", lambda *_, step=broken: step)
        found = fit_logistic(x, y, 3, 1e-2)
        assert found.objective <= fit_logistic(x, y, 3, 1e8).objective
        loss = torch.nn.functional.cross_entropy(found.logits(x), y)
        assert found.objective == pytest.approx(float(loss + 0.5e-2 * found.weight.square().sum()), rel=1e-5)


def test_start_and_classes_without_samples_do_not_move_the_minimum() -> None:
    x, y = blobs(600, 12, 3)
    x = torch.from_numpy(StandardScaler().fit_transform(x)).float()
    plain = fit_logistic(x, y, 3, 1e-2)
    assert fit_logistic(x, y, 3, 1e-2, start=fit_logistic(x, y, 3, 1.0)).objective == pytest.approx(
        plain.objective, rel=1e-6
    )
    more = fit_logistic(x, y, 5, 1e-2)
    # Their bias goes to minus infinity; what is left of them is what the tolerance leaves.
    assert more.objective == pytest.approx(plain.objective, rel=1e-4)
    assert int(more.logits(x).argmax(dim=1).max()) < 3


def test_probe_is_scikit_learn_on_standardised_features_at_the_chosen_penalty() -> None:
    x, y = blobs(2500, 20, 4)
    result = linear_probe(x[:1500], y[:1500], x[1500:], y[1500:])
    scaler = StandardScaler().fit(x[:1500])
    oracle = LogisticRegression(C=1 / (1500 * result.l2), tol=1e-8, max_iter=5000)
    oracle.fit(scaler.transform(x[:1500]), y[:1500])
    assert result.accuracy == pytest.approx(100 * oracle.score(scaler.transform(x[1500:]), y[1500:]), abs=0.2)
    assert result.train_accuracy == pytest.approx(
        100 * oracle.score(scaler.transform(x[:1500]), y[:1500]), abs=0.2
    )
    assert result.validation_accuracy == max(accuracy for _, accuracy in result.tried)
    assert dict(result.tried)[result.l2] == result.validation_accuracy


def test_sweep_regularises_more_where_features_are_noise() -> None:
    x, y = blobs(900, 10, 3)
    noise = torch.randn(900, 600, generator=torch.Generator().manual_seed(5))
    clean = linear_probe(x, y, x, y)
    noisy = linear_probe(torch.cat((x, noise), dim=1), y, torch.cat((x, noise), dim=1), y)
    assert noisy.l2 > clean.l2


def test_same_input_same_bits_and_the_test_set_changes_nothing_but_the_accuracy() -> None:
    x, y = blobs(400, 12, 3)
    first = linear_probe(x[:300], y[:300], x[300:], y[300:], seed=3)
    assert first == linear_probe(x[:300], y[:300], x[300:], y[300:], seed=3)
    other = linear_probe(x[:300], y[:300], x[:50], y[:50], seed=3)
    assert (other.l2, other.tried, other.train_accuracy) == (first.l2, first.tried, first.train_accuracy)


def test_scale_offset_and_dead_features_do_not_matter() -> None:
    x, y = blobs(600, 12, 3)
    plain = linear_probe(x[:400], y[:400], x[400:], y[400:])
    scaled = torch.cat(
        (x * torch.logspace(-3, 3, 12) + 5 * torch.logspace(-3, 3, 12), torch.full((600, 2), 7.3)), 1
    )
    other = linear_probe(scaled[:400], y[:400], scaled[400:], y[400:])
    assert other.accuracy == pytest.approx(plain.accuracy, abs=0.6)
    # A feature that was constant in training must not speak up in the test set.
    scaled[400:, -1] = 1e6
    assert linear_probe(scaled[:400], y[:400], scaled[400:], y[400:]).accuracy == other.accuracy


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e36])
def test_squares_that_float32_cannot_hold_do_not_matter(scale: float) -> None:
    x, y = blobs(600, 12, 3)
    plain = linear_probe(x[:400], y[:400], x[400:], y[400:])
    other = linear_probe(x[:400] * scale, y[:400], x[400:] * scale, y[400:])
    assert other.accuracy == pytest.approx(plain.accuracy, abs=0.6)


def test_one_penalty_is_fitted_without_holding_out() -> None:
    x, y = blobs(600, 12, 3)
    result = linear_probe(x[:400], y[:400], x[400:], y[400:], sweep=(1e-3,))
    assert (result.l2, result.validation_accuracy, result.tried) == (1e-3, None, ())
    scaler = StandardScaler().fit(x[:400])
    oracle = LogisticRegression(C=1 / (400 * 1e-3), tol=1e-8, max_iter=5000)
    oracle.fit(scaler.transform(x[:400]), y[:400])
    assert result.accuracy == pytest.approx(100 * oracle.score(scaler.transform(x[400:]), y[400:]), abs=0.6)


def test_labels_need_not_be_contiguous() -> None:
    x, y = blobs(400, 12, 3)
    # In the same order, so that the validation split is the same too.
    names = torch.tensor([-2, 7, 100])
    plain = linear_probe(x[:300], y[:300], x[300:], y[300:])
    assert linear_probe(x[:300], names[y[:300]], x[300:], names[y[300:]]) == plain


@pytest.mark.parametrize(
    ("labels", "want"),
    [
        ([0] * 8, 100.0),  # one class
        ([0, 1, 2, 3, 4, 5, 6, 7], 100.0),  # nothing to hold out
        ([0, 0, 0, 0, 1, 1, 1, 2], 100.0),  # class 2 is absent from validation
    ],
)
def test_small_sets_with_more_features_than_samples(labels: list[int], want: float) -> None:
    x, y = torch.randn(8, 30, generator=torch.Generator().manual_seed(0)), torch.tensor(labels)
    result = linear_probe(x, y, x, y, sweep=(1e-2, 1e-3))
    assert result.accuracy == want
    assert (result.validation_accuracy is None) == (len(set(labels)) == 8)


def test_collapsed_features_score_as_the_largest_class() -> None:
    y = torch.tensor([0] * 30 + [1] * 20)
    assert linear_probe(torch.full((50, 6), 0.1), y, torch.full((50, 6), 0.1), y).accuracy == 60


def test_impossible_input_is_refused() -> None:
    x, y = blobs(20, 4, 2)
    with pytest.raises(ValueError, match="0 test samples"):
        linear_probe(x, y, x[:0], y[:0])
    with pytest.raises(ValueError, match="not finite"):
        linear_probe(x * torch.nan, y, x, y)
    with pytest.raises(ValueError, match="not finite"):
        linear_probe(x, y, torch.where(x == x[3, 1], -torch.inf, x), y)
    with pytest.raises(ValueError, match=r"l2 = 0\.0"):
        fit_logistic(x, y, 2, 0.0)
    assert list(SWEEP) == sorted(SWEEP, reverse=True)
