"""The report: what it says, and in a browser: players that switch in place, tables that sort, any width, light and dark."""

import base64
import io
import json
import math
import re

import numpy as np
import pytest
import soundfile
from etils import epath

from codec_jax.audio import files
from codec_jax.evaluate import conditions, inputs, outputs, report, rows, run, scores, systems
from codec_jax.evaluate.report import examples, page
from codec_jax.evaluate.rows import Row
from codec_jax.evaluate.systems import System
from tests import browser

RATE = 16000
METRICS = ("pesq_wb", "stoi", "si_sdr")
# What each system scores, by utterance: figures whose order is known.
QUALITY = {"original": 4.6, "ours@train": 2.0, "ours@2streams": 2.5, "peer@6": 3.0, "lowpass_3500": 3.5}
RATES = {"ours@train": 700.0, "ours@2streams": 1500.0, "peer@6": 6000.0}
NAMES = ("en_a", "en_b", "en_c", "it_d", "it_e", "it_f")
HOSTILE = "</script><b>"


def nothing(audio, rate, stem):
    raise AssertionError("a report codes nothing")


def scored(system, condition, place, name):
    """Utterance i scores i tenths more, and less in noise; the silent one has no PESQ."""
    value = QUALITY[system] + place / 10 - (condition != "clean")
    silent = name == "it_f"
    found = {
        "pesq_wb": math.nan if silent else value,
        "stoi": value / 5,
        "si_sdr": 100.0 if system == "original" else value,
    }
    costs = (RATES.get(system, math.nan), 0.1, 1.0 if "@" in system else math.nan, 500.0)
    note = "not defined: pesq_wb" if silent else HOSTILE if (system, name) == ("peer@6", "en_b") else ""
    return Row(system, condition, name, name[:2], 1.0 + place, *costs, note, found)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An evaluation that is over: its rows, and tones of a pitch per system as what was decoded."""
    speech, out = tmp_path_factory.mktemp("speech"), epath.Path(tmp_path_factory.mktemp("report") / "out")
    for name in (*NAMES, "torn"):
        files.write(speech / f"{name}.wav", np.full(RATE, 0.1, np.float32), RATE)
    named = [System("original", "original", "original", nothing)]
    named += [System(f"ours@{rate}", "ours", "ours", nothing, 700.0, RATE, (8, 16)) for rate in ("train", "2streams")]
    named += [System("peer@6", "peer", "peer", nothing), systems.lowpass(3500)]
    wanted = [conditions.parse(text) for text in ("clean", "noise@5")]
    job = run.Evaluation(inputs.find(speech, wanted), named, METRICS, out)
    settings = outputs.settings("speech", {"ours": "runs/ours, step 4"}, job)
    outputs.begin(job, settings, False)
    table = [
        scored(system.name, condition, place, name)
        for system in named
        for condition in ("clean", "noise@5")
        for place, name in enumerate(NAMES)
    ]
    writer = rows.Writer(out / run.TABLE, METRICS)
    for row in table:
        writer.write(row)
        if row.condition == "clean":
            keep(out, row, 200 + 100 * [s.name for s in named].index(row.system))
    results = outputs.write(job, table)
    path = report.write(job, table, results, report.Context(settings, ["codec2 is left out: it is not here."]))
    return job, table, results, path


def keep(out, row, hertz):
    path = run.audio_path(out, row)
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(3 * RATE)) / RATE
    files.write(path, (0.1 * np.sin(2 * np.pi * hertz * time)).astype(np.float32), RATE)
    if row.system.startswith("ours"):
        with path.with_suffix(".npy").open("wb") as file:
            np.save(file, np.stack([np.arange(100) % 4, np.zeros(100)]).astype(np.int32))


def data_of(path):
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)[1]
    return json.loads(text)


# ---- what it holds -------------------------------------------------------------------------------


def test_figures_are_those_of_the_files(made):
    job, _, _, path = made
    data = data_of(path)
    means = json.loads((job.directory / outputs.SUMMARY).read_text())
    for system, metric in (("ours@train", "pesq_wb"), ("lowpass_3500", "stoi"), ("peer@6", "bits_per_second")):
        said = data["means"]["clean"][system][metric]
        assert said == pytest.approx([means[system][metric][name] for name in ("mean", "low", "high", "n")], rel=1e-4)
    assert data["means"]["noise@5"]["peer@6"]["stoi"][0] == pytest.approx(
        data["means"]["clean"]["peer@6"]["stoi"][0] - 0.2
    )
    assert data["differences"]["ours@2streams"]["ours@train"]["pesq_wb"][0] == pytest.approx(0.5)
    assert data["differences"]["ours@train"]["ours@2streams"]["pesq_wb"][0] == pytest.approx(-0.5)
    assert list(data["groups"]["language"]) == ["en", "it"]
    assert list(data["groups"]["condition"]) == ["clean", "noise@5"]
    assert data["codes"]["ours@train"]["entropy"] == [2.0, 0.0]
    assert data["codes"]["ours@train"]["usage"] == [0.5, 1 / 16]
    assert [system["kind"] for system in data["systems"]] == ["original", "model", "model", "peer", "anchor"]
    place = data["rows"]["utterances"].index({"condition": "clean", "name": "en_b", "language": "en", "seconds": 2.0})
    assert data["rows"]["values"]["peer@6"]["pesq_wb"][place] == 3.1
    assert data["rows"]["values"]["original"]["bits_per_second"][place] is None


def test_what_was_not_scored_is_said(made):
    data = data_of(made[3])
    assert data["unread"] == ["torn.wav"]
    notes = {one["note"]: one for one in data["notes"]}
    assert notes["not defined: pesq_wb"]["rows"] == 10
    assert notes["not defined: pesq_wb"]["utterances"] == ["it_f, clean", "it_f, noise@5"]
    assert HOSTILE in notes
    assert HOSTILE not in made[3].read_text()  # it would end the script that the figures are in
    assert data["means"]["clean"]["original"]["pesq_wb"][3] == 5


def test_every_figure_is_explained(made):
    data = data_of(made[3])
    names = [metric["name"] for metric in data["metrics"]]
    assert set(names) == {*METRICS, *rows.COSTS, "bitrate_utilisation"}
    assert all(metric["how"] == scores.described(metric["name"]).how for metric in data["metrics"])


def test_worst_median_and_best_are_there(made):
    """By PESQ of the model's higher rate, of utterances that have one; lossless."""
    data = data_of(made[3])
    roles = {one["utterance"]: [which for _, which, _ in one["roles"]] for one in data["audio"]["examples"]}
    assert roles == {"en_a": ["worst"], "en_c": ["median"], "it_e": ["best"]}
    assert data["audio"]["looked_at"] == {"ours": "ours@2streams"}
    assert data["audio"]["format"] == "FLAC"
    embedded = re.search(r'id="audio-0-3">([^<]*)<', made[3].read_text())[1]
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(embedded)))
    decoded, _ = files.read(run.audio_path(made[0].directory, made[1][-12]).parent.parent / "peer@6" / "en_a.flac")
    np.testing.assert_array_equal(heard.astype(np.float32), decoded[0])
    assert rate == RATE


