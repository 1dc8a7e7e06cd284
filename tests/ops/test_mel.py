"""Filter banks and A-weighting against upstream's."""

import warnings

import numpy as np
import pytest
import scipy.signal

from codec_jax.ops import mel


@pytest.mark.parametrize(("n_fft", "n_mels"), [(32, 5), (64, 10), (128, 20), (256, 40), (512, 80)])
def test_htk_filters_of_esc(golden, n_fft, n_mels):
    want = golden("esc/losses/golden.safetensors")[f"fb{n_fft}"]
    np.testing.assert_allclose(mel.mel_filterbank(16000, n_fft, n_mels, htk=True, norm=None), want, atol=1e-5)


@pytest.mark.parametrize(("n_fft", "n_mels"), [(1024, 160), (2048, 320)])
def test_large_htk_filters_of_esc_by_their_sums(golden, n_fft, n_mels):
    tensors = golden("esc/losses/golden.safetensors")
    filters = mel.mel_filterbank(16000, n_fft, n_mels, htk=True, norm=None)
    np.testing.assert_allclose(filters.sum(0), tensors[f"fb{n_fft}_colsum"], rtol=1e-4)
    np.testing.assert_allclose(filters.sum(1), tensors[f"fb{n_fft}_rowsum"], atol=5e-4)


@pytest.mark.parametrize("sample_rate", [16000, 24000])
def test_a_weighting_taps(golden, sample_rate):
    want = golden("taae/misc/tensors.safetensors")[f"spec/aw_fir_{sample_rate // 1000}k"].ravel()
    np.testing.assert_allclose(mel.a_weighting_fir(sample_rate), want, atol=1e-7)


def test_a_weighting_follows_the_standard():
    """IEC 61672 table: 0 dB at 1 kHz, -3.2 at 500 Hz, +1.2 at 2 kHz; 101 taps cannot do the bass."""
    _, response = scipy.signal.freqz(mel.a_weighting_fir(48000), worN=[500, 1000, 2000], fs=48000)
    np.testing.assert_allclose(20 * np.log10(np.abs(response)), [-3.2, 0.0, 1.2], atol=0.5)


def test_slaney_filters_have_unit_area():
    filters = mel.mel_filterbank(16000, 2048, 20)
    np.testing.assert_allclose(filters.sum(0) * 16000 / 2048, 1.0, rtol=0.02)


def test_limits_are_kept_and_too_narrow_filters_pass_in_silence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filters = mel.mel_filterbank(16000, 256, 80, fmin=1000.0, fmax=2000.0)
    inside = np.flatnonzero(filters.any(1)) * 16000 / 256
    assert inside.min() > 1000
    assert inside.max() < 2000
    assert (filters.max(0) == 0).any()


def test_chroma_separates_pitch_classes():
    filters = mel.chroma_filterbank(16000, 4096, 12)
    assert filters.shape == (2049, 12)
    a4, a5, c5 = (filters[round(hz * 4096 / 16000)].argmax() for hz in (440, 880, 523.25))
    assert a4 == a5 == (c5 + 9) % 12


def test_shared_arrays_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        mel.mel_filterbank(16000, 256, 20)[0, 0] = 1
