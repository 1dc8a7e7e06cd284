"""Upstream's TAAE checkpoints (stable-audio-tools): names and layouts of every tensor (spec TAAE section 7).

Never imports torch: tensors come in as NumPy arrays under upstream's names.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from codec_jax.errors import UserError
from codec_jax.models.protocol import Variables
from codec_jax.models.taae import Config, FSQConfig, TAAEConfig

Tensors = Mapping[str, np.ndarray]
Extras = dict[str, np.ndarray]
"""Upstream's buffers and unused tensors, verbatim, under upstream's names."""


class Leaf(NamedTuple):
    """One parameter: its path in our tree, upstream's names (one per layer where stacked), upstream's shape, layout."""

    path: tuple[str, ...]
    names: tuple[str, ...]
    shape: tuple[int, ...]
    to_jax: Callable[[np.ndarray], np.ndarray]
    stacked: bool = False


def from_torch(tensors: Tensors, config: Mapping[str, Any]) -> tuple[Config, Variables, Extras]:
    """Upstream's `model_config.json` (parsed) and state_dict to config, variables and what has no place in them.

    Raises UserError naming the tensor where one is missing or has another shape than the config implies.
    """
    cfg = read_config(config, head_dim=_head_dim(tensors))
    params: dict = {}
    used: set[str] = set()
    for leaf in leaves(cfg.model):
        arrays = [leaf.to_jax(_take(tensors, name, leaf.shape)) for name in leaf.names]
        _insert(params, leaf.path, np.stack(arrays) if leaf.stacked else np.ascontiguousarray(arrays[0]))
        used.update(leaf.names)
    extras = {name: np.asarray(tensors[name]) for name in tensors if name not in used}
    for name, array in extras.items():
        if name.endswith("norm.beta") and np.any(array):
            raise UserError(f"{name} is not zero: this LayerNorm has no bias in any published model.")
    return cfg, {"params": params}, extras


def read_config(config: Mapping[str, Any], head_dim: int = 128) -> Config:
    """Upstream's model config to ours. Raises UserError for another model type or halves that differ."""
    try:
        model = config["model"]
        encoder, decoder = model["encoder"]["config"], model["decoder"]["config"]
        if (model["encoder"]["type"], model["decoder"]["type"], model["bottleneck"]["type"]) != (
            "taae",
            "taae",
            "dithered_fsq",
        ):
            raise UserError("model_config.json describes another model: a TAAE has taae halves and a dithered_fsq.")
        bottleneck = model["bottleneck"]["config"]
        patch_size = model["pretransform"]["config"]["patch_size"]
        fields = {
            name: _hashable(encoder[name])
            for name in ("channels", "c_mults", "strides", "transformer_depths", "latent_dim", *_SWITCHES)
            if name in encoder
        }
    except KeyError as error:
        raise UserError(f"model_config.json has no {error}, which a TAAE needs.") from error
    for name, value in fields.items():
        if name in decoder and _hashable(decoder[name]) != value:
            raise UserError(f"{name} differs between encoder ({value}) and decoder ({decoder[name]}).")
    levels = bottleneck["levels"]
    levels = tuple(levels) if isinstance(levels, list) else (levels,) * bottleneck["dim"]
    if bottleneck.get("num_codebooks", 1) != 1:
        raise UserError("a dithered_fsq with more than one codebook is not supported.")
    cfg = Config(
        TAAEConfig(
            sample_rate=config["sample_rate"],
            audio_channels=config.get("audio_channels", 1),
            patch_size=patch_size,
            head_dim=head_dim,
            soft_clip=decoder.get("soft_clip", False),
            **fields,
        ),
        FSQConfig(levels=levels, noise_dropout=bottleneck.get("noise_dropout", 0.05)),
    )
    cfg.validate()
    return cfg


_SWITCHES = ("sliding_window", "use_snake", "conformer", "layer_scale", "use_dilated_conv")


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
        yield Leaf((*path, "alpha"), (f"{name}.alpha",), (width,), _same)
        yield Leaf((*path, "beta"), (f"{name}.beta",), (width,), _same)


