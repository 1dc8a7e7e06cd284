"""What is decided before JAX starts."""

import os
import subprocess
import sys

import pytest

from codec_jax import accelerators

SCRIPT = """
import os, sys
from codec_jax import accelerators
accelerators.ask_for_huge_pages()
print(os.environ.get("GLIBC_TUNABLES"), os.getpid(), *sys.argv[1:], sep="|")
"""


@pytest.fixture
def restarted(monkeypatch, tmp_path):
    """Asks with another answer of the kernel's, and tells the environment of the restart, or None."""
    monkeypatch.setattr(accelerators, "_HUGE_PAGES", tmp_path / "enabled")

    def ask(answer, devices=(), **environment):
        found = []
        if answer is not None:
            (tmp_path / "enabled").write_text(answer)
        monkeypatch.setattr(os, "environ", dict(environment))
        monkeypatch.setattr(os, "execv", lambda path, arguments: found.append((path, arguments, dict(os.environ))))
        monkeypatch.setattr(accelerators.glob, "glob", lambda pattern: list(devices))
        accelerators.ask_for_huge_pages()
        return found[0] if found else None

    return ask


def test_asked_for_where_they_have_to_be(restarted):
    path, arguments, environment = restarted("always [madvise] never\n")
    assert (path, arguments) == (sys.executable, [sys.executable, *sys.orig_argv[1:]])
    assert environment == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def test_not_asked_for_elsewhere(restarted):
    assert restarted(None) is None
    assert restarted("[always] madvise never\n") is None
    assert restarted("always madvise [never]\n") is None
    assert restarted("always [madvise] never\n", devices=["/dev/nvidia0"]) is None
    assert restarted("always [madvise] never\n", GLIBC_TUNABLES="") is None


def test_the_same_process_with_the_same_arguments():
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "a b", "*", ""], env=environment, stdout=subprocess.PIPE, text=True
    )
    output, _ = process.communicate(timeout=60)
    tunables, number, *arguments = output.strip().split("|")
    assert tunables in ("None", "glibc.malloc.hugetlb=1")
    assert int(number) == process.pid
    assert arguments == ["a b", "*", ""]