def test_audio_is_bounded(made, monkeypatch):
    """FLAC that does not fit becomes Opus, and then there are fewer utterances, which the page says."""
    job, table, results, _ = made
    chosen = examples.choose(job, table, results, {"ours"})
    flac = examples.pack(job, table, chosen)
    whole = sum(len(clip) for clips in flac.clips for clip in clips) * 3 // 4
    monkeypatch.setattr(examples, "BUDGET", whole - 1000)
    opus = examples.pack(job, table, chosen)
    assert (flac.told["format"], opus.told["format"]) == ("FLAC", "Opus")
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(opus.clips[0][1])))
    assert (rate, len(heard)) == (RATE, 3 * RATE)
    spectrum = np.abs(np.fft.rfft(heard[RATE : 2 * RATE]))
    assert spectrum.argmax() == 300
    spent = sum(map(len, opus.clips[0])) * 3 // 4
    monkeypatch.setattr(examples, "BUDGET", spent + 100)
    fewer = examples.pack(job, table, chosen)
    assert len(fewer.clips) == len(fewer.told["examples"]) == 1
    assert fewer.told["left_out"] == len(chosen.examples) - 1


def test_nothing_comes_from_elsewhere(made):
    """But for names of XML, no address."""
    text = made[3].read_text()
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=\"(?!data:,)", text)


