"""The TAAE module tree: sizes, layouts, switches, masks, and configs that cannot be."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codec_jax.errors import UserError
from codec_jax.models import taae
from codec_jax.models.protocol import spread
from codec_jax.nn.conv import TransposedConv
from tests import tiny

PAPER = taae.Config()


def count(cfg):
    abstract = nn.unbox(jax.eval_shape(lambda: taae.init(cfg, jax.random.key(0))))
    return sum(leaf.size for leaf in jax.tree.leaves(abstract))


def forward(cfg, variables, audio, **kwargs):
    run = jax.jit(lambda v, x, k: taae.forward(cfg, v, x, k, **kwargs).audio)
    return run(variables, audio, spread(jax.random.key(1), jnp.arange(len(audio))))


def test_the_paper_model_has_953_319_756_parameters():
    assert count(PAPER) == 953_319_756
    sixteen_twelve = tiny.changed(PAPER, model=tiny.changed(PAPER.model, transformer_depths=(16, 12)))
    assert count(sixteen_twelve) == 953_319_756
    assert PAPER.model.hop_length == 640


def test_patches_are_upstreams_layout_and_invert():
    audio = jnp.arange(2 * 12 * 2.0).reshape(2, 12, 2)
    patches = taae.patch(audio, 4)
    assert patches.shape == (2, 3, 8)
    np.testing.assert_array_equal(patches[1, 2, 4 + 3], audio[1, 2 * 4 + 3, 1])
    np.testing.assert_array_equal(taae.unpatch(patches, 4), audio)


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_transposed_convolution_equals_its_definition(stride):
    """Scatter every frame's kernel, crop ceil(stride / 2) on the left, keep stride samples a frame."""
    module = TransposedConv(5, stride)
    x = jax.random.normal(jax.random.key(0), (1, 6, 3))
    params = nn.unbox(module.init(jax.random.key(1), x))["params"]
    v, g = np.asarray(params["v"]), np.asarray(params["g"])
    kernel = v / np.sqrt((v**2).sum((0, 2), keepdims=True)) * g[None, :, None]
    full = np.zeros(((6 + 1) * stride, 5))
    for frame in range(6):
        full[frame * stride : (frame + 2) * stride] += np.einsum("c,tcd->td", np.asarray(x[0, frame]), kernel)
    crop = -(-stride // 2)
    want = full[crop : crop + 6 * stride] + np.asarray(params["bias"])
    np.testing.assert_allclose(module.apply({"params": params}, x)[0], want, atol=1e-5)


def test_initialisation_is_pytorchs():
    params = nn.unbox(taae.init(tiny.CONFIG, jax.random.key(0)))["params"]
    conv, block = params["encoder"]["conv_in"], params["encoder"]["stage_0"]["transformer"]["blocks"]
    np.testing.assert_allclose(conv["g"], np.sqrt((np.asarray(conv["v"]) ** 2).sum((0, 1))), rtol=1e-6)
    assert 0.8 / np.sqrt(140) < np.abs(conv["v"]).max() <= 1 / np.sqrt(140)
    assert 0.8 / 4 < np.abs(block["self_attn"]["to_qkv"]["kernel"]).max() <= 1 / 4
    np.testing.assert_array_equal(block["self_attn_scale"]["scale"], np.full((1, 16), 1e-5, np.float32))
    plain = tiny.changed(tiny.CONFIG, model=tiny.changed(tiny.MODEL, layer_scale=False))
    block = nn.unbox(taae.init(plain, jax.random.key(0)))["params"]["encoder"]["stage_0"]["transformer"]["blocks"]
    assert not np.any(block["self_attn"]["to_out"]["kernel"])
    assert not np.any(block["ff"]["out"]["kernel"])
    assert not np.any(block["ff"]["out"]["bias"])
    assert "self_attn_scale" not in block


def test_every_parameter_names_its_axes():
    everything = tiny.changed(
        tiny.CONFIG,
        model=tiny.changed(tiny.MODEL, use_snake=True, use_dilated_conv=True, conformer=True, strides=(1, 3)),
    )
    boxed = jax.eval_shape(lambda: taae.init(everything, jax.random.key(0)))
    leaves = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    assert len(leaves) > 60
    for leaf in leaves:
        assert isinstance(leaf, nn.LogicallyPartitioned)
        assert len(leaf.names) == leaf.value.ndim
    block = boxed["params"]["encoder"]["stage_0"]["transformer"]["blocks"]
    assert block["self_attn"]["to_qkv"]["kernel"].names == ("layers", "embed", None, "heads", "head_dim")


@functools.cache
def value_and_gradient(**fields):
    """Of a training pass of two layers a stage, run as `fields` say."""
    variables = tiny.variables(tiny.changed(tiny.CONFIG, model=tiny.changed(tiny.MODEL, transformer_depths=(2, 2))))
    audio = jax.random.normal(jax.random.key(2), (2, 400, 1))
    cfg = tiny.changed(tiny.CONFIG, model=tiny.changed(tiny.MODEL, transformer_depths=(2, 2), **fields))

    def loss(v):
        keys = spread(jax.random.key(1), jnp.arange(2))
        return jnp.square(taae.forward(cfg, v, audio, keys, train=True).audio).mean()

    return jax.jit(jax.value_and_grad(loss))(variables)


@pytest.mark.parametrize(
    "change", [{"unroll": True}, {"remat": "full"}, {"remat": "dots"}, {"attention_impl": "blocked"}]
)
def test_how_it_runs_does_not_change_what_it_computes(change):
    plain, changed = value_and_gradient(), value_and_gradient(**change)
    np.testing.assert_allclose(plain[0], changed[0], rtol=1e-5)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain[1]))
    for a, b in zip(jax.tree.leaves(plain[1]), jax.tree.leaves(changed[1])):
        np.testing.assert_allclose(a, b, atol=1e-5 * scale)


