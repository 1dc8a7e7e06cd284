"""Neural speech codecs in JAX."""

from codec_jax.bitstream import Encoded
from codec_jax.codec import Codec
from codec_jax.errors import UserError
from codec_jax.load import load

__all__ = ["Codec", "Encoded", "UserError", "load"]
__version__ = "0.1.0"
