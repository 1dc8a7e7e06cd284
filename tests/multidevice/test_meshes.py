"""One step on other meshes is the same step; nothing of the global batch is replicated."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from codec_jax.experiment import LossConfig, MeshConfig, OptimConfig, StageConfig
from codec_jax.models.discriminators import DiscriminatorConfig
from codec_jax.train import sharding, stages, step
from codec_jax.train.state import CODEC, DISCRIMINATOR
from tests import tiny, tiny_esc
from tests.models.test_bottlenecks import ALL as BOTTLENECKS
from tests.models.test_esc import variables_of

# Smooth losses: where a magnitude is near zero, logarithms, signs and its inverse root (the discriminators' spec_scale_pow)
# turn another order of summation into anything.
RECONSTRUCTION = LossConfig(l1=0.0, l2=1.0, stft=0.0)
ADVERSARIAL = LossConfig(l1=0.0, l2=1.0, stft=0.0, adversarial=0.5, feature_matching=2.0)


def experiment(mesh, adversarial=False, optim=None, discriminator=None, losses=ADVERSARIAL, **fields):
    base = tiny.experiment(steps=5)
    stage = StageConfig(losses=losses if adversarial else RECONSTRUCTION, optim=optim, discriminate=adversarial)
    # Few positions: a bias's gradient is a plain sum over all of them, whose roundoff grows with their number while a
    # fresh judge's terms of real and decoded audio nearly cancel.
    small = DiscriminatorConfig(
        n_ffts=(30,), hop_lengths=(30,), filters=4, dilations=(2,), stride=(1, 2), spec_scale_pow=0.0
    )
    return dataclasses.replace(
        base,
        mesh=mesh,
        model=tiny.changed(tiny.ONE_STAGE, **fields),
        stages={"only": stage},
        discriminator=discriminator or small,
        discriminator_seconds=0.0 if discriminator else 0.00625,  # 100 samples
    )


def make_mesh(config):
    if config != MeshConfig(1, 1, 1):
        return sharding.make_mesh(config)
    auto = (jax.sharding.AxisType.Auto,) * 3
    return jax.make_mesh((1, 1, 1), sharding.AXES, axis_types=auto, devices=jax.devices()[:1])


def audio(seed=5):
    return np.asarray(jax.random.normal(jax.random.key(seed), (8, 1, 400))) * 0.1


def on_mesh(clips, mesh):
    where = sharding.batch_sharding(mesh)
    return jax.device_put({"audio": clips, "place": np.arange(len(clips), dtype=np.int32)}, where)


def awake(config, abstract, stage):
    """A state that does not hide anything: behind a layer scale of 1e-5 a wrong gradient would be too small to see."""
    state = step.init_state(config, stage, abstract)
    variables = tiny.variables if config.family == "taae" else variables_of
    params = variables(config.codec)["params"]
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract.players[CODEC].params)
    players = {**state.players, CODEC: dataclasses.replace(state.players[CODEC], params=jax.device_put(params, where))}
    return dataclasses.replace(state, players=players)


def loss_and_gradients(mesh_config, adversarial=False, accumulate=1, **fields):
    config = experiment(mesh_config, adversarial, **fields)
    return found_on(dataclasses.replace(config, training=dataclasses.replace(config.training, accumulate=accumulate)))


def found_on(config, clips=None):
    """Loss, gradients and metrics of the last stage on the config's mesh, and the program."""
    mesh, stage = make_mesh(config.mesh), stages.resolve(config)[-1]
    abstract = step.abstract_state(config, stage, mesh)
    state = awake(config, abstract, stage)
    who = tuple(state.players)
    where = {name: jax.tree.map(lambda leaf: leaf.sharding, abstract.players[name].params) for name in sorted(who)}
    batch = on_mesh(audio() if clips is None else clips, mesh)

    def run(state, batch):
        found = step.accumulated(config, stage, who, state, batch)
        return found.metrics["loss"], found.grads, found.metrics, found.batch_stats

    with step.on_mesh(mesh):
        compiled = jax.jit(run, out_shardings=(None, where, None, None)).lower(state, batch).compile()
        value, gradients, metrics, batch_stats = compiled(state, batch)
    metrics, batch_stats = jax.tree.map(np.asarray, (metrics, batch_stats))
    return float(value), jax.tree.map(np.asarray, gradients), metrics, compiled.as_text(), batch_stats


