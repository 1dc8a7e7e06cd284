import importlib.util
import re

import pytest

from codec_jax.data import phones, synth
from codec_jax.data.espeak import Speller
from codec_jax.errors import UserError

needs_espeak = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason='needs pip install "codec-jax[demo]"'
)


def test_the_builtin_inventory_has_upstreams_counts():
    got = phones.read_phones()
    assert (len(got), got.separator, got.blank, got.padding) == (80, 0, 80, 81)
    assert got.names[0] == "|"
    spoken, marks = got.names[1:70], got.names[70:]
    assert list(spoken) == sorted(spoken)
    assert len({name.rstrip("012") for name in spoken}) == 15 + 24
    assert sum(name[-1].isdigit() for name in spoken) == 45
    assert not any(character.isalnum() for mark in marks for character in mark)
    assert len(set(got.names)) == 80
    assert got.encode(["|", "AA0", "ZH"]).tolist() == [0, 1, 69]


def test_a_file_gives_another_order(tmp_path):
    path = tmp_path / "phones.txt"
    path.write_text("AA\nB\n|\n", encoding="utf-8")
    got = phones.read_phones(path)
    assert (got.names, got.separator, got.blank, got.padding) == (("AA", "B", "|"), 2, 3, 4)
    with pytest.raises(UserError, match=r'"AA0" is none of the 3 phones of .*phones\.txt'):
        got.index("AA0")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("AA\n\n|\n", "line 2 is empty"),
        ("|\nAA\nAA\n", 'line 3 repeats "AA"'),
        ("AA\n", r'no line "\|"'),
        ("", "no line"),
    ],
)
def test_files_that_are_no_inventory(tmp_path, text, match):
    path = tmp_path / "phones.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=match) as error:
        phones.read_phones(path)
    assert str(path) in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        phones.read_phones(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"|\n\xe9\n")
    with pytest.raises(UserError, match=r"latin\.txt: cannot be read"):
        phones.read_phones(tmp_path / "latin.txt")


@pytest.mark.parametrize(
    ("symbol", "language", "want"),
    [
        ("p", "de", "P"),
        ("ˈeɪ", "en-us", "EY1"),
        ("ˌɔːɹ", "en-us", "AO2 R"),
        ("ˈaɪɚ", "en-us", "AY1 ER0"),
        ("ˈja", "ru", "Y AA1"),
        ("ɾ", "en-us", "T"),
        ("ɾ", "es", "R"),
        ("ɵ", "nl", "AH0"),
        ("tː", "it", "T"),
        ("ɭʲ", "ru", "L"),
        ("ˈɑ̃", "fr", "AA1 N"),
        ("ˌu\u0303", "pt-br", "UW2"),  # composed in the table
        ("(en)ˈa", "fr", "AA1"),
        ("(en)", "fr", ""),
        ("ʔ", "de", ""),
        ("", "en-us", ""),
    ],
)
def test_ipa_becomes_arpabet(symbol, language, want):
    assert phones.arpabet(symbol, language) == tuple(want.split())


def test_unknown_sounds_are_named():
    for symbol in ("ʘ", "ˈǃa"):
        with pytest.raises(UserError, match=f'"{symbol.lstrip("ˈ")}" \\(xx\\) has no ARPAbet phone'):
            phones.arpabet(symbol, "xx")


def test_the_table_names_arpabet_phones_alone():
    table = phones._table()
    known = {*phones.VOWELS, *phones.CONSONANTS}
    for entries in (table["nearest"], *table["exceptions"].values()):
        for name, nearest in entries.items():
            assert set(nearest.split()) <= known, name
    assert {nearest for nearest in table["nearest"].values() if not nearest} == {""}
    assert {name for name, nearest in table["nearest"].items() if not nearest} == {"ʔ", "ʲ"}


@needs_espeak
def test_every_word_of_every_sentence_has_phones(monkeypatch):
    inventory, spell = phones.read_phones(), Speller()
    for language, sentences in synth._sentences().items():
        for word in re.findall(r"\S*\w\S*", " ".join(sentences)):
            assert len(inventory.encode(spell(word, language))), (language, word)
    lacking = phones._table() | {"nearest": {**phones._table()["nearest"]}}
    del lacking["nearest"]["ʃ"]
    monkeypatch.setattr(phones, "_table", lambda: lacking)
    with pytest.raises(UserError, match='"ʃ"'):
        Speller()("ship", "en")


@needs_espeak
def test_words_are_spelt_as_american_english_unless_told():
    spell = Speller()
    assert spell("hello", "en") == ("HH", "AH0", "L", "OW1")
    assert spell("water", "en") == ("W", "AO1", "T", "ER0")
    assert spell("Schule", "de") == ("SH", "UW1", "L", "AH0")
    assert spell("—", "en") == ()
    with pytest.raises(UserError, match='no language "tlhx"'):
        spell("hello", "tlhx")
