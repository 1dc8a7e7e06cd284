"""Every kind of bottleneck in training steps: what moves, what falls, what is counted; codebooks seeded and revived."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import codec_jax
from codec_jax.experiment import LossConfig, MeshConfig, OptimConfig, StageConfig
from codec_jax.train import codebooks, health, loop, sharding, stages, step
from codec_jax.train.state import CODEC
from tests import tiny
from tests.models.test_bottlenecks import ALL, RVQ

USAGE = {"fsq": (3, 5), "residual_vq": (3, 16), "scalable": (6, 5), "none": (0, 1)}


def experiment(kind, accumulate=1, **stage):
    base = tiny.experiment(steps=40, accumulate=accumulate)
    return dataclasses.replace(
        base,
        bottleneck=ALL[kind],
        losses=LossConfig(l1=0.0, l2=100.0, stft=0.0),
        optim=OptimConfig(learning_rate=3e-3, warmup_steps=1, schedule="constant", ema_decay=0.9),
        mesh=MeshConfig(1, 1, 1),
        stages={"only": StageConfig(**stage)},
    )


def begin(config):
    config.validate()
    auto = (jax.sharding.AxisType.Auto,) * 3
    mesh = jax.make_mesh((1, 1, 1), sharding.AXES, axis_types=auto, devices=jax.devices()[:1])
    (stage,) = stages.resolve(config)
    abstract = step.abstract_state(config, stage, mesh)
    state = step.init_state(config, stage, abstract)
    # Awake, and latents far from the same word everywhere: a fresh encoder gives next to nothing.
    params = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), tiny.variables(config.codec)["params"],
                          state.players[CODEC].params)  # fmt: skip
    player = dataclasses.replace(state.players[CODEC], params=params)
    state = dataclasses.replace(state, players={CODEC: player})
    return mesh, stage, state, step.make_train_step(config, stage, abstract, mesh)


def batch():
    time = np.arange(400) / 16_000
    audio = np.stack([0.3 * np.sin(2 * np.pi * (200 + 100 * i) * time + i) for i in range(8)])[:, None]
    return {"audio": jax.numpy.asarray(audio, jax.numpy.float32), "place": jax.numpy.arange(8, dtype=jax.numpy.int32)}


@pytest.mark.parametrize(
    "kind", ["residual_vq", "none", *(pytest.param(k, marks=pytest.mark.slow) for k in ("fsq", "scalable"))]
)
def test_the_loss_falls_and_codes_are_counted(kind):
    config = experiment(kind)
    _, _, state, one_step = begin(config)
    before = jax.tree.map(np.asarray, state.players[CODEC].params)
    losses = []
    for number in range(40):
        state, metrics = one_step(state, batch(), number)
        losses.append(float(metrics["l2"]))
        assert not float(metrics["skipped"])
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    usage = np.asarray(metrics["usage"])
    assert usage.shape == USAGE[kind]
    np.testing.assert_array_equal(usage.sum(1), 80)  # 8 clips of 10 frames
    assert bool(health.code_figures(usage)) == (kind != "none")
    assert ("commitment" in metrics) == ("codebook" in metrics) == (kind == "residual_vq")
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(state.players[CODEC].params)
    ):
        assert np.abs(np.asarray(new) - old).max() > 1e-4, jax.tree_util.keystr(path)
    if kind == "residual_vq":
        assert {"down", "codebook", "up"} == set(before["bottleneck"])
        np.testing.assert_allclose(metrics["commitment"], metrics["codebook"], rtol=1e-5)


@pytest.mark.slow
def test_a_batch_in_parts_is_the_batch():
    found = []
    for parts in (1, 4):
        config = experiment("residual_vq", parts)
        _, stage, state, _ = begin(config)
        run = jax.jit(lambda s, b, c=config, g=stage: step.accumulated(c, g, (CODEC,), s, b)[:2])
        found.append(run(state, batch()))
    (whole, told), (summed, told_of_parts) = found
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * scale), whole, summed)
    np.testing.assert_array_equal(told["usage"], told_of_parts["usage"])
    np.testing.assert_allclose(told["loss"], told_of_parts["loss"], rtol=1e-5)


def test_seeded_codebooks_fit_and_nothing_else_moves():
    config = experiment("residual_vq", kmeans=5)
    mesh, stage, state, one_step = begin(config)
    with step.on_mesh(mesh):
        seeded = codebooks.seed(config, stage, state, batch()["audio"])
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(state.players[CODEC].params), jax.tree.leaves(seeded.players[CODEC].params)
    ):
        assert np.array_equal(old, new) != ("codebook" in jax.tree_util.keystr(path))
    book = seeded.players[CODEC].params["bottleneck"]["codebook"]
    np.testing.assert_array_equal(book, seeded.players[CODEC].ema["bottleneck"]["codebook"])
    losses = [float(one_step(s, batch())[1]["codebook"]) for s in (jax.tree.map(jax.numpy.copy, state), seeded)]
    assert losses[1] < 0.5 * losses[0]


@pytest.mark.slow
def test_idle_words_are_revived():
    config = experiment("residual_vq", revive_after=2)
    _, _, state, one_step = begin(config)
    used, revived = [], []
    for number in range(2):
        words = np.asarray(state.players[CODEC].params["bottleneck"]["codebook"])
        state, metrics = one_step(state, batch(), number)
        used.append(np.asarray(metrics["usage"]) > 0)
        revived.append(int(metrics["revived"]))
    never = ~(used[0] | used[1])
    assert revived == [0, never.sum()]
    assert never.any()
    moved = np.abs(np.asarray(state.players[CODEC].params["bottleneck"]["codebook"]) - words).max(-1)
    np.testing.assert_array_equal(moved > 0.02, never)  # far beyond one update


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["residual_vq", "none"])
def test_a_run_from_start_to_end(kind, corpus, tmp_path):
    base = tiny.experiment(steps=4, eval_every=4, checkpoint_every=2, log_every=1)
    data = tiny.changed(base.data, train=str(corpus / "train"), valid=str(corpus / "valid"))
    tended = {"only": StageConfig(kmeans=2, revive_after=3)} if kind == "residual_vq" else {}
    loop.run(tiny.changed(base, data=data, bottleneck=ALL[kind], stages=tended), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    valid = [row for row in rows if "valid/mel_distance" in row]
    assert [row["step"] for row in valid] == [0, 4]
    assert all(np.isfinite(row["valid/mel_distance_control"]) for row in valid)
    last = [row for row in rows if "train/loss" in row][-1]
    assert ("train/codes/entropy" in last) == (kind != "none")
    assert ("train/commitment" in last) == (kind == "residual_vq")
    codec = codec_jax.load(tmp_path / "run")
    audio = np.sin(np.arange(1003) * 0.1).astype(np.float32) * 0.1
    if codec.has_tokens:
        assert codec.decode(codec.encode(audio)).shape == (1003,)
    assert codec.config.bottleneck == ALL[kind]


def test_what_is_tended_is_the_residual_vq():
    assert RVQ.num_codebooks == USAGE["residual_vq"][0]
    abstract = step.abstract_state(
        experiment("residual_vq", revive_after=2),
        stages.resolve(experiment("residual_vq", revive_after=2))[0],
        jax.make_mesh(
            (1, 1, 1), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=jax.devices()[:1]
        ),
    )
    assert abstract.idle.shape == USAGE["residual_vq"]
