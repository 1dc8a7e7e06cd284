"""The law, its optimum, its derivatives, its fit: against closed forms, finite differences, and other optimisers."""

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_jax.scaling import descent, laws
from tests.scaling.coverage import SWEEPS, sweep


def design(of):
    return laws.design([np.log(of.params), np.log(of.audio_seconds)])


def letters(where, found):
    A, B = np.exp(laws.coefficients(where, found.params))[0]
    E, alpha, beta = np.exp(found.params[0, [0, 2, 4]])
    return np.array([E, A, alpha, B, beta])


@pytest.mark.parametrize("name", ["4 x 3", "6 x 6"])
def test_recovers_the_law_without_noise(name):
    of = SWEEPS[name]
    where = design(of)
    found = laws.fit(where, np.log(of.loss))
    np.testing.assert_allclose(letters(where, found), of.law, rtol=1e-6)
    assert found.noise[0] < 1e-9


@settings(max_examples=15, deadline=None)
@given(
    floor=st.floats(0.2, 5.0),
    excess=st.floats(0.5, 4.0),
    alpha=st.floats(0.15, 0.9),
    beta=st.floats(0.15, 0.9),
)
def test_recovers_many_laws(floor, excess, alpha, beta):
    of = sweep((1e5, 1e8, 5), (1e3, 1e6, 4), floor, excess, alpha, beta)
    where = design(of)
    np.testing.assert_allclose(letters(where, laws.fit(where, np.log(of.loss))), of.law, rtol=1e-4)


def test_recovers_a_law_of_three_terms():
    of = SWEEPS["4 x 3"]
    N, D = np.tile(of.params, 3), np.tile(of.audio_seconds, 3)
    R = np.repeat(
        [
            700.0,
            1500.0,
            4000.0,
        ],
        len(of.params),
    )
    loss = np.tile(of.loss, 3) + 40 * R**-0.7
    where = laws.design([np.log(N), np.log(D), np.log(R)])
    found = laws.fit(where, np.log(loss))
    np.testing.assert_allclose(np.exp(found.params[0, [0, 2, 4, 6]]), [2.0, 0.34, 0.28, 0.7], rtol=1e-5)
    np.testing.assert_allclose(np.exp(laws.coefficients(where, found.params))[0, 2], 40, rtol=1e-4)


def test_derivatives_are_differences(rng):
    z = rng.normal(size=(7, 3))
    params = rng.normal(size=(4, 7)) * 0.5
    predicted, slopes = laws.log_loss(params, z)
    terms = np.exp(params[:, None, 1::2] - np.exp(params[:, None, 2::2]) * z).sum(-1) + np.exp(params[:, :1])
    np.testing.assert_allclose(predicted, np.log(terms), rtol=1e-12)
    for i in range(7):
        off = 1e-6 * np.eye(7)[i]
        expected = (laws.log_loss(params + off, z)[0] - laws.log_loss(params - off, z)[0]) / 2e-6
        np.testing.assert_allclose(slopes[..., i], expected, atol=1e-8)


def test_derivatives_of_figures_are_differences(rng):
    of = SWEEPS["4 x 3"]
    where = design(of)
    start = laws.fit(where, np.log(of.loss)).params + 0.1 * rng.normal(size=(3, 5))
    figures = laws.figures(where, [20.0, 30.0], where.z[:2])
    values, slopes = figures(start)
    assert values.shape == (3, len(laws.names(2, 2, 2)))
    for i in range(5):
        off = 1e-5 * np.eye(5)[i]
        expected = (figures(start + off)[0] - figures(start - off)[0]) / 2e-5
        np.testing.assert_allclose(slopes[..., i], expected, atol=1e-6)


def test_the_optimum_is_the_least_loss_along_the_compute():
    of = SWEEPS["5 x 4"]
    where = design(of)
    params = laws.fit(where, np.log(of.loss)).params
    E, A, alpha, B, beta = of.law
    for product in (1e9, 1e14, 1e20):
        (size, audio, loss), _ = (part[0] for part in laws.log_optimum(where, params, np.log(product)))
        whole = float(np.log(product))
        best = scipy.optimize.minimize_scalar(
            lambda n, whole=whole: E + A * np.exp(-alpha * n) + B * np.exp(-beta * (whole - n)),
            bounds=(0, np.log(product)),
            method="bounded",
            options={"xatol": 1e-10},
        )
        np.testing.assert_allclose(size, best.x, atol=1e-4)
        np.testing.assert_allclose(np.exp(loss), best.fun, rtol=1e-7)
        np.testing.assert_allclose(size + audio, np.log(product), rtol=1e-12)


# ---- against other optimisers ------------------------------------------------------------------


