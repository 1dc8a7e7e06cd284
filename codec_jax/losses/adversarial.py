"""Adversarial losses of a discriminator with several scales (spec TAAE section 6). All float32.

Every loss is a mean over scales of means over everything, so a scale can be computed, differentiated and
forgotten alone: use the functions of one scale and divide by the number of scales. Nothing is detached here:
whoever trains the generator stops the gradient of the real side, whoever trains the discriminator that of the
decoded audio.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from codec_jax.models.discriminators import Judgement

_FLOOR = 1e-3

# ---- one scale ----------------------------------------------------------------------------------


def hinge_discriminator(real: Float[Array, "*shape"], fake: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Mean max(0, 1 - D(x)) + mean max(0, 1 + D(x̂)), of the logits of one scale; 2 where it cannot tell."""
    return jax.nn.relu(1 - _f32(real)).mean() + jax.nn.relu(1 + _f32(fake)).mean()


def hinge_generator(fake: Float[Array, "*shape"]) -> Float[Array, ""]:
    """-mean D(x̂), of the logits of one scale."""
    return -_f32(fake).mean()


def feature_matching(
    real: Sequence[Float[Array, "..."]], fake: Sequence[Float[Array, "..."]], *, normalize: bool
) -> Float[Array, ""]:
    """Mean over the feature maps of one scale of mean|a - b|, a real and b decoded, both of one shape.

    normalize: each map's distance over mean|a| + 1e-3, so that no layer counts more for its scale (the
    paper's main signal to the generator).
    """
    distances = []
    for a, b in zip(real, fake, strict=True):
        distance = jnp.abs(_f32(a) - _f32(b)).mean()
        distances.append(distance / (jnp.abs(_f32(a)).mean() + _FLOOR) if normalize else distance)
    return jnp.stack(distances).mean()


# ---- all scales --------------------------------------------------------------------------------


def discriminator_loss(real: Sequence[Judgement], fake: Sequence[Judgement]) -> Float[Array, ""]:
    """Hinge loss of the discriminator, averaged over scales."""
    return _mean(hinge_discriminator(r.logits, f.logits) for r, f in zip(real, fake, strict=True))


def generator_loss(fake: Sequence[Judgement]) -> Float[Array, ""]:
    """The generator's adversarial loss, averaged over scales."""
    return _mean(hinge_generator(f.logits) for f in fake)


def feature_matching_loss(real: Sequence[Judgement], fake: Sequence[Judgement], *, normalize: bool) -> Float[Array, ""]:
    """Feature matching, averaged over scales."""
    pairs = zip(real, fake, strict=True)
    return _mean(feature_matching(r.features, f.features, normalize=normalize) for r, f in pairs)


def _mean(terms) -> Array:
    return jnp.stack(list(terms)).mean()


def _f32(x: Array) -> Array:
    return x.astype(jnp.float32)
