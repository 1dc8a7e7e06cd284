"""Intervals hold the truth as often as they say."""

import numpy as np
import pytest

from codec_jax.scaling import intervals, laws
from tests.scaling import coverage
from tests.scaling.coverage import FIGURES, SWEEPS


def test_most_of_a_few_sweeps():
    """Of 8 at a coverage of 0.95, fewer than 6 happen once in 170 times; the draws are seeded."""
    held, widths, _ = coverage.covered(SWEEPS["4 x 3"], 0.005, "normal", 8, resamples=40)
    exponents = held[:, [FIGURES.index("alpha"), FIGURES.index("beta")]]
    assert exponents.sum(0).min() >= 6
    # Neither so wide that they could not miss: within a factor of three of an exponent, on average.
    assert np.median(widths[:, [2, 4]]) < np.log(3)


@pytest.mark.slow
def test_90_to_99_of_100_sweeps():
    held, _, _ = coverage.covered(SWEEPS["4 x 3"], 0.005, "normal", 100, seed=1)
    counts = dict(zip(FIGURES, held.sum(0)))
    assert 90 <= counts["alpha"] <= 99, counts
    assert 90 <= counts["beta"] <= 99, counts
    assert min(counts.values()) >= 88, counts


def test_more_noise_is_wider_and_none_is_nothing():
    of = SWEEPS["5 x 4"]
    where = laws.design([np.log(of.params), np.log(of.audio_seconds)])
    noise = np.random.default_rng(0).standard_normal(len(of.loss))
    widths = []
    for size in (0.0, 0.002, 0.01):
        losses = np.log(of.loss) + size * noise
        found = laws.fit(where, losses)
        draws = intervals.resample(where, found, losses, 80)
        ends = intervals.profile(where, found, losses, draws, laws.figures(where, [], where.z[:0]))
        assert (ends.low <= ends.value).all()
        assert (ends.value <= ends.high).all()
        widths.append(ends.high - ends.low)
    assert (widths[0] == 0).all()
    assert (widths[1] > 0).all()
    assert (widths[2] > 2 * widths[1]).all()


def test_at_an_end_the_objective_has_risen_to_the_critical_value():
    """With alpha kept at either end and all else fitted anew, by another optimiser."""
    import scipy.optimize

    of = SWEEPS["5 x 4"]
    where = laws.design([np.log(of.params), np.log(of.audio_seconds)])
    losses = np.log(of.loss) + 0.005 * np.random.default_rng(1).standard_normal(len(of.loss))
    found = laws.fit(where, losses)
    draws = intervals.resample(where, found, losses, 80)
    figures = laws.figures(where, [], where.z[:0])
    ends = intervals.profile(where, found, losses, draws, figures)
    rises = []
    for end in (ends.low[2], ends.high[2]):

        def rest(free, end=end):
            params = np.array([[free[0], free[1], end, free[2], free[3]]])
            off = losses - laws.log_loss(params, where.z)[0][0]
            return scipy.special.huber(found.delta[0], off).sum() / found.noise[0] ** 2

        best = scipy.optimize.minimize(rest, found.params[0, [0, 1, 3, 4]], options={"gtol": 1e-8})
        rises.append(np.sqrt(2 * (best.fun - found.objective[0] / found.noise[0] ** 2)))
    assert rises[0] == pytest.approx(rises[1], rel=1e-2)
    assert 1.7 < rises[0] < 3.0


def test_an_end_that_the_data_do_not_bound_is_open():
    of = coverage.sweep((1e5, 5e6, 4), (1e3, 3e4, 3), floor=0.05)
    where = laws.design([np.log(of.params), np.log(of.audio_seconds)])
    losses = np.log(of.loss) + 0.01 * np.random.default_rng(0).standard_normal(len(of.loss))
    found = laws.fit(where, losses)
    draws = intervals.resample(where, found, losses, 80)
    ends = intervals.profile(where, found, losses, draws, laws.figures(where, [], where.z[:0]))
    assert ends.open_low[0]
    assert not ends.open_high[0]
