"""The ladder: one rule from a number of parameters to a codec, and what a rung costs.

A base experiment gives everything but size: patches, strides, latents, windows, losses, data. A rung changes its width
and depth alone. Of all shapes that are allowed, the one is chosen with the smallest

    |log(parameters / asked)| + 0.1 · |log(aspect / the family's)|

TAAE: aspect is the width over the layers of one half, 36 as in the paper's 953 M parameters (1,024 wide, 28 layers
a half). Widths are multiples of 8 below 128, with one head, and multiples of 128 from there on, with heads of 128:
upstream fixes them. Layers are spread over the stages as in the base, every stage has one at least.
ESC: aspect is the coarsest scale's width over the blocks of a stage, 192 as in upstream's base (384, 2). All widths
grow by one factor, each rounded to what the heads of its scale divide; heads stay as many; blocks come in pairs, of
plain and of shifted windows.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from codec_jax import models
from codec_jax.errors import require
from codec_jax.experiment import Experiment
from codec_jax.models.autoencoder import TAAEConfig
from codec_jax.models.esc_config import Config as ESCCodec
from codec_jax.models.esc_config import ESCConfig
from codec_jax.ops import platform
from codec_jax.train import cost, stages

ASPECT = {"taae": 36.0, "esc": 192.0}
ASPECT_WEIGHT = 0.1
_NARROWEST, _WIDEST = 16, 4096
_MOST_LAYERS = 128
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}


class Rung(NamedTuple):
    """A size of the ladder. asked, params: parameters of the codec, the latter exact. layers: of one half (TAAE), or
    blocks of a stage (ESC). width: of the widest stage or scale.
    """

    experiment: Experiment
    asked: int
    params: int
    width: int
    layers: int

    @property
    def miss(self) -> float:
        """How far it misses what was asked for, as a share of it: 0.02 is two per cent too many."""
        return self.params / self.asked - 1


# ---- names -------------------------------------------------------------------------------------


def parse_size(text: str) -> int:
    """A number of parameters, as 30m, 0.1m, 1b or 300000."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)([kmb]?)", text.strip().lower())
    size = round(float(found[1]) * _UNITS[found[2]]) if found else 0
    require(size > 0, f'"{text}" is no number of parameters: write it as 30m, 0.1m, 2b or 300000.')
    return size


def size_name(params: int) -> str:
    """Three digits and a unit, without a point: 98k, 1270k, 29m, 953m, 2010m."""
    divisor, unit = (1, "") if params < 10_000 else (1_000, "k") if params < 10_000_000 else (1_000_000, "m")
    scaled = params / divisor
    return f"{round(scaled, 2 - math.floor(math.log10(scaled))):.0f}{unit}" if scaled >= 100 else f"{scaled:.0f}{unit}"


def variant(base: Experiment, name: str) -> Experiment:
    """What `ladder-30m` or, of twelve layers, `ladder-30m-d12` names. Raises ValueError for anything else."""
    found = re.fullmatch(r"ladder-([0-9.]+[kmb]?)(?:-d(\d+))?", name)
    if not found:
        raise ValueError(f"{name} is no rung: write ladder-30m, or ladder-30m-d12 for another depth.")
    return resize(base, parse_size(found[1]), int(found[2]) if found[2] else None)


# ---- the rule ----------------------------------------------------------------------------------


def resize(base: Experiment, params: int, layers: int | None = None) -> Experiment:
    """The base with as close to `params` parameters as the rule allows, see `rung`."""
    return rung(base, params, layers).experiment


@functools.lru_cache(maxsize=256)
def _rung(family: str, model: Any, bottleneck: Any, params: int, layers: int | None) -> tuple[Any, int, int, int]:
    codec_type = models.FAMILIES[family].Config
    base, aspect = codec_type(model, bottleneck), ASPECT[family]
    shapes = {"taae": _taae_shapes, "esc": _esc_shapes}[family]

    def chosen(target: float) -> tuple[Any, int, int, int]:
        def score(shape: tuple[Any, int, int, int]) -> float:
            _, width, depth, count = shape
            away = 0.0 if layers else abs(math.log(width / depth / aspect))
            return abs(math.log(count / target)) + ASPECT_WEIGHT * away

        found, width, depth, estimate = min(shapes(base, target, layers), key=score)
        return found, width, depth, estimate

    found, width, depth, estimate = chosen(float(params))
    exact = count(family, codec_type(found, bottleneck))
    if exact != estimate:
        # Exact for plain models. Where the base has parts that it does not count, once more for the rest.
        found, width, depth, _ = chosen(params * estimate / exact)
        exact = count(family, codec_type(found, bottleneck))
    return found, exact, width, depth


