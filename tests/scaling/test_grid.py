"""Points to runs: budgets are met, rules are the stated formulas, and nothing but size and steps differs."""

import dataclasses
import itertools
import json
import pathlib

import pytest

from codec_jax import experiment as experiments
from codec_jax.errors import UserError
from codec_jax.experiment import OptimConfig, StageConfig, load_config
from codec_jax.models.taae import BottleneckConfig
from codec_jax.scaling import bitrates, costs, grid, ladder
from tests import tiny

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
NANO = load_config(f"{CONFIGS}/taae.py:nano")
CROP, CLIPS = 0.5, 6


def one(point=None, **rules):
    point = point or grid.Point(1_000_000, 3600.0)
    (run,) = grid.planned(NANO, [point], grid.Rules(**rules))
    return run


# ---- grids -------------------------------------------------------------------------------------


def test_a_parametric_grid_is_all_combinations():
    points = grid.parametric([100_000, 1_000_000], [600.0, 1200.0, 2400.0], [2400.0, None], seed=3)
    assert len(points) == 12
    assert {(p.params, p.audio_seconds, p.bitrate) for p in points} >= {
        (100_000, 2400.0, 2400.0),
        (1_000_000, 600.0, None),
    }
    assert {p.seed for p in points} == {3}


def test_isoflop_budgets_are_spent():
    """Every run of a budget costs it, to the last step; smaller models hear more."""
    points = grid.isoflop(NANO, [3e12, 1e13], [100_000, 300_000, 1_000_000], [None])
    runs = grid.planned(NANO, points, grid.Rules())
    for run in runs:
        assert run.flops == pytest.approx(run.asked.flops, rel=1 / run.steps)
    of_one = [run for run in runs if run.asked.flops == 1e13]
    by_size = sorted(of_one, key=lambda run: run.params)
    assert [run.audio_seconds for run in by_size] == sorted((run.audio_seconds for run in of_one), reverse=True)


def test_sizes_around_a_guess():
    """Half an octave apart, in the middle of them the ratio that was guessed."""
    sizes = grid.around(NANO, 1e14, 5, 0.01)
    assert [b / a for a, b in itertools.pairwise(sizes)] == pytest.approx([2**0.5] * 4, rel=1e-3)
    (point,) = grid.isoflop(NANO, [1e14], [sizes[2]], [None])
    assert point.audio_seconds / sizes[2] == pytest.approx(0.01, rel=0.25)


# ---- rules -------------------------------------------------------------------------------------


def test_a_run_by_the_stated_formulas():
    run = one()
    assert (run.batch_size, run.steps) == (CLIPS, 1200)
    assert run.audio_seconds == run.steps * CLIPS * CROP == 3600
    assert run.learning_rate == pytest.approx(4e-3 * 128 / run.width, rel=1e-4)
    assert run.ema_decay == pytest.approx(1 - 1 / (0.02 * 1200))
    assert run.flops == pytest.approx(3600 * ladder.work(run.experiment).step)
    optim, training = run.experiment.optim, run.experiment.training
    assert (optim.learning_rate, optim.ema_decay, optim.warmup_steps) == (run.learning_rate, run.ema_decay, 120)
    assert (training.steps, training.eval_every, training.checkpoint_every) == (1200, 1200, 120)


def test_batches_and_rates_grow_by_their_exponents():
    """D is half of the base's: batches by its root, rates by the root of theirs."""
    plain = one()
    run = one(batch_exponent=0.5, lr_width_exponent=0.0)
    assert run.batch_size == round(CLIPS * 0.5**0.5)
    assert run.learning_rate == pytest.approx(4e-3 * (run.batch_size / CLIPS) ** 0.5, rel=1e-4)
    assert run.steps == round(3600 / (run.batch_size * CROP)) > plain.steps
    assert one(batch_size=24, batch_multiple=16).batch_size == 32
    assert one(batch_size=24, lr_batch_exponent=1.0).learning_rate == pytest.approx(4 * plain.learning_rate, rel=1e-4)
    assert one(learning_rate=1e-3).learning_rate == pytest.approx(plain.learning_rate / 4, rel=1e-4)


