"""WavLM (arXiv 2110.13900): a frozen listener whose features tell decoded speech from the original.

audio -> seven strided convolutions (320 samples a frame) -> projection -> convolutional positions -> transformer with
gated relative position bias. `BASE` normalises after its branches, `LARGE` before them. Weights come from Hugging
Face's `WavLMModel` (codec_jax/convert/wavlm.py). A layer's features are what it hands to the next one; the norm that
ends `LARGE` is no layer's.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from codec_jax.errors import UserError
from codec_jax.models.flops import Counts, conv
from codec_jax.models.wavlm_network import CONVOLUTIONS, FrontEnd, Network, WavLMConfig

__all__ = [
    "BASE",
    "CONVOLUTIONS",
    "LARGE",
    "SAMPLE_RATE",
    "WavLMConfig",
    "check_layer",
    "features",
    "flops",
    "init",
    "least_samples",
    "num_frames",
]

Variables = Any
SAMPLE_RATE = 16_000
BASE = WavLMConfig()
LARGE = WavLMConfig(conv_norm="layer", width=1024, depth=24, num_heads=16, hidden=4096, pre_norm=True)


def init(cfg: WavLMConfig, key: PRNGKeyArray, highest: int | None = None) -> Variables:
    """Fresh variables, boxed with the logical names of their axes, of what layers up to `highest` (None: all) need."""
    audio = jnp.zeros((1, least_samples(cfg)))
    if highest == CONVOLUTIONS:
        return {"params": {"front_end": FrontEnd(cfg).init(key, audio)["params"]}}
    return Network(cfg, cfg.depth if highest is None else highest).init(key, audio, None)


def features(
    cfg: WavLMConfig,
    variables: Variables,
    audio: Float[Array, "batch time"],
    layers: Sequence[int],
    lengths: Int[Array, " batch"] | None = None,
) -> dict[int, Float[Array, "batch frame _"]]:
    """What the chosen layers make of audio at 16 kHz, in `cfg.dtype`: `CONVOLUTIONS`, or a number up to `cfg.depth`.

    Layers above the highest are not computed. lengths: samples of every clip, where the rest of its row is padding;
    its last frames are then those of `WavLMModel` given an attention mask, and mean nothing. Of `BASE`, the padding is
    part of what the first norm averages over, there as here. Raises UserError for a layer that is not there, or
    audio that is too short.
    """
    for layer in layers:
        check_layer(cfg, layer)
    if audio.shape[1] < least_samples(cfg):
        raise UserError(f"WavLM hears {least_samples(cfg)} samples and more, not {audio.shape[1]}.")
    highest = max(layers)
    heard: Any
    if highest == CONVOLUTIONS:
        heard = {highest: FrontEnd(cfg).apply({"params": variables["params"]["front_end"]}, audio)}
    else:
        present = None if lengths is None else jnp.arange(num_frames(cfg, audio.shape[1])) < frames_of(cfg, lengths)
        heard = Network(cfg, highest).apply(_without_blocks_above(variables, highest), audio, present)
    return {layer: heard[layer] for layer in layers}


def check_layer(cfg: WavLMConfig, layer: int) -> None:
    """Raises UserError for one that is not there."""
    if not CONVOLUTIONS <= layer <= cfg.depth:
        raise UserError(f"this WavLM has layers {CONVOLUTIONS} (its convolutions) to {cfg.depth}, not {layer}.")


def num_frames(cfg: WavLMConfig, samples: Any) -> Any:
    """Frames of that many samples (an int, or an integer array)."""
    for kernel, stride in zip(cfg.conv_kernels, cfg.conv_strides):
        samples = (samples - kernel) // stride + 1
    return samples


def frames_of(cfg: WavLMConfig, lengths: Int[Array, " batch"]) -> Int[Array, "batch 1"]:
    """Frames of every clip."""
    return num_frames(cfg, lengths)[:, None]


def least_samples(cfg: WavLMConfig) -> int:
    """What one frame takes."""
    samples = 1
    for kernel, stride in zip(reversed(cfg.conv_kernels), reversed(cfg.conv_strides)):
        samples = (samples - 1) * stride + kernel
    return samples


def _without_blocks_above(variables: Variables, layer: int) -> Variables:
    params = variables["params"]
    return {"params": {**params, "blocks": jax.tree.map(lambda x: x[:layer], params.get("blocks", {}))}}


def flops(cfg: WavLMConfig, samples: int, highest: int) -> Counts:
    """Of one clip through layers up to `highest`, by module (see models/flops.py)."""
    counts, into, length = {}, 1, samples
    for i, (width, kernel, stride) in enumerate(zip(cfg.conv_widths, cfg.conv_kernels, cfg.conv_strides)):
        length = (length - kernel) // stride + 1
        counts[f"front_end/conv_{i}"] = 2.0 * length * kernel * into * width
        into = width
    if highest == CONVOLUTIONS:
        return counts
    square = 2.0 * length * cfg.width**2
    counts["projection"] = 2.0 * length * into * cfg.width
    counts["positions"] = conv((length,), (cfg.position_kernel,)) * cfg.width**2 / cfg.position_groups
    counts["blocks/projections"] = highest * 4 * square
    counts["blocks/attention"] = highest * 2 * 2.0 * length**2 * cfg.width
    counts["blocks/mlp"] = highest * 2 * 2.0 * length * cfg.width * cfg.hidden
    return counts
