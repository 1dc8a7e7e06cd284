"""The metrics of reports: packages asked directly, upstream's values, identity, what is not defined."""

import json
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from codec_jax.errors import UserError
from codec_jax.evaluate import metrics, pitch, scores, spectra, speech
from codec_jax.losses import spectral
from codec_jax.losses.spectral import MelLossConfig

NAMES = [
    "pesq_wb",
    "pesq_nb",
    "pesq_nb_raw",
    "stoi",
    "estoi",
    "si_sdr",
    "mel_distance_esc",
    "mel_distance_dac",
    "mel_distance_taae",
    "stft_distance_taae",
    "log_spectral_distance",
    "loudness_error",
    "f0_error_cents",
    "voicing_error",
    "dnsmos_ovrl",
    "dnsmos_p808",
]
CHEAP = NAMES[: NAMES.index("f0_error_cents")]  # without compiling pYIN, and without a network
DISTANCES = [name for name in NAMES if scores.METRICS[name].better == "lower"]


@pytest.fixture(scope="module")
def clip(speech):
    return soundfile.read(speech[0], dtype="float32")[0]


@pytest.fixture(scope="module")
def noisy(clip):
    return clip + np.random.default_rng(0).normal(0, 0.01, len(clip)).astype(np.float32)


@pytest.fixture(scope="module")
def esc(golden):
    return golden("esc/losses/golden.safetensors"), json.loads((golden.path("esc/losses") / "meta.json").read_text())


def tone(hertz, samples=16000):
    """Of ten harmonics, as a voice has them."""
    time = np.arange(samples) / 16000
    return sum(0.3 / k * np.sin(2 * np.pi * k * hertz * time) for k in range(1, 11)).astype(np.float32) / 3


# ---- the table -----------------------------------------------------------------------------------


def test_the_table_says_what_it_computes():
    assert list(scores.METRICS) == NAMES
    for metric in scores.METRICS.values():
        assert metric.better in ("higher", "lower")
        assert metric.how.endswith(".")
        assert "\n" not in metric.how
        assert ("16 kHz" in metric.how or "f0_error_cents" in metric.how) == (metric.rate == 16000)


def test_what_is_not_installed_is_left_out(monkeypatch):
    assert scores.available() == (NAMES, {})
    monkeypatch.setattr(scores.importlib.util, "find_spec", lambda name: None)
    here, missing = scores.available()
    assert here == NAMES[3:-2]
    assert missing["pesq_wb"] == "the package pesq is not installed: pip install 'codec-jax[eval]'"
    with pytest.raises(UserError, match="pesq_nb cannot be computed"):
        scores.score(tone(100), tone(100), 16000, ["pesq_nb"])
    assert list(scores.score(tone(100), tone(100), 16000, ["si_sdr"])) == ["si_sdr"]


def test_wrong_questions():
    with pytest.raises(UserError, match="no metric pesq: choose from pesq_wb"):
        scores.score(tone(100), tone(100), 16000, ["pesq"])
    with pytest.raises(UserError, match="8000 Hz or more"):
        scores.score(tone(100), tone(100), 7999, ["si_sdr"])
    with pytest.raises(ValueError, match="0 and 0 samples"):
        scores.score(np.zeros(0), np.zeros(0), 16000, ["si_sdr"])


def test_identity(clip):
    found = scores.score(clip, clip, 16000)
    assert found["pesq_wb"] == pytest.approx(4.6439, abs=1e-4)
    assert found["pesq_nb"] == pytest.approx(4.5486, abs=1e-4)
    assert found["pesq_nb_raw"] == pytest.approx(4.5, abs=1e-3)
    assert found["stoi"] == pytest.approx(1, abs=1e-6)
    assert found["estoi"] == pytest.approx(1, abs=1e-6)
    assert found["si_sdr"] > 90
    assert {name: found[name] for name in DISTANCES} == dict.fromkeys(DISTANCES, 0.0)


def test_worse_is_worse(clip, noisy):
    slightly = clip + 0.1 * (noisy - clip)
    good, bad = (scores.score(clip, estimate, 16000) for estimate in (slightly, noisy))
    for name, metric in scores.METRICS.items():
        if name != "voicing_error":  # steps of a frame
            assert (good[name] > bad[name]) == (metric.better == "higher"), name


@pytest.mark.parametrize("sample_rate", [8000, 22050, 48000])
def test_any_rate(clip, noisy, sample_rate):
    """The same samples taken for another rate: finite, and the same as resampled by hand where that is what is done."""
    found = scores.score(clip, noisy, sample_rate, CHEAP)
    assert all(map(math.isfinite, found.values())), found
    by_hand = [scores.resample(audio, sample_rate, 16000) for audio in (clip, noisy)]
    assert found["mel_distance_dac"] == spectra.mel_distance_dac(*by_hand)
    assert found["pesq_wb"] == speech.pesq_wb(*by_hand)


