"""Rows on disk and in means."""

import math

import pytest

from codec_jax.errors import UserError
from codec_jax.evaluate import rows, summary
from codec_jax.evaluate.rows import Row


def row(system="ours", utterance="a", language="en", **scores):
    return Row(system, "clean", utterance, language, 2.5, 700.0, 0.25, 1.5, 300.0, "", {"stoi": 0.5, **scores})


def test_read_as_written(tmp_path):
    path = tmp_path / "utterances.csv"
    written = [row(), row("it, too", 'a "b"', stoi=math.nan), row(utterance="c")]
    for part in (written[:1], written[1:]):  # a second writer goes on
        writer = rows.Writer(path, ["stoi"])
        for one in part:
            writer.write(one)
    found = rows.read(path)
    assert [one.key for one in found] == [one.key for one in written]
    assert found[0] == written[0]
    assert math.isnan(found[1].scores["stoi"])
    assert rows.metrics_of(path) == ["stoi"]


def test_a_torn_line_is_cut_off(tmp_path):
    path = tmp_path / "utterances.csv"
    rows.Writer(path, ["stoi"]).write(row())
    whole = path.read_text()
    path.write_text(whole + "ours,clean,b,en,2.5,7")
    assert len(rows.read(path)) == 1
    rows.Writer(path, ["stoi"]).write(row(utterance="b"))
    assert [one.utterance for one in rows.read(path)] == ["a", "b"]


def test_another_table_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("file,language\na,b\n")
    with pytest.raises(UserError, match="no table of utterances"):
        rows.read(tmp_path / "t.csv")


def test_means_and_differences():
    values = {"a": 0.1, "b": 0.4, "c": 0.2, "d": math.nan}
    table = [row("ours", name, "en" if name < "c" else "it", stoi=value) for name, value in values.items()]
    table += [row("theirs", name, stoi=value - 0.05) for name, value in reversed(values.items())]
    means = summary.by_system(table)
    assert means["ours"]["stoi"].mean == pytest.approx(0.7 / 3)
    assert means["ours"]["stoi"].n == 3
    assert means["ours"]["bits_per_second"] == (700.0, 700.0, 700.0, 4)
    found = summary.differences(table, "ours", "theirs")["stoi"]
    assert (found.mean, found.n) == (pytest.approx(0.05), 3)
    assert list(summary.grouped(rows.select(table, system="ours"), lambda one: one.language)) == ["en", "it"]
    assert summary.differences(table, "ours", "nobody") == {}