def _conv(path, name, out, into, kernel, bias=True):
    if bias:
        yield Leaf((*path, "bias"), (f"{name}.bias",), (out,), _same)
    yield Leaf((*path, "g"), (f"{name}.weight_g",), (out, 1, 1), np.ravel)
    yield Leaf((*path, "v"), (f"{name}.weight_v",), (out, into, kernel), lambda w: w.transpose(2, 1, 0))


def _transposed(path, name, out, into, kernel):
    yield Leaf((*path, "bias"), (f"{name}.bias",), (out,), _same)
    yield Leaf((*path, "g"), (f"{name}.weight_g",), (into, 1, 1), np.ravel)
    yield Leaf((*path, "v"), (f"{name}.weight_v",), (into, out, kernel), lambda w: w.transpose(2, 0, 1))


def _block(model: TAAEConfig, width: int) -> Iterator[Leaf]:
    """One transformer block, names relative to it."""
    block = model.block(width)
    dim, hidden = block.head_dim, block.ff_mult * width
    heads = (width // dim, dim)

    def leaf(path, name, shape, to_jax=_same):
        return Leaf(tuple(path.split("/")), (name,), shape, to_jax)

    yield leaf("pre_norm/scale", "pre_norm.gamma", (width,))
    to_qkv = (3 * width, width)
    yield leaf("self_attn/to_qkv/kernel", "self_attn.to_qkv.weight", to_qkv, lambda w: w.T.reshape(width, 3, *heads))
    yield leaf(
        "self_attn/to_out/kernel",
        "self_attn.to_out.weight",
        (width,) * 2,
        lambda w: w.T.reshape(*heads, width),
    )
    for norm in ("q_norm", "k_norm"):
        yield leaf(f"self_attn/{norm}/scale", f"self_attn.{norm}.weight", (dim,))
        yield leaf(f"self_attn/{norm}/bias", f"self_attn.{norm}.bias", (dim,))
    yield leaf("ff_norm/scale", "ff_norm.gamma", (width,))
    to_ff = (2 * hidden, width)
    yield leaf("ff/proj/kernel", "ff.ff.0.proj.weight", to_ff, lambda w: w.T.reshape(width, 2, hidden))
    yield leaf("ff/proj/bias", "ff.ff.0.proj.bias", (2 * hidden,), lambda b: b.reshape(2, hidden))
    yield leaf("ff/out/kernel", "ff.ff.2.weight", (width, hidden), np.transpose)
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
        yield leaf(f"conformer/{name}/kernel", f"conformer.{name}.weight", square, lambda w: w[:, :, 0].T)
    to_glu = (2 * width, width)
    yield leaf("conformer/glu/kernel", "conformer.glu.proj.weight", to_glu, lambda w: w.T.reshape(width, 2, width))
    yield leaf("conformer/glu/bias", "conformer.glu.proj.bias", (2 * width,), lambda b: b.reshape(2, width))
    depthwise = (width, 1, 17)
    yield leaf("conformer/depthwise_conv/kernel", "conformer.depthwise_conv.weight", depthwise, np.transpose)
    if layer_scale:
        yield leaf("conformer_scale/scale", "conformer_scale.scale", (width,))


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _take(tensors: Tensors, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in tensors:
        raise UserError(f"the checkpoint has no tensor {name}, which its config implies.")
    array = np.asarray(tensors[name])
    if array.shape != shape:
        raise UserError(f"{name} has shape {array.shape} in the checkpoint, but its config implies {shape}.")
    return array.astype(np.float32, copy=False)


def _head_dim(tensors: Tensors) -> int:
    """Upstream's configs do not name the head dim; its query norm has that length."""
    for name in tensors:
        if name.endswith("self_attn.q_norm.weight"):
            return int(np.shape(tensors[name])[0])
    return TAAEConfig.head_dim


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _insert(tree: dict, path: tuple[str, ...], value: np.ndarray) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
