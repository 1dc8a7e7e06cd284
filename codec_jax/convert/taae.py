"""Upstream's TAAE (stable-audio-tools): names and layouts of every tensor, and its config (spec TAAE section 7).

Never imports torch: tensors come in and go out as NumPy arrays under upstream's names.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from codec_jax.convert import taae_config
from codec_jax.convert.layout import Leaf, Tensors, materialise, names, params_from_torch, tensors_from_params
from codec_jax.errors import UserError
from codec_jax.models.protocol import Variables
from codec_jax.models.taae import Config, TAAEConfig
from codec_jax.ops.rope import inverse_frequencies
from codec_jax.storage import Extras

CONFIG_FILE = "model_config.json"
PREFIXES = (("autoencoder_ema.ema_model.", "ema"), ("autoencoder.", "raw"))
LOADING = """
With stable-audio-tools:

```python
import json
from safetensors.torch import load_file
from stable_audio_tools.models import create_model_from_config

model = create_model_from_config(json.load(open("model_config.json")))
model.load_state_dict(load_file("model.safetensors"), strict=True)
```

Upstream honours the attention window only where flash-attention is installed, and otherwise attends to everything.
"""


def from_torch(tensors: Tensors, config: Mapping[str, Any]) -> tuple[Config, Variables, Extras]:
    """Upstream's `model_config.json` (parsed) and state_dict to config, variables and what has no place in them.

    Raises UserError naming the tensor or field where one is missing, left over, or contradicts another.
    """
    cfg, variables, extras = from_torch_lazily(tensors, config)
    return cfg, materialise(variables), extras


def from_torch_lazily(tensors: Tensors, config: Mapping[str, Any]) -> tuple[Config, Variables, Extras]:
    """`from_torch` with parameters that are computed when they are asked for. Everything is checked now."""
    cfg = taae_config.read(config, tensors)
    params = params_from_torch(leaves(cfg.model), tensors)
    known = dict(buffers(cfg.model))
    for name in tensors.keys() - set(names(leaves(cfg.model))) - known.keys():
        raise UserError(f"the checkpoint has a tensor {name}, which its config does not explain.")
    brought = {name: np.asarray(tensors[name]) for name in known if name in tensors}
    for name, array in brought.items():
        _check_buffer(name, array, known[name])
    # Halved buffers are worth less than what is computed anew.
    exact = {name: array for name, array in brought.items() if array.dtype == np.float32}
    return cfg, {"params": params}, Extras(exact, {"config": config})


def to_torch(cfg: Config, variables: Variables, extras: Extras, target: str = "upstream") -> tuple[dict, dict]:
    """Upstream's `model_config.json` and state_dict (arrays, computed when asked for), buffers included.

    target: "upstream", or "twin" for what only codec_jax.pytorch can load. Raises UserError, one sentence, for a config
    that the target cannot express.
    """
    config = taae_config.write(cfg, extras.upstream.get("config", {}), target)
    tensors: dict[str, Any] = dict(tensors_from_params(leaves(cfg.model), variables["params"]))
    tensors |= {name: extras.tensors.get(name, array) for name, array in buffers(cfg.model)}
    return config, tensors


def notes(cfg: Config, extras: Extras) -> Iterator[str]:
    """Sentences for whoever converts: where an imported buffer is not what this model computes with."""
    known = dict(buffers(cfg.model))
    off = [np.abs(array / known[name] - 1).max() for name, array in extras.tensors.items() if name.endswith("inv_freq")]
    if off and max(off) > 1e-6:
        yield (
            f"The checkpoint's rotary frequencies are up to {max(off):.1%} off 10000^(-2i/d): they travel verbatim, "
            "and JAX computes with the formula."
        )


def buffers(model: TAAEConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Upstream's buffers with the values that upstream computes: zero LayerNorm biases, rotary frequencies."""
    for leaf in leaves(model):
        for name in leaf.names:
            if name.endswith("norm.gamma"):
                yield name.removesuffix("gamma") + "beta", np.zeros(leaf.shape, np.float32)
            elif name.endswith("self_attn.q_norm.weight"):
                prefix = name.removesuffix("self_attn.q_norm.weight")
                yield f"{prefix}rope.inv_freq", inverse_frequencies(leaf.shape[0])


