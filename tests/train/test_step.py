"""One update, looked at closely: who moves, who is skipped, what a stage hands to the next."""

import dataclasses
import os
import pathlib
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from codec_jax.errors import UserError
from codec_jax.experiment import LossConfig, MeshConfig, OptimConfig, StageConfig
from codec_jax.models.discriminators import DACDiscriminatorConfig, DiscriminatorConfig
from codec_jax.train import health, objective, sharding, stages, step
from codec_jax.train.state import CODEC, DISCRIMINATOR
from tests import tiny

JUDGE = DiscriminatorConfig(n_ffts=(30,), filters=4, dilations=(2,))
ADVERSARIAL = LossConfig(l1=1.0, stft=0.0, adversarial=1.0, feature_matching=1.0)


def experiment(stage_configs, **training):
    base = tiny.experiment(steps=6, **training)
    plain = LossConfig(l1=1.0, stft=0.0)
    optim = OptimConfig(learning_rate=1e-2, warmup_steps=1, schedule="constant", ema_decay=0.9)
    return dataclasses.replace(base, losses=plain, optim=optim, stages=stage_configs, discriminator=JUDGE)


@pytest.fixture(scope="module")
def mesh():
    auto = (jax.sharding.AxisType.Auto,) * 3
    return jax.make_mesh((1, 1, 1), sharding.AXES, axis_types=auto, devices=jax.devices()[:1])


def batch(scale=0.1, seed=0):
    audio = scale * np.random.default_rng(seed).standard_normal((4, 1, 400), dtype=np.float32)
    return {"audio": jnp.asarray(audio), "place": jnp.arange(4, dtype=jnp.int32)}


def begin(config, mesh, index=0):
    stage = stages.resolve(config)[index]
    abstract = step.abstract_state(config, stage, mesh)
    return (
        stage,
        abstract,
        step.init_state(config, stage, abstract),
        step.make_train_step(config, stage, abstract, mesh),
    )


def moved(before, after):
    return {
        "/".join(str(k.key) for k in path)
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after))
        if np.any(np.asarray(a) != np.asarray(b))
    }


def host(state):
    return {name: jax.tree.map(np.asarray, player.params) for name, player in state.players.items()}


# ---- stages ------------------------------------------------------------------------------------


def test_stages_fill_the_run():
    config = experiment({"warm": StageConfig(0.25), "adversarial": StageConfig(0.75, discriminate=True)})
    found = stages.resolve(dataclasses.replace(config, training=dataclasses.replace(config.training, steps=100)))
    assert [(s.name, s.start, s.stop) for s in found] == [("warm", 0, 25), ("adversarial", 25, 100)]
    assert [stages.at(found, n).name for n in (0, 24, 25, 100)] == ["warm", "warm", "adversarial", "adversarial"]
    absolute = experiment({"a": StageConfig(30.0), "b": StageConfig(10.0)})
    assert [s.stop for s in stages.resolve(absolute)] == [4, 6]
    assert stages.rescaled(absolute)
    assert not stages.rescaled(config)
    with pytest.raises(UserError, match="leaves the stage b without a step"):
        stages.resolve(experiment({"a": StageConfig(1000.0), "b": StageConfig(1.0)}))
    with pytest.raises(UserError, match="no stage c"):
        stages.named(found, "c")


def test_impossible_stages_are_refused():
    listening = StageConfig(losses=ADVERSARIAL)
    for stage, says in (
        (listening, "discriminate=True"),
        (StageConfig(steps=0.0), "steps above 0"),
        (StageConfig(optim=OptimConfig(schedule="linear")), "schedule"),
        (StageConfig(losses=LossConfig(decay=0.0)), "decay"),
    ):
        with pytest.raises(UserError, match=says):
            experiment({"only": stage}).validate()
    with pytest.raises(UserError, match="fewer than the 2296 they need"):
        dataclasses.replace(
            experiment({"only": StageConfig(discriminate=True)}), discriminator=DiscriminatorConfig()
        ).validate()


def test_stages_travel_through_json_and_flags():
    from codec_jax.experiment import apply_overrides, from_dict, to_dict

    config = experiment(
        {"warm": StageConfig(1.0), "adversarial": StageConfig(2.0, losses=ADVERSARIAL, discriminate=True)}
    )
    assert from_dict(to_dict(config)) == config
    changed = apply_overrides(config, ["--config.stages.adversarial.losses.l1=0.5", "--config.stages.warm.steps=3"])
    assert list(changed.stages) == ["warm", "adversarial"]
    assert changed.stages["adversarial"].losses.l1 == 0.5
    assert changed.stages["warm"].steps == 3


