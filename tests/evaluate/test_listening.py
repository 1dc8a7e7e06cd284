"""The stimuli of a listening test and the site around them: levels, ends, blinding, bad input."""

import base64
import io
import json
import re

import numpy as np
import pytest
import soundfile
from scipy import signal

from codec_jax import cli
from codec_jax.audio.loudness import integrated_loudness
from codec_jax.errors import UserError
from codec_jax.evaluate import systems
from codec_jax.evaluate.listening import site, stimuli
from codec_jax.evaluate.systems import Coded, System
from tests import tiny

RATE = 16_000


def voice(seconds, seed, level=0.1, rate=RATE):
    """Noise with syllables, its spectrum falling about as speech's does."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    noise = signal.lfilter([1.0], [1.0, -0.97], rng.standard_normal(len(time)))
    return (level * noise * (0.55 + 0.45 * np.sin(2 * np.pi * 3 * time)) / 4.1).astype(np.float32)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Five utterances of different length and level, one too short, one silent."""
    directory = tmp_path_factory.mktemp("recordings")
    for i in range(5):
        soundfile.write(directory / f"en_clip{i}.wav", voice(0.9 + 0.2 * i, i, 0.02 * 2**i), RATE)
    soundfile.write(directory / "click.wav", voice(0.3, 9), RATE)
    soundfile.write(directory / "nothing.wav", np.zeros(RATE), RATE)
    return directory


def scaled(factor):
    return System(f"times{factor:g}", "times", "scaled", lambda audio, rate, stem: Coded(factor * audio))


def noisy():
    def code(audio, rate, stem):
        return Coded(3 * audio + 0.01 * np.random.default_rng(0).standard_normal(len(audio)))

    return System("noisy", "noisy", "noisy", code)


ANCHORS = [systems.original(), systems.lowpass(3500), systems.lowpass(7000)]


@pytest.fixture(scope="module")
def made(recordings):
    chosen = stimuli.choose(recordings, 4, None, 0)
    return stimuli.make(chosen, [*ANCHORS, scaled(0.2), noisy()])


@pytest.fixture(scope="module")
def written(made, tmp_path_factory):
    directory = tmp_path_factory.mktemp("sites") / "site"
    design = site.Design(site.MUSHRA, 'A <test> & "more"', True, {"seed": 0})
    return directory, site.write(directory, made, [*ANCHORS, scaled(0.2), noisy()], design)


def heard(directory, name):
    """The samples of a stimulus, as a browser would get them."""
    text = (directory / "stimuli" / f"{name}.js").read_text()
    data = re.fullmatch(rf'heard\("{name}", "([A-Za-z0-9+/=]+)"\);\n', text)[1]
    return soundfile.read(io.BytesIO(base64.b64decode(data)))


def bs1770(audio, rate):
    """Gated loudness by the coefficients that BS.1770-4 prints, at 48 kHz: independent of the house's."""
    audio = signal.resample_poly(audio, 48_000, rate)
    shelf = [1.53512485958697, -2.69169618940638, 1.19839281085285], [1.0, -1.69065929318241, 0.73248077421585]
    high = [1.0, -2.0, 1.0], [1.0, -1.99004745483398, 0.99007225036621]
    squares = signal.lfilter(*high, signal.lfilter(*shelf, audio)) ** 2
    blocks = np.lib.stride_tricks.sliding_window_view(squares, 19_200)[::4_800].mean(axis=-1)
    lufs = -0.691 + 10 * np.log10(blocks)
    relative = -0.691 + 10 * np.log10(blocks[lufs > -70].mean()) - 10
    return -0.691 + 10 * np.log10(blocks[(lufs > -70) & (lufs > relative)].mean())


# ---- utterances ----------------------------------------------------------------------------------


def test_what_cannot_be_used_is_left_out_by_name(recordings):
    chosen = stimuli.choose(recordings, 9, None, 0)
    assert {item.name for item in chosen.items} == {f"en_clip{i}" for i in range(5)}
    told = " ".join(chosen.notes)
    assert "click is left out: it lasts 0.30 s" in told
    assert "nothing is left out: it is silent" in told
    assert "5 trials instead of 9" in told
    assert "which is also a trial" in told
    assert {item.language for item in chosen.items} == {"en"}


