"""Listening tests in a real browser: sessions clicked through, their files analysed, reloads, narrow screens."""

import base64
import itertools
import json

import numpy as np
import pytest
import soundfile

from codec_jax import cli
from codec_jax.audio import files
from tests.browser import PHONE, WIDE, opened

RATE = 16_000


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """mushra: two trials of five signals. ab: one pair in both orders."""
    directory = tmp_path_factory.mktemp("sites")
    (directory / "in").mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        tone = 0.1 * np.sin(2 * np.pi * (300 + 100 * i) * np.arange(11_000) / RATE)
        soundfile.write(directory / "in" / f"clip{i}.wav", tone + 0.02 * rng.standard_normal(11_000), RATE)
    common = ["listen", str(directory / "in"), "--against"]
    assert (
        cli.main([*common, "mu_law", "--trials", "2", "-o", str(directory / "mushra"), "--title", "<b>Codecs</b>"]) == 0
    )
    assert cli.main([*common, "mu_law,lowpass@2000", "--trials", "1", "-o", str(directory / "ab"), "--test", "ab"]) == 0
    return directory


def begin(page, code=""):
    """Through the welcome page."""
    page.get_by_label("Headphones").check()
    page.get_by_role("button", name="Play the test sound").click()
    page.get_by_role("button", name="Stop the test sound").wait_for()
    page.get_by_label("Your code").fill(code)
    page.get_by_role("button", name="Go on to practice").click()
    ready(page)


def ready(page):
    page.wait_for_function("document.querySelector('[data-play]') && !document.querySelector('[data-play]').disabled")


def hear(page, key):
    page.keyboard.press(key)
    page.locator("#main .button.heard[aria-pressed=true]").wait_for()


def shown(page):
    """Blinded names of a trial in the order on screen: what the page keeps of it."""
    return page.evaluate("(state.step < 0 ? order.practice : order.trials[state.step]).shown")


