"""What the SPMD partitioner would gather: Swin attention as it is on TPUs, with clips and windows in one axis, and FFTs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from codec_jax.experiment import MeshConfig
from codec_jax.nn import swin
from codec_jax.ops import platform, stft
from codec_jax.train import hlo, sharding, step

CLIPS, ROWS, COLUMNS, DIM = 16, 8, 12, 20
TOKENS = CLIPS * ROWS * COLUMNS


@pytest.fixture(scope="module", params=[(1, 8, 1), (2, 2, 2)])
def stage_on_mesh(request):
    """Text of the gradient's program on a mesh, that gradient, and the same on one device."""
    stage = swin.SwinStage(swin.SwinConfig(), heads=4, depth=2, features=32, scale="down")
    x = jax.random.normal(jax.random.key(0), (CLIPS, ROWS, COLUMNS, DIM))
    mesh = sharding.make_mesh(MeshConfig(*request.param))

    def gradient(params, x):
        return jax.grad(lambda params, x: jnp.square(stage.apply(params, x)).mean(), (0, 1))(params, x)

    with platform.tracing_for("tpu"):
        boxed = stage.init(jax.random.key(1), x)
        params = nn.unbox(boxed)
        alone = jax.jit(gradient)(params, x)
        cut = jax.device_put(params, sharding.shardings(jax.eval_shape(lambda: boxed), mesh))
        clips = jax.device_put(x, jax.NamedSharding(mesh, PartitionSpec(("replica", "fsdp"))))
        with step.on_mesh(mesh):
            compiled = jax.jit(gradient).lower(cut, clips).compile()
    return compiled.as_text(), compiled(cut, clips), alone


def test_nothing_has_the_global_batch(stage_on_mesh):
    text, _, _ = stage_on_mesh
    assert "dot" in text
    assert not hlo.carriers(text, {TOKENS, TOKENS // 2})  # behind the stage, half as many


def test_the_gradient_is_that_of_one_device(stage_on_mesh):
    _, found, wanted = stage_on_mesh
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max() + 1e-9)


@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2)])
def test_spectra_stay_where_their_clips_are(mesh):
    """There and back, and the gradient: values of one device, and nothing of all 16 clips on any of several."""
    audio = jax.random.normal(jax.random.key(0), (CLIPS, 402))
    window = stft.hann(64)

    def loss(audio):
        real, imag = stft.stft(audio, 64, 20, window, impl="fft")
        heard = stft.istft(real, 0.5 * imag, 64, 20, window, impl="fft")
        return jnp.square(heard).mean()

    made = sharding.make_mesh(MeshConfig(*mesh))
    clips = jax.device_put(audio, jax.NamedSharding(made, PartitionSpec(("replica", "fsdp"))))
    with step.on_mesh(made):
        compiled = jax.jit(jax.grad(loss)).lower(clips).compile()
    np.testing.assert_allclose(compiled(clips), jax.jit(jax.grad(loss))(audio), atol=1e-6)
    assert "fft" in compiled.as_text()
    assert not hlo.carriers(compiled.as_text(), {CLIPS})
