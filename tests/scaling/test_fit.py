"""All analyses of a table: what they find in sweeps from known laws, and what each refuses."""

import re

import numpy as np
import pytest

from codec_jax.scaling import fit, intervals, isoflop, rates
from codec_jax.scaling.table import Run, Table
from tests.scaling.coverage import SWEEPS, sweep


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    monkeypatch.setattr(intervals, "DRAWS", 60)


def table(params, audio, loss, bitrate=None, flops=None):
    count = len(params)
    columns = zip(params, audio, loss, bitrate or [None] * count, flops or [None] * count)
    runs = [Run(f"run {i}", *(None if v is None else float(v) for v in row)) for i, row in enumerate(columns)]
    return Table(tuple(sorted(runs, key=lambda run: run[1:4])), (), "loss")


def noisy(of, noise=0.003, seed=0):
    return of.loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(of.loss)))


def refusal(of_table, analysis=fit.PARAMETRIC):
    result = fit.analyse(of_table)
    assert (result.law is None) == (fit.PARAMETRIC in result.summary["refused"])
    return result.summary["refused"][analysis]


def test_a_known_law_is_found_with_its_optimum_and_holds_beyond():
    of = SWEEPS["5 x 4"]
    flops = 300 * of.params * of.audio_seconds
    found = fit.analyse(table(of.params, of.audio_seconds, noisy(of), flops=list(flops)), [1e18]).summary
    for name, value in zip(fit.LETTERS, of.law):
        assert found[name]["low"] < value < found[name]["high"]
    assert found["compute_unit"] == "flop"
    assert found["compute_per_param_second"]["value"] == pytest.approx(300)
    best = found["compute_optimal"]
    alpha, beta = of.law[2], of.law[4]
    assert best["a"]["low"] < beta / (alpha + beta) < best["a"]["high"]
    assert best["a"]["value"] + best["b"]["value"] == pytest.approx(1)
    at = best["at"][0]
    assert at["params"]["value"] * at["audio_seconds"]["value"] * 300 == pytest.approx(1e18, rel=1e-6)
    assert found["noise"] == pytest.approx(0.003, rel=0.6)
    held = found["holdout"]
    assert held["fitted"] + len(held["runs"]) == 20
    assert abs(held["mean_error"]["value"]) < 0.02
    assert held["within_interval"] == len(held["runs"])
    assert set(found["refused"]) == {"isoflop", "rate_distortion"}


def test_a_law_that_bends_beyond_is_seen_by_the_holdout():
    """The costliest runs did worse than the law: training diverged, or the data ran out."""
    of = SWEEPS["6 x 6"]
    loss, compute = noisy(of, 0.002), of.params * of.audio_seconds
    costly = compute >= np.sort(compute)[-8]
    found = fit.analyse(table(of.params, of.audio_seconds, np.where(costly, loss * 1.1, loss))).summary["holdout"]
    assert found["mean_error"]["high"] < -0.05
    assert found["within_interval"] < len(found["runs"])


# ---- refusals of the law -----------------------------------------------------------------------


def test_too_few_runs():
    of = SWEEPS["4 x 3"]
    assert "there are 7 runs, and 5 parameters need at least 8" in refusal(
        table(of.params[:7], of.audio_seconds[:7], of.loss[:7])
    )
    assert "there are 0 runs" in refusal(table([], [], []))


def test_too_few_sizes_or_budgets():
    of = sweep((1e5, 5e6, 2), (1e3, 1e5, 6))
    assert "params takes 2 values" in refusal(table(of.params, of.audio_seconds, noisy(of)))
    assert "audio_seconds takes 2 values" in refusal(table(of.audio_seconds, of.params, noisy(of)))


def test_sizes_and_budgets_that_rise_together():
    of = sweep((1e5, 1e8, 10), (1e3, 1e6, 10))
    alike = np.arange(10) * 11
    found = refusal(table(of.params[alike], of.audio_seconds[alike], noisy(of)[alike]))
    assert "rises and falls with the others" in found


def test_losses_that_are_noise():
    of = SWEEPS["5 x 4"]
    loss = 3 * np.exp(0.02 * np.random.default_rng(1).standard_normal(20))
    found = refusal(table(of.params, of.audio_seconds, loss))
    assert any(part in found for part in ("fits nothing", "do not fall with", "ran to"))