def rate_all(page, score_of):
    """Hears everything and rates by keys."""
    hear(page, "r")
    for letter, name in zip("abcdefgh", shown(page)):
        hear(page, letter)
        for _ in range(abs(score_of(name) - 50) // 10):
            page.keyboard.press("PageUp" if score_of(name) > 50 else "PageDown")


def saved(page, path):
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the results").click()
    assert download.value.suggested_filename.startswith("listen-")
    download.value.save_as(path)
    return json.loads(path.read_text())


def secrets(sites, kind):
    key = json.loads((sites / f"{kind}.key.json").read_text())
    trials = [*key["trials"], key["practice"]]
    return {name: one["system"] for trial in trials for name, one in trial["stimuli"].items()}


SCORES = {"original": 100, "lowpass_7000": 80, "lowpass_3500": 30, "mu_law": 60}


def test_a_mushra_session_with_a_reload_and_its_analysis(sites, tmp_path, capsys):
    system = secrets(sites, "mushra")

    def score(name):
        return SCORES[system[name]]

    with opened(sites / "mushra" / "index.html") as page:
        assert page.locator("#title").inner_text() == "<b>Codecs</b>"
        begin(page, "P 07/ö")
        assert "Practice" in page.locator("h1").inner_text()
        rate_all(page, score)
        page.get_by_role("button", name="Start the test").click()
        ready(page)
        following = page.get_by_role("button", name="Next")
        assert following.is_disabled()
        hear(page, "r")
        hear(page, "a")
        page.keyboard.press("PageUp")
        assert "Still to hear: 3 of 5" in page.get_by_role("status").inner_text()
        before = shown(page)
        page.wait_for_timeout(1100)  # kept once a second
        page.reload()
        ready(page)
        assert shown(page) == before
        assert page.locator("#place").inner_text() == "Trial 1 of 2"
        assert page.locator(".stimulus .value").first.inner_text() == "60"
        assert "Still to hear: 3 of 5" in page.get_by_role("status").inner_text()
        page.get_by_role("button", name="A", exact=True).click()
        page.get_by_label("Rating of A").fill("50")
        rate_all(page, score)
        following.click()
        ready(page)
        rate_all(page, score)
        page.get_by_role("button", name="Finish").click()
        result = saved(page, tmp_path / "result.json")
        assert json.loads(page.locator("textarea").input_value()) == result
        page.reload()
        assert page.locator("h1").inner_text() == "Thank you"
        page.get_by_role("button", name="Clear this device").click()
        page.get_by_role("button", name="press again").click()
        assert page.locator("h1").inner_text() == "Before you begin"
    assert (result["listener"], result["transducer"]) == ("P 07/ö", "headphones")
    assert result["reloads"] == 1
    assert "Chrome" in result["user_agent"]
    for trial in result["trials"]:
        assert {system[name]: value for name, value in trial["ratings"].items()} == SCORES
        assert min(trial["plays"].values()) >= 1
        assert min(trial["heard_seconds"].values()) >= 0.5
        assert set(trial["plays"]) == {*trial["shown"], trial["reference"]}
    arguments = ["listen", "--analyse", str(tmp_path / "result.json"), "--key", str(sites / "mushra.key.json")]
    assert cli.main([*arguments, "-o", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert {name: row["mean"] for name, row in found["systems"].items()} == SCORES
    assert found["screening"]["excluded"] == []
    assert "1 listener: too few" in capsys.readouterr().out


def test_only_what_is_heard_can_be_rated(sites):
    with opened(sites / "mushra" / "index.html", WIDE, dark=True) as page:
        page.get_by_role("button", name="Go on to practice").click()
        assert page.locator("h1").inner_text() == "Before you begin"  # nothing said about headphones
        page.get_by_label("Loudspeakers").check()
        page.get_by_role("button", name="Go on to practice").click()
        assert "Please play the test sound" in page.get_by_role("status").inner_text()
        begin(page)
        sliders = page.get_by_role("slider", name="Rating of")
        assert sliders.count() == 4
        assert all(sliders.nth(i).is_disabled() for i in range(4))
        page.get_by_role("button", name="B", exact=True).click()
        assert [sliders.nth(i).is_enabled() for i in range(4)] == [False, True, False, False]
        page.get_by_label("Rating of B").click()  # in the middle, where it stands: a rating all the same
        assert page.locator(".stimulus .value").nth(1).inner_text() == "50"
        assert sliders.nth(1).get_attribute("aria-valuetext") == "50, Fair"
        page.keyboard.press("c")
        assert [sliders.nth(i).is_enabled() for i in range(4)] == [False, False, True, False]
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Rating of C"
        page.keyboard.press(" ")
        assert not page.evaluate("player.state().playing")
        before = page.evaluate("player.state().position")
        page.keyboard.press("ArrowUp")
        page.keyboard.press("r")
        assert page.evaluate("player.state().playing")
        assert before > 0
        assert page.locator(".stimulus .value").nth(2).inner_text() == "51"
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(int(part) for part in ground[4:-1].split(",")) < 60


def test_an_ab_session_and_its_analysis(sites, tmp_path, capsys):
    system = secrets(sites, "ab")
    orders = []
    with opened(sites / "ab" / "index.html") as page:
        begin(page)
        while page.locator("[data-next]").count():
            ready(page)
            names = shown(page)
            assert not page.get_by_role("button", name="Reference").is_visible()
            hear(page, "a")
            hear(page, "b")
            assert page.get_by_role("status").inner_text() == "Which one is better?"
            page.keyboard.press("1" if system[names[0]] == "mu_law" else "3")
            if "Practice" not in page.locator("h1").inner_text():
                orders.append([system[name] for name in names])
            page.locator("[data-next]").click()
        result = saved(page, tmp_path / "result.json")
    assert orders[0] == orders[1][::-1]
    assert len(result["listener"]) == 8
    assert cli.main(["listen", "--analyse", str(tmp_path / "result.json"), "--key", str(sites / "ab.key.json")]) == 0
    told = capsys.readouterr().out
    assert "mu_law : lowpass_2000  2        100% [16%, 100%]" in told


@pytest.mark.parametrize("kind", ["mushra", "ab"])
def test_no_sideways_scroll_on_a_phone(sites, kind):
    with opened(sites / kind / "index.html", PHONE) as page:
        width = "document.documentElement.scrollWidth <= innerWidth"
        assert page.evaluate(width)
        begin(page)
        assert page.evaluate(width)
        boxes = [page.locator(".letter").nth(i).bounding_box() for i in range(page.locator(".letter").count())]
        for box in boxes:
            assert box["width"] >= 40
            assert box["height"] >= 40
        for one, other in itertools.pairwise(boxes):  # beside or below, never over each other
            assert other["x"] >= one["x"] + one["width"] or other["y"] >= one["y"] + one["height"]


def test_orders_come_from_the_seed(sites):
    with opened(sites / "mushra" / "index.html") as page:
        first = page.evaluate("[1, 1, 2, 3, 4, 5].map((seed) => JSON.stringify(plan(seed)))")
        assert first[0] == first[1]
        assert len(set(first)) == 5
        places = page.evaluate(
            "Array.from({ length: 2000 }, (_, seed) => plan(seed * 2654435761 >>> 0).trials)"
            ".map((trials) => trials.find((t) => t.trial === TEST.trials[0].trial).shown.indexOf(TEST.trials[0].stimuli[0]))"
        )
    counts = np.bincount(places, minlength=4)
    assert (abs(counts - 500) < 4 * np.sqrt(2000 * 0.25 * 0.75)).all(), counts


def test_a_switch_fades_out_then_in_and_keeps_the_position(sites):
    """Rendered by the browser's own audio, offline: 5 ms of raised cosine each, no cross-fade, no jump, a loop."""
    ramp = np.linspace(0, 0.9, RATE, endpoint=False).astype(np.float32)
    clips = {
        name: base64.b64encode(files.to_bytes(audio, RATE)).decode() for name, audio in (("a", ramp), ("b", -ramp))
    }
    with opened(sites / "mushra" / "index.html") as page:
        heard = np.array(
            page.evaluate(
                """async (clips) => {
  const offline = new OfflineAudioContext(1, 40000, 16000);
  offline.resume = () => {};
  window.AudioContext = function () { return offline; };
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
  const one = makePlayer(16000, () => {});
  await one.load({ a: bytes(clips.a), b: bytes(clips.b) }, "a");
  one.seek(0.5);
  one.play();
  one.select("b");
  return Array.from((await offline.startRendering()).getChannelData(0));
}""",
                clips,
            )
        )
    start = 160  # 10 ms: nothing is scheduled for the moment that is over
    place = np.where(np.arange(len(heard)) >= start, (0.5 * RATE + np.arange(len(heard)) - start) % RATE, 0)
    expected = 0.9 * place / RATE
    gain = heard / np.maximum(expected, 1e-3)
    rise = 0.5 - 0.5 * np.cos(np.pi * np.arange(80) / 80)
    np.testing.assert_allclose(gain[start : start + 80], rise, atol=0.02)
    out = start + 96  # the first fade, and a millisecond
    np.testing.assert_allclose(gain[out : out + 80], 1 - rise, atol=0.02)
    np.testing.assert_allclose(gain[out + 96 : out + 176], -rise, atol=0.02)
    np.testing.assert_allclose(heard[out + 180 :], -expected[out + 180 :], atol=2e-3)
