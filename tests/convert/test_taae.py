"""Upstream checkpoints: names, shapes, layouts there and back, and what is refused."""

import copy
import json

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from codec_jax.convert import layout, taae_config
from codec_jax.convert import taae as convert
from codec_jax.errors import UserError
from codec_jax.models import taae
from codec_jax.storage import Extras
from tests import tiny


def changed(config, value, *path):
    """The config with one field set, in both halves where it belongs to them."""
    config = copy.deepcopy(config)
    for half in ("encoder", "decoder") if path[0] == "half" else ("",):
        node = config["model"][half]["config"] if half else config
        keys = path[1:] if half else path
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value
    return config


def weights(cfg):
    """Random variables of the right shapes; the modules say which those are."""
    rng = np.random.default_rng(0)
    abstract = nn.unbox(jax.eval_shape(lambda: taae.init(cfg, jax.random.key(0))))
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, dtype=np.float32), abstract)


@pytest.mark.parametrize("name", ["A", "E"])
def test_every_tensor_is_accounted_for(golden, name):
    tensors = golden(f"taae/{name}/model.safetensors")
    config = json.loads((golden.path(f"taae/{name}") / "model_config.json").read_text())
    cfg, variables, extras = convert.from_torch(tensors, config)
    assert cfg.model.head_dim == 16
    assert {name.rsplit(".", 1)[1] for name in extras.tensors} == {"beta", "inv_freq"}
    total = sum(array.size for array in tensors.values())
    kept = sum(leaf.size for leaf in jax.tree.leaves(variables)) + sum(a.size for a in extras.tensors.values())
    assert kept == total
    back_config, back = convert.to_torch(cfg, variables, extras)
    assert back_config == config
    assert back.keys() == tensors.keys()
    for key, array in tensors.items():
        np.testing.assert_array_equal(np.asarray(back[key]), array)
        assert tuple(back[key].shape) == array.shape


@pytest.mark.parametrize("fields", [{}, {"use_snake": True, "use_dilated_conv": True, "conformer": True}])
def test_leaves_are_the_modules_own_tree_and_layouts_invert(fields):
    cfg = tiny.changed(tiny.CONFIG, model=tiny.changed(tiny.MODEL, c_mults=(1, 2), **fields))
    variables = weights(cfg)
    tensors = layout.tensors_from_params(convert.leaves(cfg.model), variables["params"])
    again = layout.params_from_torch(convert.leaves(cfg.model), tensors)
    assert jax.tree.map(np.shape, again) == jax.tree.map(np.shape, variables["params"])
    jax.tree.map(np.testing.assert_array_equal, layout.materialise(again), variables["params"])


