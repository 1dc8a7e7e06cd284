"""Residual FSQ that a codec is trained with: the first n of its codebooks are a codec of their own, for every n.

Stage i has the same L levels in every dimension at scale (1 / (L - 1))^i: what a stage leaves over lies within half its
step, and that is the next stage's scale. Five levels and two stages are the preset 2x15625_700bps, three levels and
four stages 4x729_1000bps (spec TAAE section 4.2). Here is the training side, float32 and traced; tokens of a trained
codec come from `residual_fsq`, in float64 on the host, and may differ where a latent lies on a decision boundary.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, Key

from codec_jax.quantizers import fsq, vq
from codec_jax.quantizers.fsq import Levels
from codec_jax.quantizers.residual_fsq import Stages


def stages(levels: Levels, num_codebooks: int) -> Stages:
    """The stages as `residual_fsq` takes them; levels are equal in all dimensions, three or more."""
    return tuple((levels, (levels[0] - 1.0) ** -number) for number in range(num_codebooks))


def quantise(
    z: Float[Array, "batch frame dim"], stages: Stages
) -> tuple[Float[Array, "stage batch frame dim"], Int32[Array, "batch stage frame"]]:
    """Every stage's codes, without gradients, and tokens. z is after tanh."""
    residual, codes, tokens = jax.lax.stop_gradient(z.astype(jnp.float32)), [], []
    for levels, scale in stages:
        tokens.append(fsq.codes_to_indices(residual, levels, scale))
        codes.append(fsq.indices_to_codes(tokens[-1], levels, scale))
        residual -= codes[-1]
    return jnp.stack(codes), jnp.stack(tokens, 1)


def dither(
    z: Float[Array, "batch frame dim"], stages: Stages, kept: Int[Array, " batch"], draws: fsq.Draws
) -> tuple[Float[Array, "batch frame dim"], Int32[Array, "batch stage frame"]]:
    """The training mixture of `fsq.dither`, of the first `kept` stages of every clip, and the tokens of all stages.

    Rounding is to the sum of the kept stages (straight-through), and the noise is one step of the finest stage kept
    wide: as wide as the error that these stages make. z is after tanh.
    """
    z = z.astype(jnp.float32)
    codes, tokens = quantise(z, stages)
    counts = (np.arange(len(stages))[:, None] < kept).astype(jnp.float32)
    hard = (counts[:, :, None, None] * codes).sum(0) + (z - jax.lax.stop_gradient(z))
    steps = jnp.stack([fsq.step_size(*stage) for stage in stages])[kept - 1]
    noisy = z + (draws.uniform - 0.5) * steps[:, None]
    return jnp.where(draws.keep_hard, jnp.where(draws.keep_raw, z, hard), noisy), tokens


def train(
    latents: Float[Array, "batch frame dim"],
    clip_keys: Key[Array, " batch"],
    stages: Stages,
    noise_dropout: float,
    codebook_dropout: float,
) -> tuple[Float[Array, "batch frame dim"], Int32[Array, "batch stage frame"]]:
    """Codes with gradients, and the tokens of what the latents round to. Latents are before tanh.

    Every clip draws from its own key: with probability `codebook_dropout` 1 to all codebooks, else all of them.
    """
    counting, noise = jnp.moveaxis(jax.vmap(jax.random.split)(clip_keys), 1, 0)
    kept = jax.vmap(lambda key: vq.draw_streams(key, len(stages), codebook_dropout))(counting)
    draws = fsq.sample_draws(noise, latents.shape, noise_dropout)
    return dither(jnp.tanh(latents.astype(jnp.float32)), stages, kept, draws)


def level_counts(tokens: Int[Array, "batch stage frame"], levels: Levels) -> Int32[Array, "codebook level"]:
    """How often every level occurs, of every dimension of every stage, stage by stage."""
    digits = tokens[..., None] // fsq.basis(levels) % np.asarray(levels)
    counts = jax.nn.one_hot(digits, levels[0], dtype=jnp.int32).sum((0, 2))
    return counts.reshape(-1, levels[0])