@pytest.fixture(scope="module")
def single():
    return loss_and_gradients(MeshConfig(1, 1, 1))


@pytest.fixture(scope="module")
def single_adversarial():
    return loss_and_gradients(MeshConfig(1, 1, 1), adversarial=True)


def compare(found, wanted):
    """Losses within 1e-5; every gradient within 1e-5 of its own largest entry.

    The floor, 1e-6 of the largest gradient of its player, is for those that are zero in theory and roundoff in practice.
    """
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    assert found[1].keys() == wanted[1].keys()
    for name in wanted[1]:
        compare_trees(found[1][name], wanted[1][name])


def compare_trees(found, wanted):
    floor = 1e-6 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    for (path, theirs), ours in zip(jax.tree_util.tree_leaves_with_path(wanted), jax.tree.leaves(found)):
        atol = max(floor, 1e-5 * np.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2)])
def test_loss_and_gradients_do_not_depend_on_the_mesh(single, mesh):
    found = loss_and_gradients(MeshConfig(*mesh))
    compare(found, single)
    if mesh[0] * mesh[1] == 8:
        assert "f32[8,20,16]" not in found[3]  # activations [global batch, frames, channels]
    assert "f32[8,20,16]" in single[3]


@pytest.mark.parametrize("kind", ["residual_vq", pytest.param("scalable", marks=pytest.mark.slow)])
def test_bottlenecks_draw_the_same_on_every_mesh(kind):
    """Noise and kept codebooks belong to clips; the codes counted are the same too."""
    found = [
        found_on(dataclasses.replace(experiment(MeshConfig(*mesh)), bottleneck=BOTTLENECKS[kind]))
        for mesh in ((1, 1, 1), (2, 2, 2))
    ]
    compare(found[1], found[0])
    np.testing.assert_array_equal(found[1][2]["usage"], found[0][2]["usage"])
    if kind == "residual_vq":  # what codebooks quantise, [global batch, frames, codebook_dim]
        assert ["f32[8,10,4]" in text for *_, text, _ in found] == [True, False]


def test_two_players_on_a_mesh(single_adversarial):
    """One forward pass, both players' gradients, cut over every axis."""
    assert single_adversarial[1].keys() == {CODEC, DISCRIMINATOR}
    compare(loss_and_gradients(MeshConfig(2, 2, 2), adversarial=True), single_adversarial)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 4, 1), (1, 4, 2)])
def test_two_players_on_other_meshes(single_adversarial, mesh):
    compare(loss_and_gradients(MeshConfig(*mesh), adversarial=True), single_adversarial)


def esc_clips(config, seed=6):
    return np.asarray(jax.random.normal(jax.random.key(seed), (8, 1, config.crop_samples))) * 0.1


@functools.cache
def esc_on(name, mesh):
    config = dataclasses.replace(tiny_esc.experiment(name), mesh=MeshConfig(*mesh))
    return found_on(config, esc_clips(config))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mesh"),
    [("csvq+transformer", mesh) for mesh in [(1, 8, 1), (2, 4, 1), (1, 4, 2), (2, 2, 2)]]
    + [("rvq+convolution", (2, 2, 2))],
)
def test_esc_on_a_mesh(name, mesh):
    """The other family, with DAC's judges: windows, quantisers, phases as clips, and statistics of batch norms over all.

    In their own game: of a hinge before any logit has passed the margin, the two sides of `conv_post` nearly cancel.
    """
    found, wanted = esc_on(name, mesh), esc_on(name, (1, 1, 1))
    assert set(wanted[1]) == {CODEC, DISCRIMINATOR}
    np.testing.assert_array_equal(found[2]["usage"], wanted[2]["usage"])
    compare(found, wanted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found[4], wanted[4])


