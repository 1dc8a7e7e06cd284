"""Checkpoints: paths, what is kept, and what is refused. (Resuming is tested in tests/train/test_loop.py.)"""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from codec_jax import checkpoint
from codec_jax.errors import UserError


def test_paths_become_absolute_and_object_stores_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checkpoint._absolute("runs/a").as_posix() == (tmp_path / "runs/a").as_posix()
    assert checkpoint._absolute("gs://bucket/run").as_posix() == "gs://bucket/run"


def test_the_last_ones_are_kept_with_their_metadata(tmp_path):
    state = {"params": {"w": jnp.arange(4.0)}, "none": None}
    checkpoints = checkpoint.Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.latest_step is None
    for step in (1, 2, 3):
        checkpoints.save(step, {**state, "params": {"w": jnp.arange(4.0) + step}}, {"data": {"position": step}})
    checkpoints.wait()
    assert checkpoints.latest_step == 3
    restored, metadata = checkpoints.restore(3, state), checkpoints.metadata(3)
    np.testing.assert_array_equal(restored["params"]["w"], np.arange(4.0) + 3)
    assert metadata == {"data": {"position": 3}}
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "c").iterdir() if path.name.isdigit()) == ["2", "3"]
    for asked, step in ((None, 3), (2, 2)):
        weights, found = checkpoint.restore_subtree(tmp_path / "c", ("params", "w"), asked)
        assert found == step
        np.testing.assert_array_equal(weights, np.arange(4.0) + step)
    assert checkpoint.subtree_shapes(tmp_path / "c", ("params", "w")).shape == (4,)
    for path in (("ema", "w"), ("none",), ("params", "w", "deeper")):
        assert checkpoint.restore_subtree(tmp_path / "c", path)[0] is None
        assert checkpoint.subtree_shapes(tmp_path / "c", path) is None
    with pytest.raises(UserError, match="no checkpoint of step 1: it has 2, 3"):
        checkpoint.restore_subtree(tmp_path / "c", ("params", "w"), 1)


def test_no_checkpoint_yet(tmp_path):
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match="no complete checkpoint"):
        checkpoint.restore_subtree(tmp_path / "c", ("params",))


FULL = """
import resource, signal, sys
import numpy as np
from codec_jax import checkpoint
from codec_jax.errors import UserError

checkpoints = checkpoint.Checkpoints(sys.argv[1], keep=3)
state = {"w": np.random.default_rng(0).standard_normal(100_000)}
checkpoints.save(1, state, {})
checkpoints.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))  # as a full disk: no file can grow
try:
    checkpoints.save(2, {"w": state["w"] + 1}, {})
    checkpoints.wait()
except UserError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
found, step = checkpoint.restore_subtree(sys.argv[1], ("w",))
assert step == 1 and (np.asarray(found) == state["w"].astype(found.dtype)).all()
"""


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_is_intact(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "c")], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "could not be saved" in done.stdout
    assert "step 1 is the last complete one" in done.stdout
    assert len(done.stdout.strip().splitlines()) == 1
