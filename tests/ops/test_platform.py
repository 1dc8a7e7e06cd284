"""What a trace is for: named, nested, per thread, and part of the key of JAX's trace caches."""

import threading

import jax
import jax.numpy as jnp
import numpy as np

from codec_jax.ops import attention, platform, stft


def test_named_and_nested():
    assert platform.current() == jax.default_backend() == "cpu"
    with platform.tracing_for("tpu"):
        assert platform.current() == "tpu"
        with platform.tracing_for("gpu"):
            assert platform.current() == "gpu"
        assert platform.current() == "tpu"
    assert platform.current() == "cpu"


def test_other_threads_see_nothing():
    seen = []
    with platform.tracing_for("tpu"):
        thread = threading.Thread(target=lambda: seen.append(platform.current()))
        thread.start()
        thread.join()
    assert seen == ["cpu"]


def test_a_trace_for_one_platform_is_not_taken_for_another():
    seen = []

    @jax.jit
    def function(x):
        seen.append(platform.current())
        return x + 1

    function(1.0)
    with platform.tracing_for("tpu"):
        function(1.0)
    function(1.0)
    assert seen == ["cpu", "tpu"]


def primitives(function, *arguments):
    return str(jax.make_jaxpr(function)(*arguments))


def test_stft_and_attention_follow_it():
    audio = jnp.zeros(400)
    spectrogram = lambda x: stft.stft(x, 64, 16, stft.hann(64))
    assert "fft[" in primitives(spectrogram, audio)
    q = jnp.zeros((1, 300, 1, 4))
    attend = lambda q: attention.banded_attention(q, q, q, (7, 8))
    assert "[1,1,300,300]" not in primitives(attend, q)  # blocked
    with platform.tracing_for("tpu"):
        text = primitives(spectrogram, audio)
        assert "fft[" not in text
        assert "HIGHEST" in text
        assert "[1,1,300,300]" in primitives(attend, q)  # dense
        on_tpu = attention.blocked_banded_attention(q, q, q, (7, 8))
    np.testing.assert_array_equal(on_tpu, attention.blocked_banded_attention(q, q, q, (7, 8)))


def test_pairs_are_those_of_the_blocks():
    assert attention.num_pairs(100, (7, 8), "dense") == 100 * 100
    assert attention.num_pairs(300, (7, 8)) == 38 * 8 * 24  # on CPU: blocks of 8, of 3 blocks of keys each
    with platform.tracing_for("tpu"):
        assert attention.num_pairs(300, (7, 8)) == 300 * 300
        assert attention.num_pairs(4096, (63, 64)) == 4096 * 256