def test_practice_is_no_trial_where_there_is_one_to_spare(recordings):
    chosen = stimuli.choose(recordings, 4, None, 3)
    assert chosen.practice.name not in {item.name for item in chosen.items}
    assert [item.name for item in chosen.items] == [item.name for item in stimuli.choose(recordings, 4, None, 3).items]
    orders = {tuple(item.name for item in stimuli.choose(recordings, 4, None, seed).items) for seed in range(8)}
    assert len(orders) > 1


def test_rates_that_differ(recordings, tmp_path):
    for rate in (8_000, 16_000):
        soundfile.write(tmp_path / f"{rate}.wav", voice(1.0, 0, rate=rate), rate)
    with pytest.raises(UserError, match=r"16000 Hz.*8000 Hz: give --sample-rate"):
        stimuli.choose(tmp_path, 2, None, 0)
    chosen = stimuli.choose(tmp_path, 2, 24_000, 0)
    assert {len(item.audio) for item in chosen.items} == {24_000}


def test_long_ones_are_cut(tmp_path):
    soundfile.write(tmp_path / "long.wav", voice(5.0, 0), RATE)
    chosen = stimuli.choose(tmp_path, 1, None, 0, seconds=2.0)
    assert len(chosen.items[0].audio) == 3 * RATE  # a second more than is heard, for codecs
    trial = stimuli.make(chosen, ANCHORS, seconds=2.0).trials[0]
    assert {len(audio) for audio in trial.signals.values()} == {2 * RATE}


# ---- levels --------------------------------------------------------------------------------------


def test_every_signal_is_as_loud_as_its_reference(made):
    for trial in (*made.trials, made.practice):
        levels = {name: integrated_loudness(audio[None], RATE) for name, audio in trial.signals.items()}
        assert set(levels) == {"original", "lowpass_3500", "lowpass_7000", "times0.2", "noisy"}
        for level in levels.values():
            assert abs(level - made.loudness) < 0.1, levels
    assert made.loudness == pytest.approx(-23 - made.attenuation)


def test_loudness_by_a_filter_of_its_own(written, made):
    """Through the files, and not by the function that set the levels."""
    directory, key = written
    for trial in key["trials"]:
        levels = [bs1770(*heard(directory, name)) for name in (*trial["stimuli"], trial["reference"])]
        assert np.ptp(levels) < 0.1, levels
        assert abs(levels[0] - made.loudness) < 0.1


def test_nothing_clips_and_all_of_the_test_is_attenuated_alike(recordings):
    def impulses(audio, rate, stem):
        train = np.zeros(len(audio), np.float32)
        train[:: rate // 10] = 40 * audio.std()
        return Coded(train)

    peaky = System("peaky", "peaky", "peaky", impulses)
    chosen = stimuli.choose(recordings, 2, None, 0)
    loud = stimuli.make(chosen, [*ANCHORS, peaky])
    assert loud.attenuation > 1
    for trial in (*loud.trials, loud.practice):
        # With headroom, which is added again: the house's function clamps at full scale, as torchaudio does.
        levels = [integrated_loudness(audio[None] / 4, RATE) + 20 * np.log10(4) for audio in trial.signals.values()]
        assert np.ptp(levels) < 0.1
        assert abs(levels[0] - loud.loudness) < 0.1
        assert max(np.abs(audio).max() for audio in trial.signals.values()) <= 10 ** (-1 / 20) + 1e-6


def test_a_silent_system_is_told_of(recordings):
    mute = System("mute", "mute", "mute", lambda audio, rate, stem: Coded(0 * audio))
    made = stimuli.make(stimuli.choose(recordings, 1, None, 0), [*ANCHORS, mute])
    assert any("mute is silent on" in note for note in made.notes)
    assert not made.trials[0].signals["mute"].any()


def test_a_whisper_is_not_blown_up(recordings):
    made = stimuli.make(stimuli.choose(recordings, 1, None, 0), [*ANCHORS, scaled(0.05)])
    (note,) = [note for note in made.notes if "times0.05" in note and made.trials[0].name in note]
    assert "stays -6.0 LU from the reference: 20 dB is most" in note


def test_ends_fade_and_the_middle_stays():
    audio = stimuli.faded(np.ones(RATE, np.float32), RATE)
    ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(80) + 0.5) / 80)
    np.testing.assert_allclose(audio[:80], ramp, atol=1e-6)
    np.testing.assert_allclose(audio[-80:], ramp[::-1], atol=1e-6)
    assert (audio[80:-80] == 1).all()
    assert len(stimuli.faded(np.ones(3, np.float32), RATE)) == 3


