"""Word and character error rates by a speech recogniser of the user's: any command that prints what it heard."""

import math
import pathlib
import shlex
import shutil
import subprocess
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from codec_jax.errors import UserError, require

METRICS = ("wer", "cer")
AUDIO, LANGUAGE = "{audio}", "{language}"
_SECONDS = 600


class Spoken(NamedTuple):
    """What a recogniser is asked. command: of the user. audio: a file. text: what was said, "" where unknown."""

    command: str
    audio: str
    text: str
    language: str = ""


def check(command: str) -> None:
    """Raises UserError for a command without {audio}, or whose program is not here."""
    words = _words(command)
    require(AUDIO in command, f'--asr "{command}" does not say where the file goes: write {AUDIO} for its path.')
    require(shutil.which(words[0]) is not None, f"--asr: there is no program {words[0]} on the path.")


def score(spoken: Spoken) -> dict[str, float]:
    """Error rates of what the recogniser makes of the audio; NaN without a text. UserError where the command fails."""
    wanted = normalised(spoken.text)
    if not wanted:
        return dict.fromkeys(METRICS, math.nan)
    heard = normalised(_heard(spoken))
    return {
        "wer": errors(wanted.split(), heard.split()) / len(wanted.split()),
        "cer": errors(wanted, heard) / len(wanted),
    }


def normalised(text: str) -> str:
    """Lower case, NFKC, apostrophes kept inside words, all other punctuation to spaces, single spaces."""
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    kept = "".join(letter if letter.isalnum() or letter == "'" or _mark(letter) else " " for letter in text)
    return " ".join(word.strip("'") for word in kept.split() if word.strip("'"))


def errors(wanted: Sequence, heard: Sequence) -> int:
    """Substitutions, insertions and deletions, as few as turn one into the other (Levenshtein)."""
    costs = np.arange(len(heard) + 1)
    for position, item in enumerate(wanted, 1):
        changed = costs[:-1] + np.array([item != other for other in heard], int)
        best = np.minimum(np.concatenate([[position], changed]), np.concatenate([[position], costs[1:] + 1]))
        # Insertions: each costs one more than its neighbour on the left.
        steps = np.arange(len(best))
        costs = np.minimum.accumulate(best - steps) + steps
    return int(costs[-1])


def _heard(spoken: Spoken) -> str:
    values = {AUDIO: str(pathlib.Path(spoken.audio).resolve()), LANGUAGE: spoken.language or "en"}
    words = _words(spoken.command)
    for name, value in values.items():
        words = [word.replace(name, value) for word in words]
    try:
        done = subprocess.run(words, capture_output=True, check=True, timeout=_SECONDS, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"{words[0]} failed on {spoken.audio} ({error}); run the --asr command by hand.") from error
    return done.stdout.decode(errors="replace")


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f'--asr "{command}" is no command line: {error}.') from error
    require(bool(words), "--asr is empty: give a command line.")
    return words


def _mark(letter: str) -> bool:
    return unicodedata.category(letter).startswith("M")
