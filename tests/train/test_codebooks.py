"""Seeding and revival of ESC's codebooks in training steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codec_jax.checkpoint import Checkpoints
from codec_jax.errors import UserError
from codec_jax.experiment import LossConfig, StageConfig
from codec_jax.models import esc
from codec_jax.quantizers import vq
from codec_jax.train import codebooks, sharding, stages, step
from codec_jax.train.state import CODEC, from_tree, to_tree
from tests import tiny

MODEL = esc.ESCConfig(in_freq=24, win_length=40, stft_hop_length=16, h_dims=(4, 6), num_heads=(2,), depth=1)
BOTTLENECK = esc.VQConfig(num_streams=2, codebook_size=16, codebook_dims=(3, 3))
RVQ = dataclasses.replace(BOTTLENECK, quantiser="rvq", codebook_dims=(3,))


def experiment(bottleneck, **stage):
    base = tiny.experiment(steps=4)
    return dataclasses.replace(
        base,
        family="esc",
        model=MODEL,
        bottleneck=bottleneck,
        losses=LossConfig(l1=1.0, stft=0.0, mel=0.0, spectrum=0.0),
        data=tiny.changed(base.data, crop_seconds=0.1),
        stages={"only": StageConfig(**stage)},
    )


def fresh(bottleneck, **fields):
    config = experiment(bottleneck, **fields)
    config.validate()
    mesh, stage = sharding.make_mesh(config.mesh), stages.resolve(config)[0]
    abstract = step.abstract_state(config, stage, mesh)
    return config, mesh, stage, abstract, step.init_state(config, stage, abstract)


def batch(config, mesh):
    audio = 0.1 * np.random.default_rng(0).standard_normal((8, 1, config.crop_samples)).astype(np.float32)
    where = sharding.batch_sharding(mesh)
    return jax.device_put({"audio": audio, "place": np.arange(8, dtype=np.int32)}, where)


def distance(config, variables, audio):
    """Mean squared distance to the nearest word by direction, per codebook, of what the codebooks have to quantise."""
    cfg = config.codec
    spectrum = esc.to_spectrum(cfg, jnp.asarray(audio).swapaxes(1, 2)[:, : esc._whole(cfg, audio.shape[-1])])
    out, _ = esc.run(cfg, variables, spectrum, cfg.bottleneck.num_streams)
    return float(out.losses.mean())


@pytest.mark.slow
@pytest.mark.parametrize("bottleneck", [BOTTLENECK, RVQ], ids=["product", "residual"])
def test_seeded_codebooks_are_nearer_and_nothing_else_moves(bottleneck):
    config, mesh, stage, _, state = fresh(bottleneck, kmeans=5)
    given = batch(config, mesh)
    with step.on_mesh(mesh):
        seeded = codebooks.seed(config, stage, state, given["audio"])
    before, after = state.players[CODEC], seeded.players[CODEC]
    for (path, old), new, averaged in zip(
        jax.tree_util.tree_leaves_with_path(before.params), jax.tree.leaves(after.params), jax.tree.leaves(after.ema)
    ):
        moved = "codebook" in jax.tree_util.keystr(path)
        assert np.array_equal(old, new) != moved
        np.testing.assert_array_equal(new, averaged)
        assert new.sharding == old.sharding
    loss = [distance(config, {"params": player.params}, given["audio"]) for player in (before, after)]
    assert loss[1] < 0.5 * loss[0]


@pytest.mark.slow
@pytest.mark.parametrize("bottleneck", [BOTTLENECK, RVQ], ids=["product", "residual"])
def test_words_without_use_become_points(bottleneck):
    config, mesh, stage, abstract, state = fresh(bottleneck, revive_after=2)
    one_step, given = step.make_train_step(config, stage, abstract, mesh), batch(config, mesh)
    used, revived = [], []
    for number in range(2):
        words = jax.tree.map(jnp.copy, state.players[CODEC].params)
        state, metrics = one_step(state, given, number)
        used.append(np.asarray(metrics["usage"]) > 0)
        revived.append(int(metrics["revived"]))
    never = ~(used[0] | used[1])
    assert revived == [0, never.sum()]
    assert never.any()
    np.testing.assert_array_equal(np.asarray(state.idle) == 1, used[0] & ~used[1])
    changed = []
    for stream, group in np.ndindex(2, 3):
        now, then = (
            esc.esc_codebooks._get(config.codec, tree, stream, group) for tree in (state.players[CODEC].params, words)
        )
        changed.append(np.abs(np.asarray(now) - then).max(1) > 0.02)  # far beyond one update
    np.testing.assert_array_equal(np.stack(changed), never)


def test_off_by_default_and_refused_without_codebooks():
    config = experiment(BOTTLENECK)
    assert step.abstract_state(config, stages.resolve(config)[0], sharding.make_mesh(config.mesh)).idle is None
    plain = dataclasses.replace(tiny.experiment(), stages={"only": StageConfig(kmeans=3)})
    with pytest.raises(UserError, match="taae has none"):
        plain.validate()
    assert vq.POINTS not in jax.eval_shape(lambda: esc.init(config.codec, jax.random.key(0)))


@pytest.mark.slow
def test_entering_a_stage_begins_idle_counts_and_forgets_moments():
    config, mesh, stage, abstract, state = fresh(BOTTLENECK)
    state, _ = step.make_train_step(config, stage, abstract, mesh)(state, batch(config, mesh))
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state.players[CODEC].opt_state))
    later = stage._replace(revive_after=5, fresh_optim=True)
    entered = step.enter_stage(config, later, state, step.abstract_state(config, later, mesh))
    assert entered.idle.shape == (6, 16)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(entered.players[CODEC].opt_state))
    back = step.enter_stage(config, stage, entered, abstract)
    assert back.idle is None


def test_checkpoints_hold_what_a_stage_has():
    """Those of stages without revival are what they were before it existed, and can be resumed."""
    before = {"step", "key", "players", "batch_stats", "guard"}
    for after, parts in ((0, before), (5, before | {"idle"})):
        config = experiment(BOTTLENECK, revive_after=after)
        abstract = step.abstract_state(config, stages.resolve(config)[0], sharding.make_mesh(config.mesh))
        assert set(to_tree(abstract)) == parts
        assert from_tree(to_tree(abstract)) == abstract


@pytest.mark.slow
def test_idle_counts_survive_a_checkpoint(tmp_path):
    config, mesh, stage, abstract, state = fresh(BOTTLENECK, revive_after=5)
    state, _ = step.make_train_step(config, stage, abstract, mesh)(state, batch(config, mesh))
    assert np.asarray(state.idle).any()
    checkpoints = Checkpoints(tmp_path / "checkpoints", 1, 0)
    checkpoints.save(1, to_tree(state), {})
    checkpoints.wait()
    again = from_tree(checkpoints.restore(1, to_tree(abstract)))
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, again, state)