def test_what_passes_from_one_stage_to_the_next(mesh):
    config = experiment({"warm": StageConfig(), "adversarial": StageConfig(losses=ADVERSARIAL, discriminate=True)})
    _, _, state, run = begin(config, mesh)
    assert set(state.players) == {CODEC}
    state, _ = run(state, batch(), 0)
    second = stages.resolve(config)[1]
    abstract = step.abstract_state(config, second, mesh)
    before = jax.tree.map(np.asarray, state.players[CODEC])
    entered = step.enter_stage(config, second, state, abstract)
    assert jax.tree.structure(entered) == jax.tree.structure(abstract)
    jax.tree.map(np.testing.assert_array_equal, entered.players[CODEC], before)  # moments and average included
    state, metrics = step.make_train_step(config, second, abstract, mesh)(entered, batch(), 1)
    assert {"adversarial", "feature_matching", "d_loss", "d_accuracy_real", "grad_norm/discriminator"} <= set(metrics)
    first = stages.resolve(config)[0]
    back = step.enter_stage(config, first, state, step.abstract_state(config, first, mesh))
    assert set(back.players) == {CODEC}


@pytest.mark.parametrize("optim", [False, True])
def test_a_stage_is_compiled_once(mesh, optim):
    """Arrays that are placed otherwise than a step's results make the second step another one, minutes of compiling."""
    config = experiment({"warm": StageConfig(), "next": StageConfig(fresh_optim=optim)})
    _, _, state, _ = begin(config, mesh)
    stage = stages.resolve(config)[1]
    abstract = step.abstract_state(config, stage, mesh)
    entered = step.enter_stage(config, stage, state, abstract)
    run, compiled = step.make_train_step(config, stage, abstract, mesh), []
    with mock.patch.object(step, "train_step", wraps=step.train_step) as traced:
        for number in range(3):
            entered, _ = run(entered, batch(), number)
            compiled.append(traced.call_count)
    assert compiled == [1, 1, 1]


# ---- who moves ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alternate", "expected"),
    [
        (False, [{CODEC, DISCRIMINATOR}] * 2),
        pytest.param(True, [{CODEC}, {DISCRIMINATOR}], marks=pytest.mark.slow),
    ],
)
def test_both_move_at_once_or_in_turns(mesh, alternate, expected):
    config = experiment({"only": StageConfig(losses=ADVERSARIAL, discriminate=True)}, alternate=alternate)
    _, _, state, run = begin(config, mesh)
    for number, players in enumerate(expected):
        before = host(state)
        state, metrics = run(state, batch(), number)
        assert {name for name in before if moved(before[name], host(state)[name])} == players
        assert not float(metrics["skipped"])


def test_a_warm_up_of_the_discriminators_alone_is_silent_to_the_codec(mesh):
    """Upstream's warm-up: they learn, and the codec hears nothing of it."""
    quiet = experiment({"only": StageConfig(discriminate=True)})
    alone = experiment({"only": StageConfig()})
    with_judge, without = (begin(config, mesh) for config in (quiet, alone))
    a, metrics = with_judge[3](with_judge[2], batch(), 0)
    b, _ = without[3](without[2], batch(), 0)
    jax.tree.map(np.testing.assert_array_equal, host(a)[CODEC], host(b)[CODEC])
    assert "adversarial" not in metrics
    assert "d_loss" in metrics


def test_frozen_parts_stay(mesh):
    config = experiment({"only": StageConfig(freeze=("encoder", "decoder/stage_0"))})
    _, _, state, run = begin(config, mesh)
    before = host(state)[CODEC]
    state, metrics = run(state, batch(), 0)
    changed = moved(before, host(state)[CODEC])
    assert changed
    assert not any(name.startswith(("encoder/", "decoder/stage_0/")) for name in changed)
    assert float(metrics["grad_norm/encoder/stage_0"]) == 0


