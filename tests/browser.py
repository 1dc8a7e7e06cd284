"""Pages in a real browser: headless Chromium driven by Playwright, no network, no error on the console."""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]


@contextlib.contextmanager
def opened(path: pathlib.Path, viewport: dict | None = None, dark: bool = False) -> Iterator:
    """The page of a file, as Playwright has it. At the end: no request left the disk, and nothing went wrong in it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pages are tested with playwright (extra test)")
    if CHROMIUM is None:
        pytest.skip("pages are tested in Chromium, and there is none here")
    wrong: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        context = browser.new_context(
            viewport=viewport or WIDE, color_scheme="dark" if dark else "light", accept_downloads=True
        )
        page = context.new_page()
        page.on("console", lambda m: wrong.append(f"console: {m.text}") if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else wrong.append(r.url))
        page.on("requestfailed", lambda r: wrong.append(f"failed: {r.url[:200]}"))
        page.goto(path.resolve().as_uri())
        yield page
        browser.close()
    assert not wrong, wrong
