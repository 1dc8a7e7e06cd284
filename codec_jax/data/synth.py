"""A small multilingual speech corpus made on the spot by espeak-ng: training starts without a download.

Ten languages, sentences of our own (sentences.json), formant voices. It is a stand-in: pitch, rhythm, phones
and pauses are those of speech, the timbre is a robot's. It comes with what was said when. espeak-ng is GPL, so it is
loaded at run time and only behind the extra `demo`.
"""

import contextlib
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
from codec_jax.data import espeak, timings
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
_RECIPE = 2  # raise it when a change here, or in ipa_arpabet.json, changes the audio or its transcripts
_TRIM = 10 ** (-45 / 20)  # of the peak
_MARGIN = 0.05  # seconds of near-silence left at both ends

_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # espeak-ng's speak_lib.h


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

    Makes train/*.flac, valid/*.flac (16 kHz, mono, 16 bits), a word-aligned NAME.json beside each (transcripts.py) and
    transcripts.tsv in `directory`; validation has sentences and voices of its own. The same arguments give the same
    bytes. All is written to a temporary directory beside and renamed. Two processes may race: the first one wins.
    Raises: UserError where the directory holds something, clips < 1, or the extra `demo` is not installed.
    """
    directory = pathlib.Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory}: exists already; remove it or name another directory")
    if clips is not None and clips < 1:
        raise UserError(f"cannot synthesise {clips} clips; ask for at least 1")
    train = CLIPS["train"] if clips is None else clips
    plan = _plan("train", train, seed) + _plan("valid", min(CLIPS["valid"], max(1, train // 10)), seed)
    library = espeak.library("point --config.data.train at a directory of recordings")  # before anything is written
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
    spell = espeak.Speller()
    with _espeak(library) as (speak, rate):
        for utterance in tqdm(plan, desc="synthetic speech", unit="clip", disable=None):
            spoken, events = speak(utterance)
            kept = _trim(spoken, rate)
            audio = resample(spoken[kept], rate, SAMPLE_RATE)
            peak = max(float(np.abs(audio).max()), 1e-9)
            files.write(directory / utterance.name, audio * min(1.0, 0.95 / peak), SAMPLE_RATE)
            words = timings.words(utterance.text, events, utterance.language, spell)
            said = timings.transcript(words, utterance.language, rate, kept.start, kept.stop - kept.start)
            text = json.dumps(said, ensure_ascii=False) + "\n"
            (directory / utterance.name).with_suffix(".json").write_text(text, encoding="utf-8")
    rows = ["\t".join((u.name, u.language, u.voice, u.text)) + "\n" for u in plan]
    (directory / "transcripts.tsv").write_text("".join(["file\tlanguage\tvoice\ttext\n", *rows]), encoding="utf-8")


def _trim(audio: np.ndarray, rate: int) -> slice:
    """What is left of [time] without the silence before and after the speech, but for a short margin."""
    loud = np.flatnonzero(np.abs(audio) > _TRIM * np.abs(audio).max())
    margin = round(_MARGIN * rate)
    if not loud.size:
        return slice(0, len(audio))
    return slice(max(0, int(loud[0]) - margin), min(len(audio), int(loud[-1]) + margin))


Speech = tuple[np.ndarray, list[espeak.Event]]


@contextlib.contextmanager
def _espeak(library: tuple[str, str]) -> Iterator[tuple[Callable[[Utterance], Speech], int]]:
    """A running espeak-ng: Utterance -> float32 [time] and its events; and its sample rate. Not thread-safe."""
    lib, rate = espeak.start(library, espeak.PHONEME_EVENTS | espeak.PHONEME_IPA)
    parts: list[np.ndarray] = []
    events: list[espeak.Event] = []

    @espeak.CALLBACK
    def collect(samples, count, array):
        if count > 0:
            parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        events.extend(espeak.events(array))
        return 0

    def speak(utterance: Utterance) -> Speech:
        parts.clear()
        events.clear()
        lib.espeak_ng_SetRandSeed(1)  # breath noise: not left to whoever else draws from the C library's rand()
        voice = f"{utterance.language}+{utterance.voice}"
        if lib.espeak_SetVoiceByName(voice.encode()):
            raise UserError(f"this espeak-ng has no voice {voice}; install espeakng-loader>=0.2.4")
        settings = {_RATE: utterance.rate, _VOLUME: 75, _PITCH: utterance.pitch, _RANGE: utterance.range}
        for parameter, value in settings.items():
            lib.espeak_SetParameter(parameter, value, 0)
        text = utterance.text.encode() + b"\0"
        lib.espeak_Synth(text, len(text), 0, 1, 0, espeak.UTF8, None, None)
        return np.concatenate(parts).astype(np.float32) / 32768, list(events)

    lib.espeak_SetSynthCallback(collect)
    try:
        yield speak, rate
    finally:
        lib.espeak_Terminate()
