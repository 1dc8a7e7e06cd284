"""Adversarial losses of several judges (spec TAAE section 6, spec ESC section 6). All float32.

Every loss is a mean over judges, or a sum, of means over everything, so a judge can be computed, differentiated and
forgotten alone. Which of the two, and how logits are scored, is the game: `GAMES`. Nothing is detached here: whoever
trains the generator stops the gradient of the real side, whoever trains the discriminator that of the decoded audio.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from codec_jax.models.discriminators import Judgement

_FLOOR = 1e-3

# ---- one judge ----------------------------------------------------------------------------------


def hinge_discriminator(real: Float[Array, "*shape"], fake: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Mean max(0, 1 - D(x)) + mean max(0, 1 + D(x̂)), of the logits of one judge; 2 where it cannot tell."""
    return jax.nn.relu(1 - _f32(real)).mean() + jax.nn.relu(1 + _f32(fake)).mean()


def hinge_generator(fake: Float[Array, "*shape"]) -> Float[Array, ""]:
    """-mean D(x̂), of the logits of one judge."""
    return -_f32(fake).mean()


def least_squares_discriminator(real: Float[Array, "*shape"], fake: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Mean (1 - D(x))² + mean D(x̂)², of the logits of one judge; 1/2 where it cannot tell."""
    return jnp.square(1 - _f32(real)).mean() + jnp.square(_f32(fake)).mean()


def least_squares_generator(fake: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Mean (1 - D(x̂))², of the logits of one judge."""
    return jnp.square(1 - _f32(fake)).mean()


def feature_matching(
    real: Sequence[Float[Array, "..."]], fake: Sequence[Float[Array, "..."]], *, normalize: bool
) -> Float[Array, ""]:
    """Mean over the feature maps of one judge of mean|a - b|, a real and b decoded, both of one shape.

    normalize: each map's distance over mean|a| + 1e-3, so that no layer counts more for its scale (the
    paper's main signal to the generator).
    """
    distances = []
    for a, b in zip(real, fake, strict=True):
        distance = jnp.abs(_f32(a) - _f32(b)).mean()
        distances.append(distance / (jnp.abs(_f32(a)).mean() + _FLOOR) if normalize else distance)
    return jnp.stack(distances).mean()


def feature_distance(real: Sequence[Float[Array, "..."]], fake: Sequence[Float[Array, "..."]]) -> Float[Array, ""]:
    """Sum over the feature maps of one judge of mean|a - b|, whatever their number and their scale."""
    return jnp.stack([jnp.abs(_f32(a) - _f32(b)).mean() for a, b in zip(real, fake, strict=True)]).sum()


class Game(NamedTuple):
    """How both players are scored.

    discriminator: logits of real and decoded audio, of one judge, to its loss. generator: logits of decoded audio to
    the codec's. averaged: over judges, and `feature_matching` over maps; else both are sums, and maps count by
    `feature_distance`. boundary: logits above it say "real".
    """

    discriminator: Callable[[Array, Array], Array]
    generator: Callable[[Array], Array]
    averaged: bool
    boundary: float


# One averages and the other sums because their sources do: upstream TAAE's, and DAC's, which ESC takes over.
GAMES = {
    "hinge": Game(hinge_discriminator, hinge_generator, averaged=True, boundary=0.0),
    "least_squares": Game(least_squares_discriminator, least_squares_generator, averaged=False, boundary=0.5),
}


# ---- all judges of a hinge game ----------------------------------------------------------------


def discriminator_loss(real: Sequence[Judgement], fake: Sequence[Judgement]) -> Float[Array, ""]:
    """Hinge loss of the discriminators, averaged over judges."""
    return _mean(hinge_discriminator(r.logits, f.logits) for r, f in zip(real, fake, strict=True))


def generator_loss(fake: Sequence[Judgement]) -> Float[Array, ""]:
    """The generator's adversarial loss, averaged over judges."""
    return _mean(hinge_generator(f.logits) for f in fake)


def feature_matching_loss(real: Sequence[Judgement], fake: Sequence[Judgement], *, normalize: bool) -> Float[Array, ""]:
    """Feature matching, averaged over judges."""
    pairs = zip(real, fake, strict=True)
    return _mean(feature_matching(r.features, f.features, normalize=normalize) for r, f in pairs)


def _mean(terms) -> Array:
    return jnp.stack(list(terms)).mean()


def _f32(x: Array) -> Array:
    return x.astype(jnp.float32)
