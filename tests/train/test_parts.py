"""Schedules, moving average, metrics files, meshes: the parts of training that need no training."""

import itertools
import json
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import PartitionSpec

from codec_jax.errors import UserError
from codec_jax.experiment import MeshConfig, OptimConfig
from codec_jax.train import chips, logging, optim, sharding, stages, step
from tests import tiny


def test_ema_follows_ema_pytorch():
    """Copies at k <= 3, then decays .5613, ... (spec section 6: first decays k=3 .4054, k=4 .5613)."""
    values = [5.0, 1.0, 2.0, 7.0, 3.0]
    ema, seen = jnp.float32(0.0), []
    for k, value in enumerate(values, start=1):
        ema = optim.ema_update(ema, jnp.float32(value), jnp.int32(k), 0.9999)
        seen.append(float(ema))
    assert seen[:3] == values[:3]
    fourth = 2.0 + (1 - 0.5613) * (7.0 - 2.0)
    np.testing.assert_allclose(seen[3], fourth, rtol=1e-3)
    decay = 1 - 4**-0.75
    np.testing.assert_allclose(seen[4], seen[3] + (1 - decay) * (3.0 - seen[3]), rtol=1e-5)
    capped = optim.ema_update(jnp.float32(0.0), jnp.float32(1.0), jnp.int32(10**7), 0.9)
    np.testing.assert_allclose(capped, 0.1, rtol=1e-5)


def test_learning_rate_warms_up_and_falls():
    config = OptimConfig(learning_rate=1.0, warmup_steps=10, final_fraction=0.1)
    rate = [float(optim.learning_rate(config, 100)(i)) for i in range(101)]
    assert 0 < rate[0] <= 0.11
    np.testing.assert_allclose(rate[10], 1.0, rtol=1e-6)
    np.testing.assert_allclose(rate[100], 0.1, rtol=1e-5)
    assert all(a >= b for a, b in itertools.pairwise(rate[10:]))


def test_other_schedules(golden):
    rate = optim.learning_rate(OptimConfig(learning_rate=2.0, schedule="constant", warmup_steps=4), 100)
    np.testing.assert_allclose([rate(i) for i in (0, 4, 99)], [0.5, 2.0, 2.0])
    wsd = OptimConfig(learning_rate=2.0, schedule="wsd", warmup_steps=4, decay_fraction=0.25, final_fraction=0.5)
    rate = optim.learning_rate(wsd, 100)
    np.testing.assert_allclose([rate(i) for i in (4, 75, 100)], [2.0, 2.0, 1.0])
    assert 1.0 < float(rate(90)) < 2.0
    theirs = golden("taae/misc/tensors.safetensors")["inverselr/lr"]
    inverse = OptimConfig(learning_rate=1e-4, schedule="inverse", inv_gamma=200_000.0, power=0.5, final_fraction=0.0)
    ours = jax.vmap(optim.learning_rate(inverse, 1))(jnp.arange(len(theirs)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.parametrize("everything", [False, True])
def test_what_decays(everything):
    params = {"ff": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}, "conv": {"v": jnp.ones(3), "g": jnp.ones(3)}}
    transform = optim.optimizer(OptimConfig(weight_decay=0.5, decay_all=everything))
    directions, _ = transform.update(jax.tree.map(jnp.zeros_like, params), transform.init(params), params)
    moved = optim.descend(params, directions, jnp.float32(0.1))
    assert float(moved["ff"]["kernel"][0]) < 1
    for leaf in (moved["ff"]["bias"], moved["conv"]["v"], moved["conv"]["g"]):
        np.testing.assert_array_equal(leaf, moved["ff"]["kernel"] if everything else np.ones(3))


def test_metrics_are_cut_back(tmp_path):
    path = epath.Path(tmp_path / "metrics.jsonl")
    path.write_text("".join(json.dumps({"step": n, "x": n}) + "\n" for n in (0, 1, 2, 2, 3)) + '{"step": 4, "tr')
    rows = logging.AppendedRows(epath.Path(tmp_path), 2)
    rows.append('{"step": 5}')
    assert [row["step"] for row in logging.read_rows(epath.Path(tmp_path))] == [0, 1, 2, 2, 5]


def test_metrics_in_parts(tmp_path):
    """Objects of at most three rows, each written whole; a restored run rewrites them up to its step."""
    workdir = epath.Path(tmp_path)
    rows = logging.PartedRows(workdir, 0, rows=3, seconds=1e9)
    for number in range(7):
        rows.append(json.dumps({"step": number}))
    assert len(logging.read_rows(workdir)) == 6  # one is held back
    rows.close()
    assert [row["step"] for row in logging.read_rows(workdir)] == list(range(7))
    assert sorted(path.name for path in (tmp_path / "metrics").iterdir()) == [f"0000{n}.jsonl" for n in range(3)]
    restored = logging.PartedRows(workdir, 1, rows=3, seconds=0.0)
    assert [row["step"] for row in logging.read_rows(workdir)] == [0, 1]
    restored.append(json.dumps({"step": 2}))  # after so many seconds it is written at once
    assert [row["step"] for row in logging.read_rows(workdir)] == [0, 1, 2]


def test_wandb_where_it_is_installed(tmp_path, monkeypatch):
    calls = []
    board = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("finish")
    )
    wandb = types.SimpleNamespace(
        api=types.SimpleNamespace(api_key=None), init=lambda **given: calls.append(given) or board
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    writer = logging.MetricsWriter(epath.Path(tmp_path), 0, {"family": "taae"})
    writer.write(3, {"train/loss": 0.5})
    writer.close()
    started, row, finished = calls
    assert (started["mode"], started["resume"], started["config"]) == ("offline", "allow", {"family": "taae"})
    assert (row, finished) == ((3, {"train/loss": 0.5}), "finish")


def test_peak_flops():
    assert chips.peak_flops("TPU v5 lite") == 197e12
    assert chips.peak_flops("TPU v5") == chips.peak_flops("TPU v5p") == 459e12
    assert chips.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert chips.peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert chips.peak_flops("cpu") is None


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (1, 8, 1)),
        (MeshConfig(2, -1, 2), (2, 2, 2)),
        (MeshConfig(-1, 1, 1), (8, 1, 1)),
        (MeshConfig(1, 2, 4), (1, 2, 4)),
    ],
)
def test_meshes(config, shape):
    assert tuple(sharding.make_mesh(config).shape.values()) == shape


