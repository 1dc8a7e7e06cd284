"""Intervals against simulated truth."""

import numpy as np
import pytest

from codec_jax.evaluate import intervals

DRAWS = {
    "normal": (lambda rng, n: rng.normal(3.0, 1.0, n), 3.0),
    "like STOI": (lambda rng, n: rng.beta(8.0, 2.0, n), 0.8),
    "skewed": (lambda rng, n: rng.gamma(2.0, 1.0, n), 2.0),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("count", [6, 30])
def test_covers_the_truth(name, count):
    """Of 600 samples, 95 % within four standard errors of that share."""
    draw, truth = DRAWS[name]
    rng = np.random.default_rng(0)
    found = [intervals.of_mean(draw(rng, count)) for _ in range(600)]
    covered = np.mean([interval.low <= truth <= interval.high for interval in found])
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 600), covered


def test_pairs_are_narrower_than_their_ends():
    rng = np.random.default_rng(1)
    hard = rng.normal(0.0, 5.0, 40)
    first, second = hard + 1.0 + rng.normal(0, 0.1, 40), hard + rng.normal(0, 0.1, 40)
    found = intervals.of_difference(first, second)
    assert 0.9 < found.low < 1.0 < found.high < 1.1
    alone = intervals.of_mean(first)
    assert alone.high - alone.low > 10 * (found.high - found.low)
    with pytest.raises(ValueError, match="pairs are wanted"):
        intervals.of_difference([1.0], [1.0, 2.0])


def test_few_values_and_undefined_ones():
    found = intervals.of_mean([1.0, float("nan"), 3.0, float("inf")])
    assert (found.mean, found.n) == (2.0, 2)
    assert np.isnan([found.low, found.high]).all()
    assert intervals.of_mean([2.5] * 9) == (2.5, 2.5, 2.5, 9)
    assert np.isnan(intervals.of_mean([]).mean)


def test_the_same_again():
    values = np.random.default_rng(2).normal(0, 1, 20)
    assert intervals.of_mean(values) == intervals.of_mean(values)


def test_together_as_alone():
    """Columns of other lengths, with gaps and without variation, have what each has by itself."""
    rng = np.random.default_rng(3)
    columns = [rng.normal(0, 1, 20), rng.gamma(2.0, 1.0, 20), np.full(20, 2.5), rng.normal(0, 1, 7), [1.0, 2.0], []]
    columns.append(np.where(np.arange(21) == 4, np.nan, rng.normal(5, 1, 21)))
    for together, column in zip(intervals.of_means(columns), columns):
        np.testing.assert_allclose(together, intervals.of_mean(column), rtol=1e-9)


def test_every_resample_is_judged_in_its_own_error():
    """Against the definition, resample by resample."""
    values = np.random.default_rng(4).gamma(2.0, 1.0, 9)
    found = intervals.of_mean(values)
    drawn = values[np.random.default_rng(0).integers(0, 9, (intervals.DRAWS, 9))]
    drawn = drawn[np.ptp(drawn, axis=1) > 0]
    scores = (drawn.mean(1) - values.mean()) / (drawn.std(1, ddof=1) / 3)
    below, above = np.quantile(scores, [0.025, 0.975])
    error = values.std(ddof=1) / 3
    np.testing.assert_allclose(found[1:3], [values.mean() - above * error, values.mean() - below * error], rtol=1e-9)
