"""codec-jax convert on ESC: what people have, both directions, and bad input, which leaves nothing behind."""

import copy
import os
import shutil

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import codec_jax
from codec_jax import cli, experiment, pytorch
from codec_jax.codec import Codec
from codec_jax.convert import configs
from tests import tiny_esc
from tests.test_cli import fails
from tests.test_convert import convert

SETS = ("A", "A_csvq_conv", "A_rvq_swinT", "A_rvq_conv", "base")
CODEBOOK = "quantizers.1.vqs.0.embedding.weight"


@pytest.fixture(scope="module")
def checkpoint():
    return tiny_esc.upstream()


@pytest.fixture
def directory(checkpoint, tmp_path):
    """config.yaml and model.pth."""
    return tiny_esc.write_upstream(tmp_path / "esc", *checkpoint)


# ---- there and back ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_golden_sets_there_and_back(golden, tmp_path, name):
    source = golden.path(f"esc/{name}")
    convert(source, tmp_path / "jax", "--to", "jax")
    convert(tmp_path / "jax", tmp_path / "torch", "--to", "torch")
    assert (tmp_path / "torch/model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert configs.read(tmp_path / "torch/config.yaml") == configs.read(source / "config.yaml")


def test_the_golden_pickle_holds_the_same(golden, tmp_path):
    source = golden.path("esc/A")
    convert(source / "model.pth", tmp_path / "jax", "--to", "jax")
    convert(tmp_path / "jax", tmp_path / "torch.safetensors", "--to", "torch")
    assert (tmp_path / "torch.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", tiny_esc.ABLATIONS)
def test_a_saved_codec_goes_to_torch_and_comes_back(tmp_path, name):
    """Every key that the twin, and so upstream, wants: load is strict there."""
    codec = Codec("esc", tiny_esc.ABLATIONS[name], tiny_esc.variables(name))
    codec.save(tmp_path / "saved")
    convert(tmp_path / "saved", tmp_path / "torch", "--to", "torch")
    state = pytorch.load(tmp_path / "torch").state_dict()
    exported = load_file(tmp_path / "torch/model.safetensors")
    assert set(state) == set(exported)
    for key, tensor in state.items():
        assert exported[key].dtype == tensor.numpy().dtype, key
        np.testing.assert_array_equal(exported[key], tensor, err_msg=key)
    convert(tmp_path / "torch", tmp_path / "jax", "--to", "jax")
    back = codec_jax.load(tmp_path / "jax")
    if "transformer" in name:  # others have settings of transformers, which upstream's configs of them have not
        assert (back.config.model, back.config.bottleneck.codebook_dims) == (
            codec.config.model,
            codec.config.bottleneck.codebook_dims,
        )
    jax.tree.map(np.testing.assert_array_equal, back._variables, codec._variables)
    convert(tmp_path / "jax", tmp_path / "again", "--to", "torch")
    weights = "model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (tmp_path / "torch" / weights).read_bytes()


def test_batchnorm_counters_travel(tmp_path):
    config, tensors = tiny_esc.upstream("rvq+convolution")
    counter = "encoder.blocks.0.blocks.2.num_batches_tracked"
    unused = "encoder.patch_embed.norm.weight"
    tensors[counter], tensors[unused] = np.array(1234), tensors[unused] + 0.5
    source = tiny_esc.write_upstream(tmp_path / "esc", config, tensors)
    convert(source, tmp_path / "jax", "--to", "jax")
    convert(tmp_path / "jax", tmp_path / "torch", "--to", "torch")
    back = load_file(tmp_path / "torch/model.safetensors")
    assert set(back) == set(tensors)
    for key, array in back.items():
        np.testing.assert_array_equal(array, tensors[key], err_msg=key)
    assert back[counter].dtype == np.int64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_upcast_and_said(checkpoint, tmp_path, capsys, dtype):
    config, tensors = checkpoint
    halved = {key: torch.tensor(a).to(dtype) if a.dtype == np.float32 else a for key, a in tensors.items()}
    source = tiny_esc.write_upstream(tmp_path / "esc", config, {})
    torch.save(
        halved | {key: torch.tensor(a) for key, a in tensors.items() if a.dtype != np.float32}, source / "model.pth"
    )
    convert(source, tmp_path / "jax", "--to", "jax")
    assert f"tensors in {str(dtype).removeprefix('torch.')}: upcast to float32." in capsys.readouterr().out
    convert(tmp_path / "jax", tmp_path / "torch.safetensors", "--to", "torch")
    for key, array in load_file(tmp_path / "torch.safetensors").items():
        exact = tensors[key] if key.endswith(("window", "index")) else halved[key].float()
        np.testing.assert_array_equal(array, exact, err_msg=key)


def test_bare_weights_need_a_config(directory, tmp_path, checkpoint, capsys):
    (tmp_path / "elsewhere").mkdir()
    bare = tmp_path / "elsewhere" / "best.safetensors"
    save_file(checkpoint[1], bare)
    fails(capsys, "convert", bare, tmp_path / "jax", "--to", "jax", says="--model-config")
    shutil.move(directory / "config.yaml", directory / "9kbps_esc_base.yml")
    config = directory / "9kbps_esc_base.yml"
    convert(bare, tmp_path / "jax", "--to", "jax", "--model-config", config)
    shutil.copy(config, directory / "config.txt")
    fails(capsys, "convert", bare, tmp_path / "x", "--to", "jax", "--model-config", directory / "config.txt",
          says="is no model config: give a model_config.json of a taae or config.yaml of a esc")  # fmt: skip
    loaded, direct = codec_jax.load(tmp_path / "jax"), tiny_esc.variables()["params"]
    jax.tree.map(np.testing.assert_array_equal, loaded.params, direct)


def test_misspelt_configs_are_understood_and_mended(directory, tmp_path, checkpoint, capsys):
    config = copy.deepcopy(checkpoint[0])
    config["model"]["codebook_dim"] = config["model"].pop("codebook_dims")
    configs.write(directory / "config.yaml", config)
    convert(directory, tmp_path / "jax", "--to", "jax")
    assert "config.yaml misspells codebook_dim" in capsys.readouterr().out
    convert(tmp_path / "jax", tmp_path / "torch", "--to", "torch")
    assert configs.read(tmp_path / "torch/config.yaml") == checkpoint[0]


def test_the_tensors_know_the_dimensions_of_codewords(directory, tmp_path, checkpoint, capsys):
    """The published base config names others than its checkpoint has."""
    wrong = copy.deepcopy(checkpoint[0])
    wrong["model"]["codebook_dims"] = [32, 16, 8]
    configs.write(directory / "config.yaml", wrong)
    convert(directory, tmp_path / "jax", "--to", "jax")
    said = "config.yaml says codebook dimensions [32, 16, 8], but the checkpoint has [6, 4, 4], which are taken."
    assert said in capsys.readouterr().out
    convert(tmp_path / "jax", tmp_path / "torch", "--to", "torch")
    assert pytorch.load(tmp_path / "torch").config.codebook_dims == (6, 4, 4)


def test_the_card_and_info_say_what_it_is(directory, tmp_path, capsys):
    convert(directory, tmp_path / "jax", "--to", "jax")
    convert(tmp_path / "jax", tmp_path / "torch", "--to", "torch")
    card, codec = (tmp_path / "torch/README.md").read_text(), codec_jax.load(tmp_path / "jax")
    for fact in ("16000 Hz", "125 per second, 128 samples", "| `num_streams=1` | 3 of 16 | 1500 |", "imported weights",
                 "| `num_streams=3` | 9 of 16 | 4500 |", experiment.codec_hash("esc", codec.config), "strict=True",
                 "codec_jax.pytorch.load", "model.pth"):  # fmt: skip
        assert fact in card, fact
    assert "stable_audio_tools" not in card
    for path in (directory, tmp_path / "jax", tmp_path / "torch"):
        assert cli.main(["info", str(path)]) == 0
        assert "1500 (num_streams=1), 3000 (num_streams=2), 4500 (num_streams=3)" in capsys.readouterr().out


# ---- bad input ---------------------------------------------------------------------------------


def refused(capsys, source, tmp_path, says):
    """Nothing is left where a codec was to be."""
    before = set(tmp_path.iterdir())
    fails(capsys, "convert", source, tmp_path / "jax", "--to", "jax", says=says)
    assert set(tmp_path.iterdir()) == before


def test_bad_weights_leave_nothing(directory, tmp_path, checkpoint, capsys):
    tensors = checkpoint[1]
    name = "decoder.patch_deembed.de_proj2.weight"
    broken = {
        f"no tensor {name}": {key: array for key, array in tensors.items() if key != name},
        f"no tensor {CODEBOOK}": {key: array for key, array in tensors.items() if key != CODEBOOK},
        "a tensor more, which": {**tensors, "more": tensors[name]},
        f"{name} has shape (2, 8, 3, 2)": {**tensors, name: tensors[name][..., 1:]},
        f"{name} holds int32": {**tensors, name: tensors[name].astype(np.int32)},
        "codebook_size 16, but the tensors have [8, 16]": {**tensors, CODEBOOK: tensors[CODEBOOK][:8]},
        "orders relative positions": {key: array * 0 if "_index" in key else array for key, array in tensors.items()},
    }
    for says, content in broken.items():
        torch.save({"model_state_dict": {key: torch.tensor(a) for key, a in content.items()}}, directory / "model.pth")
        refused(capsys, directory, tmp_path, says)
    (directory / "model.pth").unlink()
    refused(capsys, directory, tmp_path, "no model.safetensors")


def test_bad_configs_leave_nothing(directory, tmp_path, checkpoint, capsys):
    config = (directory / "config.yaml").read_text()
    for says, text in {
        "encoder.patch_embed.proj.weight has shape (8, 2, 3, 2)": config.replace("[8, 12, 16]", "[4, 12, 16]"),
        "implies 4 streams, but the tensors have 3": config.replace("[8, 12, 16]", "[8, 12, 16, 16]").replace(
            "max_streams: 3", "max_streams: 4"
        ),
        "model_name dac": config.replace("csvq+swinT", "dac"),
        "no 'model_name'": "model: x",
        "structure of an ESC": "model_name: csvq+swinT\nmodel: x",
        "is no YAML": config + "\n\tx: [",
        "holds no YAML mapping": "- 1",
        "could not determine a constructor": config + "\nx: !!python/object/apply:os.system ['touch pwned']",
        "more than numbers": config + "\nmade: 2024-01-01",
        "refers to itself": "a: &a [1, 1]\nb: [*a, *a]",
    }.items():
        (directory / "config.yaml").write_text(text)
        refused(capsys, directory, tmp_path, says)
    assert not os.path.exists("pwned")


def test_malicious_pickles_are_not_run(directory, tmp_path, capsys):
    class Malicious:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'pwned'}",)

    torch.save({"model_state_dict": {"x": torch.zeros(1)}, "best_perf": Malicious()}, directory / "model.pth")
    refused(capsys, directory, tmp_path, "system, and a weights file holds tensors and numbers only")
    with pytest.raises(ValueError, match="plain tensors"):
        pytorch.load(directory)
    assert not (tmp_path / "pwned").exists()


def test_another_family_is_refused(directory, upstream_directory, tmp_path, checkpoint, capsys):
    shutil.copy(upstream_directory / "model.safetensors", directory / "model.safetensors")
    refused(capsys, directory, tmp_path, "no tensor encoder.patch_embed.proj.weight")
    save_file(checkpoint[1], upstream_directory / "model.safetensors")
    refused(capsys, upstream_directory, tmp_path, "model_config.json")


def test_destinations_are_never_overwritten_unasked(directory, tmp_path, capsys):
    convert(directory, tmp_path / "torch", "--to", "torch")
    fails(capsys, "convert", directory, tmp_path / "torch", "--to", "torch", says="exists already")
    convert(directory, tmp_path / "torch", "--to", "torch", "--force")
