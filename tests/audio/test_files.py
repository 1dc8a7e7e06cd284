import numpy as np
import pytest
import soundfile

from codec_jax.audio import files
from codec_jax.errors import UserError


def noise(rng, channels=1, time=1600):
    return rng.uniform(-0.9, 0.9, (channels, time)).astype(np.float32)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
@pytest.mark.parametrize("channels", [1, 2])
def test_16_bits_come_back_bit_for_bit(tmp_path, rng, suffix, channels):
    path, again = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    audio = noise(rng, channels)
    files.write(path, audio, 22050)
    first, rate = files.read(path)
    assert (first.shape, first.dtype, rate) == (audio.shape, np.float32, 22050)
    assert np.abs(first - audio).max() <= 0.5 / 32768 + 1e-9
    files.write(again, first, rate)
    assert np.array_equal(files.read(again)[0], first)
    assert files.info(path) == files.AudioInfo(1600, 22050, channels)
    assert soundfile.info(str(path)).subtype == "PCM_16"
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, again.name]


def test_full_scale_is_clipped_not_wrapped(tmp_path):
    files.write(tmp_path / "a.wav", np.array([1.0, 1.5, -1.0, -1.5, 7.0], np.float32), 16000)
    got = files.read(tmp_path / "a.wav")[0][0]
    assert np.allclose(got, [1, 1, -1, -1, 1], atol=4e-5)


def test_excerpts_and_blocks_are_slices_of_the_whole(tmp_path, rng):
    path = tmp_path / "a.flac"
    files.write(path, noise(rng, 2, 10_000), 16000)
    whole = files.read(path)[0]
    assert np.array_equal(files.read(path, 3000, 500)[0], whole[:, 3000:3500])
    assert np.array_equal(files.read(path, 9900, 500)[0], whole[:, 9900:])
    parts = list(files.blocks(path, 4096))
    assert [p.shape[1] for p in parts] == [4096, 4096, 1808]
    assert np.array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_every_suffix_listed_can_be_read(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    tone = 0.3 * np.sin(np.arange(16000) * 0.1)
    container = {".opus": "OGG"}.get(suffix, suffix[1:].upper())
    soundfile.write(str(path), tone, 16000, format=container, subtype="OPUS" if suffix == ".opus" else None)
    audio, rate = files.read(path)
    assert rate == 16000
    assert abs(audio.shape[1] - 16000) < 1200
    assert audio.std() == pytest.approx(tone.std(), rel=0.1)


def test_errors_name_the_file(tmp_path, rng):
    text, empty, nan, cut = (tmp_path / n for n in ("text.wav", "empty.wav", "nan.wav", "cut.flac"))
    text.write_text("not audio at all\n" * 50)
    soundfile.write(str(empty), np.zeros(0), 16000)
    soundfile.write(str(nan), np.array([0.1, np.nan, 0.2]), 16000, subtype="FLOAT")
    files.write(cut, noise(rng, 1, 50_000), 16000)
    cut.write_bytes(cut.read_bytes()[:30_000])
    cases = {
        tmp_path / "missing.wav": "no such file",
        tmp_path: "is a directory",
        text: "cannot be read as audio",
        empty: "holds no samples",
        nan: "NaN",
        cut: "cut.flac",
    }
    for path, message in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            files.read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    for path in (text, empty, tmp_path / "missing.wav"):
        with pytest.raises(UserError, match=path.name):
            files.info(path)
    with pytest.raises(UserError, match=r"cut\.flac"):
        list(files.blocks(cut, 4096))
    with pytest.raises(UserError, match="50000 samples"):
        files.read(cut, start=50_000)


def test_infinite_samples_are_refused_and_huge_ones_are_not(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(str(path), np.array([0.1, np.inf]), 16000, subtype="FLOAT")
    with pytest.raises(UserError, match="infinite"):
        files.read(path)
    soundfile.write(str(path), np.array([0.1, 1e30]), 16000, subtype="FLOAT")
    assert files.read(path)[0][0, 1] == np.float32(1e30)


@pytest.mark.parametrize(
    ("name", "audio", "message"),
    [
        ("a.mp3", np.zeros(9), "cannot write .mp3"),
        ("a", np.zeros(9), "without suffix"),
        ("no/a.wav", np.zeros(9), "does not exist"),
        ("a.wav", np.zeros((1, 0)), "no samples"),
        ("a.wav", np.array([np.nan]), "NaN"),
    ],
)
def test_write_refuses_and_leaves_nothing(tmp_path, name, audio, message):
    with pytest.raises(UserError, match=message):
        files.write(tmp_path / name, audio.astype(np.float32), 16000)
    assert not list(tmp_path.iterdir())


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.flac"
    files.write(path, np.zeros(100, np.float32), 16000)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"a\.flac"):
        files.write(path, np.ones(100, np.float32), 10**8)  # more than FLAC can say
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.flac"]


def test_find_is_sorted_recursive_and_skips_hidden(tmp_path):
    for name in ("b/z.WAV", "a.flac", "b/c/d.ogg", "b/notes.txt", ".trash/x.wav", "b/._z.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path, target_is_directory=True)
    found = [p.relative_to(tmp_path).as_posix() for p in files.find(tmp_path)]
    assert found == ["a.flac", "b/c/d.ogg", "b/z.WAV"]
    (tmp_path / "none").mkdir()
    for path, message in (
        (tmp_path / "none", "no audio file"),
        (tmp_path / "gone", "no such directory"),
        (tmp_path / "a.flac", "is a file"),
        ("gs://bucket/x", "mount"),
    ):
        with pytest.raises(UserError, match=message):
            files.find(path)


def test_channels_are_mixed_copied_or_cut(rng):
    stereo = noise(rng, 2, 10)
    assert np.allclose(files.to_channels(stereo, 1), stereo.mean(0, keepdims=True))
    assert np.array_equal(files.to_channels(stereo[:1], 2), np.concatenate([stereo[:1]] * 2))
    assert np.array_equal(files.to_channels(noise(rng, 3, 10)[:, :4], 2).shape, (2, 4))
    assert files.to_channels(stereo, 2) is stereo
