"""Upstream checkpoints: names, shapes, what is refused."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest

import codec_jax
from codec_jax.convert import taae as convert
from codec_jax.errors import UserError
from codec_jax.models import taae
from tests import tiny


@pytest.fixture
def upstream(golden):
    directory = golden.path("taae/A")
    return golden("taae/A/model.safetensors"), json.loads((directory / "model_config.json").read_text())


def test_every_tensor_is_accounted_for(upstream):
    tensors, config = upstream
    cfg, variables, extras = convert.from_torch(tensors, config)
    assert cfg.model.head_dim == 16
    assert cfg.model.transformer_depths == (2, 3)
    assert {name.rsplit(".", 1)[1] for name in extras} == {"beta", "inv_freq"}
    total = sum(array.size for array in tensors.values())
    kept = sum(leaf.size for leaf in jax.tree.leaves(variables)) + sum(array.size for array in extras.values())
    assert kept == total


def test_leaves_are_the_modules_own_tree():
    for fields in ({}, {"use_snake": True, "use_dilated_conv": True, "conformer": True, "c_mults": (1, 2)}):
        model = tiny.changed(tiny.MODEL, **fields)
        cfg = tiny.changed(tiny.CONFIG, model=model)
        params: dict = {}
        for leaf in convert.leaves(model):
            arrays = [leaf.to_jax(np.zeros(leaf.shape, np.float32)) for _ in leaf.names]
            convert._insert(params, leaf.path, np.stack(arrays) if leaf.stacked else arrays[0])
        ours = nn.unbox(jax.eval_shape(lambda cfg=cfg: taae.init(cfg, jax.random.key(0))))["params"]
        assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, ours)


def test_missing_and_misshapen_tensors_are_named(upstream):
    tensors, config = upstream
    name = "encoder.layers.1.layers.2.1.ff.ff.2.weight"
    with pytest.raises(UserError, match="no tensor " + name.replace(".", r"\.")):
        convert.from_torch({key: value for key, value in tensors.items() if key != name}, config)
    with pytest.raises(UserError, match=r"shape \(32, 127\).*implies \(32, 128\)"):
        convert.from_torch({**tensors, name: tensors[name][:, 1:]}, config)


def test_contradicting_configs_are_refused(upstream):
    tensors, config = upstream
    changed = json.loads(json.dumps(config))
    changed["model"]["decoder"]["config"]["sliding_window"] = [1, 2]
    with pytest.raises(UserError, match="differs between encoder"):
        convert.from_torch(tensors, changed)
    changed = json.loads(json.dumps(config))
    changed["model"]["bottleneck"]["type"] = "vae"
    with pytest.raises(UserError, match="another model"):
        convert.from_torch(tensors, changed)
    del changed["model"]
    with pytest.raises(UserError, match="model"):
        convert.from_torch(tensors, changed)


def test_an_upstream_directory_loads_and_its_extras_travel(golden, tmp_path, upstream):
    tensors, _ = upstream
    codec = codec_jax.load(golden.path("taae/A"))
    codec.save(tmp_path / "saved")
    again = codec_jax.load(tmp_path / "saved")
    assert set(again.extras) == {name for name in tensors if name.endswith(("beta", "inv_freq"))}
    for name, array in again.extras.items():
        np.testing.assert_array_equal(array, tensors[name])
    assert isinstance(again.config, taae.Config)
