"""What the codec is trained on: the reconstruction terms of one forward pass, weighted and added."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from codec_jax.experiment import LossConfig
from codec_jax.losses import spectral, waveform
from codec_jax.models.protocol import Forward


def reconstruction(
    forward: Forward, losses: LossConfig, sample_rate: int
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The weighted sum and every term unweighted, by the names under which they are logged.

    Terms of weight zero are neither computed nor logged. The spectral convergence of `stft` is measured against the
    decoded audio, as upstream calls it (spec TAAE section 6).
    """
    real, fake = forward.target.swapaxes(1, 2), forward.audio.swapaxes(1, 2)  # [batch, channel, time]
    flat_real, flat_fake = (x.reshape(-1, x.shape[-1]) for x in (real, fake))
    computed = {
        "l1": (losses.l1, lambda: waveform.l1(flat_real, flat_fake)),
        "l2": (losses.l2, lambda: waveform.l2(flat_real, flat_fake)),
        "stft": (losses.stft, lambda: spectral.multi_resolution_stft(flat_real, flat_fake, losses.mrstft)),
        "mel": (losses.mel, lambda: spectral.mel_distance(flat_real, flat_fake, sample_rate).mean()),
    }
    terms = {name: term() for name, (weight, term) in computed.items() if weight}
    terms |= forward.losses
    total = sum((computed[name][0] * value for name, value in terms.items() if name in computed), jnp.float32(0.0))
    return total + sum(forward.losses.values(), jnp.float32(0.0)), terms