def test_a_page_without_models_rates_or_intervals(tmp_path):
    """Of one utterance and the anchors alone, it is still a page."""
    files.write(tmp_path / "a.wav", np.full(RATE, 0.1, np.float32), RATE)
    job = run.Evaluation(
        inputs.find(tmp_path, [conditions.parse("clean")]),
        [systems.original(), systems.lowpass(3500)],
        METRICS,
        epath.Path(tmp_path / "out"),
    )
    settings = outputs.settings("speech", {}, job)
    outputs.begin(job, settings, False)
    table = [scored(system.name, "clean", 0, "a") for system in job.systems]
    for row in table:
        keep(job.directory, row, 300)
    path = report.write(job, table, outputs.write(job, table), report.Context(settings, []))
    data = data_of(path)
    assert data["groups"] == {}
    assert data["means"]["clean"]["original"]["stoi"] == [0.92, None, None, 1]
    with browser.opened(path) as shown:
        assert shown.locator("section").count() >= 4
        assert shown.locator("#listen #choices button").count() == 2


def test_the_parts_are_put_in_once():
    assembled = page.assembled({"remarks": ["<!--PROGRAM--> $& \\1"]}, [["QUJD", ""]])
    assert assembled.count('id="audio-0-0">QUJD<') == 1
    assert "audio-0-1" not in assembled
    assert assembled.count("headSection();") == 1


# ---- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown(made):
    with browser.opened(made[3]) as opened:
        opened.wait_for_function("player.seconds > 0")
        yield opened


def column(shown, section, place):
    """Texts of a column, the first of several lines."""
    cells = shown.locator(f"#{section} tbody tr > :nth-child({place})").all_inner_texts()
    return [text.strip().splitlines()[0] for text in cells]


def test_tables_sort_by_mouse_and_keyboard(shown):
    head = shown.locator("#means thead th", has_text="pesq_wb")
    assert head.get_attribute("aria-sort") == "none"
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert column(shown, "means", 1) == ["original", "lowpass_3500", "peer@6", "ours@2streams", "ours@train"]
    head.locator("button").focus()
    shown.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(shown, "means", 1)[0] == "ours@train"
    shown.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "descending"
    assert not shown.evaluate("player.playing")  # the space was the button's
    rates = shown.locator("#means thead th", has_text="bits_per_second")
    rates.locator("button").click()
    assert rates.get_attribute("aria-sort") == "ascending"
    assert head.get_attribute("aria-sort") == "none"
    assert column(shown, "means", 1)[:3] == ["ours@train", "ours@2streams", "peer@6"]  # without a rate: last
    assert sorted(column(shown, "means", 1)[3:]) == ["lowpass_3500", "original"]


def test_utterances_sort_and_are_found(shown):
    chosen = shown.locator("#utterances select").first
    chosen.select_option("peer@6")
    shown.locator("#utterances thead th", has_text="pesq_wb").locator("button").click()
    assert [text.split()[0] for text in column(shown, "utterances", 1)] == [
        "it_e",
        "it_d",
        "en_c",
        "en_b",
        "en_a",
        "it_f",
    ]
    shown.locator("#utterances input[type=search]").fill("it_")
    assert len(column(shown, "utterances", 1)) == 3
    shown.locator("#utterances input[type=search]").fill("")


def test_the_best_is_marked_and_anchors_are_not(shown):
    best = shown.locator("#means tbody tr:has(.best)").all_inner_texts()
    assert len(best) == 1
    assert best[0].startswith("peer@6")


