"""TAAE and ESC in PyTorch: the twins of `codec_jax.models`, on torch and the standard library alone.

    from codec_jax import pytorch

    model = pytorch.load("stable-codec-speech-16k")          # upstream's config and weights
    tokens = model.encode(audio)                             # [batch, channel, time] -> [batch, codebook, frame]
    audio = model.decode(tokens, length=audio.shape[-1])
    tokens = model.encode(audio, "2x15625_700bps")           # TAAE: another rate, chosen after training
    tokens = model.encode(audio, num_streams=2)              # ESC: fewer streams

The modules are upstream's by name, so state dicts go both ways, and the tokens are upstream's. Nothing outside this
folder is imported: it may be copied into another project as it is.
"""

from . import fsq
from .checkpoint import load
from .esc import ESC
from .taae import TAAE

MODELS = {"taae": TAAE, "esc": ESC}

__all__ = ["ESC", "MODELS", "TAAE", "fsq", "load"]
