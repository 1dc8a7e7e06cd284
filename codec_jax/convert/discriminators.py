"""Upstream's discriminators: names and layouts, both ways.

"stft" of stable-audio-tools, "encodec" there (spec TAAE section 7); "dac" of ESC (spec ESC section 6, appendix B).
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from codec_jax.convert.layout import Leaf, Tensors, materialise, params_from_torch, tensors_from_params
from codec_jax.errors import UserError
from codec_jax.models.discriminators import Config, DACDiscriminatorConfig, DiscriminatorConfig
from codec_jax.ops.stft import hann


def discriminator_from_torch(tensors: Tensors, config: Config) -> dict:
    """Parameters of `models.discriminators` from upstream's state_dict (or from its gradients).

    Raises UserError naming the tensor where one is missing or has another shape than the config implies.
    Upstream's windows (`spec_transform.window`) are Hann windows and not read.
    """
    config.validate()
    return materialise(params_from_torch(leaves(config), tensors))


def discriminator_to_torch(config: Config, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Upstream's state_dict, the inverse of `discriminator_from_torch`: parameters bit for bit, windows computed."""
    tensors = materialise(tensors_from_params(leaves(config), params))
    if isinstance(config, DiscriminatorConfig):
        for scale, (_, _, win_length) in enumerate(config.resolutions):
            tensors[f"discriminators.discriminators.{scale}.spec_transform.window"] = hann(win_length)
    return tensors


def dac_config(fields: Mapping[str, Any], tensors: Tensors) -> DACDiscriminatorConfig:
    """The config of the yaml section `discriminator` of an ESC; widths are not in it, and read off the tensors.

    Raises UserError where `rates` asks for judges of resampled audio (upstream's own losses fail on those), for unknown
    fields, and naming the tensor where one is missing.
    """
    unknown = set(fields) - {"sample_rate", "rates", "periods", "fft_sizes", "bands"}
    if unknown:
        raise UserError(f"discriminator.{min(unknown)} is no field of ESC's discriminators.")
    if fields.get("rates"):
        raise UserError(f"discriminator.rates is {fields['rates']}: only [] can be converted, as upstream trains.")
    given: dict[str, Any] = {name: tuple(fields[name]) for name in ("periods", "fft_sizes") if name in fields}
    if "bands" in fields:
        given["bands"] = tuple((float(low), float(high)) for low, high in fields["bands"])
    config = DACDiscriminatorConfig(**given)
    if config.periods:
        layers = range(len(config.period_widths))
        widths = tuple(_width(tensors, f"discriminators.0.convs.{i}.0.bias") for i in layers)
        config = dataclasses.replace(config, period_widths=widths)
    if config.fft_sizes:
        width = _width(tensors, f"discriminators.{len(config.periods)}.band_convs.0.0.0.bias")
        config = dataclasses.replace(config, band_width=width)
    return config


def _width(tensors: Tensors, name: str) -> int:
    if name not in tensors:
        raise UserError(f"the checkpoint has no tensor {name}, which its config implies.")
    return tensors[name].shape[0]


def leaves(config: Config) -> Iterator[Leaf]:
    """Every parameter of the discriminators, in order."""
    if isinstance(config, DACDiscriminatorConfig):
        yield from _period_leaves(config)
        yield from _band_leaves(config)
    else:
        yield from _scale_leaves(config)


def _scale_leaves(config: DiscriminatorConfig) -> Iterator[Leaf]:
    wide, square = config.kernel, (config.kernel[0], config.kernel[0])
    for scale in range(len(config.n_ffts)):
        path, name = f"scale_{scale}", f"discriminators.discriminators.{scale}"
        last = len(config.dilations) + 1
        for i in range(last + 1):
            into = config.filters if i else 2 * config.in_channels
            shape = (config.filters, into, *(square if i == last else wide))
            yield from _conv((path, f"conv_{i}"), f"{name}.convs.{i}.conv", shape)
        yield from _conv((path, "conv_post"), f"{name}.conv_post.conv", (1, config.filters, *square))


def _period_leaves(config: DACDiscriminatorConfig) -> Iterator[Leaf]:
    for number, period in enumerate(config.periods):
        path, name, into = f"period_{period}", f"discriminators.{number}", 1
        for i, width in enumerate(config.period_widths):
            yield from _conv((path, f"conv_{i}"), f"{name}.convs.{i}.0", (width, into, 5, 1), flat=True)
            into = width
        yield from _conv((path, "conv_post"), f"{name}.conv_post", (1, into, 3, 1), flat=True)


def _band_leaves(config: DACDiscriminatorConfig) -> Iterator[Leaf]:
    width = config.band_width
    for number, size in enumerate(config.fft_sizes, start=len(config.periods)):
        path, name = f"stft_{size}", f"discriminators.{number}"
        for band in range(len(config.bands)):
            for i in range(5):
                shape = (width, width if i else 2, 3, 9 if i < 4 else 3)
                yield from _conv((path, f"band_{band}_conv_{i}"), f"{name}.band_convs.{band}.{i}.0", shape)
        yield from _conv((path, "conv_post"), f"{name}.conv_post", (1, width, 3, 3))


def _conv(path: tuple[str, str], name: str, shape: tuple[int, ...], flat: bool = False) -> Iterator[Leaf]:
    """Ours is [*taps, in, out]. flat: without upstream's last axis, which has one tap."""
    out, into, *taps = shape
    ours = (taps[0], into, out) if flat else ()
    yield Leaf((*path, "bias"), (f"{name}.bias",), (out,))
    yield Leaf((*path, "g"), (f"{name}.weight_g",), (out, 1, 1, 1), ours=(out,))
    yield Leaf((*path, "v"), (f"{name}.weight_v",), shape, axes=(2, 3, 1, 0), ours=ours)