def test_differences_to_a_chosen_system(shown):
    shown.locator("#differences select").select_option("ours@train")
    row = shown.locator("#differences tbody tr", has_text="ours@2streams")
    assert "+0.500" in row.inner_text()
    assert row.locator(".better").count() >= 2
    assert shown.locator("#differences tbody tr").count() == 4


def test_players_switch_without_losing_their_place(shown):
    """Keys and mouse; the chosen system alone is heard, at the sample where the other was."""
    shown.evaluate("document.activeElement.blur(); seek(0)")
    shown.keyboard.press("Space")
    shown.wait_for_function("position() > 0.3")
    before = shown.evaluate("[position(), player.context.currentTime - player.began]")
    shown.keyboard.press("4")
    after = shown.evaluate("[player.chosen, player.playing, position(), player.context.currentTime - player.began]")
    assert after[:2] == ["peer@6", True]
    assert after[2] - before[0] == pytest.approx(after[3] - before[1], abs=1e-3)  # time went on, and nothing else
    shown.locator("#choices button", has_text="lowpass_3500").click()
    assert shown.evaluate("[player.chosen, player.playing]") == ["lowpass_3500", True]
    assert shown.locator("#choices [aria-pressed=true]").inner_text().split()[1] == "lowpass_3500"
    shown.wait_for_function("player.gains['lowpass_3500'].gain.value === 1")
    assert shown.evaluate("Object.values(player.gains).map((gain) => gain.gain.value)") == [0, 0, 0, 0, 1]
    shown.keyboard.press("Space")  # with the focus on the button of a system
    stopped = shown.evaluate("[player.playing, player.offset, player.chosen]")
    assert (stopped[0], stopped[2]) == (False, "lowpass_3500")
    shown.keyboard.press("1")
    assert shown.evaluate("[player.playing, position(), player.chosen]") == [False, stopped[1], "original"]
    assert float(shown.locator("#seek").input_value()) == pytest.approx(stopped[1], abs=2e-3)


def test_buffers_are_the_samples_that_were_scored(shown, made):
    """All systems at the clip's own rate and of one length."""
    found = shown.evaluate(
        "NAMES.map((name) => [player.buffers[name].sampleRate, player.buffers[name].length,"
        " [...player.buffers[name].getChannelData(0).slice(1000, 1010)]])"
    )
    assert {tuple(one[:2]) for one in found} == {(RATE, 3 * RATE)}
    name = data_of(made[3])["audio"]["examples"][shown.evaluate("player.example")]["utterance"]
    for system, (_, _, samples) in zip([one.name for one in made[0].systems], found):
        row = next(one for one in made[1] if one.key == (system, "clean", name))
        decoded, _ = files.read(run.audio_path(made[0].directory, row))
        np.testing.assert_allclose(samples, decoded[0, 1000:1010], rtol=4e-5)  # Chromium's 1 is 32767


def test_opus_is_decoded_in_place(shown, made):
    """Of the length and at the place of what was encoded: its delay is taken off by the decoder."""
    audio = np.zeros(RATE, np.float32)
    audio[8000:8400] = np.hanning(400) * np.sin(np.arange(400))
    clip = base64.b64encode(examples._opus(audio, RATE)).decode()
    length, samples = shown.evaluate(
        "async (clip) => { const found = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(bytesOf(clip));"
        " return [found.length, [...found.getChannelData(0).slice(7900, 8500)]]; }",
        clip,
    )
    assert length == RATE
    late = np.correlate(samples, audio[7900:8500], "full").argmax() - 599
    assert abs(late) <= 1


def test_seeking_looping_and_the_end(shown):
    shown.evaluate("seek(2.8)")
    shown.evaluate("start()")
    shown.wait_for_function("!player.playing")
    assert shown.evaluate("position()") == 0
    shown.locator("#loop").check()
    shown.evaluate("seek(2.8)")
    shown.evaluate("start()")
    shown.wait_for_timeout(600)
    assert shown.evaluate("player.playing")
    assert 0 < shown.evaluate("position()") < 2
    shown.evaluate("stop()")
    shown.locator("#loop").uncheck()