# ---- site ----------------------------------------------------------------------------------------


def test_site_is_blind(written):
    directory, key = written
    files = [path for path in directory.rglob("*") if path.is_file()]
    public = "\n".join(path.read_text() for path in files if path.parent == directory)
    for word in (
        "original",
        "lowpass",
        "times0.2",
        "noisy",
        "clip0",
        "clip1",
        *(s["label"] for s in key["systems"].values() if len(s["label"]) > 9),
    ):
        assert word not in public, word
    assert len({path.stat().st_mtime for path in (*files, directory)}) == 1
    test = json.loads(re.fullmatch(r"window\.TEST = (.*);\n", (directory / "test.js").read_text(), re.DOTALL)[1])
    names = [name for trial in (*test["trials"], test["practice"]) for name in (*trial["stimuli"], trial["reference"])]
    assert sorted(names) == sorted(path.stem for path in (directory / "stimuli").iterdir())
    assert len(set(names)) == len(names) == 5 * 6
    for trial in test["trials"]:
        sizes = {
            (directory / "stimuli" / f"{name}.js").stat().st_size for name in (*trial["stimuli"], trial["reference"])
        }
        assert len(sizes) == 1
        assert trial["stimuli"] == sorted(trial["stimuli"])
    assert {path.name for path in directory.parent.iterdir()} == {"site", "site.key.json"}


def test_key_says_what_is_what(written, made):
    directory, key = written
    assert key == json.loads(site.key_path(directory).read_text())
    signals = {trial.name: trial.signals for trial in made.trials}
    for trial in key["trials"]:
        assert sorted(one["system"] for one in trial["stimuli"].values()) == sorted(key["systems"])
        for name, one in trial["stimuli"].items():
            audio, rate = heard(directory, name)
            assert rate == RATE
            np.testing.assert_allclose(audio, signals[trial["utterance"]][one["system"]], atol=2 / 32768)
    roles = [key["systems"][name]["role"] for name in ("original", "lowpass_3500", "lowpass_7000", "noisy")]
    assert roles == ["reference", "low anchor", "mid-range anchor", "system"]


def test_the_hidden_reference_is_no_copy_of_the_open_one(written):
    directory, key = written
    for trial in key["trials"]:
        hidden = next(name for name, one in trial["stimuli"].items() if one["system"] == "original")
        one, other = heard(directory, hidden)[0], heard(directory, trial["reference"])[0]
        assert (one != other).mean() > 0.2
        assert np.abs(one - other).max() <= 3 / 32768


def test_names_do_not_repeat(made, tmp_path):
    design = site.Design(site.MUSHRA, "x", True, {})
    first, second = (site.write(tmp_path / name, made, [*ANCHORS, scaled(0.2), noisy()], design) for name in "ab")
    names = [{name for trial in key["trials"] for name in trial["stimuli"]} for key in (first, second)]
    assert not names[0] & names[1]
    assert first["test"] != second["test"]


@pytest.mark.parametrize("count", [1, 4, 5])
def test_ab_pairs_in_both_orders(recordings, tmp_path, count):
    three = [scaled(0.5), scaled(0.25), noisy()]
    made = stimuli.make(stimuli.choose(recordings, count, None, 0), three)
    key = site.write(tmp_path / "ab", made, three, site.Design(site.AB, "x", True, {}))
    assert len(key["trials"]) == 3 * max(count, 2)
    for pair in (("times0.5", "times0.25"), ("times0.5", "noisy"), ("times0.25", "noisy")):
        shown = [tuple(one["system"] for one in trial["stimuli"].values()) for trial in key["trials"]]
        there, back = shown.count(pair), shown.count(pair[::-1])
        assert there + back == max(count, 2)
        assert abs(there - back) <= 1
    assert all("reference" not in trial for trial in key["trials"])


