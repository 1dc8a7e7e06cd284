"""Upstream's STFT discriminator (stable-audio-tools, "encodec"): names and layouts (spec TAAE section 7)."""

from collections.abc import Iterator

from codec_jax.convert.layout import Leaf, Tensors, materialise, params_from_torch
from codec_jax.models.discriminators import DiscriminatorConfig


def discriminator_from_torch(tensors: Tensors, config: DiscriminatorConfig) -> dict:
    """Parameters of `models.discriminators` from upstream's state_dict (or from its gradients).

    Raises UserError naming the tensor where one is missing or has another shape than the config implies.
    Upstream's windows (`spec_transform.window`) are Hann windows and not read.
    """
    config.validate()
    return materialise(params_from_torch(leaves(config), tensors))


def leaves(config: DiscriminatorConfig) -> Iterator[Leaf]:
    """Every parameter of the discriminator, in order."""
    wide, square = config.kernel, (config.kernel[0], config.kernel[0])
    for scale in range(len(config.n_ffts)):
        path, name = f"scale_{scale}", f"discriminators.discriminators.{scale}"
        last = len(config.dilations) + 1
        for i in range(last + 1):
            into = config.filters if i else 2 * config.in_channels
            shape = (config.filters, into, *(square if i == last else wide))
            yield from _conv((path, f"conv_{i}"), f"{name}.convs.{i}.conv", shape)
        yield from _conv((path, "conv_post"), f"{name}.conv_post.conv", (1, config.filters, *square))


def _conv(path: tuple[str, str], name: str, shape: tuple[int, ...]) -> Iterator[Leaf]:
    out = shape[0]
    yield Leaf((*path, "bias"), (f"{name}.bias",), (out,))
    yield Leaf((*path, "g"), (f"{name}.weight_g",), (out, 1, 1, 1), ours=(out,))
    yield Leaf((*path, "v"), (f"{name}.weight_v",), shape, axes=(2, 3, 1, 0))