def test_silence_and_scraps_are_quiet(clip):
    silence = np.zeros_like(clip)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deaf = scores.score(clip, silence, 16000, CHEAP)
        nothing = scores.score(silence, clip, 16000)
        both = scores.score(silence, silence, 16000)
        scraps = [scores.score(clip[9000 : 9000 + n], clip[9000 : 9000 + n], 16000, CHEAP) for n in (1, 300, 3000)]
    assert (deaf["pesq_wb"], deaf["pesq_nb"], deaf["pesq_nb_raw"]) == (1.0427, 1.0168, pytest.approx(-0.5, abs=1e-3))
    assert (deaf["stoi"], deaf["estoi"], deaf["si_sdr"]) == (0, 0, pytest.approx(-80))
    defined = {"mel_distance_esc", "mel_distance_dac", "log_spectral_distance"}
    for found in (nothing, both):
        assert {name for name, value in found.items() if not math.isnan(value)} == defined
    assert all(both[name] == 0 for name in defined)
    for scrap in scraps:
        assert all(math.isnan(scrap[name]) for name in ("pesq_wb", "pesq_nb", "stoi", "loudness_error"))
        assert all(scrap[name] == 0 for name in defined)


# ---- speech --------------------------------------------------------------------------------------


def test_pesq_is_the_packages(clip, noisy):
    pesq, soxr = pytest.importorskip("pesq"), pytest.importorskip("soxr")
    assert speech.pesq_wb(clip, noisy) == pytest.approx(pesq.pesq(16000, clip, noisy, "wb"), abs=1e-6)
    narrow = [soxr.resample(audio, 16000, 8000, "HQ") for audio in (clip, noisy)]
    assert speech.pesq_nb(clip, noisy, 16000) == pytest.approx(pesq.pesq(8000, *narrow, "nb"), abs=1e-4)


def test_pesq_is_upstreams(esc):
    tensors, meta = esc
    found = speech.pesq_wb(tensors["pesq_raw"][0], tensors["pesq_deg"][0])
    assert found == pytest.approx(meta["metrics"]["PESQ_wb_on_pesq_raw/pesq_deg"][0], abs=1e-4)


@pytest.mark.parametrize("raw", [-0.5, 0.0, 1.7, 3.01, 4.5])
def test_raw_scores_undo_the_mapping(raw):
    assert speech.raw_score(0.999 + 4 / (1 + math.exp(-1.4945 * raw + 4.6607))) == pytest.approx(raw, abs=1e-9)


def test_raw_scores_beyond_the_mapping():
    assert [speech.raw_score(value) for value in (0.0, 0.999, 1.0, 4.7, 4.999, 5.5)] == [
        -0.5,
        -0.5,
        -0.5,
        4.5,
        4.5,
        4.5,
    ]
    assert speech.raw_score(2.84) == pytest.approx(3.01, abs=0.01)  # the TAAE paper's score, on either scale
    assert math.isnan(speech.raw_score(math.nan))


def test_pesq_of_long_audio_is_a_mean(clip):
    """80 bursts in 34.5 s: given to the package in one piece, that ends the process."""
    loudest = np.convolve(clip**2, np.ones(3300), "valid").argmax()
    audio = np.tile(np.pad(clip[loudest : loudest + 3300], (0, 3600)), 80)
    other = audio + np.random.default_rng(1).normal(0, 0.001, len(audio)).astype(np.float32)
    halves = zip(np.array_split(audio, 2), np.array_split(other, 2))
    assert speech.pesq_wb(audio, other) == pytest.approx(np.mean([speech.pesq_wb(*half) for half in halves]))


def test_dnsmos_is_the_packages_and_hears_noise(clip, noisy):
    from speechmos import dnsmos

    found = scores.score(clip, noisy, 16000, ["dnsmos_ovrl", "dnsmos_p808"])
    wanted = dnsmos.run(noisy, sr=16000)
    assert found["dnsmos_ovrl"] == pytest.approx(wanted["ovrl_mos"], abs=1e-4)
    assert found["dnsmos_p808"] == pytest.approx(wanted["p808_mos"], abs=1e-4)
    deaf = scores.score(clip, np.zeros_like(clip), 16000, ["dnsmos_ovrl", "dnsmos_p808"])
    assert set(deaf.values()) == {1.0}
    assert min(found.values()) > 1
    loud = scores.score(clip, 3 * clip / np.abs(clip).max(), 16000, ["dnsmos_ovrl"])  # clipped, not refused
    assert math.isfinite(loud["dnsmos_ovrl"])


