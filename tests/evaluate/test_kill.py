"""A run that is killed leaves no process behind, and the same command goes on where it was."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from codec_jax.audio import files
from codec_jax.evaluate import rows

RATE = 16_000
PROC = pathlib.Path("/proc")


def descendants(pid):
    """Process ids below one, by /proc."""
    parents = {}
    for path in PROC.glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def until(true, seconds=300):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.skipif(not (PROC / "self" / "stat").exists(), reason="looks for processes in /proc")
def test_killed_and_run_again(tmp_path):
    (tmp_path / "speech").mkdir()
    for i in range(150):
        audio = np.random.default_rng(i).normal(0, 0.1, RATE).astype(np.float32)
        files.write(tmp_path / "speech" / f"{i:03d}.wav", audio, RATE)
    table = tmp_path / "out" / "utterances.csv"
    command = [sys.executable, "-m", "codec_jax", "evaluate", str(tmp_path / "speech"), "-o", str(tmp_path / "out")]
    command += ["--against", "mu_law", "--metrics", "si_sdr,log_spectral_distance", "--workers", "2"]
    first = subprocess.Popen(command, env={**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"})
    until(lambda: table.exists() and table.read_text().count("\n") > 40)
    workers = descendants(first.pid)
    assert len(workers) >= 2
    first.send_signal(signal.SIGKILL)
    first.wait()
    until(lambda: not any((PROC / str(pid)).exists() for pid in workers), 30)
    done = rows.read(table)
    assert 40 <= len(done) < 450
    subprocess.run(command, check=True, capture_output=True)
    found = rows.read(table)
    assert [repr(row) for row in found[: len(done)]] == [repr(row) for row in done]
    assert len({row.key for row in found}) == len(found) == 450