def test_the_average_lags_behind_by_one_share_of_every_run():
    """Never longer than the base's own: 1 / (1 - decay) steps are 2 % of the run."""
    for seconds in (150.0, 900.0, 3600.0, 1e5):
        run = one(grid.Point(100_000, seconds))
        reach = 1 / (1 - run.ema_decay)
        assert reach <= 1000 + 1e-6
        assert reach == pytest.approx(max(1, min(1000, 0.02 * run.steps)))


def test_mup_keeps_one_rate():
    run = one(mup=True)
    assert run.learning_rate == 4e-3
    assert run.experiment.mup.base_channels == 128
    run.experiment.validate()


def test_rates_of_stages_follow_and_those_of_discriminators_stay():
    own = OptimConfig(learning_rate=1e-3)
    base = tiny.changed(
        NANO, stages={"a": StageConfig(optim=own), "b": StageConfig(discriminate=True, discriminator_optim=own)}
    )
    (run,) = grid.planned(base, [grid.Point(100_000, 600.0)], grid.Rules())
    stages = run.experiment.stages
    assert stages["a"].optim.learning_rate == pytest.approx(1e-3 * 128 / run.width)
    assert stages["b"].discriminator_optim.learning_rate == 1e-3


def test_what_a_loss_is_measured_by_never_differs():
    """Held-out clips, crops, losses and bottleneck; of one rate only, where several are asked for."""
    points = grid.parametric([100_000, 1_000_000], [600.0, 1200.0], [None, 2400.0])
    runs = grid.planned(NANO, points, grid.Rules(batch_exponent=0.5))

    def measured(run):
        data = experiments.to_dict(run.experiment.data) | {"batch_size": 0}
        return json.dumps([data, experiments.to_dict(run.experiment.losses)])

    assert len({measured(run) for run in runs}) == 1
    assert len({(run.bitrate, run.experiment.bottleneck) for run in runs}) == 2
    assert len({run.experiment.model.patch_size for run in runs}) == 1
    assert all(run.experiment.optim.ema_decay > 0 for run in runs)


def test_names_are_distinct_and_fit_for_kubernetes():
    points = [*grid.parametric([100_000, 1_000_000], [600.0, 1e6], [2400.0, None]), grid.Point(100_000, 600.0, seed=1)]
    runs = grid.planned(NANO, points, grid.Rules())
    names = [run.name for run in runs]
    assert len(set(names)) == len(names) == 9
    assert all(name.replace("-", "").isalnum() and name == name.lower() for name in names)
    assert [run.flops for run in runs] == sorted(run.flops for run in runs)
    assert grid.planned(NANO, [points[0]], grid.Rules())[0].name.count("-") == 1  # size and seconds


def test_resolved_configs_survive_json():
    run = one(mup=True)
    assert experiments.from_dict(json.loads(experiments.to_json(run.experiment))) == run.experiment


# ---- bit rates ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bottleneck", "asked", "found", "field", "value"),
    [
        (BottleneckConfig(levels=(17,) * 6), 2400, 2400, "levels", (4,) * 6),
        (BottleneckConfig(levels=(17,) * 6, train_levels=((5,) * 6,)), 3650, 3600, "train_levels", ()),
        (BottleneckConfig("residual_vq", num_codebooks=3, codebook_size=256), 3200, 3200, "num_codebooks", 2),
        (BottleneckConfig(levels=(4,) * 6, num_codebooks=2), 7200, 7200, "num_codebooks", 3),
    ],
)
def test_the_knob_of_a_taae(bottleneck, asked, found, field, value):
    changed = bitrates.at_rate(tiny.changed(NANO, bottleneck=bottleneck), float(asked))
    assert ladder.bitrate(changed) == found
    assert getattr(changed.bottleneck, field) == value
    assert tiny.changed(changed, bottleneck=NANO.bottleneck) == NANO


def test_the_knob_of_an_esc():
    """18 codes of a frame, 50 frames a second."""
    base = load_config(f"{CONFIGS}/esc.py:base")
    changed = bitrates.at_rate(base, 6300.0)
    assert (changed.bottleneck.codebook_size, ladder.bitrate(changed)) == (2**7, 6300)
    streams = bitrates.at_rate(load_config(f"{CONFIGS}/esc.py:rvq-swin"), 4500.0)
    assert (streams.bottleneck.num_streams, ladder.bitrate(streams)) == (3, 4500)


@pytest.mark.parametrize("rate", [None, 5000.0])
def test_the_bases_own_rate(rate):
    assert bitrates.at_rate(NANO, rate) == NANO


