"""Codecs with published weights, through transformers on torch: EnCodec, DAC, Mimi. Imported when asked for.

Weights come from the hub's cache, or are fetched where the network allows. Codes are counted in bits, as if packed
without a container. None of these models delays: all pad both sides of their convolutions, or trim.
"""

import functools
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from codec_jax.audio.resample import resample
from codec_jax.errors import require
from codec_jax.evaluate.peers.missing import Missing
from codec_jax.evaluate.systems import Coded, System


def encodec(kbps: float) -> System:
    """EnCodec at 24 kHz."""
    return encodec_of(_model("EncodecModel", "facebook/encodec_24khz", "EnCodec"), kbps)


def dac(kbps: float) -> System:
    """DAC at 16 kHz, 0.5 kbit/s a codebook."""
    return dac_of(_model("DacModel", "descript/dac_16khz", "DAC"), kbps)


def mimi(kbps: float) -> System:
    """Mimi at 24 kHz, 0.1375 kbit/s a codebook."""
    return mimi_of(_model("MimiModel", "kyutai/mimi", "Mimi"), kbps)


def encodec_of(model: Any, kbps: float) -> System:
    """A given EncodecModel of transformers."""
    rates = model.config.target_bandwidths
    require(kbps in rates, f"encodec has no rate of {kbps:g} kbit/s: choose from {', '.join(f'{r:g}' for r in rates)}.")
    hop = math.prod(model.config.upsampling_ratios)

    def run(audio: Any) -> tuple[Any, Any]:
        coded = model.encode(audio, bandwidth=kbps)
        return coded.audio_codes[0], model.decode(coded.audio_codes, coded.audio_scales)[0]

    count = round(1000 * kbps * hop / model.config.sampling_rate / math.log2(model.config.codebook_size))
    return _system("encodec", "EnCodec", model, kbps, hop, count, run)


def dac_of(model: Any, kbps: float) -> System:
    """A given DacModel of transformers."""
    hop, count = (
        model.config.hop_length,
        _codebooks("dac", model, model.config.hop_length, model.config.n_codebooks, kbps),
    )

    def run(audio: Any) -> tuple[Any, Any]:
        codes = model.encode(audio, n_quantizers=count).audio_codes
        return codes, model.decode(audio_codes=codes).audio_values

    return _system("dac", "DAC", model, kbps, hop, count, run)


def mimi_of(model: Any, kbps: float) -> System:
    """A given MimiModel of transformers."""
    hop = round(model.config.sampling_rate / model.config.frame_rate)
    count = _codebooks("mimi", model, hop, model.config.num_quantizers, kbps)

    def run(audio: Any) -> tuple[Any, Any]:
        codes = model.encode(audio, num_quantizers=count).audio_codes
        return codes, model.decode(codes).audio_values

    return _system("mimi", "Mimi", model, kbps, hop, count, run)


def _system(name: str, label: str, model: Any, kbps: float, hop: int, count: int, run: Callable) -> System:
    """run: of a tensor [1, 1, time] in whole hops, codes [1, codebook, frame] and as much audio."""
    import torch

    rate, size = model.config.sampling_rate, model.config.codebook_size

    def code(audio: np.ndarray, sample_rate: int, stem: str) -> Coded:
        heard = resample(audio, sample_rate, rate)
        whole = np.pad(heard, (0, -len(heard) % hop))
        with torch.inference_mode():
            codes, decoded = run(torch.from_numpy(whole)[None, None])
        tokens = codes[0].numpy().astype(np.int32)
        num_bytes = -(-tokens.size * math.ceil(math.log2(size)) // 8)
        return Coded(resample(decoded.numpy().reshape(-1)[: len(heard)], rate, sample_rate), num_bytes, tokens)

    return System(f"{name}@{kbps:g}", name, f"{label}, {kbps:g} kbit/s", code, 1000 * kbps, rate, (size,) * count)


def _codebooks(name: str, model: Any, hop: int, most: int, kbps: float) -> int:
    """How many make this rate; UserError where that is no whole number, or more than there are."""
    each = model.config.sampling_rate / hop * math.log2(model.config.codebook_size) / 1000
    count = round(kbps / each)
    fine = 1 <= count <= most and math.isclose(count * each, kbps, rel_tol=1e-3)
    require(fine, f"{name} has no rate of {kbps:g} kbit/s: give a multiple of {each:g} up to {most * each:g}.")
    return count


@functools.cache
def _model(kind: str, hub: str, label: str) -> Any:
    if any(importlib.util.find_spec(package) is None for package in ("torch", "transformers")):
        raise Missing(f"{label} needs the packages torch and transformers")
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(hub).eval()
    except Exception as error:  # whatever the hub, the network or the file raises
        raise Missing(f"the weights {hub} cannot be loaded ({str(error).splitlines()[0]})") from error
