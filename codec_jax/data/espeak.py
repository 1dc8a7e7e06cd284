"""espeak-ng through ctypes: its library, what it reports while speaking, and how it pronounces a word.

espeak-ng is GPL, so it is loaded at run time and only behind the extra `demo`. Names and numbers: its speak_lib.h.
"""

import ctypes
import os
import shutil
import tempfile
import threading
from typing import NamedTuple

from codec_jax.data.phones import arpabet
from codec_jax.errors import UserError, require

SYNCHRONOUS, DONT_EXIT, PHONEME_EVENTS, PHONEME_IPA = 2, 0x8000, 1, 2
UTF8 = 1
WORD, END, PHONEME = 1, 5, 7  # kinds of events
_IPA, _GAP = 2, "_"  # of espeak_TextToPhonemes: IPA names, and what stands between them
_VOICES = {"en": "en-us"}  # "en" is British to espeak-ng, and CMUdict's phones are American


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_ubyte * 8))


class RawEvent(ctypes.Structure):
    """espeak_EVENT; an array of them ends with one of type 0."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(RawEvent)
)  # (samples, how many, events) -> 0 to go on


class Event(NamedTuple):
    """Something that begins at a sample: a WORD (place: its first character in the text), a PHONEME, or the END.

    name: of a PHONEME, in IPA with a stress mark before it; "" for a pause or a transition.
    """

    kind: int
    place: int
    sample: int
    name: str


def events(array) -> list[Event]:
    """The words, phonemes and ends of one callback's array of RawEvent."""
    found = []
    for raw in array or ():
        if raw.type == 0:
            break
        if raw.type in (WORD, END, PHONEME):
            # Eight bytes, with a zero behind shorter names alone: a longer name may lose half a character.
            name = bytes(raw.id.string).split(b"\0")[0].decode(errors="ignore") if raw.type == PHONEME else ""
            found.append(Event(raw.type, raw.text_position - 1, raw.sample, name))
    return found


def library(mend: str) -> tuple[str, str]:
    """Paths of espeak-ng's shared library and of its data directory. Raises: UserError, `mend` being its end."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise UserError(f'espeak-ng is missing: pip install "codec-jax[demo]", or {mend}') from error
    return str(espeakng_loader.get_library_path()), str(espeakng_loader.get_data_path())


def start(paths: tuple[str, str], options: int = 0) -> tuple[ctypes.CDLL, int]:
    """A running espeak-ng and its sample rate in Hz.

    It is loaded from a copy: its static state (the voice's flutter) outlives espeak_Terminate, so a second corpus made
    in one process would differ from the first.
    """
    path, data = paths
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        lib = ctypes.CDLL(shutil.copy(path, folder))
    rate = lib.espeak_Initialize(SYNCHRONOUS, 0, os.fsencode(data), DONT_EXIT | options)
    if rate <= 0:
        raise UserError(f"{data}: espeak-ng cannot start from these data; reinstall espeakng-loader")
    return lib, rate


class Speller:
    """How espeak-ng pronounces single words, in ARPAbet: speller("hello", "en") -> ("HH", "AH0", "L", "OW1").

    Remembers what it was asked; may be called from several threads. espeak-ng is loaded at the first question.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], tuple[str, ...]] = {}
        self._lib: ctypes.CDLL | None = None

    def __call__(self, word: str, language: str) -> tuple[str, ...]:
        """Raises: UserError without the extra `demo`, or for a language or a sound that nobody here knows."""
        with self._lock:
            key = (word, language)
            if key not in self._known:
                self._known[key] = tuple(phone for name in self._ask(*key) for phone in arpabet(name, language))
            return self._known[key]

    def _ask(self, word: str, language: str) -> list[str]:
        if self._lib is None:
            self._lib, _ = start(library('give "phones" in the transcripts'))
            self._lib.espeak_TextToPhonemes.restype = ctypes.c_char_p
        voice = _VOICES.get(language, language)
        known = not self._lib.espeak_SetVoiceByName(voice.encode())
        require(known, f'espeak-ng knows no language "{language}"; give "phones" in the transcript')
        text = ctypes.create_string_buffer(word.encode())
        left = ctypes.c_void_p(ctypes.addressof(text))
        clauses = []
        while left.value:
            names = self._lib.espeak_TextToPhonemes(ctypes.byref(left), UTF8, _IPA | ord(_GAP) << 8)
            clauses.append((names or b"").decode())
        return _GAP.join(clauses).replace(" ", _GAP).split(_GAP)
