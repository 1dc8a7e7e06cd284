"""A small multilingual speech corpus made on the spot by espeak-ng: training starts without a download.

Ten languages, sentences of our own (sentences.json), formant voices. It is a stand-in: pitch, rhythm, phones
and pauses are those of speech, the timbre is a robot's. espeak-ng is GPL, so it is loaded at run time
and only behind the extra `demo`.
"""

import contextlib
import ctypes
import hashlib
import importlib.resources
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from codec_jax.audio import files
from codec_jax.audio.resample import resample
from codec_jax.errors import UserError

SAMPLE_RATE = 16_000
# Variants of espeak-ng that keep below full scale. No validation voice is heard in training.
VOICES = {
    "train": (
        *("m1", "f1", "m2", "f2", "m3", "f4", "m5", "Annie"),
        *("m7", "aunty", "max", "Alicia", "Michael", "shelby", "Mario", "robert"),
    ),
    "valid": ("f3", "m4", "f5", "m6"),
}
VALID_SENTENCES = 3  # the last ones of every language
CLIPS = {"train": 700, "valid": 30}
_RECIPE = 1  # raise it when a change here changes the audio
_TRIM = 10 ** (-45 / 20)  # of the peak
_MARGIN = 0.05  # seconds of near-silence left at both ends

# espeak-ng's speak_lib.h
_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Utterance(NamedTuple):
    """One clip to speak: rate in words a minute, pitch and its range in espeak-ng's 0 to 99."""

    name: str
    language: str
    voice: str
    text: str
    rate: int
    pitch: int
    range: int


def default_corpus() -> pathlib.Path:
    """The synthetic corpus in the user's cache, made on first use: a directory with train/ and valid/.

    It lies under $XDG_CACHE_HOME/codec_jax (~/.cache/codec_jax), its name carrying a hash of the recipe.
    Raises: UserError where it has to be made and the extra `demo` is not installed.
    """
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "codec_jax"
    directory = cache / f"synthetic-{_recipe_hash()}"
    if not directory.is_dir():
        synthesise(directory)
    return directory