def test_losses_that_only_fall_with_audio():
    of = SWEEPS["5 x 4"]
    loss = 2 + of.law[3] * of.audio_seconds ** -of.law[4]
    loss = loss * np.exp(0.01 * np.random.default_rng(2).standard_normal(20))
    found = refusal(table(of.params, of.audio_seconds, loss))
    assert "the losses do not fall with params beyond the noise" in found or "alpha ran to" in found


def test_losses_that_rise_with_size():
    of = SWEEPS["5 x 4"]
    loss = noisy(of) * (of.params / 1e7) ** 0.3
    found = refusal(table(of.params, of.audio_seconds, loss))
    assert any(part in found for part in ("fits nothing", "do not fall with params", "alpha ran to"))


def test_an_exponent_at_its_bound():
    """A cliff between the first two sizes: no power of N."""
    of = SWEEPS["5 x 4"]
    loss = 2 + 3 * (of.params == of.params.min()) + of.law[3] * of.audio_seconds ** -of.law[4]
    assert "alpha ran to 5, the end of its range" in refusal(table(of.params, of.audio_seconds, loss))


def test_a_floor_that_is_not_seen():
    of = sweep((1e5, 5e6, 4), (1e3, 3e4, 3), floor=0.05)
    result = fit.analyse(table(of.params, of.audio_seconds, noisy(of, 0.01)))
    assert "E is not told from zero" in result.summary["refused"]["irreducible_loss"]
    assert result.law is not None
    assert result.summary["E"]["low"] == 0
    assert result.summary["alpha"]["low"] < 0.34 < result.summary["alpha"]["high"]


def test_a_holdout_that_leaves_too_few():
    of = sweep((1e5, 5e6, 3), (1e3, 3e4, 3))
    runs = table(of.params[:8], of.audio_seconds[:8], of.loss[:8])
    assert "without the costliest runs, there are 7 runs" in fit.analyse(runs).summary["refused"]["holdout"]


# ---- isoFLOP -----------------------------------------------------------------------------------


def profiles(computes=(1e10, 1e11, 1e12, 1e13), sizes=6, noise=0.002, shift=0.0, bend=1.0):
    rng = np.random.default_rng(0)
    N, D, L, C = [], [], [], []
    for compute in computes:
        off = np.linspace(-1.6, 1.6, sizes) + shift
        best = 2 * compute**0.45
        N += list(best * np.exp(off))
        D += list(compute / (best * np.exp(off)))
        L += list(5 * compute**-0.05 * np.exp(bend * 0.03 * off**2 + noise * rng.standard_normal(sizes)))
        C += [compute] * sizes
    return tuple(np.asarray(column) for column in (N, D, C, L))


def test_profiles_of_known_bottoms():
    N, D, C, L = profiles()
    found = isoflop.fit(N, D, C, L)
    assert found.a.low < 0.45 < found.a.high
    assert found.b.low < 0.55 < found.b.high
    assert found.a.value + found.b.value == pytest.approx(1)
    for profile, compute in zip(found.profiles, (1e10, 1e11, 1e12, 1e13)):
        assert profile.params.low < 2 * compute**0.45 < profile.params.high
        assert profile.params.value * profile.audio_seconds.value == pytest.approx(compute)
    exact = isoflop.fit(*profiles(noise=0.0))
    assert exact.a.value == pytest.approx(0.45, abs=1e-9)
    assert exact.a.high - exact.a.low < 1e-6


def test_profiles_hold_their_exponent():
    """Of 60 at 0.95, fewer than 51 happen once in 1,000 times."""
    rng, held = np.random.default_rng(5), 0
    N, D, C, L = profiles(noise=0.0)
    for _ in range(60):
        found = isoflop.fit(N, D, C, L * np.exp(0.005 * rng.standard_normal(len(L))))
        held += found.a.low <= 0.45 <= found.a.high
    assert held >= 51


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bend": -1.0}, "opens downwards"),
        ({"shift": 3.0}, "beyond the smallest size"),
        ({"shift": -3.0}, "beyond the largest size"),
        ({"sizes": 3}, r"no compute was spent on 4 sizes \(at most 3\)"),
        ({"computes": (1e10, 1e11)}, "2 of the 3 profiles that a power law needs"),
    ],
)
def test_profiles_refused(changes, reason):
    found = isoflop.fit(*profiles(**changes))
    assert found.a is None
    assert re.search(reason, found.reason)


