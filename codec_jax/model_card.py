"""The README.md of an exported model: what it is, at which rates, and how to load it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import codec_jax
from codec_jax import convert, experiment, models
from codec_jax.models.protocol import Rate

if TYPE_CHECKING:
    from codec_jax.sources import Model


def text(model: "Model", parameters: int, target: str) -> str:
    """Markdown with the front matter that model hubs read."""
    family = models.FAMILIES[model.family]
    geometry = family.geometry(model.config)
    frame_rate = geometry.sample_rate / geometry.hop_length
    origin = "imported weights" if model.extras.upstream else "weights"
    if model.weights:
        origin = {"ema": "EMA weights", "raw": "raw weights (no EMA)"}[model.weights]
    step = f" of step {model.step:,}" if model.step is not None else ""
    return f"""---
library_name: codec_jax
tags: [audio, speech, neural-codec, {model.family}]
---

# {model.family.upper()} speech codec

| | |
|---|---|
| sample rate | {geometry.sample_rate} Hz, {geometry.channels} channel{"s" * (geometry.channels > 1)} |
| frames | {frame_rate:g} per second, {geometry.hop_length} samples each |
| parameters | {parameters:,} |
| weights | {origin}{step}, float32 |
| written by | codec_jax {codec_jax.__version__} |
| config hash | `sha256:{experiment.codec_hash(model.family, model.config)}` |

## Rates

| rate | codebooks | bit/s |
|---|---|---|
{_rates(model)}

## Loading

In PyTorch, with torch alone (CPU, CUDA, MPS; no flash-attention):

```python
import codec_jax.pytorch

codec = codec_jax.pytorch.load("path/to/this/directory")
tokens = codec.encode(audio)  # [batch, channel, time] at {geometry.sample_rate} Hz
audio = codec.decode(tokens)
```

In JAX:

```python
import codec_jax

codec = codec_jax.load("path/to/this/directory")
tokens = codec.encode(audio, sample_rate=44_100)
audio = codec.decode(tokens)
```
{convert.FAMILIES[model.family].LOADING if target == "upstream" else _TWIN_ONLY}"""


_TWIN_ONLY = """
Upstream's own code cannot express this model; codec_jax can.
"""


def bitrate(family: str, config: Any, rate: Rate) -> float:
    """Nominal bits per second."""
    geometry = models.FAMILIES[family].geometry(config)
    sizes = models.FAMILIES[family].codebook_sizes(config, rate)
    return geometry.sample_rate / geometry.hop_length * sum((size - 1).bit_length() for size in sizes)


def codebooks(sizes: Sequence[int]) -> str:
    """Sizes of codebooks in few words: many are counted."""
    if len(sizes) > _MANY and len(set(sizes)) == 1:
        return f"{len(sizes)} of {sizes[0]}"
    return " x ".join(map(str, sizes))


_MANY = 2


def _rates(model: "Model") -> str:
    """A row for every named rate of this model."""
    family, config = models.FAMILIES[model.family], model.config
    return "\n".join(
        f"| `{name}` | {codebooks(family.codebook_sizes(config, rate))} | {bitrate(model.family, config, rate):g} |"
        for name, rate in family.rates(config).items()
    )