def synthesise(directory: str | os.PathLike[str], seed: int = 0, clips: int | None = None) -> pathlib.Path:
    """Speak `clips` training clips (None: 700, 37 minutes) and a tenth as many (at most 30) for validation.

    Makes train/*.flac, valid/*.flac (16 kHz, mono, 16 bits) and transcripts.tsv in `directory`; validation
    has sentences and voices of its own. The same arguments give the same bytes. All is written to a temporary
    directory beside and renamed. Two processes may race: the first one wins.
    Raises: UserError where the directory holds something, clips < 1, or the extra `demo` is not installed.
    """
    directory = pathlib.Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory}: exists already; remove it or name another directory")
    if clips is not None and clips < 1:
        raise UserError(f"cannot synthesise {clips} clips; ask for at least 1")
    train = CLIPS["train"] if clips is None else clips
    plan = _plan("train", train, seed) + _plan("valid", min(CLIPS["valid"], max(1, train // 10)), seed)
    library = _library()  # before anything is written
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".tmp", dir=directory.parent))
    try:
        _write(plan, temporary, library)
        temporary.chmod(0o755)
        _move(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def _move(temporary: pathlib.Path, directory: pathlib.Path) -> None:
    try:
        os.rename(temporary, directory)
    except OSError:
        if not (directory / "transcripts.tsv").is_file():  # else: another process was faster, with the same bytes
            raise


def _recipe_hash() -> str:
    recipe = json.dumps([_RECIPE, VOICES, VALID_SENTENCES, CLIPS, _sentences()], sort_keys=True)
    return hashlib.blake2b(recipe.encode(), digest_size=6).hexdigest()


def _sentences() -> dict[str, list[str]]:
    resource = importlib.resources.files("codec_jax.data") / "sentences.json"
    return json.loads(resource.read_text(encoding="utf-8"))


def _plan(part: str, clips: int, seed: int) -> list[Utterance]:
    """Clips in turn over languages, then sentences; voices shift so that every language meets all of them."""
    sentences = _sentences()
    languages, voices = sorted(sentences), VOICES[part]
    chosen = slice(-VALID_SENTENCES, None) if part == "valid" else slice(None, -VALID_SENTENCES)
    plan = []
    for i in range(clips):
        row, language = i // len(languages), languages[i % len(languages)]
        texts = sentences[language][chosen]
        voice = voices[(i + row) % len(voices)]
        rng = np.random.default_rng([seed, part == "valid", i])
        rate, pitch, spread = (int(rng.integers(*bounds)) for bounds in ((130, 186), (35, 66), (35, 70)))
        name = f"{part}/{language}_{i:04d}_{voice}.flac"
        plan.append(Utterance(name, language, voice, texts[row % len(texts)], rate, pitch, spread))
    return plan


def _write(plan: list[Utterance], directory: pathlib.Path, library: tuple[str, str]) -> None:
    for part in VOICES:
        (directory / part).mkdir()
    with _espeak(*library) as (speak, rate):
        for utterance in tqdm(plan, desc="synthetic speech", unit="clip", disable=None):
            audio = resample(_trim(speak(utterance), rate), rate, SAMPLE_RATE)
            peak = max(float(np.abs(audio).max()), 1e-9)
            files.write(directory / utterance.name, audio * min(1.0, 0.95 / peak), SAMPLE_RATE)
    rows = ["\t".join((u.name, u.language, u.voice, u.text)) + "\n" for u in plan]
    (directory / "transcripts.tsv").write_text("".join(["file\tlanguage\tvoice\ttext\n", *rows]), encoding="utf-8")


def _trim(audio: np.ndarray, rate: int) -> np.ndarray:
    """Cut the silence before and after the speech, down to a short margin; [time] -> [time]."""
    loud = np.flatnonzero(np.abs(audio) > _TRIM * np.abs(audio).max())
    margin = round(_MARGIN * rate)
    return audio[max(0, loud[0] - margin) : loud[-1] + margin] if loud.size else audio


def _library() -> tuple[str, str]:
    """Paths of espeak-ng's shared library and of its data directory."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise UserError(
            'the synthetic corpus needs espeak-ng: pip install "codec-jax[demo]", or point '
            "--config.data.train at a directory of recordings"
        ) from error
    return str(espeakng_loader.get_library_path()), str(espeakng_loader.get_data_path())


def _fresh(library: str) -> ctypes.CDLL:
    """The library loaded from a copy: its static state (the voice's flutter) outlives espeak_Terminate, so a
    second corpus made in one process would differ from the first.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return ctypes.CDLL(shutil.copy(library, folder))


@contextlib.contextmanager
def _espeak(library: str, data: str) -> Iterator[tuple[Callable[[Utterance], np.ndarray], int]]:
    """A running espeak-ng: a function Utterance -> float32 [time], and its sample rate. Not thread-safe."""
    lib = _fresh(library)
    rate = lib.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data), _DONT_EXIT)
    if rate <= 0:
        raise UserError(f"{data}: espeak-ng cannot start from these data; reinstall espeakng-loader")
    parts: list[np.ndarray] = []

    @_CALLBACK
    def collect(samples, count, _events):
        if count > 0:
            parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(utterance: Utterance) -> np.ndarray:
        parts.clear()
        lib.espeak_ng_SetRandSeed(1)  # breath noise: not left to whoever else draws from the C library's rand()
        voice = f"{utterance.language}+{utterance.voice}"
        if lib.espeak_SetVoiceByName(voice.encode()):
            raise UserError(f"this espeak-ng has no voice {voice}; install espeakng-loader>=0.2.4")
        settings = {_RATE: utterance.rate, _VOLUME: 75, _PITCH: utterance.pitch, _RANGE: utterance.range}
        for parameter, value in settings.items():
            lib.espeak_SetParameter(parameter, value, 0)
        text = utterance.text.encode() + b"\0"
        lib.espeak_Synth(text, len(text), 0, 1, 0, _UTF8, None, None)
        return np.concatenate(parts).astype(np.float32) / 32768

    lib.espeak_SetSynthCallback(collect)
    try:
        yield speak, rate
    finally:
        lib.espeak_Terminate()