def rung(base: Experiment, params: int, layers: int | None = None) -> Rung:
    """The base, which may be of any size, with as close to `params` parameters of the codec as the rule allows.

    layers: instead of the fixed aspect, so many layers of a half (blocks of a stage for ESC), and the width to fit.
    Raises UserError where the smallest or largest shape is more than half an octave away.
    """
    require(params > 0, f"a ladder's rung needs a positive number of parameters, not {params}.")
    least = 2 if base.family == "esc" else len(base.model.strides) if base.family == "taae" else 1
    if layers is not None:
        even = base.family != "esc" or layers % 2 == 0
        rule = "an even number of blocks of a stage, 2 at least" if base.family == "esc" else f"{least} layers at least"
        require(layers >= least and even and layers <= _MOST_LAYERS, f"a rung has {rule}, not {layers}.")
    model, exact, width, depth = _rung(base.family, base.model, base.bottleneck, params, layers)
    require(
        abs(math.log2(exact / params)) < 0.5,
        f"no shape of this {base.family} comes near {params:,} parameters: the nearest has {exact:,}; ask for that.",
    )
    return Rung(dataclasses.replace(base, model=model), params, exact, width, depth)


def spread_layers(total: int, shares: tuple[int, ...]) -> tuple[int, ...]:
    """`total` layers over stages in these proportions, at least one each; what is left over goes to the last of equals.

    Raises ValueError for fewer layers than stages.
    """
    if total < len(shares):
        raise ValueError(f"{total} layers for {len(shares)} stages")
    shares = tuple(max(share, 1) for share in shares)
    ideal = [total * share / sum(shares) for share in shares]
    found = [max(1, math.floor(x)) for x in ideal]
    while sum(found) != total:
        step = 1 if sum(found) < total else -1
        open_ = [i for i in range(len(found)) if step > 0 or found[i] > 1]
        found[max(open_, key=lambda i: (step * (ideal[i] - found[i]), i))] += step
    return tuple(found)


def _taae_shapes(base: Any, target: float, layers: int | None) -> Iterator[tuple[TAAEConfig, int, int, int]]:
    """Every shape near the target, and the smallest: model, width, layers of a half, parameters."""
    model: TAAEConfig = base.model
    least, widest = len(model.strides), max(model.c_mults)
    for channels in _channels(model):
        bare = dataclasses.replace(model, channels=channels, transformer_depths=(0,) * least)
        layer = 2 * _block_parameters(model.head_dim, widest * channels)
        nearest = (target - _taae_parameters(bare)) / layer
        depths = {layers} if layers else {math.floor(nearest), math.ceil(nearest), least}
        for depth in sorted(depths):
            if least <= depth <= _MOST_LAYERS:
                spread = spread_layers(depth, model.transformer_depths)
                shape = dataclasses.replace(bare, transformer_depths=spread)
                yield shape, widest * channels, depth, _taae_parameters(shape)


def _channels(model: TAAEConfig) -> list[int]:
    """Multiples of 8 up to one head, then of whole heads, at every stage."""
    one = range(_NARROWEST, model.head_dim, 8)
    several = range(model.head_dim * math.ceil(_NARROWEST / model.head_dim), _WIDEST + 1, model.head_dim)
    return [
        channels
        for channels in (*one, *several)
        if all((m * channels) % min(model.head_dim, m * channels) == 0 for m in model.c_mults)
    ]


def _block_parameters(head_dim: int, width: int) -> int:
    """Attention 4 w², gated feed-forward 12 w² with biases, norms and layer scales, norms of queries and keys."""
    return 16 * width**2 + 9 * width + 4 * width + 4 * min(head_dim, width)


def _taae_parameters(model: TAAEConfig) -> int:
    """Both halves, of a model without conformer, snake and dilated units, with an FSQ."""
    samples, (first, last) = model.patch_size * model.audio_channels, (model.widths[0], model.widths[-1])
    total = 7 * samples * first * 2 + 2 * first + samples  # kernels in and out; g and bias, and g alone
    total += 3 * model.latent_dim * last * 2 + 2 * model.latent_dim + 2 * last
    outer = model.widths[0]
    for width, stride, depth in zip(model.widths, model.strides, model.transformer_depths, strict=True):
        total += 2 * depth * _block_parameters(model.head_dim, width)
        if stride > 1:
            total += 2 * 2 * stride * outer * width + 2 * width + width + outer
        outer = width
    return total


def _esc_shapes(base: ESCCodec, target: float, layers: int | None) -> Iterator[tuple[ESCConfig, int, int, int]]:
    """For every depth the factor of all widths that comes nearest."""
    for depth in [layers] if layers else range(2, 25, 2):
        low, high = 1e-2, 64.0
        for _ in range(40):
            factor = math.sqrt(low * high)
            fits = _esc_parameters(_esc_scaled(base, factor, depth)) < target
            low, high = (factor, high) if fits else (low, factor)
        for factor in (low, high):
            found = _esc_scaled(base, factor, depth)
            yield found.model, found.model.h_dims[-1], depth, _esc_parameters(found)