SGD = OptimConfig(name="sgd", learning_rate=0.05, schedule="constant", warmup_steps=1, clip_norm=1e6)


def after_five(config, clips=audio):
    """Players' parameters. Adam turns roundoff into full steps, so these are of plain descent."""
    mesh, stage = make_mesh(config.mesh), stages.resolve(config)[0]
    abstract = step.abstract_state(config, stage, mesh)
    state, run = awake(config, abstract, stage), step.make_train_step(config, stage, abstract, mesh)
    for number in range(5):
        state, metrics = run(state, on_mesh(clips(number), mesh), number)
        assert not float(metrics["skipped"])
    return {name: jax.tree.map(np.asarray, player.params) for name, player in state.players.items()}


@pytest.fixture(scope="module")
def single_after_five():
    return after_five(experiment(MeshConfig(1, 1, 1), adversarial=True, optim=SGD))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 4, 1), (1, 4, 2), (2, 2, 2)])
def test_five_steps_of_sgd(single_after_five, mesh):
    found = after_five(experiment(MeshConfig(*mesh), adversarial=True, optim=SGD))
    for name in (CODEC, DISCRIMINATOR):
        compare_trees(found[name], single_after_five[name])


def esc_after_five(mesh):
    config = tiny_esc.experiment()
    stage = dataclasses.replace(config.stages["adversarial"], optim=SGD, kmeans=0, revive_after=0)
    config = dataclasses.replace(config, mesh=MeshConfig(*mesh), stages={"only": stage})
    return after_five(config, lambda number: esc_clips(config, number))


@pytest.fixture(scope="module")
def esc_single_after_five():
    return esc_after_five((1, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 4, 1), (1, 4, 2), (2, 2, 2)])
def test_five_steps_of_sgd_of_esc(esc_single_after_five, mesh):
    found = esc_after_five(mesh)
    for name in (CODEC, DISCRIMINATOR):
        compare_trees(found[name], esc_single_after_five[name])


@pytest.mark.slow
def test_every_switch_on_a_mesh():
    """Snake, dilated convolutions and conformer: the parts that compilers partition least often."""
    fields = {"use_snake": True, "use_dilated_conv": True, "conformer": True}
    found, wanted = (loss_and_gradients(MeshConfig(*m), **fields) for m in ((2, 2, 2), (1, 1, 1)))
    assert len(jax.tree.leaves(wanted[1])) > 60
    compare(found, wanted)


def test_a_batch_in_parts_is_the_batch_whole(single):
    """Noise masks and level sets included: every clip's draws are its own."""
    found = loss_and_gradients(MeshConfig(1, 2, 4), accumulate=4)
    compare(found, single)
    np.testing.assert_array_equal(found[2]["usage"], single[2]["usage"])


def test_a_step_moves_parameters_and_their_average():
    config = tiny.experiment()
    mesh, stage = sharding.make_mesh(MeshConfig()), stages.resolve(config)[0]
    abstract = step.abstract_state(config, stage, mesh)
    state = step.init_state(config, stage, abstract)
    before = jax.tree.map(np.asarray, state.players[CODEC].params)
    run = step.make_train_step(config, stage, abstract, mesh)
    state, metrics = run(state, on_mesh(audio(), mesh))
    assert int(state.step) == 1
    assert {"loss", "l1", "stft", "grad_norm", "grad_norm/encoder/stage_0", "learning_rate"} <= set(metrics)
    player = state.players[CODEC]
    moved = [np.abs(np.asarray(a) - b).max() for a, b in zip(jax.tree.leaves(player.params), jax.tree.leaves(before))]
    assert sum(change > 0 for change in moved) > 0.9 * len(moved)
    jax.tree.map(np.testing.assert_array_equal, player.ema, player.params)