def noisy(name="5 x 4", noise=0.01, seed=3):
    of = SWEEPS[name]
    return of, np.log(of.loss) + noise * np.random.default_rng(seed).standard_normal(len(of.loss))


def objective(of, losses, delta):
    """Hoffmann et al.'s, from its formula and scipy's Huber function."""

    def value(params):
        e, a, alpha, b, beta = params
        N, D = np.log(of.params), np.log(of.audio_seconds)
        predicted = scipy.special.logsumexp([np.full_like(N, e), a - alpha * N, b - beta * D], axis=0)
        return scipy.special.huber(delta, losses - predicted).sum()

    return value


def test_no_other_optimiser_finds_a_lower_objective():
    of, losses = noisy()
    where = design(of)
    found = laws.fit(where, losses)
    value = objective(of, losses, found.delta[0])
    mine = np.log(letters(where, found))
    mine[[2, 4]] = np.exp(mine[[2, 4]])
    assert value(mine) == pytest.approx(found.objective[0], rel=1e-9)
    evolved = scipy.optimize.differential_evolution(
        value, [(-1, 1.5), (0, 12), (0.05, 1), (0, 12), (0.05, 1)], rng=0, maxiter=250, popsize=8, tol=1e-9
    )
    assert found.objective[0] <= evolved.fun * (1 + 1e-9)
    np.testing.assert_allclose(mine, evolved.x, rtol=2e-3)
    polished = scipy.optimize.minimize(value, mine, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-12})
    assert found.objective[0] <= polished.fun * (1 + 1e-6)


def test_least_squares_agrees_with_curve_fit():
    of, losses = noisy(noise=0.004)
    where = design(of)
    start = laws.fit(where, losses).params
    params, _ = descent.fit(laws.model(where), losses[None], start, laws.bounds(where, losses), np.array([1e6]))
    theirs, _ = scipy.optimize.curve_fit(
        lambda _, *p: laws.log_loss(np.array([p]), where.z)[0][0],
        None,
        losses,
        p0=start[0] + 0.05,
        xtol=1e-13,
        ftol=1e-13,
    )
    np.testing.assert_allclose(params[0], theirs, atol=1e-5)


def test_noise_is_estimated_and_one_wild_run_is_not_followed():
    of, losses = noisy("6 x 6", 0.01)
    where = design(of)
    clean = laws.fit(where, losses)
    assert clean.noise[0] == pytest.approx(0.01, rel=0.3)
    losses = losses.copy()
    losses[14] += 0.3
    wild = laws.fit(where, losses)
    squares, _ = descent.fit(laws.model(where), losses[None], clean.params, laws.bounds(where, losses), np.array([1e6]))
    off = np.abs(wild.params - clean.params).max()
    assert off < 0.3 * np.abs(squares - clean.params).max()


def test_a_batch_is_its_fits_one_by_one():
    of, _ = noisy()
    where = design(of)
    many = np.stack([noisy(seed=seed)[1] for seed in range(4)])
    start = np.repeat(laws.fit(where, many[0]).params, 4, axis=0)
    limits = laws.bounds(where, many[0])
    together = descent.fit_with_noise(laws.model(where), many, start, limits, 1e-3)
    for i in range(4):
        alone = descent.fit_with_noise(laws.model(where), many[i : i + 1], start[:1], limits, 1e-3)
        # The noise, and with it delta, is settled to 1e-4.
        np.testing.assert_allclose(together.params[i], alone.params[0], rtol=1e-4)


# ---- properties --------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None)
@given(factor=st.floats(1e-4, 1e4), seed=st.integers(0, 100))
def test_another_unit_of_audio_changes_B_alone(factor, seed):
    of, losses = noisy(seed=seed)
    where, other = design(of), design(of._replace(audio_seconds=of.audio_seconds * factor))
    mine, theirs = letters(where, laws.fit(where, losses)), letters(other, laws.fit(other, losses))
    np.testing.assert_allclose(theirs[[0, 1, 2, 4]], mine[[0, 1, 2, 4]], rtol=1e-6)
    np.testing.assert_allclose(theirs[3], mine[3] * factor ** mine[4], rtol=1e-5)


@settings(max_examples=6, deadline=None)
@given(factor=st.floats(1e-2, 1e2), seed=st.integers(0, 100))
def test_another_unit_of_loss_scales_E_A_and_B(factor, seed):
    of, losses = noisy(seed=seed)
    where = design(of)
    mine = letters(where, laws.fit(where, losses))
    theirs = letters(where, laws.fit(where, losses + np.log(factor)))
    np.testing.assert_allclose(theirs, mine * [factor, factor, 1, factor, 1], rtol=1e-5)
