"""Word-aligned transcripts: NAME.json beside a recording, and the phones that a crop of it holds.

{"language": "en", "words": [{"word": "hello", "start": 0.12, "end": 0.48, "phones": ["HH", "AH0", "L", "OW1"]}, ...]}

Seconds from the recording's first sample, words in order. Without "phones" a word is pronounced by espeak-ng (extra
`demo`), in the transcript's "language" ("en", American, where there is none). Other keys are ignored.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int16, Int32

from codec_jax.data.corpus import Clip
from codec_jax.data.espeak import Speller
from codec_jax.data.phones import Phones
from codec_jax.errors import UserError, require

CACHE_BYTES = 256 << 20  # transcripts past this are read anew every time; an hour of speech takes about 0.3 MB
_FAR = 1e9  # seconds, 31 years: no recording's

Spell = Callable[[str, str], Sequence[str]]


class Words(NamedTuple):
    """A transcript in arrays: word i lasts from starts[i] to ends[i] seconds, phones[splits[i] : splits[i + 1]].

    Of these the last is the separator between words. A word without phones (a silence) is left out.
    """

    starts: Float64[np.ndarray, "words"]
    ends: Float64[np.ndarray, "words"]
    splits: Int32[np.ndarray, "words+1"]
    phones: Int16[np.ndarray, "phones"]


def targets(words: Words, start: float, end: float) -> Int32[np.ndarray, "phones"]:
    """Phones of the words that start in [start, end) or end in (start, end], in seconds, separators between words.

    Words that only reach into the crop are there in full, and one that covers all of it is not there at all: neither
    of its ends lies inside. Both as upstream (spec TAAE section 6); whose ends belong to a crop, ours.
    """
    starting = (start <= words.starts) & (words.starts < end)
    ending = (start < words.ends) & (words.ends <= end)
    (inside,) = np.nonzero(starting | ending)
    if not inside.size:
        return np.zeros(0, np.int32)
    parts = [words.phones[words.splits[i] : words.splits[i + 1]] for i in inside]
    return np.concatenate(parts)[:-1].astype(np.int32)


def beside(recording: str | os.PathLike[str]) -> pathlib.Path:
    """Where a recording's transcript lies: a/b.flac -> a/b.json."""
    return pathlib.Path(recording).with_suffix(".json")


def check_transcripts(clips: Sequence[Clip]) -> None:
    """Raises UserError where recordings have no transcript: how many, and the first."""
    missing = [clip for clip in clips if not beside(clip.path).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(clips)} recordings have no transcript, the first being {missing[0].path}; "
            f"write {beside(missing[0].path).name} beside it (docs/training.md), or remove it"
        )


def read(path: str | os.PathLike[str], phones: Phones, spell: Spell) -> Words:
    """A transcript, its phones as classes of `phones`; spell(word, language) is asked where a word has none.

    Raises: UserError naming the file, and the word, where it is no transcript as above, holds nothing that is
    spoken, or a phone outside the set.
    """
    transcript = _load(path)
    language = transcript.get("language", "en")
    require(isinstance(language, str), f'{path}: "language" is {language!r}; give a name such as "en"')
    entries = transcript.get("words")
    if not isinstance(entries, list) or not entries:
        raise UserError(f'{path}: has no "words"; give a list of at least one')
    starts, ends, classes, last = [], [], [], 0.0
    for number, entry in enumerate(entries):
        try:
            word, start, end = _times(entry)
            require(start >= last, f"starts at {start} s, before the one in front of it; sort the words by start")
            last = start
            spoken = phones.encode(_spoken(entry, word, language, spell))
        except UserError as error:
            name = entry.get("word") if isinstance(entry, dict) else None
            raise UserError(f"{path}: word {number + 1}{f' ({name})' if name else ''}: {error}") from error
        if spoken.size:
            starts.append(start)
            ends.append(end)
            classes.append(np.append(spoken, phones.separator))
    require(classes, f"{path}: no word of it has phones; give it one, or remove the recording")
    splits = np.cumsum([0, *map(len, classes)], dtype=np.int32)
    return Words(np.array(starts), np.array(ends), splits, np.concatenate(classes).astype(np.int16))


def _load(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        transcript = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as a JSON transcript ({error})") from error
    require(isinstance(transcript, dict), f'{path}: is no JSON object; write {{"words": [...]}}')
    return transcript


def _times(entry: Any) -> tuple[str, float, float]:
    require(isinstance(entry, dict), 'is no object; write {"word": "hello", "start": 0.12, "end": 0.48}')
    word = entry.get("word")
    require(isinstance(word, str), 'has no "word"; give its text')
    for key in ("start", "end"):
        seconds = entry.get(key)
        fine = isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds < _FAR
        require(
            fine, f'"{key}" is {"missing" if seconds is None else seconds}; give seconds, a finite number from 0 on'
        )
    start, end = float(entry["start"]), float(entry["end"])
    require(end >= start, f"ends at {end} s, before its start at {start} s; exchange or mend them")
    return word, start, end


def _spoken(entry: dict[str, Any], word: str, language: str, spell: Spell) -> Sequence[str]:
    given = entry.get("phones")
    if given is None:
        spelt = spell(word, language)
        require(spelt, 'has no "phones", and espeak-ng finds none; give them ([] where nothing is said)')
        return spelt
    fine = isinstance(given, list) and all(isinstance(phone, str) for phone in given)
    require(fine, 'has "phones" that are no list of names; write ["HH", "AH0", ...]')
    return given


class _Kept:
    """Transcripts by recording, up to CACHE_BYTES of them."""

    def __init__(self):
        self._words: dict[str, Words] = {}
        self._nbytes = 0

    def get(self, path: str, make: Callable[[], Words]) -> Words:
        words = self._words.get(path)
        if words is None:  # two threads may both read it: the same words
            words = make()
            if self._nbytes < CACHE_BYTES:
                self._words[path] = words
                self._nbytes += sum(array.nbytes for array in words)
        return words


@dataclasses.dataclass(frozen=True)
class Labels:
    """What a pipeline needs to give crops their phones: the inventory, and the most phones a crop may have.

    setting: what errors tell the user to raise, the name of the field that `most` comes from.
    Transcripts are read when first asked for, and kept. May be used by several threads.
    """

    phones: Phones
    most: int
    setting: str = "most"
    _speller: Speller = dataclasses.field(default_factory=Speller, init=False, repr=False, compare=False)
    _kept: _Kept = dataclasses.field(default_factory=_Kept, init=False, repr=False, compare=False)

    def words(self, clip: Clip) -> Words:
        """The clip's transcript. Raises: UserError as `read` does."""
        return self._kept.get(clip.path, lambda: read(beside(clip.path), self.phones, self._speller))

    def targets(self, clip: Clip, start: float, end: float) -> Int32[np.ndarray, " most"]:
        """Phones of seconds start to end, padded with phones.padding.

        Raises: UserError as `read` does, and for more phones than `most`.
        """
        found = targets(self.words(clip), start, end)
        if len(found) > self.most:
            raise UserError(
                f"{clip.path}: {len(found)} phones are said between {start:.2f} and {end:.2f} s, and "
                f"{self.setting} is {self.most}; raise it"
            )
        row = np.full(self.most, self.phones.padding, np.int32)
        row[: len(found)] = found
        return row