def _check_buffer(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    """Raises UserError where a buffer holds what this model would not compute."""
    if found.shape != expected.shape:
        raise UserError(f"{name} has shape {found.shape} in the checkpoint, but its config implies {expected.shape}.")
    if name.endswith("beta") and np.any(found.astype(np.float32)):
        raise UserError(f"{name} is not zero: this LayerNorm has no bias in any published model.")
    if name.endswith("inv_freq") and not np.allclose(found.astype(np.float32), expected, _FREQUENCY_TOLERANCE, 0):
        raise UserError(f"{name} holds other rotary frequencies than 10000^(-2i/d), which is what this model computes.")


# Averaging moves EMA buffers a little, and half precision rounds them; another base is off by far more.
_FREQUENCY_TOLERANCE = 0.02


# ---- the table ---------------------------------------------------------------------------------


def leaves(model: TAAEConfig) -> Iterator[Leaf]:
    """Every parameter of the model, in order."""
    patch = model.patch_size * model.audio_channels
    widths, last = model.widths, len(model.strides)
    yield from _conv(("encoder", "conv_in"), "encoder.layers.0", widths[0], patch, 7)
    for i, (width, stride, depth) in enumerate(zip(widths, model.strides, model.transformer_depths)):
        yield from _stage(model, "encoder", i, f"encoder.layers.{i + 1}", (widths[max(i - 1, 0)], width, stride, depth))
    yield from _snake(model, ("encoder", "act"), f"encoder.layers.{last + 1}", widths[-1])
    yield from _conv(("encoder", "conv_out"), f"encoder.layers.{last + 2}", model.latent_dim, widths[-1], 3)

    yield from _conv(("decoder", "conv_in"), "decoder.layers.0", widths[-1], model.latent_dim, 3)
    for i, (width, stride, depth) in enumerate(zip(widths, model.strides, model.transformer_depths)):
        name = f"decoder.layers.{last - i}"
        yield from _stage(model, "decoder", i, name, (width, widths[max(i - 1, 0)], stride, depth))
    yield from _snake(model, ("decoder", "act"), f"decoder.layers.{last + 1}", widths[0])
    yield from _conv(("decoder", "conv_out"), f"decoder.layers.{last + 2}", patch, widths[0], 7, bias=False)


def _stage(model, half, index, name, sizes):
    width_in, width_out, stride, depth = sizes
    path, dilated = (half, f"stage_{index}"), model.use_dilated_conv
    offset = 3 if dilated else 0
    order = {"encoder": (0, offset, offset + 1, offset + 2), "decoder": (3, 1, 2, 0)}[half]
    first_residual, act, resample, transformer = order
    width = width_out if half == "encoder" else width_in
    for i in range(3 if dilated else 0):
        residual_width = width_in if half == "encoder" else width_out
        yield from _residual(model, (*path, f"residual_{i}"), f"{name}.layers.{first_residual + i}", residual_width)
    yield from _snake(model, (*path, "act"), f"{name}.layers.{act}", width_in)
    if stride > 1:
        conv = _conv if half == "encoder" else _transposed
        yield from conv((*path, "resample"), f"{name}.layers.{resample}", width_out, width_in, 2 * stride)
    if depth:
        blocks = [f"{name}.layers.{transformer}.{layer + 1}" for layer in range(depth)]
        for leaf in _block(model, width):
            names = tuple(f"{block}.{leaf.names[0]}" for block in blocks)
            yield leaf._replace(path=(*path, "transformer", "blocks", *leaf.path), names=names, stacked=True)


def _residual(model, path, name, width):
    for i, (act, conv, kernel) in enumerate(((0, 1, 7), (2, 3, 1)), start=1):
        yield from _snake(model, (*path, f"act_{i}"), f"{name}.layers.{act}", width)
        yield from _conv((*path, f"conv_{i}"), f"{name}.layers.{conv}", width, width, kernel)


def _snake(model, path, name, width):
    if model.use_snake:
        yield Leaf((*path, "alpha"), (f"{name}.alpha",), (width,))
        yield Leaf((*path, "beta"), (f"{name}.beta",), (width,))


def _conv(path, name, out, into, kernel, bias=True):
    if bias:
        yield Leaf((*path, "bias"), (f"{name}.bias",), (out,))
    yield Leaf((*path, "g"), (f"{name}.weight_g",), (out, 1, 1), ours=(out,))
    yield Leaf((*path, "v"), (f"{name}.weight_v",), (out, into, kernel), axes=(2, 1, 0))


def _transposed(path, name, out, into, kernel):
    yield Leaf((*path, "bias"), (f"{name}.bias",), (out,))
    yield Leaf((*path, "g"), (f"{name}.weight_g",), (into, 1, 1), ours=(into,))
    yield Leaf((*path, "v"), (f"{name}.weight_v",), (into, out, kernel), axes=(2, 0, 1))


def _block(model: TAAEConfig, width: int) -> Iterator[Leaf]:
    """One transformer block, names relative to it."""
    block = model.block(width)
    dim, hidden = block.head_dim, block.ff_mult * width
    heads = (width // dim, dim)

    def leaf(path, name, shape, axes=(), ours=()):
        return Leaf(tuple(path.split("/")), (name,), shape, axes, ours)

    yield leaf("pre_norm/scale", "pre_norm.gamma", (width,))
    to_qkv = (3 * width, width)
    yield leaf("self_attn/to_qkv/kernel", "self_attn.to_qkv.weight", to_qkv, (1, 0), (width, 3, *heads))
    yield leaf("self_attn/to_out/kernel", "self_attn.to_out.weight", (width,) * 2, (1, 0), (*heads, width))
    for norm in ("q_norm", "k_norm"):
        yield leaf(f"self_attn/{norm}/scale", f"self_attn.{norm}.weight", (dim,))
        yield leaf(f"self_attn/{norm}/bias", f"self_attn.{norm}.bias", (dim,))
    yield leaf("ff_norm/scale", "ff_norm.gamma", (width,))
    to_ff = (2 * hidden, width)
    yield leaf("ff/proj/kernel", "ff.ff.0.proj.weight", to_ff, (1, 0), (width, 2, hidden))
    yield leaf("ff/proj/bias", "ff.ff.0.proj.bias", (2 * hidden,), ours=(2, hidden))
    yield leaf("ff/out/kernel", "ff.ff.2.weight", (width, hidden), (1, 0))
    yield leaf("ff/out/bias", "ff.ff.2.bias", (width,))
    if block.layer_scale:
        yield leaf("self_attn_scale/scale", "self_attn_scale.scale", (width,))
        yield leaf("ff_scale/scale", "ff_scale.scale", (width,))
    if block.conformer:
        yield from _conformer(leaf, width, block.layer_scale)


def _conformer(leaf, width, layer_scale):
    yield leaf("conformer/in_norm/scale", "conformer.in_norm.gamma", (width,))
    yield leaf("conformer/mid_norm/scale", "conformer.mid_norm.gamma", (width,))
    for name in ("pointwise_conv", "pointwise_conv_2"):
        square = (width, width, 1)
        yield leaf(f"conformer/{name}/kernel", f"conformer.{name}.weight", square, (2, 1, 0), (width, width))
    to_glu = (2 * width, width)
    yield leaf("conformer/glu/kernel", "conformer.glu.proj.weight", to_glu, (1, 0), (width, 2, width))
    yield leaf("conformer/glu/bias", "conformer.glu.proj.bias", (2 * width,), ours=(2, width))
    depthwise = (width, 1, 17)
    yield leaf("conformer/depthwise_conv/kernel", "conformer.depthwise_conv.weight", depthwise, (2, 1, 0))
    if layer_scale:
        yield leaf("conformer_scale/scale", "conformer_scale.scale", (width,))
