"""Upstream's STFT discriminator (stable-audio-tools, "encodec"): names and layouts (spec TAAE section 7).

Never imports torch: tensors come in as NumPy arrays under upstream's names.
"""

from collections.abc import Iterator

import numpy as np

from codec_jax.convert.taae import Leaf, Tensors
from codec_jax.errors import UserError
from codec_jax.models.discriminators import DiscriminatorConfig


def discriminator_from_torch(tensors: Tensors, config: DiscriminatorConfig) -> dict:
    """Parameters of `models.discriminators` from upstream's state_dict (or from its gradients).

    Raises UserError naming the tensor where one is missing or has another shape than the config implies.
    Upstream's windows (`spec_transform.window`) are Hann windows and not read.
    """
    config.validate()
    params: dict = {}
    for leaf in leaves(config):
        name, (scale, conv, kind) = leaf.names[0], leaf.path
        if name not in tensors:
            raise UserError(f"the checkpoint has no tensor {name}, which its config implies.")
        array = np.asarray(tensors[name])
        if array.shape != leaf.shape:
            raise UserError(f"{name} has shape {array.shape} in the checkpoint, but its config implies {leaf.shape}.")
        array = np.ascontiguousarray(leaf.to_jax(array.astype(np.float32, copy=False)))
        params.setdefault(scale, {}).setdefault(conv, {})[kind] = array
    return params


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
    yield Leaf((*path, "bias"), (f"{name}.bias",), (out,), np.ravel)
    yield Leaf((*path, "g"), (f"{name}.weight_g",), (out, 1, 1, 1), np.ravel)
    yield Leaf((*path, "v"), (f"{name}.weight_v",), shape, lambda w: w.transpose(2, 3, 1, 0))
