"""The whole state of either family, saved on one mesh and restored on others. (Resuming is in test_kill.py.)"""

import dataclasses
import math

import jax
import numpy as np
import pytest

from codec_jax.checkpoint import Checkpoints
from codec_jax.experiment import LossConfig, MeshConfig, StageConfig
from codec_jax.models.discriminators import DiscriminatorConfig
from codec_jax.train import stages, step
from codec_jax.train.sharding import make_mesh
from codec_jax.train.state import from_tree, to_tree
from tests import tiny, tiny_esc

FAMILIES = {
    "taae": dataclasses.replace(
        tiny.experiment(),
        stages={"adversarial": StageConfig(losses=LossConfig(adversarial=0.1), discriminate=True)},
        discriminator=DiscriminatorConfig(n_ffts=(30,), filters=8, dilations=(2,)),
    ),
    "esc, transformer": tiny_esc.experiment("csvq+transformer"),
    "esc, convolution": tiny_esc.experiment("rvq+convolution"),
}


def abstract(experiment, mesh):
    """Of the last stage: every player, moments, averages, batch statistics, idle counts."""
    devices = make_mesh(MeshConfig(*mesh), jax.devices()[: math.prod(mesh)])
    return step.abstract_state(experiment, stages.resolve(experiment)[-1], devices)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_state_moves_between_meshes(family, tmp_path):
    """Bit for bit, and cut as the new mesh wants it: what a step then makes of it is tests/multidevice."""
    rng = np.random.default_rng(0)

    def filled(leaf):
        draw = rng.integers(0, 2**31, leaf.shape) if leaf.dtype.kind in "iu" else rng.standard_normal(leaf.shape)
        return jax.device_put(draw.astype(leaf.dtype), leaf.sharding)

    saved = jax.tree.map(filled, abstract(FAMILIES[family], (1, 8, 1)))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(1, to_tree(saved), {})
    checkpoints.wait()
    for mesh in ((2, 2, 2), (1, 1, 1)):
        wanted = abstract(FAMILIES[family], mesh)
        restored = from_tree(checkpoints.restore(1, to_tree(wanted)))
        jax.tree.map(np.testing.assert_array_equal, restored, saved)
        for found, asked in zip(jax.tree.leaves(restored), jax.tree.leaves(wanted)):
            assert found.sharding.is_equivalent_to(asked.sharding, found.ndim)
    checkpoints.close()
    assert sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(saved)) > 40
