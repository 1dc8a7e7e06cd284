"""WavLM against Hugging Face's `WavLMModel` with random weights: every layer, masks, gradients."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import WavLMConfig as TheirConfig
from transformers import WavLMModel

from codec_jax.convert import wavlm as convert
from codec_jax.convert.layout import materialise
from codec_jax.errors import UserError
from codec_jax.models import wavlm

TINY = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "conv_dim": (16, 24, 24), "conv_kernel": (10, 3, 2), "conv_stride": (5, 2, 2),
    "num_buckets": 16, "max_bucket_distance": 20, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
NORMS = {
    "base": {"feat_extract_norm": "group", "do_stable_layer_norm": False},
    "large": {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
}
SIZES = {
    "base": {},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}


def pair(**fields):
    """Theirs, evaluating, with nothing at its initial value, and ours."""
    torch.manual_seed(0)
    theirs = WavLMModel(TheirConfig(**fields)).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith(("bias", "gru_rel_pos_const", "rel_attn_embed.weight")) or "layer_norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    cfg = convert.read_config(theirs.config.to_dict())
    return theirs, cfg, jax.tree.map(jnp.asarray, materialise(convert.from_torch(tensors, cfg)))


@pytest.fixture(scope="module", params=NORMS)
def tiny(request):
    return pair(**TINY, **NORMS[request.param])


def sound(batch, samples):
    return np.random.default_rng(1).standard_normal((batch, samples)).astype(np.float32)


def their_features(theirs, audio, mask=None):
    with torch.no_grad():
        mask = None if mask is None else torch.tensor(mask)
        found = theirs(torch.tensor(audio), attention_mask=mask, output_hidden_states=True)
        convolved = theirs.feature_extractor(torch.tensor(audio)).transpose(1, 2)
    return [convolved.numpy(), *(hidden.numpy() for hidden in found.hidden_states)]


def compare(theirs, cfg, variables, audio, lengths=None):
    """Every layer within 1e-4 of its own scale, at frames that exist."""
    mask = None if lengths is None else (np.arange(audio.shape[1]) < np.asarray(lengths)[:, None]).astype(np.int64)
    wanted = their_features(theirs, audio, mask)
    layers = range(-1, cfg.depth + 1)
    run = jax.jit(lambda v, a: wavlm.features(cfg, v, a, layers, None if lengths is None else jnp.asarray(lengths)))
    found = run(variables, audio)
    frames = [wavlm.num_frames(cfg, n) for n in (lengths or [audio.shape[1]] * len(audio))]
    assert wanted[0].shape[1] == wavlm.num_frames(cfg, audio.shape[1])
    for layer, want in zip(layers, wanted):
        got = np.asarray(found[layer])
        assert got.shape == want.shape
        for clip, count in enumerate(frames):
            scale = max(1.0, np.abs(want[clip, :count]).max())
            np.testing.assert_allclose(
                got[clip, :count], want[clip, :count], atol=1e-4 * scale, rtol=0, err_msg=str(layer)
            )


def test_every_layer(tiny):
    compare(*tiny, sound(2, 1600))


def test_padding_is_not_heard(tiny):
    compare(*tiny, sound(3, 1600), lengths=[1600, 900, 1333])


def test_gradient_to_the_audio(tiny):
    theirs, cfg, variables = tiny
    audio = sound(2, 1200)
    given = torch.tensor(audio, requires_grad=True)
    found = theirs(given, output_hidden_states=True)
    weights = [torch.randn_like(hidden) for hidden in found.hidden_states]
    sum((hidden * weight).sum() for hidden, weight in zip(found.hidden_states, weights)).backward()
    wanted = given.grad.numpy()

    def loss(audio, remat):
        heard = wavlm.features(dataclasses.replace(cfg, remat=remat), variables, audio, range(cfg.depth + 1))
        return sum((heard[i] * jnp.asarray(weight.numpy())).sum() for i, weight in enumerate(weights))

    for remat in (False, True):
        ours = jax.jit(jax.grad(loss), static_argnums=1)(audio, remat)
        np.testing.assert_allclose(ours, wanted, atol=1e-3 * np.abs(wanted).max(), rtol=0)


def test_layers_above_are_not_needed(tiny):
    """Neither their weights nor their work: NaN in them is not noticed."""
    _, cfg, variables = tiny
    audio = jnp.asarray(sound(1, 800))
    whole = wavlm.features(cfg, variables, audio, range(-1, cfg.depth + 1))
    blocks = jax.tree.map(
        lambda x: jnp.where(jnp.arange(3).reshape(-1, *[1] * (x.ndim - 1)) < 1, x, np.nan),
        variables["params"]["blocks"],
    )
    spoilt = {"params": {**variables["params"], "blocks": blocks}}
    for layer in (-1, 0, 1):
        np.testing.assert_allclose(wavlm.features(cfg, spoilt, audio, [layer])[layer], whole[layer], atol=1e-5)


def test_half_precision(tiny):
    _, cfg, variables = tiny
    audio = jnp.asarray(sound(1, 800))
    whole = wavlm.features(cfg, variables, audio, [2])[2]
    half = wavlm.features(dataclasses.replace(cfg, dtype="bfloat16"), variables, audio, [2])[2]
    assert half.dtype == jnp.bfloat16
    assert np.abs(np.asarray(half, np.float32) - whole).mean() < 0.05 * np.abs(np.asarray(whole)).mean()


def test_our_own_variables_have_their_shapes(tiny):
    _, cfg, variables = tiny
    fresh = nn.unbox(jax.eval_shape(lambda: wavlm.init(cfg, jax.random.key(0))))
    jax.tree.map(lambda ours, theirs: np.testing.assert_equal(ours.shape, theirs.shape), dict(fresh), variables)


def test_published_configs():
    assert convert.read_config(TheirConfig().to_dict()) == wavlm.BASE
    assert convert.read_config(TheirConfig(**SIZES["large"], **NORMS["large"]).to_dict()) == wavlm.LARGE


@pytest.mark.parametrize("number", [-2, 4])
def test_layers_that_are_not_there(tiny, number):
    with pytest.raises(UserError, match=f"to 3, not {number}"):
        wavlm.features(tiny[1], tiny[2], jnp.zeros((1, 800)), [number])


def test_too_short(tiny):
    with pytest.raises(UserError, match=r"hears \d+ samples"):
        wavlm.features(tiny[1], tiny[2], jnp.zeros((1, 5)), [0])


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_published_sizes(size):
    """94 and 315 million parameters, masks included."""
    theirs, cfg, variables = pair(**SIZES[size], **NORMS[size])
    compare(theirs, cfg, variables, sound(2, 16000), lengths=[16000, 9000])
