"""The README.md of an exported model: what it is, at which rates, and how to load it."""

from typing import TYPE_CHECKING

import codec_jax
from codec_jax import experiment, models
from codec_jax.quantizers import residual_fsq

if TYPE_CHECKING:
    from codec_jax.sources import Model

_UPSTREAM = """
With stable-audio-tools:

```python
import json
from safetensors.torch import load_file
from stable_audio_tools.models import create_model_from_config

model = create_model_from_config(json.load(open("model_config.json")))
model.load_state_dict(load_file("model.safetensors"), strict=True)
```

Upstream honours the attention window only where flash-attention is installed, and otherwise attends to everything.
"""


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

| bottleneck | codebooks | bit/s |
|---|---|---|
{_rates(model, frame_rate)}

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
{_UPSTREAM if target == "upstream" else _TWIN_ONLY}"""


_TWIN_ONLY = """
Upstream's own code cannot express this model; codec_jax can.
"""


def _rates(model: "Model", frame_rate: float) -> str:
    """A row for every bottleneck that this model can run with."""
    family = models.FAMILIES[model.family]
    rows = []
    for name in ("train", *residual_fsq.PRESETS):
        try:
            sizes = family.codebook_sizes(model.config, family.rate(model.config, name, None))
        except codec_jax.UserError:  # a preset for another number of latent dimensions
            continue
        bits = sum((size - 1).bit_length() for size in sizes)
        rows.append(f"| `{name}` | {' x '.join(map(str, sizes))} | {frame_rate * bits:g} |")
    return "\n".join(rows)