@pytest.mark.slow
def test_esc_and_dacs_discriminators(mesh):
    """Another family, other judges, another game: the same step. Sums over judges, and both players move."""
    from codec_jax.models import esc

    losses = LossConfig(
        l1=0.0, stft=0.0, mel=15.0, spectrum=0.0, adversarial=1.0, feature_matching=2.0, gan="least_squares"
    )
    judges = DACDiscriminatorConfig(periods=(2, 3), period_widths=(2, 4), fft_sizes=(64,), band_width=2)
    config = dataclasses.replace(
        experiment({"only": StageConfig(losses=losses, discriminate=True)}),
        family="esc",
        model=esc.ESCConfig(
            in_freq=48, win_length=80, stft_hop_length=32, h_dims=(8, 12), num_heads=(2,), depth=1, mlp_ratio=2.0
        ),
        bottleneck=esc.VQConfig(num_streams=2, codebook_size=16, codebook_dims=(6, 4)),
        discriminator=judges,
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, crop_seconds=0.152))
    config.validate()
    _, _, state, run = begin(config, mesh)
    audio = 0.1 * np.random.default_rng(0).standard_normal((4, 1, config.crop_samples), dtype=np.float32)
    before = host(state)
    state, metrics = run(state, {"audio": jnp.asarray(audio), "place": jnp.arange(4, dtype=jnp.int32)}, 0)
    assert all(np.isfinite(float(value)) for name, value in metrics.items() if name != "usage")
    assert not float(metrics["skipped"])
    changed = {name: moved(before[name], host(state)[name]) for name in before}
    assert set(changed) == {CODEC, DISCRIMINATOR}
    assert len(changed[DISCRIMINATOR]) == len(jax.tree.leaves(before[DISCRIMINATOR]))
    assert len(changed[CODEC]) > 0.8 * len(jax.tree.leaves(before[CODEC]))
    assert 0.9 < float(metrics["d_loss"]) < 9  # a half per judge that cannot tell, one that says 0 to all: one
    weighted = 15 * metrics["mel"] + 0.25 * metrics["commitment"] + metrics["codebook"]
    weighted += metrics["adversarial"] + 2 * metrics["feature_matching"]
    np.testing.assert_allclose(float(metrics["loss"]), float(weighted), rtol=1e-5)


# ---- skipping ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adversarial(mesh):
    config = experiment({"only": StageConfig(losses=ADVERSARIAL, discriminate=True)}, spike=50.0, spike_after=1)
    stage, abstract, _, run = begin(config, mesh)
    return config, stage, abstract, run


def test_steps_that_are_not_finite_or_spike_are_skipped_for_both(adversarial):
    config, stage, abstract, run = adversarial
    state = step.init_state(config, stage, abstract)
    state, _ = run(state, batch(), 0)
    before, averaged = host(state), jax.tree.map(np.asarray, state.players[CODEC].ema)
    bad = batch()
    state, metrics = run(state, {**bad, "audio": bad["audio"].at[1, 0, 7].set(jnp.nan)}, 1)
    state, metrics = run(state, batch(scale=1e4), 2)
    assert float(metrics["skipped"]) == 1
    assert int(metrics["streak"]) == 2
    assert int(state.step) == 3
    jax.tree.map(np.testing.assert_array_equal, host(state), before)
    jax.tree.map(np.testing.assert_array_equal, state.players[CODEC].ema, averaged)
    state, metrics = run(state, batch(), 3)
    assert (float(metrics["skipped"]), int(metrics["streak"]), int(state.guard.skipped)) == (0, 0, 2)
    assert all(moved(before[name], host(state)[name]) for name in before)


def test_a_skipped_steps_batch_is_written_down(tmp_path):
    config = dataclasses.replace(tiny.experiment().training, max_skips=2)
    fed = {"audio": np.stack([np.zeros((1, 4)), np.full((1, 4), np.nan)]), "names": ["a.wav", "b.wav"]}
    figures = {"skipped": 1.0, "streak": 1, "loss": float("nan"), "grad_norm": 3.0}
    assert health.check_step(config, epath.Path(tmp_path), 6, {**figures, "skipped": 0.0}, fed) is None
    assert "step 7 skipped" in health.check_step(config, epath.Path(tmp_path), 7, figures, fed)
    line = (tmp_path / health.SKIPPED).read_text()
    assert '"b.wav"' in line
    assert line.count("\n") == 1
    with pytest.raises(UserError, match="2 steps in a row up to 8"):
        health.check_step(config, epath.Path(tmp_path), 8, {**figures, "streak": 2}, fed)


def test_code_figures():
    counts = np.array([[10, 10, 10, -1], [40, 0, 0, 0]])
    figures = health.code_figures(counts)
    assert figures["codes/entropy"] == pytest.approx(0.5)
    assert figures["codes/entropy_min"] == 0
    assert figures["codes/used"] == pytest.approx((1 + 0.25) / 2)
    assert "collapsed" in health.alarms(1000, figures)[0]
    assert not health.alarms(100, figures)
    assert not health.alarms(1000, {"codes/entropy_min": 0.9, "d_accuracy_real": 0.7, "d_accuracy_fake": 0.6})


