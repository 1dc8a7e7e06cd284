"""Which words and phones espeak-ng said when: from its events to a transcript (transcripts.py has the format)."""

import bisect
import itertools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from codec_jax.data import espeak
from codec_jax.data.phones import arpabet

_RUN = re.compile(r"\S*\w\S*")  # between blanks, with a letter in it
_OUTER = re.compile(r"^\W+|\W+$")


class Sound(NamedTuple):
    """A phoneme: its IPA name, and the samples where it begins and where the next event does."""

    name: str
    start: int
    end: int


class Word(NamedTuple):
    """A word of the text, the sample where it begins, and the sounds it was spoken with, at least one.

    It begins before its first sound where that needs a closure or a glide, and ends with its last one.
    """

    word: str
    start: int
    sounds: tuple[Sound, ...]


def words(
    text: str, events: Sequence[espeak.Event], language: str, spell: Callable[[str, str], Sequence[str]]
) -> list[Word]:
    """The text's words, in order, with their sounds. Pauses and transitions, which have no name, end a sound.

    espeak-ng has one event for words it speaks as one ("on the"): their sounds are dealt out from the last word
    backwards, as many as `spell` gives it by itself.
    """
    runs = list(_RUN.finditer(text))
    begins = [run.start() for run in runs]
    sounds: dict[int, list[Sound]] = {}
    starts: dict[int, int] = {}
    current = 0
    for event, following in itertools.pairwise(events):
        if event.kind == espeak.WORD:
            current = max(0, bisect.bisect_right(begins, event.place) - 1)
            starts.setdefault(current, event.sample)
        elif event.kind == espeak.PHONEME and arpabet(event.name, language):
            sounds.setdefault(current, []).append(Sound(event.name, event.sample, following.sample))
    names = [_OUTER.sub("", run.group()) for run in runs]
    found = []
    heads = sorted(sounds)
    for head, after in zip(heads, [*heads[1:], len(runs)]):
        counts = [len(spell(name, language)) for name in names[head + 1 : after]]
        first, *others = _deal(sounds[head], counts)
        found.append(Word(names[head], starts[head], first))
        found += [Word(name, part[0].start, part) for name, part in zip(names[head + 1 : after], others)]
    return found


def _deal(sounds: list[Sound], counts: Sequence[int]) -> list[tuple[Sound, ...]]:
    """Sounds of several words -> of each: those after the first have `counts`, as far as one is left for all."""
    dealt = []
    for before, count in reversed(list(enumerate(counts, start=1))):
        take = max(1, min(count, len(sounds) - before))
        dealt.append(tuple(sounds[-take:]))
        sounds = sounds[:-take]
    return [tuple(sounds), *reversed(dealt)]


def transcript(found: Sequence[Word], language: str, rate: int, offset: int, length: int) -> dict:
    """The JSON of words spoken at `rate` Hz, in a recording of `length` samples cut out from sample `offset` on."""

    def seconds(sample: int) -> float:
        return round(min(max(sample - offset, 0), length) / rate, 4)

    entries = [
        {
            "word": word,
            "start": seconds(start),
            "end": seconds(sounds[-1].end),
            "phones": [phone for sound in sounds for phone in arpabet(sound.name, language)],
        }
        for word, start, sounds in found
    ]
    return {"language": language, "words": entries}
