import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_jax.audio import resample as module
from codec_jax.audio.resample import resample, resampled_length, source_span
from codec_jax.errors import UserError


@pytest.mark.parametrize("rate", [8000, 22050, 24000, 44100, 48000])
def test_equals_upstream(golden, rate):
    tensors = golden("taae/misc/tensors.safetensors")
    got = resample(tensors[f"resample/{rate}/x"], rate, 16000)
    want = tensors[f"resample/{rate}/y"]
    assert got.shape == want.shape
    assert got.dtype == np.float32
    assert np.abs(got - want).max() < 1e-6


def direct(x, orig, new):
    """The definition, one output at a time, in float64."""
    divisor = math.gcd(orig, new)
    orig, new = orig // divisor, new // divisor
    base = min(orig, new) * 0.99 / orig  # cut-off relative to the input's rate
    out = []
    for m in range(-(-new * len(x) // orig)):
        t = np.clip((np.arange(len(x)) - m * orig / new) * base, -6, 6)
        out.append(np.sum(x * np.sinc(t) * np.cos(t * np.pi / 12) ** 2 * base))
    return np.array(out)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([8000, 11025, 16000, 22254, 44100, 15999]),
    st.sampled_from([16000, 24000, 44100]),
    st.integers(1, 700),
)
def test_equals_the_definition_at_any_ratio_and_length(orig, new, time):
    x = np.random.default_rng(time).standard_normal(time).astype(np.float32)
    got = resample(x, orig, new)
    assert len(got) == resampled_length(time, orig, new) == math.ceil(new * time / orig)
    want = x if orig == new else direct(x, orig, new)
    assert np.abs(got - want).max() < 5e-6


def test_blocks_join_without_a_seam(rng, monkeypatch):
    x = rng.standard_normal((2, 1, 50_000)).astype(np.float32)
    whole = resample(x, 44100, 16000)
    monkeypatch.setattr(module, "_BLOCK_SAMPLES", 4410)
    assert np.abs(resample(x, 44100, 16000) - whole).max() < 1e-6
    assert np.abs(resample(x[1, 0], 44100, 16000) - whole[1, 0]).max() < 1e-6


@pytest.mark.parametrize("orig", [8000, 16000, 22050, 44100, 22254])
def test_an_excerpt_equals_a_slice_of_the_whole(rng, orig):
    x = rng.standard_normal(40_000).astype(np.float32)
    whole = resample(x, orig, 16000)
    for start, frames in ((0, 300), (5, 1), (7001, 2000), (len(whole) - 250, 250)):
        first, count, drop = source_span(start, frames, orig, 16000)
        part = resample(x[first : first + count], orig, 16000)[drop : drop + frames]
        assert np.abs(part - whole[start : start + frames]).max() < 2e-6


def test_same_rate_and_silence_and_nonsense():
    x = np.ones((2, 5), np.float32)
    assert np.array_equal(resample(x, 16000, 16000), x)
    assert resample(np.zeros((1, 0), np.float32), 8000, 16000).shape == (1, 0)
    with pytest.raises(UserError, match="positive"):
        resample(x, 0, 16000)