# ---- terms -------------------------------------------------------------------------------------


def test_the_window_goes_back_where_it_came_from():
    audio = jnp.arange(20.0).reshape(1, 20, 1)
    (excerpt, same), put_back = objective.window(jax.random.key(3), 5, audio, audio)
    np.testing.assert_array_equal(excerpt, same)
    start = int(excerpt[0, 0, 0])
    back = np.asarray(put_back(jnp.ones((1, 5, 1))))[0, :, 0]
    np.testing.assert_array_equal(np.flatnonzero(back), np.arange(start, start + 5))
    whole, identity = objective.window(jax.random.key(3), 20, audio)
    assert whole[0] is audio
    assert identity(excerpt) is excerpt


def test_weights_fade(mesh):
    losses = LossConfig(l1=1.0, stft=0.0, decay=0.5)
    config = experiment({"first": StageConfig(3.0), "only": StageConfig(3.0, losses=losses)})
    _, _, state, run = begin(config, mesh, index=1)
    for number, factor in ((3, 1.0), (4, 0.5), (5, 0.25)):
        state = dataclasses.replace(state, step=jnp.int32(number))
        state, metrics = run(state, batch(), number)
        np.testing.assert_allclose(float(metrics["loss"]), factor * float(metrics["l1"]), rtol=1e-6)


def test_meshes_of_slices(mesh):
    """Slices are joined along `replica`: device (r, f, t) of slice s lies at replica index s."""

    class Device:
        platform, device_kind, process_index = "tpu", "TPU v5e", 0

        def __init__(self, index):
            self.id, self.slice_index, self.coords, self.core_on_chip = index, index // 4, (index % 4, 0, 0), 0

    devices = [Device(i) for i in range(8)]
    with pytest.raises(UserError, match=r"mesh\.replica=1 does not divide over the 2 slices"):
        sharding.make_mesh(MeshConfig(1, -1, 1), devices)


@pytest.mark.slow
def test_overfitting_one_batch_lowers_every_term(mesh):
    """Nano on the same six crops, 120 times: each reconstruction term falls.

    Whole periods in every frame of 5 ms, so that one code says all; phases that move take thousands of steps.
    """
    from codec_jax.experiment import load_config

    base = load_config("configs/taae.py:nano")
    optim = dataclasses.replace(base.optim, learning_rate=2e-3, warmup_steps=20, schedule="constant")
    config = dataclasses.replace(base, optim=optim, losses=dataclasses.replace(base.losses, l2=1.0))
    _, _, state, run = begin(config, mesh)
    time = np.arange(config.crop_samples) / 16_000
    tones = np.stack([0.2 * np.sin(2 * np.pi * pitch * time) for pitch in (200, 400, 600, 800, 1000, 1200)])
    fed = {"audio": jnp.asarray(tones[:, None], jnp.float32), "place": jnp.arange(6, dtype=jnp.int32)}
    terms = []
    for number in range(120):
        state, metrics = run(state, fed, number)
        terms.append({name: float(metrics[name]) for name in ("l1", "l2", "stft", "mel")})
    first, last = terms[0], {name: np.mean([row[name] for row in terms[-10:]]) for name in terms[0]}
    for name, value in last.items():
        assert value < 0.7 * first[name], (name, first[name], value)


PROFILED = """
import dataclasses, sys
from codec_jax.train import loop
from tests import tiny

base = tiny.experiment(steps=6, eval_every=6, checkpoint_every=1, keep_checkpoints=1, keep_every=2, profile=(2, 1))
data = dataclasses.replace(base.data, train=sys.argv[1] + "/train", valid=sys.argv[1] + "/valid")
loop.run(dataclasses.replace(base, data=data), sys.argv[2])
"""


@pytest.mark.slow
def test_the_compiled_step_records_a_profile_and_keeps_checkpoints(corpus, tmp_path):
    """training.profile and training.keep_every do what they say.

    In a process of its own: JAX's profiler crashes in one that has compiled for TPUs without having any.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROFILED, str(corpus), str(tmp_path / "run")],
        cwd=pathlib.Path(__file__).resolve().parents[2],
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},  # as in conftest.py
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {"2", "4", "6"}
    assert list((tmp_path / "run" / "tensorboard").rglob("*.xplane.pb"))