def _esc_scaled(base: ESCCodec, factor: float, depth: int) -> ESCCodec:
    """All widths times one factor, rounded to multiples of what the heads at both sides of a scale need."""
    model, heads = base.model, base.model.num_heads
    units = [math.lcm(heads[max(i - 1, 0)], heads[min(i, len(heads) - 1)]) for i in range(model.scales)]
    widths = tuple(max(1, round(factor * width / unit)) * unit for width, unit in zip(model.h_dims, units, strict=True))
    scaled = dataclasses.replace(model, h_dims=widths)
    if model.backbone == "transformer":
        return dataclasses.replace(base, model=dataclasses.replace(scaled, depth=depth))
    return dataclasses.replace(base, model=dataclasses.replace(scaled, conv_depth=depth))


def _esc_parameters(cfg: ESCCodec) -> int:
    """Of a transformer with csvq: blocks, resampling, patches, projections and codebooks."""
    model, vq, last = cfg.model, cfg.bottleneck, cfg.model.scales - 1
    high, wide = model.patch_size
    first = model.h_dims[0]
    total = 2 * high * wide * first + first + 2 * first  # patch embedding and its norm
    total += (25 * first + 1) * high * wide * first + (9 * first + 1) * 2  # and back
    total += 2 * _swin_parameters(model, 0, model.num_heads[0])
    for i in range(last):
        here, there = model.h_dims[i], model.h_dims[i + 1]
        total += _swin_parameters(model, i, model.num_heads[i]) + _swin_parameters(model, i + 1, model.num_heads[i])
        total += 4 * here + 2 * here * there  # merging pairs of rows
        total += 2 * there + there * 2 * here  # splitting
    for stream in range(vq.num_streams if vq.quantiser == "csvq" else 1):
        scale = cfg.scale(stream)
        entries = vq.overlap * model.rows(scale) * model.h_dims[scale]
        total += vq.codebook_dims[stream] * (2 * entries + vq.num_groups * vq.codebook_size)
    return total


def _swin_parameters(model: ESCConfig, scale: int, heads: int) -> int:
    width = model.h_dims[scale]
    hidden = int(width * model.mlp_ratio)
    table = (2 * model.window_size - 1) ** 2 * heads
    attention = 4 * width**2 + 4 * width + table
    return model.depth * (attention + 2 * width * hidden + hidden + width + 4 * width)


# ---- what a rung costs -------------------------------------------------------------------------


def count(family: str, codec: Any) -> int:
    """Parameters of a codec, exactly: the shapes that initialising it would give."""
    shapes = jax.eval_shape(lambda: nn.unbox(models.FAMILIES[family].init(codec, jax.random.key(0)))["params"])
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def parameters(experiment: Experiment) -> int:
    """Parameters of an experiment's codec, exactly."""
    return count(experiment.family, experiment.codec)


class Work(NamedTuple):
    """FLOPs per second of audio: the codec's forward and backward, and the whole step's (losses and other players too).

    What the mathematics asks for: no recomputation. Over all stages of a run, weighted with their steps.
    """

    forward: float
    backward: float
    step: float


def work(experiment: Experiment, target: str = "cpu") -> Work:
    """Work per second of audio, from the config alone (train/cost.py). target: platform whose attention and transforms
    are counted, "cpu", "gpu" or "tpu".
    """
    geometry = models.FAMILIES[experiment.family].geometry(experiment.codec)
    seconds = experiment.data.batch_size * experiment.crop_samples / geometry.sample_rate
    every = stages.resolve(experiment)
    total = {"forward": 0.0, "backward": 0.0, "step": 0.0}
    with platform.tracing_for(target):
        for stage in every:
            costs, share = cost.step_flops(experiment, stage), stage.steps / every[-1].stop / seconds
            total["forward"] += share * costs["codec"]["forward"]
            total["backward"] += share * costs["codec"]["backward"]
            total["step"] += share * cost.total(costs, recompute=False)
    return Work(**total)


def bitrate(experiment: Experiment) -> float:
    """Nominal bits per second of the rate that the codec is trained and validated at; 0 without a bottleneck."""
    family, codec = models.FAMILIES[experiment.family], experiment.codec
    if not family.has_tokens(codec):
        return 0.0
    geometry = family.geometry(codec)
    sizes = family.codebook_sizes(codec, family.rate(codec, None, None))
    bits = sum((size - 1).bit_length() for size in sizes)
    return bits * geometry.sample_rate / geometry.hop_length