@hypothesis.given(st.data())
def test_any_leaf_inverts(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    axes = data.draw(st.one_of(st.just(()), st.permutations(range(len(shape))).map(tuple)))
    ours = data.draw(st.sampled_from([(), (-1,), (int(np.prod(shape)), 1)]))
    leaf = layout.Leaf(("x",), ("x",), shape, axes, ours)
    array = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(leaf.to_torch(leaf.to_jax(array)), array)


def test_missing_left_over_and_misshapen_tensors_are_named(recipe):
    config, tensors = recipe
    name = "encoder.layers.1.layers.2.1.ff.ff.2.weight"
    with pytest.raises(UserError, match="no tensor " + name.replace(".", r"\.")):
        convert.from_torch({key: value for key, value in tensors.items() if key != name}, config)
    with pytest.raises(UserError, match=rf"{name} has shape .* in the checkpoint, but its config implies"):
        convert.from_torch({**tensors, name: tensors[name][:, 1:]}, config)
    with pytest.raises(UserError, match=r"tensor decoder\.extra, which its config does not explain"):
        convert.from_torch({**tensors, "decoder.extra": tensors[name]}, config)
    with pytest.raises(UserError, match="holds int32"):
        convert.from_torch({**tensors, name: tensors[name].astype(np.int32)}, config)


def test_buffers_that_the_model_would_not_compute_are_refused(recipe):
    config, tensors = recipe
    beta = next(name for name in tensors if name.endswith("pre_norm.beta"))
    with pytest.raises(UserError, match="is not zero"):
        convert.from_torch({**tensors, beta: tensors[beta] + 1}, config)
    rope = next(name for name in tensors if name.endswith("inv_freq"))
    with pytest.raises(UserError, match="other rotary frequencies"):
        convert.from_torch({**tensors, rope: tensors[rope] * 2}, config)


def test_a_checkpoint_without_buffers_gets_them_on_the_way_back(recipe):
    config, tensors = recipe
    bare = {name: array for name, array in tensors.items() if not name.endswith((".beta", "inv_freq"))}
    _, back = convert.to_torch(*convert.from_torch(bare, config))
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(np.asarray(back[name]), array)


@pytest.mark.parametrize(("widths", "head_dim"), [((4, 16), 8), ((16, 16), 8), ((16, 32), 128), ((4, 8), 16)])
def test_the_head_dim_is_read_from_the_widest_stage(widths, head_dim):
    """A stage no wider than the head dim has one head of its own width; models of such stages alone say 128."""
    model = tiny.changed(tiny.MODEL, channels=widths[0], c_mults=(1, widths[1] // widths[0]), head_dim=head_dim)
    cfg = tiny.changed(tiny.CONFIG, model=model)
    written, tensors = convert.to_torch(cfg, weights(cfg), Extras(), "twin")
    for half in ("encoder", "decoder"):
        written["model"][half]["config"].pop("dim_heads", None)
    found = convert.from_torch(tensors, written)[0].model
    assert found.head_dim == (head_dim if max(widths) > head_dim else 128)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions_become_float32(recipe, dtype):
    config, tensors = recipe
    other = {name: array.astype(jax.numpy.dtype(dtype)) for name, array in tensors.items()}
    _, variables, extras = convert.from_torch(other, config)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    assert not extras.tensors  # worth less than what is computed anew
    name = "encoder.layers.0.bias"
    np.testing.assert_array_equal(variables["params"]["encoder"]["conv_in"]["bias"], other[name].astype(np.float32))


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (
            ("half", "transformer_depths"),
            [1, 3],
            r"transformer_depths \[1, 3\], but the encoder's tensors have \[2, 3\]",
        ),
        (("half", "strides"), [1, 4], r"downsampling_ratio .*imply|strides \[1, 4\]"),
        (("half", "latent_dim"), 7, "latent"),
        (("half", "channels"), 64, r"channels x c_mults \(first\) 64, but the encoder's tensors have"),
        (("half", "use_snake"), True, "use_snake True, but the encoder's tensors have False"),
        (("half", "conformer"), True, "conformer True, but"),
        (("half", "layer_scale"), False, "layer_scale False, but"),
        (("half", "use_dilated_conv"), True, "use_dilated_conv True, but"),
        (("half", "c_mults"), [1, 1, 1], "one entry per stage"),
        (("half", "causal"), True, "sets causal in the encoder, which no TAAE has"),
        (("model", "pretransform", "config", "patch_size"), 10, "in_channels"),
        (("model", "bottleneck", "type"), "vae", "another model"),
        (("model", "decoder", "config", "sliding_window"), [1, 2], "sliding_window differs between encoder"),
        (("model", "downsampling_ratio"), 41, "downsampling_ratio 41, but its other fields imply"),
        (("model", "bottleneck", "config", "levels"), [17, 17], "levels"),
        (("model",), [], "structure"),
    ],
)
def test_contradicting_configs_are_refused(recipe, path, value, says):
    config, tensors = recipe
    with pytest.raises(UserError, match=says):
        convert.from_torch(tensors, changed(config, value, *path))


def test_stage_counts_are_compared(recipe):
    config, tensors = recipe
    for name, value in (("c_mults", [1] * 3), ("strides", [1, 2, 1]), ("transformer_depths", [1, 1, 1])):
        config = changed(config, value, "half", name)
    with pytest.raises(UserError, match="3 stages, but the encoder's tensors have 2"):
        convert.from_torch(tensors, config)


# ---- writing configs ---------------------------------------------------------------------------


def test_a_new_config_reads_back():
    for fields in ({}, {"soft_clip": True, "use_dilated_conv": True, "audio_channels": 2}):
        model = tiny.changed(tiny.MODEL, head_dim=128, **fields)
        bottleneck = taae.BottleneckConfig(levels=(5, 4, 3), noise_dropout=0.25)
        cfg = taae.Config(model, bottleneck)
        written = taae_config.write(cfg, {}, "upstream")
        variables = weights(cfg)
        _, tensors = convert.to_torch(cfg, variables, Extras())
        assert convert.from_torch(tensors, written)[0] == cfg


def test_what_upstream_cannot_express_is_refused_or_for_the_twin():
    cfg = tiny.changed(tiny.CONFIG, model=tiny.changed(tiny.MODEL, head_dim=8))
    with pytest.raises(UserError, match=r"head_dim is 8, and upstream knows only 128.*--target twin"):
        taae_config.write(cfg, {}, "upstream")
    twin = taae_config.write(cfg, {}, "twin")
    assert twin["model"]["encoder"]["config"]["dim_heads"] == 8
    snake = tiny.changed(tiny.CONFIG, model=tiny.changed(tiny.MODEL, head_dim=128, use_snake=True, c_mults=(1, 2)))
    with pytest.raises(UserError, match="snake"):
        taae_config.write(snake, {}, "upstream")


def test_an_imports_other_fields_stay_when_its_model_changes(recipe):
    config, tensors = recipe
    config = {**config, "training": {"note": "theirs"}}
    cfg, _, extras = convert.from_torch(tensors, config)
    assert taae_config.write(cfg, extras.upstream["config"], "upstream") == config
    narrower = tiny.changed(cfg, model=tiny.changed(cfg.model, sliding_window=(2, 2)))
    written = taae_config.write(narrower, config, "upstream")
    assert written["training"] == {"note": "theirs"}
    assert written["model"]["decoder"]["config"]["sliding_window"] == [2, 2]
