"""One step on other meshes is the same step; nothing of the global batch is replicated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codec_jax.experiment import LossConfig, MeshConfig
from codec_jax.train import sharding, step
from tests import tiny


def loss_and_gradients(mesh_config, **fields):
    # A smooth loss: where a magnitude is near zero, logarithms and signs turn another order of summation into anything.
    losses, model = LossConfig(l1=0.0, l2=1.0, stft=0.0), tiny.changed(tiny.MODEL, **fields)
    experiment = tiny.changed(tiny.experiment(), mesh=mesh_config, losses=losses, model=model)
    devices = jax.devices()
    mesh = (
        sharding.make_mesh(mesh_config)
        if mesh_config != MeshConfig(1, 1, 1)
        else jax.make_mesh((1, 1, 1), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=devices[:1])
    )
    abstract = step.abstract_state(experiment, mesh)
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract).players["codec"].params
    audio = np.asarray(jax.random.normal(jax.random.key(5), (8, 1, 400))) * 0.1
    # Not a fresh state: behind a layer scale of 1e-5 a wrong gradient would be too small to see.
    params = jax.device_put(tiny.variables(experiment.codec)["params"], where)
    batch = {"audio": jax.device_put(audio, sharding.batch_sharding(mesh))}

    def run(params, batch):
        def loss(p):
            return step.codec_loss(experiment, p, batch, jax.random.key(6))[0]

        return jax.value_and_grad(loss)(params)

    with step.on_mesh(mesh):
        jitted = jax.jit(run, in_shardings=(where, sharding.batch_sharding(mesh)), out_shardings=(None, where))
        compiled = jitted.lower(params, batch).compile()
        value, gradients = compiled(params, batch)
    return float(value), jax.tree.map(np.asarray, gradients), compiled.as_text()


@pytest.fixture(scope="module")
def single():
    return loss_and_gradients(MeshConfig(1, 1, 1))


def compare(found, wanted):
    """Losses within 1e-5; every gradient within 1e-5 of its own largest entry.

    The floor, 1e-6 of the largest gradient of all, is for those that are zero in theory and roundoff in practice.
    """
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    floor = 1e-6 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted[1]))
    for (path, theirs), ours in zip(jax.tree_util.tree_leaves_with_path(wanted[1]), jax.tree.leaves(found[1])):
        atol = max(floor, 1e-5 * np.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2)])
def test_loss_and_gradients_do_not_depend_on_the_mesh(single, mesh):
    value, gradients, text = loss_and_gradients(MeshConfig(*mesh))
    compare((value, gradients), single)
    data_shards = mesh[0] * mesh[1]
    if data_shards == 8:
        assert "f32[8,20,16]" not in text  # activations [global batch, frames, channels]
    assert "f32[8,20,16]" in single[2]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(1, 4, 2), (2, 2, 2)])
def test_every_switch_on_meshes(mesh):
    """Snake, dilated convolutions and conformer: the parts that compilers partition least often."""
    fields = {"use_snake": True, "use_dilated_conv": True, "conformer": True}
    found, wanted = (loss_and_gradients(MeshConfig(*m), **fields) for m in (mesh, (1, 1, 1)))
    assert len(jax.tree.leaves(wanted[1])) > 60
    compare(found, wanted)


def test_a_step_moves_parameters_and_their_average():
    experiment = tiny.experiment()
    mesh = sharding.make_mesh(MeshConfig())
    abstract = step.abstract_state(experiment, mesh)
    state = step.init_state(experiment, abstract)
    before = jax.tree.map(np.asarray, state.players["codec"].params)
    run = step.make_train_step(experiment, abstract, mesh)
    audio = jax.device_put(jnp.ones((8, 1, 400)) * 0.1, sharding.batch_sharding(mesh))
    state, metrics = run(state, {"audio": audio})
    assert int(state.step) == 1
    assert {"loss", "l1", "stft", "grad_norm", "learning_rate"} <= set(metrics)
    player = state.players["codec"]
    moved = [np.abs(np.asarray(a) - b).max() for a, b in zip(jax.tree.leaves(player.params), jax.tree.leaves(before))]
    assert sum(change > 0 for change in moved) > 0.9 * len(moved)
    jax.tree.map(np.testing.assert_array_equal, player.ema, player.params)
