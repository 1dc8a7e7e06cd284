"""STFT: against torch.stft, both implementations, framing, gradients at silence, refusals; the inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_jax.ops.stft import center_window, choose_impl, frame, hann, istft, overlap_add, reflect_pad, stft

IMPLS = ("fft", "matmul")


def noise(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(("n_fft", "hop", "win"), [(512, 128, 512), (600, 77, 333), (78, 19, 78), (64, 100, 64)])
def test_torch_agrees(impl, center, n_fft, hop, win):
    audio = noise(2, 1501)
    real, imag = stft(jnp.asarray(audio), n_fft, hop, hann(win), center=center, impl=impl)
    window = torch.hann_window(win, dtype=torch.float64)
    want = torch.stft(
        torch.tensor(audio, dtype=torch.float64), n_fft, hop, win, window, center=center, return_complex=True
    )
    want = want.mT.numpy()
    assert real.shape == want.shape
    np.testing.assert_allclose(real + 1j * imag, want, atol=1e-5 * np.abs(want).max() / 5)


@settings(deadline=None, max_examples=6)
@given(n_fft=st.sampled_from([32, 126]), hop=st.sampled_from([8, 31, 40]), time=st.sampled_from([130, 257]))
def test_implementations_agree_in_value_and_gradient(n_fft, hop, time):
    audio = jnp.asarray(noise(time))

    def power(audio, impl):
        real, imag = stft(audio, n_fft, hop, hann(n_fft), impl=impl)
        return (jnp.arange(real.size).reshape(real.shape) % 7 * (real**2 + imag**2)).sum()

    run = jax.jit(jax.value_and_grad(power), static_argnums=1)
    (fft, fft_grad), (product, product_grad) = (run(audio, impl) for impl in IMPLS)
    np.testing.assert_allclose(fft, product, rtol=1e-5)
    np.testing.assert_allclose(fft_grad, product_grad, atol=1e-5 * float(jnp.abs(fft_grad).max()))


@pytest.mark.parametrize("impl", IMPLS)
def test_float32_whatever_comes_in_and_batch_axes_kept(impl):
    audio = jnp.asarray(noise(2, 3, 200))
    run = jax.jit(lambda x: stft(x, 64, 16, hann(64), impl=impl))
    half = run(audio.astype(jnp.bfloat16))
    assert all(part.dtype == jnp.float32 and part.shape == (2, 3, 13, 33) for part in half)
    whole = run(audio)
    np.testing.assert_allclose(whole[0][1, 2], run(audio[1, 2])[0], atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_silence_has_zero_gradients(impl):
    def loss(audio):
        real, imag = stft(audio, 64, 16, hann(64), impl=impl)
        return jnp.sqrt(real**2 + imag**2 + 1e-30).sum()

    assert not np.any(jax.grad(loss)(jnp.zeros((1, 300))))


@settings(deadline=None, max_examples=25)
@given(length=st.integers(1, 40), hop=st.integers(1, 50), extra=st.integers(0, 90))
def test_frames_are_slices(length, hop, extra):
    audio = np.arange(length + extra, dtype=np.float32)
    want = np.stack([audio[start : start + length] for start in range(0, extra + 1, hop)])
    np.testing.assert_array_equal(frame(jnp.asarray(audio), length, hop), want)


def test_no_gather_in_the_program():
    for hop in (128, 120):
        text = jax.jit(lambda x, hop=hop: stft(x, 512, hop, hann(512))).lower(jnp.zeros((2, 2000))).as_text()
        assert "gather" not in text


def test_reflection_is_numpys():
    audio = noise(2, 20)
    np.testing.assert_array_equal(
        reflect_pad(jnp.asarray(audio), 19), np.pad(audio, ((0, 0), (19, 19)), mode="reflect")
    )
    np.testing.assert_array_equal(reflect_pad(jnp.asarray(audio), 0), audio)


def test_windows():
    np.testing.assert_allclose(hann(240), torch.hann_window(240).numpy(), atol=2e-7)
    np.testing.assert_array_equal(center_window(np.ones(3), 6), [0, 1, 1, 1, 0, 0])


def test_tpu_gets_the_product_and_others_the_fft():
    assert [choose_impl(p) for p in ("tpu", "cpu", "gpu")] == ["matmul", "fft", "fft"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"window": hann(65)}, "longer than n_fft 64"),
        ({"impl": "conv"}, 'choose "auto"'),
        ({"audio": jnp.zeros(32)}, "cannot be reflected"),
        ({"audio": jnp.zeros(63), "center": False}, "do not fill a frame"),
    ],
)
def test_refusals_say_what_to_do(kwargs, message):
    with pytest.raises(ValueError, match=message):
        stft(**({"audio": jnp.zeros(100), "n_fft": 64, "hop_length": 16, "window": hann(64)} | kwargs))


# ---- and back ----------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("n_fft", "hop", "win"), [(382, 80, 320), (94, 32, 80), (64, 16, 64)])
def test_torch_agrees_on_the_inverse(impl, n_fft, hop, win):
    """Of spectra that no audio has: the imaginary parts of the first and last bin are not zero."""
    spectrum = noise(2, 9, n_fft // 2 + 1) + 1j * noise(3, 9, n_fft // 2 + 1)[1:]
    audio = istft(jnp.asarray(spectrum.real), jnp.asarray(spectrum.imag), n_fft, hop, hann(win), impl=impl)
    window = torch.hann_window(win, dtype=torch.float64)
    want = torch.istft(torch.tensor(spectrum, dtype=torch.complex128).mT, n_fft, hop, win, window).numpy()
    assert audio.shape == want.shape == (2, 8 * hop)
    np.testing.assert_allclose(audio, want, atol=1e-5 * np.abs(want).max() / 5)


@pytest.mark.parametrize("impl", IMPLS)
def test_frames_behind_an_items_end_change_nothing(impl):
    real, imag = noise(3, 9, 48), noise(4, 9, 48)[1:]
    counts, shape = np.array([9, 4, 6]), (94, 32, hann(80))
    alone = [
        istft(jnp.asarray(r[None, :n]), jnp.asarray(i[None, :n]), *shape, impl=impl)[0]
        for r, i, n in zip(real, imag, counts)
    ]
    for item, n in enumerate(counts):
        real[item, n:], imag[item, n:] = np.inf, 1e30
    together = istft(jnp.asarray(real), jnp.asarray(imag), *shape, jnp.asarray(counts), impl=impl)
    for item, n in enumerate(counts):
        np.testing.assert_allclose(together[item, : 32 * (n - 1)], alone[item], atol=1e-6)
        assert not np.asarray(together[item, 32 * (n - 1) :]).any()


def test_the_inverse_inverts_and_refuses():
    audio = jnp.asarray(noise(2, 80 * 11))
    back = istft(*stft(audio, 382, 80, hann(320)), 382, 80, hann(320))
    np.testing.assert_allclose(back, audio, atol=1e-5)
    with pytest.raises(ValueError, match="192 bins are not those of an even n_fft 512"):
        istft(jnp.zeros((3, 192)), jnp.zeros((3, 192)), 512, 80, hann(320))


@settings(deadline=None, max_examples=8)
@given(length=st.integers(1, 12), hop=st.integers(1, 7), count=st.integers(1, 5))
def test_overlap_add_is_the_transpose_of_framing(length, hop, count):
    time = (count - 1) * hop + length
    frames = jnp.asarray(noise(count, length))
    _, transpose = jax.vjp(lambda x: frame(x, length, hop), jnp.zeros(time))
    np.testing.assert_allclose(overlap_add(frames, hop), transpose(frames)[0], atol=1e-6)
