"""ESC's weights to JAX and back, bit for bit; counts of all published configs; configs that contradict."""

import copy
import math

import flax.linen as nn
import jax
import numpy as np
import pytest
import yaml

from codec_jax.convert import esc as convert
from codec_jax.convert import esc_config
from codec_jax.convert.layout import names
from codec_jax.errors import UserError
from codec_jax.models import esc
from codec_jax.storage import Extras

SETS = ("A", "A_csvq_conv", "A_rvq_swinT", "A_rvq_conv", "base")
COMMON = {
    **{"backbone": "transformer", "in_dim": 2, "in_freq": 192, "h_dims": [45, 72, 96, 144, 192, 384]},
    **{"max_streams": 6, "win_len": 20, "hop_len": 5, "sr": 16000, "patch_size": [3, 2]},
    **{"swin_heads": [3, 6, 12, 24, 24], "swin_depth": 2, "window_size": 4, "mlp_ratio": 4.0},
    **{"overlap": 2, "group_size": 3, "codebook_size": 1024, "codebook_dims": [8] * 6, "l2norm": True},
}
RVQ = {"num_rvqs": 6, "codebook_dim": 8}
CONV = {"backbone": "convolution", "kernel_size": [5, 2], "conv_depth": 1}


def published(name, **fields):
    """Upstream's config with these fields; codebook_dims go where codebook_dim comes."""
    model = {**COMMON, **fields}
    if "codebook_dim" in fields:
        del model["codebook_dims"]
    if name.endswith("conv"):
        model = {k: v for k, v in model.items() if k not in ("swin_heads", "swin_depth", "window_size", "mlp_ratio")}
    return {"model_name": name, "model": model}


@pytest.mark.parametrize("name", SETS)
def test_back_again_bit_for_bit(golden, name):
    config = yaml.safe_load((golden.path(f"esc/{name}") / "config.yaml").read_text())
    tensors = golden(f"esc/{name}/model.safetensors")
    cfg, variables, extras = convert.from_torch(tensors, config)
    assert not list(convert.notes(cfg, extras))
    back_config, back = convert.to_torch(cfg, variables, extras)
    assert back_config == config
    assert set(back) == set(tensors)
    for tensor, array in back.items():
        array = np.asarray(array)
        assert array.dtype == tensors[tensor].dtype
        np.testing.assert_array_equal(array, tensors[tensor], err_msg=tensor)


def abstract(cfg):
    return jax.eval_shape(lambda: nn.unbox(esc.init(cfg, jax.random.key(0))))


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (published("csvq+swinT", codebook_dims=[32, 32, 16, 12, 8, 6]), 8_736_581),
        (published("csvq+swinT"), 8_386_373),
        (published("csvq+swinT", swin_depth=4), 15_580_931),
        (published("rvq+swinT", **RVQ), 8_177_477),
        (published("csvq+conv", **CONV), 9_116_648),
        (published("rvq+conv", **CONV, **RVQ), 8_907_752),
    ],
)
def test_parameter_counts_of_published_configs(config, count):
    """Upstream's convolutions also count a norm that they never use. What `init` makes is what a checkpoint fills."""
    cfg = esc_config.read(config, {})
    variables = abstract(cfg)
    unused = 2 * cfg.model.h_dims[0] if cfg.model.backbone == "convolution" else 0
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])) + unused == count
    shapes = {}
    for collection, leaves in (("params", convert.leaves(cfg)), ("batch_stats", convert.statistics(cfg))):
        for leaf in leaves:
            shape = ((len(leaf.names),) if leaf.stacked else ()) + leaf.layer_shape
            shapes[(collection, *leaf.path)] = shape
    ours = jax.tree_util.tree_leaves_with_path(variables)
    assert {tuple(key.key for key in path): leaf.shape for path, leaf in ours} == shapes


def test_a_fresh_model_gets_upstreams_buffers():
    cfg = esc.Config(esc.ESCConfig(backbone="convolution", num_heads=()), esc.VQConfig())
    config, tensors = convert.to_torch(cfg, zeros(cfg), Extras())
    assert esc_config.read(config, {}) == cfg
    assert len(tensors) == len(set(names(convert.leaves(cfg)))) + len(set(names(convert.statistics(cfg)))) + 4 + 30
    assert convert.from_torch(tensors, config)[0] == cfg


def test_only_the_twin_codes_without_overlap():
    cfg = esc.Config(bottleneck=esc.VQConfig(overlap=1))
    with pytest.raises(UserError, match=r"fail at bottleneck\.overlap 1: export with --target twin"):
        convert.to_torch(cfg, {}, Extras())
    assert esc_config.write(cfg, {}, "twin")["model"]["overlap"] == 1
    brought = esc_config.write(cfg, {}, "twin")
    assert esc_config.write(cfg, brought, "upstream") == brought