def test_estoi_is_the_packages(clip, noisy):
    import pystoi

    assert speech.estoi(clip, noisy, 16000) == pytest.approx(pystoi.stoi(clip, noisy, 16000, extended=True), abs=1e-6)
    assert metrics.stoi(clip, noisy, 16000) == pytest.approx(pystoi.stoi(clip, noisy, 16000), abs=1e-6)


def test_si_sdr_by_hand():
    """r = (1, -1, 1, -1), e = (2, -2, 0, 0) = r + (1, -1, -1, 1), and both parts are orthogonal."""
    assert metrics.si_sdr(np.array([1.0, -1, 1, -1]), np.array([2.0, -2, 0, 0])) == pytest.approx(0, abs=1e-6)
    assert metrics.si_sdr(np.array([1.0, -1, 1, -1]), np.array([3.0, -3, 1, -1])) == pytest.approx(
        20 * math.log10(2), abs=1e-6
    )


# ---- spectra -------------------------------------------------------------------------------------


def test_mel_distance_of_esc_is_upstreams(esc):
    tensors, meta = esc
    found = [spectra.mel_distance_esc(*pair) for pair in zip(tensors["raw"], tensors["recon"])]
    np.testing.assert_allclose(found, meta["metrics"]["MelDistance"], atol=1e-4)


def test_multi_scale_mel_is_upstreams(golden):
    """DAC's loss as TAAE's code has it, Slaney filters and all; upstream's mean over items is the mean of theirs."""
    tensors = golden("taae/misc/tensors.safetensors")
    settings = json.loads((golden.path("taae/misc") / "meta.json").read_text())["mel"]
    config = MelLossConfig(tuple(settings.pop("n_mels")), tuple(settings.pop("window_lengths")), **settings)
    pairs = list(zip(tensors["spec/x"][:, 0], tensors["spec/y"][:, 0]))
    found = np.mean([metrics.multi_scale_mel(*pair, config) for pair in pairs])
    np.testing.assert_allclose(found, tensors["mel/loss"], rtol=1e-4)


def test_mel_distance_of_dac_is_that_of_the_loss():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 0.1, (2, 3000)).astype(np.float32)
    windows, mels = zip(*spectral.ESC_MEL_SCALES)
    config = MelLossConfig(mels, windows, pow=1.0, mag_weight=0.0)
    want = jax.jit(spectral.multi_scale_mel_l1, static_argnums=2)(jnp.asarray(x)[None], jnp.asarray(y)[None], config)
    np.testing.assert_allclose(spectra.mel_distance_dac(x, y), want, rtol=1e-5)


def test_levels_by_hand(clip):
    """Half the amplitude is 6.02 dB in every bin, and 6.02 LU."""
    audio = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    assert spectra.log_spectral_distance(audio, audio / 2) == pytest.approx(6.0206, abs=1e-3)
    assert spectra.loudness_error(clip, clip / 2, 16000) == pytest.approx(6.0206, abs=1e-3)
    assert spectra.loudness_error(clip / 2, clip, 16000) == pytest.approx(6.0206, abs=1e-3)
    assert math.isnan(spectra.loudness_error(clip[:6399], clip[:6399], 16000))


def test_distances_in_blocks_are_the_same(clip, noisy, monkeypatch):
    whole = spectra.log_spectral_distance(clip, noisy), spectra.mel_distance_dac(clip, noisy)
    monkeypatch.setattr(metrics, "_BLOCK_VALUES", 30000)
    again = spectra.log_spectral_distance(clip, noisy), spectra.mel_distance_dac(clip, noisy)
    np.testing.assert_allclose(again, whole, rtol=1e-6)


# ---- pitch ---------------------------------------------------------------------------------------


def test_pitch_errors_by_hand():
    """A semitone is 100 cents; half of the signal silenced is half of the decisions."""
    audio = tone(150.0)
    assert pitch.f0_error_cents(audio, tone(150.0 * 2 ** (1 / 12)), 16000) == pytest.approx(100, abs=12)
    assert pitch.voicing_error(audio, audio, 16000) == 0
    half = audio.copy()
    half[8000:] = 0
    assert pitch.voicing_error(audio, half, 16000) == pytest.approx(0.5, abs=0.05)
    assert math.isnan(pitch.voicing_error(np.zeros(16000), audio, 16000))
    assert math.isnan(pitch.f0_error_cents(audio, np.zeros(16000), 16000))


def test_contours_of_long_audio_are_bounded(monkeypatch):
    audio = tone(200.0, 40000)
    pitch._analysed.cache_clear()
    monkeypatch.setattr(pitch, "_BLOCK_SECONDS", 1)
    hertz, voiced = pitch.contour(audio, 16000)
    assert len(hertz) == len(voiced) == 250
    assert voiced.mean() > 0.95
    np.testing.assert_allclose(np.nanmedian(hertz), 200, rtol=0.01)
    assert not hertz.flags.writeable
    pitch._analysed.cache_clear()