@pytest.mark.parametrize(
    "config", [MeshConfig(3, -1, 1), MeshConfig(-1, -1, 1), MeshConfig(1, 4, 1), MeshConfig(0, -1, 1)]
)
def test_impossible_meshes(config):
    with pytest.raises(UserError, match="mesh"):
        sharding.make_mesh(config)


def test_batches_must_divide():
    mesh = sharding.make_mesh(MeshConfig(2, 4, 1))
    sharding.check_batch(mesh, 16)
    with pytest.raises(UserError, match="multiple"):
        sharding.check_batch(mesh, 12)


def test_shardings_follow_the_rules_and_drop_what_does_not_divide(caplog):
    mesh = sharding.make_mesh(MeshConfig(1, 4, 2))
    boxed = {
        "whole": nn.LogicallyPartitioned(jnp.zeros((3, 8, 2, 6)), ("layers", "embed", "heads", "head_dim")),
        "odd": nn.LogicallyPartitioned(jnp.zeros((6, 4)), ("embed", "mlp")),
    }
    found = sharding.shardings(boxed, mesh)
    assert found["whole"].spec == PartitionSpec(None, "fsdp", "tensor", None)
    assert found["odd"].spec == PartitionSpec(None, "tensor")
    assert len(caplog.records) == 1
    assert "embed of 6" in caplog.text


def test_state_is_sharded_with_its_optimizer_and_average():
    config = tiny.changed(tiny.experiment(), mesh=MeshConfig(1, 4, 2))
    mesh = sharding.make_mesh(config.mesh)
    player = step.abstract_state(config, stages.resolve(config)[0], mesh).players["codec"]
    path = ("encoder", "stage_0", "transformer", "blocks", "ff", "proj", "kernel")

    def spec(tree):
        for key in path:
            tree = tree[key]
        return tree.sharding.spec

    want = PartitionSpec(None, "fsdp", None, "tensor")
    moments = [
        leaf for leaf in jax.tree.leaves(player.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(leaf, "mu")
    ]
    assert len(moments) == 1
    assert spec(player.params) == spec(player.ema) == spec(moments[0].mu) == spec(moments[0].nu) == want