def test_another_utterance(shown):
    shown.locator("#examples button", has_text="it_e").click()
    shown.wait_for_function("player.seconds > 0 && player.example === 2")
    assert shown.locator("#utterance").inner_text() == "it_e"
    assert shown.locator("#choices .score").all_inner_texts() == ["5.000", "2.400", "2.900", "3.400", "3.900"]
    shown.locator("#utterances select").first.select_option("ours@train")
    shown.locator("#utterances button.link", has_text="en_a").click()
    shown.wait_for_function("player.example === 0 && document.activeElement.id === 'play'")
    assert shown.evaluate("player.chosen") == "ours@train"


def test_spectrograms_show_the_tone(shown):
    """Of ours@train 300 Hz, where the original has 200: the transform against its definition, and the peak's bin."""
    direct = shown.evaluate(
        """() => {
          const signal = Array.from({ length: 8 }, (_, i) => Math.sin(i * i));
          const real = Float64Array.from(signal);
          const imaginary = new Float64Array(8);
          transform(real, imaginary);
          return [[...real], [...imaginary]];
        }"""
    )
    expected = np.fft.fft(np.sin(np.arange(8.0) ** 2))
    np.testing.assert_allclose(np.array(direct[0]) + 1j * np.array(direct[1]), expected, atol=1e-12)
    peak = shown.evaluate(
        """() => {
          const { bins, levels } = spectrumOf("ours@train");
          const frame = [...levels.slice(50 * bins, 51 * bins)];
          return [bins, frame.indexOf(Math.max(...frame))];
        }"""
    )
    assert peak == [257, round(300 / (RATE / 512))]
    widths = shown.evaluate("[...document.querySelectorAll('.spectrum canvas')].map((c) => [c.width, c.height])")
    assert widths == [[375, 257]] * 3


def test_plots_have_a_curve_per_family(shown):
    plot = shown.locator("#rate .plots").first.locator("figure").first
    assert plot.locator(".curve").count() == 2
    assert plot.locator(".marker").count() == 3
    assert plot.locator(".level").count() == 2  # original and lowpass_3500
    assert "ours@2streams" in plot.locator("svg").first.get_attribute("aria-label")
    assert shown.locator("#languages .plot").count() == 2
    assert shown.locator("#conditions .plot").count() == 2
    assert shown.evaluate("lengths('stoi', DATA.groups.condition)") is None
    over = "lengths('stoi', {'length@5': DATA.means.clean, 'length@20': DATA.means['noise@5']})"
    points = shown.evaluate(f"[...{over}.querySelectorAll('.marker')].map((m) => m.getAttribute('transform'))")
    assert len(points) == 1 + 1 + 2 * 3  # two families in the legend, three systems at two lengths
    assert len(set(points[2:])) == 6


def test_no_width_scrolls_sideways_and_both_themes_differ(shown):
    colours = []
    for scheme in ("light", "dark"):
        shown.emulate_media(color_scheme=scheme)
        for width in (320, 390, 768, 1280):
            shown.set_viewport_size({"width": width, "height": 844})
            assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth"), (scheme, width)
            wide = shown.evaluate(
                "[...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll, #examples, .unseen') &&"
                " e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80))"
            )
            assert not wide, (scheme, width, wide)
        colours.append(shown.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(250, 249, 247)", "rgb(19, 20, 22)"]


def test_text_has_contrast_in_both_themes(shown):
    """WCAG AA: 4.5 to 1 for ink, muted text and links on the surfaces they stand on."""
    for scheme in ("light", "dark"):
        shown.emulate_media(color_scheme=scheme)
        read = "(name) => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()"
        for ink in ("ink", "muted", "accent", "better", "worse"):
            for ground in ("page", "surface"):
                ratio = contrast(shown.evaluate(read, ink), shown.evaluate(read, ground))
                assert ratio >= 4.5, (scheme, ink, ground, ratio)


def contrast(first, second):
    """WCAG 2: (L1 + 0.05) / (L2 + 0.05)."""

    def luminance(text):
        parts = [int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dim = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)