def test_one_bad_profile_does_not_spoil_the_others():
    N, D, C, L = profiles()
    L = np.where(C == 1e10, L * np.exp(-0.06 * (np.log(N / (2 * C**0.45))) ** 2), L)
    found = isoflop.fit(N, D, C, L)
    assert "opens downwards" in found.profiles[0].reason
    assert found.a.low < 0.45 < found.a.high


def test_nearly_the_same_compute_is_one_profile():
    C = profiles()[2]
    spread = C * np.random.default_rng(0).uniform(0.96, 1.05, len(C))
    assert [len(group) for group in isoflop.groups(spread)] == [6, 6, 6, 6]


# ---- rate --------------------------------------------------------------------------------------


def with_rates(distortion, bitrates=(700.0, 1400.0, 2800.0, 5600.0), noise=0.002):
    of = SWEEPS["4 x 3"]
    N, D = np.tile(of.params, len(bitrates)), np.tile(of.audio_seconds, len(bitrates))
    R = np.repeat(bitrates, len(of.params))
    loss = np.tile(of.loss, len(bitrates)) + distortion(R)
    return N, D, R, loss * np.exp(noise * np.random.default_rng(1).standard_normal(len(loss)))


def test_a_rate_that_halves_the_distortion():
    found = rates.fit(*with_rates(lambda R: 2 * 2 ** (-R / 1200)))
    assert found.form == "exponential"
    assert found.told
    value, low, high = rates.halving(found)
    assert low < 1200 < high
    assert value == pytest.approx(1200, rel=0.1)


def test_a_rate_that_is_a_power():
    found = rates.fit(*with_rates(lambda R: 60 * R**-0.6))
    assert found.form == "power"
    low, high = (float(np.exp(part[6])) for part in (found.ends.low, found.ends.high))
    assert low < 0.6 < high


@pytest.mark.parametrize(
    ("bitrates", "distortion", "reason"),
    [
        ((700.0, 1400.0), lambda R: 60 * R**-0.6, "2 bit rates, and a surface needs at least 3"),
        ((700.0, 1400.0, 2800.0), lambda R: 0 * R, "bitrate|gamma"),
    ],
)
def test_rates_refused(bitrates, distortion, reason):
    found = rates.fit(*with_rates(distortion, bitrates))
    assert isinstance(found, str)
    assert re.search(reason, found)


def test_the_law_is_of_one_bitrate():
    N, D, R, L = with_rates(lambda R: 2 * 2 ** (-R / 1200))
    whole = table(N, D, L, list(R))
    found = fit.analyse(whole).summary
    assert (found["bitrate"], found["n"]) == (700.0, 12)
    assert "36 at other rates are set aside" in found["notes"][0]
    assert found["rate_distortion"]["form"] == "exponential"
    assert fit.analyse(whole, bitrate=5600.0).summary["bitrate"] == 5600.0


# ---- the rest ----------------------------------------------------------------------------------


def test_seeds_tell_noise_from_misfit():
    of = SWEEPS["4 x 3, 2 seeds"]
    found = fit.analyse(table(of.params, of.audio_seconds, noisy(of, 0.01))).summary["seed_noise"]
    assert found["free"] == 12
    assert found["value"] == pytest.approx(0.01, rel=0.5)


def test_flops_that_do_not_go_with_size_are_told():
    of = SWEEPS["4 x 3"]
    flops = list(300 * of.params * of.audio_seconds * np.where(of.params < 2e5, 2.0, 1.0))
    notes = fit.analyse(table(of.params, of.audio_seconds, noisy(of), flops=flops)).summary["notes"]
    assert any("FLOPs per parameter and second of audio vary from 300 to 600" in note for note in notes)
    flops[3] = None
    notes = fit.analyse(table(of.params, of.audio_seconds, noisy(of), flops=flops)).summary["notes"]
    assert any("Only 11 of 12 runs state their FLOPs" in note for note in notes)
