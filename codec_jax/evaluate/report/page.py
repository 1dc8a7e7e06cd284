"""Figures, audio, style and program put together to one page."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from etils import epath

from codec_jax.evaluate import outputs
from codec_jax.evaluate.outputs import Results
from codec_jax.evaluate.report import examples, gather
from codec_jax.evaluate.report.gather import Context
from codec_jax.evaluate.rows import Row
from codec_jax.evaluate.run import Evaluation
from codec_jax.storage import read_json, write_text

_HERE = pathlib.Path(__file__).parent
_SCRIPTS = ("base.js", "tables.js", "plots.js", "spectra.js", "player.js", "page.js")


def write(evaluation: Evaluation, table: Sequence[Row], results: Results, context: Context) -> epath.Path:
    """Makes outputs.REPORT in the directory of the evaluation, and gives its path.

    table: all rows, by system. The file holds at most examples.BUDGET bytes of audio and gather.MOST_VALUES figures of
    single utterances, and says so where there was more.
    """
    machines = read_json(evaluation.directory / outputs.MACHINES)["machines"]
    chosen = examples.choose(evaluation, table, results, context.settings["models"])
    packed = examples.pack(evaluation, table, chosen)
    figures = gather.figures(evaluation, table, results, context)
    path = evaluation.directory / outputs.REPORT
    write_text(path, assembled({**figures, "machines": machines, "audio": packed.told}, packed.clips))
    return path


def assembled(data: Any, clips: Sequence[Sequence[str]]) -> str:
    """The page of these figures. clips: of every example, base64 of every system's audio, "" where there is none."""
    figures = json.dumps(outputs.plain(data), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    audio = "\n".join(
        f'<script type="text/plain" id="audio-{i}-{j}">{clip}</script>'
        for i, example in enumerate(clips)
        for j, clip in enumerate(example)
        if clip
    )
    parts = {
        "<!--STYLE-->": f"<style>\n{_text('page.css')}</style>",
        "<!--DATA-->": f'<script type="application/json" id="data">{figures}</script>\n{audio}',
        "<!--PROGRAM-->": "<script>\n" + "\n".join(map(_text, _SCRIPTS)) + "</script>",
    }
    page = _text("page.html")
    for mark, text in parts.items():
        before, _, after = page.partition(mark)
        page = before + text + after
    return page


def _text(name: str) -> str:
    return (_HERE / name).read_text()
