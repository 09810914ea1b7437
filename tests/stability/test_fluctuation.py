"""Statistics of gradient series: known noise is found again, trends are not taken for noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailfin.stability.fluctuation import (
    fluctuation,
    lags,
    residuals,
    rolling_variation,
    spike_origins,
    spikes,
    without_spikes,
)


def noisy(sigma: float, steps: int = 2000, seed: int = 0) -> np.ndarray:
    return 1 + sigma * np.random.default_rng(seed).standard_normal(steps)


@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_white_noise_on_an_exponential_trend_is_found_again_and_the_trend_is_not(sigma: float) -> None:
    trend = np.exp(-np.linspace(0, 4, 2000))
    found = fluctuation(trend * noisy(sigma))
    plain = fluctuation(trend)
    assert found is not None
    assert plain is not None
    assert found.variation == pytest.approx(sigma, rel=0.06)
    assert plain.variation < 1e-3
    assert plain.plain_variation > 1  # the plain coefficient takes the trend for fluctuation


def test_the_jump_misses_what_is_slower_than_a_step_and_the_variation_does_not() -> None:
    steps = np.arange(2000)
    slow, fast = 1 + 0.2 * np.sin(2 * np.pi * steps / 18), noisy(0.14)
    one, other = fluctuation(slow), fluctuation(fast)
    assert one is not None
    assert other is not None
    assert one.jump < 0.4 * other.jump
    assert one.variation > 0.9 * other.variation


@given(st.floats(1e-6, 1e6), st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_no_statistic_depends_on_the_scale(scale: float, seed: int) -> None:
    values = noisy(0.1, 200, seed)
    one, other = fluctuation(values), fluctuation(scale * values)
    assert one is not None
    assert other is not None
    assert other.variation == pytest.approx(one.variation, rel=1e-6)
    assert other.jump == pytest.approx(one.jump, rel=1e-6)
    assert other.spikes == one.spikes


def test_too_few_values_a_dead_gradient_and_values_that_are_not_finite() -> None:
    assert fluctuation(np.ones(10)) is None
    assert fluctuation(np.zeros(100)) is None
    assert fluctuation(np.full(100, np.nan)) is None
    found = fluctuation(np.ones(30))
    assert found is not None
    assert found.variation == pytest.approx(0, abs=1e-9)


def test_spikes_are_steps_over_three_times_the_running_median() -> None:
    values = noisy(0.05, 300)
    values[[100, 200]] = 3.5, 2.5
    assert np.flatnonzero(spikes(values)).tolist() == [100]


def test_rolling_variation_rises_where_the_noise_begins() -> None:
    values = np.concatenate([noisy(0.02, 300), noisy(0.3, 300, 1)])
    rolling = rolling_variation(values, 100)
    assert np.isnan(rolling[:99]).all()
    assert np.nanmax(rolling[:300]) < 0.1
    assert rolling[-1] == pytest.approx(0.3, rel=0.25)


def test_zeros_do_not_blow_a_variation_up() -> None:
    values = noisy(0.1, 400)
    values[[100, 101, 102, 250]] = 0.0
    assert residuals(values).std() < 0.2


def test_spikes_are_taken_out_and_a_level_that_rises_is_kept() -> None:
    values = noisy(0.05, 300)
    risen = np.concatenate([values[:150], 8 * values[150:]])
    np.testing.assert_array_equal(without_spikes(risen)[170:], risen[170:])
    spiked = values.copy()
    spiked[[0, 100, 101, 299]] = 9.0
    assert without_spikes(spiked).max() < 1.3
    np.testing.assert_array_equal(without_spikes(spiked)[1:100], values[1:100])


def test_lags_leave_steps_out_that_are_not_finite() -> None:
    base = noisy(0.1, 600)
    other = np.roll(base, 2)
    other[300] = np.nan
    found = lags({"stem": other, "projector": base}, "projector")
    assert found["stem"].steps == 2
    assert found["stem"].correlation > 0.9


@pytest.mark.parametrize("lag", [-3, 0, 5])
def test_the_lag_between_parts_is_found_with_its_sign(lag: int) -> None:
    base = noisy(0.1, 600)
    found = lags({"stem": np.roll(base, lag), "projector": base}, "projector")
    assert found["stem"].steps == lag
    assert found["stem"].correlation > 0.9
    assert found["projector"].steps == 0


def test_a_burst_is_named_after_the_part_where_it_begins() -> None:
    stem, head = noisy(0.05, 400), noisy(0.05, 400, 1)
    stem[[100, 300]] = 5.0
    head[[103, 200, 300]] = 4.0
    assert spike_origins({"stem": stem, "projector": head}) == [
        (100, "stem"),
        (200, "projector"),
        (300, "stem"),
    ]
