"""Bit rates of a sweep: which knob of a codec sets them, and the experiment that has one."""

import dataclasses
import math
from typing import Any

from codec_jax.errors import UserError
from codec_jax.experiment import Experiment
from codec_jax.scaling import ladder

_MISS = 0.1  # farther than this from what was asked for, none is taken


def at_rate(base: Experiment, bitrate: float | None) -> Experiment:
    """The base with the nominal rate nearest to `bitrate`; None leaves it alone.

    The knob, and nothing else, is: TAAE with one FSQ codebook, the levels, equal in all dimensions (and no level sets
    drawn in training: a run serves the rate that it is measured at); TAAE with several codebooks, their number; ESC
    with csvq, whose streams belong to its scales, the size of the codebooks, a power of two; ESC with rvq, the streams.
    Raises UserError where the nearest is more than a tenth away, with those around.
    """
    if bitrate is None:
        return base
    choices = dict(_rates(base))
    nearest = min(choices, key=lambda rate: abs(rate - bitrate)) if choices else math.nan
    if not choices or not abs(nearest / bitrate - 1) <= _MISS:
        around_ = sorted(choices, key=lambda rate: abs(rate - bitrate))[:4]
        known = ", ".join(f"{rate:g}" for rate in sorted(around_)) or "none at all"
        raise UserError(f"{bitrate:g} bit/s is no rate of this bottleneck; the nearest are {known}.")
    return choices[nearest]


def _rates(base: Experiment) -> list[tuple[float, Experiment]]:
    bottleneck = base.bottleneck
    changes: list[dict[str, Any]]
    if base.family == "esc":
        csvq = bottleneck.quantiser == "csvq"
        changes = [{"codebook_size": 2**bits} if csvq else {"num_streams": bits} for bits in range(1, 15)]
    elif bottleneck.kind == "none":
        return []
    elif bottleneck.in_streams:
        changes = [{"num_codebooks": number} for number in range(1, 25)]
    else:
        dims = base.model.latent_dim
        changes = [{"levels": (levels,) * dims, "train_levels": ()} for levels in range(2, 34)]
    found = []
    for change in changes:
        changed = dataclasses.replace(base, bottleneck=dataclasses.replace(bottleneck, **change))
        try:
            changed.codec.validate()
        except UserError:
            continue
        found.append((ladder.bitrate(changed), changed))
    return found
