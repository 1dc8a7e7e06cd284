"""Neural speech codecs in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codec_jax.bitstream import Encoded
    from codec_jax.codec import Codec
    from codec_jax.errors import UserError
    from codec_jax.sources import load

__all__ = ["Codec", "Encoded", "UserError", "load"]
__version__ = "0.1.0"

_HOME = {"Codec": "codec", "Encoded": "bitstream", "UserError": "errors", "load": "sources"}


def __getattr__(name: str) -> Any:
    """Imports on first use, so that `codec_jax.pytorch` needs no JAX and `codec-jax --help` does not wait for it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
