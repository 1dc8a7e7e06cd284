"""The STFT discriminator: upstream's activations on the golden sets A and E, and what its module promises."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codec_jax.convert.discriminators import discriminator_from_torch, discriminator_to_torch
from codec_jax.errors import UserError
from codec_jax.models import discriminators
from codec_jax.models.discriminators import DiscriminatorConfig, stft

TINY = DiscriminatorConfig(n_ffts=(16, 22), filters=2, dilations=(1, 2), stride=(1, 2))


def golden_discriminator(golden, name):
    """Config, parameters, golden tensors and whether the set's feature matching is normalised."""
    meta = json.loads((golden.path(f"taae/{name}") / "meta.json").read_text())["discriminator"]
    normalize = meta.pop("normalize_losses")
    cfg = DiscriminatorConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in meta.items()})
    tensors = golden(f"taae/{name}/tensors.safetensors")
    state = {k.removeprefix("disc_sd/"): v for k, v in tensors.items() if k.startswith("disc_sd/")}
    return cfg, discriminator_from_torch(state, cfg), tensors, normalize


@pytest.fixture(scope="module", params=("A", "E"))
def case(request, golden):
    """Config, golden tensors, and the judgements of the real and the decoded audio."""
    cfg, params, tensors, _ = golden_discriminator(golden, request.param)
    judge = jax.jit(discriminators.judge_all, static_argnums=0)
    real, fake = (judge(cfg, params, tensors[name].swapaxes(1, 2)) for name in ("input", "decoded"))
    return cfg, tensors, {"real": real, "fake": fake}


def assert_close(ours, theirs, name):
    """Within 1e-4 of the largest golden value; theirs has the channel second."""
    assert ours.shape == theirs.shape, name
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max(), name


def test_spectrograms(case):
    cfg, tensors, _ = case
    for scale, resolution in enumerate(cfg.resolutions):
        parts = stft.spectrogram(jnp.asarray(tensors["input"].swapaxes(1, 2)), *resolution)
        ours = np.stack(parts, axis=-1).swapaxes(2, 3)  # [batch, channel, bin, frame, part]
        assert_close(ours, tensors[f"disc/stft{scale}"], f"stft{scale}")


def test_logits_and_feature_maps(case):
    cfg, tensors, judgements = case
    compared = 0
    for side, scales in judgements.items():
        for scale, judgement in enumerate(scales):
            assert len(judgement.features) == len(cfg.dilations) + 2
            maps = {f"disc/{side}_fmap{scale}.{i}": x for i, x in enumerate(judgement.features)}
            for name, ours in {f"disc/{side}_logits{scale}": judgement.logits, **maps}.items():
                if name in tensors:
                    assert_close(np.moveaxis(ours, -1, 1), tensors[name], name)
                    compared += 1
    assert compared == sum(name.startswith(("disc/real", "disc/fake")) for name in tensors)


def test_defaults_are_the_papers_resolutions():
    resolutions = DiscriminatorConfig().resolutions
    assert resolutions[0] == (78, 19, 78)
    assert resolutions[-1] == (2296, 574, 2296)
    assert len(resolutions) == 8


def test_init_has_the_shapes_of_upstream(golden):
    cfg, converted, _, _ = golden_discriminator(golden, "A")
    fresh = nn.unbox(jax.eval_shape(lambda key: discriminators.init(cfg, key), jax.random.key(0)))
    assert jax.tree.map(jnp.shape, converted) == jax.tree.map(lambda leaf: leaf.shape, fresh)


def test_fresh_parameters_are_normalised_and_named():
    boxed = discriminators.init(TINY, jax.random.key(0))
    spec = nn.get_partition_spec(boxed)["scale_0"]["conv_1"]
    assert tuple(spec["v"]) == ("tap", "tap", "conv_in", "conv_out")
    assert tuple(spec["g"]) == tuple(spec["bias"]) == ("conv_out",)
    conv = nn.unbox(boxed)["scale_0"]["conv_1"]
    np.testing.assert_allclose(conv["g"], np.sqrt((np.asarray(conv["v"]) ** 2).sum((0, 1, 2))), rtol=1e-5)
    others = nn.unbox(boxed)["scale_1"]["conv_1"]
    assert not np.array_equal(conv["v"], others["v"])


def test_dtype_is_that_of_the_convolutions_alone():
    cfg = DiscriminatorConfig(n_ffts=(16,), filters=2, dtype="bfloat16", in_channels=2)

    def judge(key):
        params = nn.unbox(discriminators.init(cfg, key))
        return params, discriminators.judge(cfg, params, "scale_0", jnp.zeros((3, 40, 2)))

    params, (logits, features) = jax.eval_shape(judge, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert (logits.shape, logits.dtype) == ((3, 7, 9, 1), jnp.float32)
    assert {x.dtype for x in features} == {jnp.dtype("bfloat16")}


def test_gradients_are_finite_at_digital_silence():
    params = nn.unbox(discriminators.init(TINY, jax.random.key(0)))
    gradient = jax.jit(jax.grad(lambda x: discriminators.judge(TINY, params, "scale_0", x).logits.sum()))
    assert np.isfinite(gradient(jnp.zeros((1, 64, 1)))).all()


def test_one_scale_alone_is_that_scale_of_all():
    params = nn.unbox(discriminators.init(TINY, jax.random.key(0)))
    audio = jax.random.normal(jax.random.key(1), (1, 64, 1))
    alone = jax.jit(lambda p, x: discriminators.judge(TINY, p, "scale_1", x).logits)(params, audio)
    np.testing.assert_allclose(
        alone, jax.jit(lambda p, x: discriminators.judge_all(TINY, p, x))(params, audio)[1].logits
    )


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"n_ffts": ()}, "hop"),
        ({"hop_lengths": (4,)}, "hop_lengths"),
        ({"n_ffts": (16,), "win_lengths": (17,)}, "window"),
        ({"filters_scale": 2}, "filters_scale"),
        ({"filters": 2048}, "max_filters"),
        ({"kernel": (3, 8)}, "kernel"),
        ({"stride": (0, 1)}, "stride"),
        ({"dtype": "float16"}, "dtype"),
    ],
)
def test_impossible_configs_are_errors(fields, word):
    with pytest.raises(UserError, match=word):
        DiscriminatorConfig(**fields).validate()


def test_there_and_back_again(golden):
    """Bit for bit; windows, which are computed, within float32's rounding."""
    cfg, params, tensors, _ = golden_discriminator(golden, "A")
    state = {k.removeprefix("disc_sd/"): v for k, v in tensors.items() if k.startswith("disc_sd/")}
    again = discriminator_to_torch(cfg, params)
    assert again.keys() == state.keys()
    for name, array in again.items():
        if name.endswith("window"):
            np.testing.assert_allclose(array, state[name], atol=2e-7, err_msg=name)
        else:
            np.testing.assert_array_equal(array, state[name], err_msg=name)


def test_conversion_names_the_tensor_at_fault(golden):
    cfg, _, tensors, _ = golden_discriminator(golden, "E")
    state = {k.removeprefix("disc_sd/"): v for k, v in tensors.items() if k.startswith("disc_sd/")}
    name = "discriminators.discriminators.1.convs.2.conv.weight_v"
    with pytest.raises(UserError, match=f"no tensor {name}"):
        discriminator_from_torch({k: v for k, v in state.items() if k != name}, cfg)
    with pytest.raises(UserError, match=f"{name} has shape"):
        discriminator_from_torch(state | {name: state[name][:, :1]}, cfg)