@pytest.mark.parametrize(
    "fields",
    [{"strides": (1, 3)}, {"audio_channels": 2}, {"c_mults": (1, 2)}, {"transformer_depths": (0, 1)}],
)
def test_switches_keep_the_length(fields):
    cfg = tiny.changed(tiny.CONFIG, model=tiny.changed(tiny.MODEL, **fields))
    cfg.validate()
    samples = 7 * cfg.model.hop_length
    audio = jax.random.normal(jax.random.key(0), (1, samples, cfg.model.audio_channels))
    assert forward(cfg, tiny.variables(cfg), audio, train=False).shape == audio.shape


def test_bfloat16_stays_close_and_latents_stay_float32():
    audio = jax.random.normal(jax.random.key(0), (1, 400, 1))
    variables = tiny.variables()
    half = tiny.changed(tiny.CONFIG, model=tiny.changed(tiny.MODEL, dtype="bfloat16"))
    latents = [jax.jit(taae.analyse, static_argnums=0)(cfg, variables, audio) for cfg in (tiny.CONFIG, half)]
    assert latents[1].dtype == jnp.float32
    scale = float(jnp.abs(latents[0]).max())
    assert 1e-5 < float(jnp.abs(latents[0] - latents[1]).max()) / scale < 0.1


def test_gradients_reach_every_parameter():
    """Straight-through estimation included: no part of the model is cut off."""
    audio = jax.random.normal(jax.random.key(0), (2, 400, 1))
    cfg = tiny.changed(tiny.CONFIG, bottleneck=taae.BottleneckConfig(levels=(5,) * 3, noise_dropout=0.0))

    def loss(v):
        return jnp.square(
            taae.forward(cfg, v, audio, spread(jax.random.key(1), jnp.arange(2)), train=True).audio - audio
        ).mean()

    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(tiny.variables())):
        assert float(jnp.abs(leaf).max()) > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    ("model", "bottleneck", "match"),
    [
        ({"strides": (2,)}, {}, "one entry per stage"),
        ({"channels": 12}, {}, "multiple"),
        ({"sliding_window": (-2, 3)}, {}, "sliding_window"),
        ({"c_mults": (1, 2), "strides": (2, 1)}, {}, "stride 1"),
        ({"remat": "some"}, {}, "remat"),
        ({"dtype": "float64"}, {}, "dtype"),
        ({"patch_size": 0}, {}, "at least 1"),
        ({}, {"levels": (5, 5)}, "latent"),
        ({}, {"levels": (1, 5, 5)}, "at least 2"),
        ({}, {"noise_dropout": 1.5}, "noise_dropout"),
    ],
)
def test_impossible_configs(model, bottleneck, match):
    cfg = taae.Config(tiny.changed(tiny.MODEL, **model), tiny.changed(tiny.CONFIG.bottleneck, **bottleneck))
    with pytest.raises(UserError, match=match):
        cfg.validate()