def test_how_many_utterances_are_asked_for():
    assert site.fewest_items([*ANCHORS, noisy()]) == 5
    assert site.fewest_items([*ANCHORS, *(scaled(n) for n in range(5))]) == 8


# ---- the command ---------------------------------------------------------------------------------


def test_a_codec_beside_anchors(tmp_path, tmp_path_factory, capsys):
    run, equal, target = tmp_path_factory.mktemp("models") / "run", tmp_path_factory.mktemp("equal"), tmp_path / "test"
    tiny.codec().save(run)
    for i in range(2):  # of one length, which compiles once
        soundfile.write(equal / f"{i}.wav", voice(0.6, i), RATE)
    common = ["listen", str(equal), "-o", str(target), "--trials", "1", "--against", "mu_law"]
    arguments = [*common, "--model", str(run)]
    assert cli.main(arguments) == 0
    told = capsys.readouterr()
    assert "index.html: mushra, 1 trial of original, lowpass_3500, lowpass_7000, run@" in told.out
    key = json.loads((tmp_path / "test.key.json").read_text())
    assert "1 utterance: ITU-R BS.1534-3 (7.1) asks for 5" in told.err
    assert [one["role"] for one in key["systems"].values()].count("system") == 2
    before = key["test"]
    assert cli.main(common) == 1
    assert "exists already" in capsys.readouterr().err
    assert cli.main([*common, "--force"]) == 0
    assert json.loads((tmp_path / "test.key.json").read_text())["test"] != before
    assert {path.name for path in tmp_path.iterdir()} == {"test", "test.key.json"}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "there is no system to rate: give --model or --against."),
        (["--test", "ab", "--against", "mu_law"], "an AB test compares at least two systems"),
        (["--against", "mu_law", "--trials", "0"], "--trials must be at least 1."),
        (["--against", "mu_law", "--seconds", "0.1"], "--seconds must be at least 0.5."),
        (["--against", "mu_law", "--sample-rate", "4000"], "browsers play 8000 to 96000 Hz"),
        (["--against", "nonsense"], "there is no system nonsense"),
        (["--against", ",".join(f"lowpass@{n}" for n in range(1000, 1020))], "signals in a trial are too many"),
    ],
)
def test_wrong_wishes_are_one_sentence(recordings, tmp_path, capsys, flags, sentence):
    assert cli.main(["listen", str(recordings), "-o", str(tmp_path / "x"), *flags]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert sentence in error
    assert not (tmp_path / "x").exists()


def test_no_audio_no_output_and_a_directory_of_others(recordings, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert cli.main(["listen", str(tmp_path / "empty"), "-o", str(tmp_path / "x"), "--against", "mu_law"]) == 1
    assert "holds no audio file" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["listen", str(recordings), "--against", "mu_law"])
    assert "give AUDIO_DIR and -o SITE_DIR" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("all of it")
    flags = ["-o", str(tmp_path / "mine"), "--against", "mu_law", "--force"]
    assert cli.main(["listen", str(recordings), *flags]) == 1
    assert "is no listening test, so it is not overwritten" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.tex").exists()
    for name in ("click", "nothing"):
        (tmp_path / "useless").mkdir(exist_ok=True)
        (tmp_path / "useless" / f"{name}.wav").write_bytes((recordings / f"{name}.wav").read_bytes())
    assert cli.main(["listen", str(tmp_path / "useless"), "-o", str(tmp_path / "x"), "--against", "mu_law"]) == 1
    assert "no file is as long as 0.5 s and holds sound" in capsys.readouterr().err


def test_flags_in_any_order(recordings, tmp_path):
    assert cli.main(["listen", "-o", str(tmp_path / "x"), "--against", "mu_law", "--trials", "1", str(recordings)]) == 0
