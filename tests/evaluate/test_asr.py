"""Error rates of recognisers: edit distance by its recursion, text as it is compared, commands that work and fail."""

import functools
import math
import shlex
import sys

import hypothesis
import hypothesis.strategies as st
import pytest

from codec_jax.errors import UserError
from codec_jax.evaluate import asr, inputs
from codec_jax.evaluate.asr import Spoken
from codec_jax.evaluate.conditions import Condition
from codec_jax.evaluate.inputs import Utterance

WORDS = st.lists(st.sampled_from("abc"), max_size=7)


@hypothesis.given(WORDS, WORDS)
def test_errors_are_levenshtein(wanted, heard):
    @functools.cache
    def distance(i, j):
        if not i or not j:
            return i + j
        same = distance(i - 1, j - 1) + (wanted[i - 1] != heard[j - 1])
        return min(same, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    assert asr.errors(wanted, heard) == distance(len(wanted), len(heard))


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Hello, World!", "hello world"),
        ("It’s  the\tcat's 'meow'", "it's the cat's meow"),
        ("É tarde — «però»", "é tarde però"),
        ("ﬁve 2½", "five 21 2"),
        ("...", ""),
    ],
)
def test_text_as_it_is_compared(text, plain):
    assert asr.normalised(text) == plain


def command(tmp_path, code):
    script = tmp_path / "recogniser.py"
    script.write_text(code)
    return f"{shlex.quote(sys.executable)} {script} {{audio}} {{language}}"


def test_a_recogniser_is_asked(tmp_path):
    """Two of three words right, one added: 2/3; nothing said: every word is missing."""
    spoken = Spoken(command(tmp_path, "print('The CAT sit down.')"), "a.flac", "the cat sat")
    assert asr.score(spoken)["wer"] == pytest.approx(2 / 3)
    assert asr.score(spoken)["cer"] == pytest.approx(6 / 11)  # one substituted, five added
    assert asr.score(spoken._replace(command=command(tmp_path, ""))) == {"wer": 1.0, "cer": 1.0}
    told = "import sys; print(sys.argv[1].endswith('/b.flac'), sys.argv[2])"
    heard = Spoken(command(tmp_path, told), "b.flac", "true it", "it")
    assert asr.score(heard) == {"wer": 0.0, "cer": 0.0}
    assert all(math.isnan(value) for value in asr.score(heard._replace(text="")).values())
    with pytest.raises(UserError, match=r"failed on b\.flac"):
        asr.score(heard._replace(command=command(tmp_path, "raise SystemExit(3)")))


def test_commands_that_cannot_be(tmp_path):
    asr.check(command(tmp_path, ""))
    for text, says in (
        ("true", "does not say where"),
        ("nowhere_at_all {audio}", "no program"),
        ('"{audio}', "no command line"),
    ):
        with pytest.raises(UserError, match=says):
            asr.check(text)


def test_what_was_said_is_beside_the_file(tmp_path):
    utterance = Utterance("a", "en", Condition("clean"), (tmp_path / "a.wav",))
    assert inputs.text(utterance) == ""
    (tmp_path / "a.json").write_text('{"words": [{"word": "hello"}, {"start": 1}, {"word": "there"}]}')
    assert inputs.text(utterance) == "hello there"
    (tmp_path / "a.json").write_text('{"text": "good day", "words": []}')
    assert inputs.text(utterance) == "good day"
    (tmp_path / "a.txt").write_text("from text\n")
    assert inputs.text(utterance).strip() == "from text"
    assert inputs.text(utterance._replace(condition=Condition("length", 5.0))) == ""
    (tmp_path / "a.txt").unlink()
    (tmp_path / "a.json").write_text("[torn")
    assert inputs.text(utterance) == ""
