"""The phones a CTC head tells apart, and how espeak-ng's IPA becomes them.

Upstream's inventory has 80 lines: the word separator first, CMUdict's 69 ARPAbet phones with stress, ten punctuation
marks (spec TAAE section 6). Its order is not public, so ours is its own, and a file may give another.
"""

import dataclasses
import functools
import importlib.resources
import json
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int32

from codec_jax.errors import UserError, require

SEPARATOR = "|"
VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
CONSONANTS = (
    *("B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG"),
    *("P", "R", "S", "SH", "T", "TH", "V", "W", "Y", "Z", "ZH"),
)
PUNCTUATION = ("!", "'", "(", ")", ",", "-", ".", ":", ";", "?")
_ARPABET = sorted([*CONSONANTS, *(vowel + stress for vowel in VOWELS for stress in "012")])
_STRESS = {"ˈ": "1", "ˌ": "2"}
_SWITCH = re.compile(r"\([\w-]+\)")  # espeak-ng's "(en)": from here on in another language's sounds


@dataclasses.dataclass(frozen=True)
class Phones:
    """An inventory: a phone's place in `names` is its class. source: what errors call it."""

    names: tuple[str, ...]
    source: str = "the built-in phones"

    def __len__(self) -> int:
        return len(self.names)

    @property
    def separator(self) -> int:
        """The class between words."""
        return self.index(SEPARATOR)

    @property
    def blank(self) -> int:
        """CTC's blank: the class after the last phone (spec TAAE section 6: 80)."""
        return len(self.names)

    @property
    def padding(self) -> int:
        """What fills up rows of targets: no class at all (spec TAAE section 6: 81)."""
        return self.blank + 1

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.names)}

    def index(self, phone: str) -> int:
        """Class of a phone. Raises: UserError for one that is not there."""
        place = self._places.get(phone)
        if place is None:
            raise UserError(f'"{phone}" is none of the {len(self)} phones of {self.source}')
        return place

    def encode(self, phones: Iterable[str]) -> Int32[np.ndarray, "phones"]:
        """Classes of phones. Raises: UserError as `index` does."""
        return np.array([self.index(phone) for phone in phones], np.int32)


def read_phones(path: str | os.PathLike[str] | None = None) -> Phones:
    """The inventory of a file with one phone a line, a line's number (from 0) its class; None: the built-in 80.

    Raises: UserError where the file cannot be read, has an empty or repeated line, or no "|" between words.
    """
    if path is None:
        return Phones((SEPARATOR, *_ARPABET, *PUNCTUATION))
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of phones ({error})") from error
    names = tuple(line.strip() for line in lines)
    for number, name in enumerate(names):
        require(name, f"{path}: line {number + 1} is empty; give one phone a line")
        require(names.index(name) == number, f'{path}: line {number + 1} repeats "{name}"; give every phone once')
    require(SEPARATOR in names, f'{path}: has no line "{SEPARATOR}", which stands between words; add it')
    return Phones(names, str(path))


def arpabet(symbol: str, language: str) -> tuple[str, ...]:
    """One of espeak-ng's IPA phoneme names, a stress mark before it -> CMUdict's phones: "ˈɔːɹ" -> ("AO1", "R").

    By the table ipa_arpabet.json, which says what it does with sounds that English has not. No name, and a switch
    of languages, are no phone: ().
    Raises: UserError for a name that the table has not.
    """
    symbol = _SWITCH.sub("", symbol)
    bare = symbol.lstrip("".join(_STRESS))
    if not bare:
        return ()
    stress = _STRESS.get(symbol[:1], "0")
    phones = []
    for phone in _nearest(unicodedata.normalize("NFC", bare), language).split():
        if phone in VOWELS:
            phone, stress = phone + stress, "0"
        phones.append(phone)
    return tuple(phones)


def _nearest(name: str, language: str) -> str:
    table = _table()
    plain = name.translate({ord(mark): None for mark in table["marks"]})
    for known in (table["exceptions"].get(language.split("-")[0], {}), table["nearest"]):
        for key in (name, plain):
            if key in known:
                return known[key]
    raise UserError(
        f'espeak-ng\'s sound "{name}" ({language}) has no ARPAbet phone in ipa_arpabet.json; '
        'add it there, or give "phones" in the transcripts'
    )


@functools.cache
def _table() -> dict:
    resource = importlib.resources.files("codec_jax.data") / "ipa_arpabet.json"
    return json.loads(resource.read_text(encoding="utf-8"))