def zeros(cfg):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract(cfg))


@pytest.fixture(scope="module")
def checkpoint():
    cfg = esc.Config(
        esc.ESCConfig(in_freq=48, h_dims=(8, 12), num_heads=(2,), win_length=80, stft_hop_length=32),
        esc.VQConfig(num_streams=2, codebook_size=16, codebook_dims=(4, 3)),
    )
    config, tensors = convert.to_torch(cfg, zeros(cfg), Extras())
    return cfg, config, {name: np.asarray(array) for name, array in tensors.items()}


def test_codeword_dimensions_are_the_checkpoints(checkpoint):
    """The published base config names others than its checkpoint has."""
    cfg, config, tensors = checkpoint
    wrong = copy.deepcopy(config)
    wrong["model"]["codebook_dims"] = [32, 16]
    found, variables, extras = convert.from_torch(tensors, wrong)
    assert found == cfg
    assert "[32, 16], but the checkpoint has [4, 3]" in next(convert.notes(found, extras))
    assert convert.to_torch(found, variables, extras)[0]["model"]["codebook_dims"] == [4, 3]


def test_misspelt_dimensions_are_understood_and_exported_right(checkpoint):
    """Two of the published ablations give a list codebook_dim, over which upstream fails."""
    cfg, config, tensors = checkpoint
    misnamed = copy.deepcopy(config)
    misnamed["model"]["codebook_dim"] = misnamed["model"].pop("codebook_dims")
    found, variables, extras = convert.from_torch(tensors, misnamed)
    assert found == cfg
    assert list(convert.notes(found, extras)) == [
        "config.yaml misspells codebook_dim and codebook_dims, over which upstream fails: exports spell it right."
    ]
    assert convert.to_torch(found, variables, extras)[0] == config
    rvq = published("rvq+conv", **CONV, **RVQ)
    listed = copy.deepcopy(rvq)
    listed["model"]["codebook_dim"] = [8] * 6
    assert esc_config.read(listed, {}) == esc_config.read(rvq, {})
    assert esc_config.write(esc_config.read(listed, {}), listed, "upstream") == rvq


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("codebook_size", 32, "codebook_size 32, but the tensors have"),
        ("h_dims", [8, 16], "encoder.blocks.0.subsample"),
        ("in_freq", 51, "a multiple of 6"),
        ("swin_heads", [3], "does not divide a width of 8"),
        ("max_streams", 3, "max_streams 3"),
        ("dropout", 1, "sets dropout in model, which no ESC has"),
        ("backbone", "convolution", "backbone convolution"),
        ("win_len", 4, "ft.window has shape"),
        ("win_len", None, "structure"),
        ("window_size", "4", "must be of type int, not '4'|structure"),  # the latter where types are checked
    ],
)
def test_contradicting_configs_are_refused(checkpoint, name, value, says):
    _, config, tensors = checkpoint
    config = copy.deepcopy(config)
    config["model"][name] = value
    with pytest.raises(UserError, match=says):
        convert.from_torch(tensors, config)


def test_missing_and_left_over_tensors_are_named(checkpoint):
    _, config, tensors = checkpoint
    with pytest.raises(UserError, match="no tensor encoder"):
        convert.from_torch(
            {k: v for k, v in tensors.items() if k != "encoder.pre_nn.swint_blocks.0.norm1.weight"}, config
        )
    codebook = "quantizers.{}.vqs.0.embedding.weight".format
    with pytest.raises(UserError, match=rf"no tensor {codebook(0)}, but one of stream 1"):
        convert.from_torch({k: v for k, v in tensors.items() if k != codebook(0)}, config)
    with pytest.raises(UserError, match="implies 2 streams, but the tensors have 1"):
        convert.from_torch({k: v for k, v in tensors.items() if k != codebook(1)}, config)
    with pytest.raises(UserError, match=r"has shape \(64,\), and a codebook is a matrix"):
        convert.from_torch({**tensors, codebook(0): tensors[codebook(0)].ravel()}, config)
    with pytest.raises(UserError, match="a tensor extra, which its config does not explain"):
        convert.from_torch({**tensors, "extra": np.zeros(1)}, config)
    with pytest.raises(UserError, match=r"has no 'sr'"):
        convert.from_torch(tensors, {**config, "model": {k: v for k, v in config["model"].items() if k != "sr"}})
    with pytest.raises(UserError, match="model_name dac"):
        convert.from_torch(tensors, {**config, "model_name": "dac"})
    with pytest.raises(UserError, match="another window"):
        convert.from_torch({**tensors, "ft.window": tensors["ft.window"] ** 2}, config)
