"""TAAE inference in PyTorch: the twin of `codec_jax.models.taae`, on torch and the standard library alone.

    from codec_jax import pytorch

    model = pytorch.load("stable-codec-speech-16k")          # upstream's model_config.json and weights
    tokens = model.encode(audio)                             # [batch, channel, time] -> [batch, codebook, frame]
    audio = model.decode(tokens, length=audio.shape[-1])
    tokens = model.encode(audio, "2x15625_700bps")           # another rate, chosen after training

The modules are upstream's by name, so state dicts go both ways, and `fsq` gives upstream's tokens. Nothing outside this
folder is imported: it may be copied into another project as it is.
"""

from . import fsq
from .checkpoint import load
from .taae import TAAE

MODELS = {"taae": TAAE}

__all__ = ["MODELS", "TAAE", "fsq", "load"]