# ---- what cannot be ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "rules", "sentence"),
    [
        ([], {}, "empty"),
        ([grid.Point(100_000, 10.0)], {}, "give more audio"),
        ([grid.Point(100_000, -1.0)], {}, "above 0"),
        ([grid.Point(100_000, float("nan"))], {}, "above 0"),
        ([grid.Point(100_000, 600.0), grid.Point(100_001, 600.0)], {}, "one rung"),
        ([grid.Point(100_000, 600.0, 1.0)], {}, "no rate of this bottleneck"),
        ([grid.Point(100_000, 600.0)], {"batch_size": 0}, "at least 1"),
        ([grid.Point(100_000, 600.0)], {"learning_rate": -1.0}, "positive"),
        ([grid.Point(100_000, 600.0)], {"ema_share": 2.0}, "ema_share"),
    ],
)
def test_bad_plans(points, rules, sentence):
    with pytest.raises(UserError, match=sentence):
        grid.planned(NANO, points, dataclasses.replace(grid.Rules(), **rules))


def test_bad_budgets():
    with pytest.raises(UserError, match="positive number of FLOPs"):
        grid.isoflop(NANO, [0.0], [100_000], [None])
    none = tiny.changed(NANO, bottleneck=BottleneckConfig("none"))
    with pytest.raises(UserError, match="none at all"):
        bitrates.at_rate(none, 4800.0)
    with pytest.raises(UserError, match="without learned codebooks"):
        grid.planned(
            load_config(f"{CONFIGS}/esc.py:base"), [grid.Point(3_000_000, 3600.0)], grid.Rules(batch_size=4, mup=True)
        )


# ---- costs -------------------------------------------------------------------------------------


def test_hours_from_compiled_steps():
    """Known sizes as they are, others by the speed in between, chips counted."""
    runs = grid.planned(NANO, grid.parametric([100_000, 300_000, 1_000_000], [3600.0], [None]), grid.Rules())
    per_step = [run.flops / run.steps for run in runs]
    anchors = {
        runs[0].params: costs.Anchor(per_step[0], per_step[0] / 1e9),
        runs[2].params: costs.Anchor(per_step[2], per_step[2] / 9e9),
    }
    small, middle, large = costs.estimates(runs, anchors, "compiled", 4, 1e11)
    assert (small.how, middle.how, large.how) == ("compiled", "interpolated", "compiled")
    assert small.hours == pytest.approx(runs[0].flops / 1e9 / 3600)
    assert large.mfu == pytest.approx(0.09)
    assert small.mfu < middle.mfu < large.mfu
    assert large.chip_hours == 4 * large.hours
    (given,) = costs.at_mfu(runs[:1], 0.5, 2, 1e10)
    assert given.hours == pytest.approx(runs[0].flops / 5e9 / 3600)


def test_peaks_and_plans(tmp_path):
    assert costs.peak_flops("v5e:16x16") == (256, 256 * 197e12)
    for wrong in ("v5e:16xx", "v9:2x2"):
        with pytest.raises(UserError):
            costs.peak_flops(wrong)
    row = {"topology": "v5e:4x4", "params": 10, "flops_per_step": 8.0, "step_seconds": 1.0, "compiler_seconds": 2.0}
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(row))
    assert costs.read_plans([str(file)], "v5e:4x4") == {10: costs.Anchor(8.0, 2.0)}
    with pytest.raises(UserError, match=r"is a plan for v5e:4x4"):
        costs.read_plans([str(file)], "v5e:2x2")
    file.write_text("{}")
    with pytest.raises(UserError, match="is no plan"):
        costs.read_plans([str(file)], "v5e:2x2")
    file.write_text(json.dumps({**row, "step_seconds": 0.0, "compiler_seconds": 0.0}))
    with pytest.raises(UserError, match="does not fit"):
        costs.read_plans([str(file)], "v5e:4x4")


def test_measured_steps():
    """Positive, and its FLOPs those of a step."""
    run_experiment = tiny.changed(tiny.experiment(), data=tiny.changed(tiny.experiment().data, batch_size=8))
    anchor = costs.measured(run_experiment)
    seconds = 8 * run_experiment.crop_samples / 16_000
    assert anchor.seconds > 0
    assert anchor.flops == pytest.approx(ladder.work(run_experiment).step * seconds)
