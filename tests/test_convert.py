"""codec-jax convert: every source, both directions, and bad input, which leaves nothing behind."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import codec_jax
from codec_jax import cli, experiment, sources
from tests import tiny
from tests.test_cli import fails


def convert(*arguments):
    assert cli.main(["convert", *map(str, arguments)]) == 0


def assert_same_tensors(ours, theirs):
    ours, theirs = load_file(ours), load_file(theirs)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array)


# ---- from upstream -----------------------------------------------------------------------------


def test_there_and_back_is_the_same_file(upstream_directory, tmp_path, capsys):
    convert(upstream_directory, tmp_path / "jax", "--to", "jax")
    assert "187,232 parameters" in capsys.readouterr().out
    convert(tmp_path / "jax", tmp_path / "torch", "--to", "torch")
    weights, config = "model.safetensors", "model_config.json"
    assert (tmp_path / "torch" / weights).read_bytes() == (upstream_directory / weights).read_bytes()
    assert json.loads((tmp_path / "torch" / config).read_text()) == json.loads(
        (upstream_directory / config).read_text()
    )
    loaded = codec_jax.load(tmp_path / "jax")
    direct = codec_jax.load(upstream_directory)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, direct.params)
    loaded.save(tmp_path / "saved")  # through Codec, extras travel too
    convert(tmp_path / "saved", tmp_path / "again", "--to", "torch")
    assert (tmp_path / "again" / weights).read_bytes() == (upstream_directory / weights).read_bytes()


@pytest.mark.parametrize("name", ["A", "E"])
def test_golden_sets_there_and_back(golden, tmp_path, name):
    directory = golden.path(f"taae/{name}")
    convert(directory, tmp_path / "jax", "--to", "jax")
    convert(tmp_path / "jax", tmp_path / "torch", "--to", "torch")
    assert (tmp_path / "torch/model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()


def training_checkpoint(tensors, path):
    """As Lightning writes it: raw and EMA weights that differ, and other things of a training."""
    raw = {f"autoencoder.{k}": torch.tensor(v) for k, v in tensors.items()}
    ema = {f"autoencoder_ema.ema_model.{k}": torch.tensor(v) * (1 + k.endswith(".bias")) for k, v in tensors.items()}
    other = {"autoencoder_ema.initted": torch.tensor(True), "discriminator.x": torch.ones(3)}
    torch.save({"state_dict": {**raw, **ema, **other}, "global_step": 5, "optimizer_states": []}, path)


def test_training_checkpoints_hold_two_kinds_of_weights(upstream_directory, tmp_path, recipe, capsys):
    _, tensors = recipe
    training_checkpoint(tensors, upstream_directory / "training.ckpt")
    for weights in ("raw", "ema"):
        convert(upstream_directory / "training.ckpt", tmp_path / weights, "--to", "jax", "--weights", weights)
        assert f"{weights if weights == 'raw' else 'EMA'} weights" in capsys.readouterr().out
    raw, ema = (codec_jax.load(tmp_path / weights).params["encoder"]["conv_in"]["bias"] for weights in ("raw", "ema"))
    np.testing.assert_array_equal(raw, tensors["encoder.layers.0.bias"])
    np.testing.assert_array_equal(ema, 2 * raw)


def test_the_golden_training_checkpoint(golden, tmp_path, capsys):
    path = golden.path("taae/A/training.ckpt")
    content = torch.load(path, weights_only=True)["state_dict"]
    for weights, prefix in (("raw", "autoencoder."), ("ema", "autoencoder_ema.ema_model.")):
        capsys.readouterr()
        convert(path, tmp_path / weights, "--to", "jax", "--weights", weights)
        # The set's EMA is 1.01 times its raw weights, buffers included, which no averaging would give.
        assert ("1.0% off" in capsys.readouterr().out) == (weights == "ema")
        convert(tmp_path / weights, tmp_path / f"{weights}.safetensors", "--to", "torch")
        back = load_file(tmp_path / f"{weights}.safetensors")
        for name, array in back.items():
            np.testing.assert_array_equal(array, content[prefix + name].numpy())
        assert len(back) == sum(name.startswith(prefix) for name in content)


def test_bare_weights_need_a_config(upstream_directory, tmp_path, recipe, capsys):
    _, tensors = recipe
    config = upstream_directory / "model_config.json"
    (tmp_path / "elsewhere").mkdir()
    bare = tmp_path / "elsewhere" / "weights.pt"
    torch.save({name: torch.tensor(array) for name, array in tensors.items()}, bare)
    fails(capsys, "convert", bare, tmp_path / "jax", "--to", "jax", says="--model-config")
    convert(bare, tmp_path / "jax", "--to", "jax", "--model-config", config)
    convert(tmp_path / "jax", tmp_path / "back.safetensors", "--to", "torch")
    assert_same_tensors(tmp_path / "back.safetensors", upstream_directory / "model.safetensors")
    (upstream_directory / "model.safetensors").unlink()
    shutil.move(bare, upstream_directory / "model.ckpt")
    convert(upstream_directory, tmp_path / "jax2", "--to", "jax")


@pytest.mark.parametrize("dtype", [np.float16, jax.numpy.bfloat16])
def test_half_precision_is_upcast_and_said(upstream_directory, tmp_path, recipe, capsys, dtype):
    _, tensors = recipe
    halved = {name: torch.tensor(array).to(getattr(torch, np.dtype(dtype).name)) for name, array in tensors.items()}
    from safetensors.torch import save_file as save_torch

    save_torch(halved, upstream_directory / "model.safetensors")
    convert(upstream_directory, tmp_path / "jax", "--to", "jax")
    assert f"187 tensors in {np.dtype(dtype).name}: upcast to float32." in capsys.readouterr().out
    convert(tmp_path / "jax", tmp_path / "torch.safetensors", "--to", "torch")
    for name, array in load_file(tmp_path / "torch.safetensors").items():
        exact = tensors[name] if name.endswith("inv_freq") else tensors[name].astype(dtype)
        np.testing.assert_array_equal(array, exact.astype(np.float32))


def test_reading_pickles_and_safetensors_needs_no_torch(upstream_directory, tmp_path, recipe):
    training_checkpoint(recipe[1], upstream_directory / "training.ckpt")
    script = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] == 'torch': raise ImportError(name)\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "from codec_jax import cli\n"
        f"for source in ({str(upstream_directory)!r}, {str(upstream_directory / 'training.ckpt')!r}):\n"
        f"    assert cli.main(['convert', source, {str(tmp_path / 'jax')!r}, '--to', 'jax', '--force']) == 0\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# ---- from here ---------------------------------------------------------------------------------


def test_a_run_goes_to_torch_and_comes_back(run, tmp_path, capsys):
    for weights in ("ema", "raw"):
        convert(run, tmp_path / weights, "--to", "torch", "--weights", weights)
        assert "of step 4" in capsys.readouterr().out
        back = codec_jax.load(tmp_path / weights)
        jax.tree.map(np.testing.assert_array_equal, back.params, codec_jax.load(run, weights).params)
        assert back.config.model == codec_jax.load(run).config.model
    assert (tmp_path / "ema/model.safetensors").read_bytes() != (tmp_path / "raw/model.safetensors").read_bytes()
    convert(tmp_path / "ema", tmp_path / "jax", "--to", "jax")
    convert(tmp_path / "jax", tmp_path / "again", "--to", "torch")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "ema/model.safetensors").read_bytes()


def test_any_step_of_a_run(run, tmp_path, capsys):
    convert(run, tmp_path / "two", "--to", "jax", "--step", "2", "--weights", "raw")
    convert(run, tmp_path / "four", "--to", "jax", "--weights", "raw")
    two, four = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "four"))
    assert any((two[name] != four[name]).any() for name in two)
    fails(capsys, "convert", run, tmp_path / "x", "--to", "jax", "--step", 3, says="no checkpoint of step 3: it has")
    fails(capsys, "convert", tmp_path / "two", tmp_path / "x", "--to", "torch", "--step", 2, says="no run directory")


def test_the_card_says_what_it_is(run, tmp_path):
    convert(run, tmp_path / "torch", "--to", "torch")
    card = (tmp_path / "torch" / "README.md").read_text()
    codec = codec_jax.load(run)
    for fact in ("16000 Hz", "400 per second", "| `train` | 125 | 2800 |", "EMA weights of step 4",
                 experiment.codec_hash("taae", codec.config), "codec_jax.pytorch.load", "strict=True"):  # fmt: skip
        assert fact in card, fact
    assert "400bps" not in card  # presets need six latent dimensions


def test_what_upstream_cannot_express_goes_to_the_twin_alone(tmp_path, capsys):
    tiny.codec().save(tmp_path / "saved")
    fails(capsys, "convert", tmp_path / "saved", tmp_path / "t", "--to", "torch", says="head_dim is 8")
    assert not (tmp_path / "t").exists()
    convert(tmp_path / "saved", tmp_path / "t", "--to", "torch", "--target", "twin")
    assert "cannot express" in (tmp_path / "t/README.md").read_text()
    back = codec_jax.load(tmp_path / "t")
    jax.tree.map(np.testing.assert_array_equal, back.params, tiny.codec().params)


# ---- bad input ---------------------------------------------------------------------------------


def test_bad_input_leaves_nothing(upstream_directory, tmp_path, recipe, capsys):
    config, tensors = recipe
    weights = upstream_directory / "model.safetensors"
    name = "decoder.layers.4.weight_v"
    broken = {
        f"no tensor {name}": {k: v for k, v in tensors.items() if k != name},
        "tensor decoder.more, which": {**tensors, "decoder.more": tensors[name]},
        f"{name} has shape (20, 32, 6)": {**tensors, name: tensors[name][:, :, 1:]},
    }
    before = set(tmp_path.iterdir())
    for says, content in broken.items():
        save_file({k: np.ascontiguousarray(v) for k, v in content.items()}, weights)
        fails(capsys, "convert", upstream_directory, tmp_path / "jax", "--to", "jax", says=says)
        assert set(tmp_path.iterdir()) == before
    save_file(tensors, weights)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    fails(capsys, "convert", upstream_directory, tmp_path / "jax", "--to", "jax", says="cannot be read as safetensors")
    weights.write_bytes(whole)
    contradicting = json.loads(
        json.dumps(config).replace('"transformer_depths": [2, 3]', '"transformer_depths": [8, 20]')
    )
    (upstream_directory / "model_config.json").write_text(json.dumps(contradicting))
    fails(capsys, "convert", upstream_directory, tmp_path / "jax", "--to", "jax",
          says="says transformer_depths [8, 20], but the encoder's tensors have [2, 3]")  # fmt: skip
    (upstream_directory / "model_config.json").write_text("{")
    fails(capsys, "convert", upstream_directory, tmp_path / "jax", "--to", "jax", says="is no JSON")
    assert set(tmp_path.iterdir()) == before


def test_other_wrong_sources(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    fails(capsys, "convert", tmp_path / "empty", tmp_path / "x", "--to", "jax", says="is no model")
    (tmp_path / "esc").mkdir()
    (tmp_path / "esc" / "config.yaml").write_text("model: x")
    fails(capsys, "convert", tmp_path / "esc", tmp_path / "x", "--to", "jax", says="no model.safetensors")
    fails(capsys, "convert", tmp_path / "nowhere", tmp_path / "x", "--to", "jax", says="there is no")
    (tmp_path / "empty" / "model_config.json").write_text("{}")
    fails(capsys, "convert", tmp_path / "empty", tmp_path / "x", "--to", "jax", says="no model.safetensors")
    assert not (tmp_path / "x").exists()


def test_destinations_are_never_overwritten_unasked(upstream_directory, tmp_path, capsys):
    destination = tmp_path / "jax"
    convert(upstream_directory, destination, "--to", "jax")
    fails(capsys, "convert", upstream_directory, destination, "--to", "jax", says="exists already")
    convert(upstream_directory, destination, "--to", "jax", "--force")
    (destination / "thesis.txt").write_text("precious")
    fails(capsys, "convert", upstream_directory, destination, "--to", "jax", "--force", says="more than")
    assert (destination / "thesis.txt").read_text() == "precious"
    fails(capsys, "convert", upstream_directory, tmp_path / "x.safetensors", "--to", "jax", says="is a directory")
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name or path.name.endswith(".old")]


def test_a_failure_while_writing_leaves_the_old_one(upstream_directory, tmp_path, capsys, monkeypatch):
    convert(upstream_directory, tmp_path / "jax", "--to", "jax")
    before = (tmp_path / "jax/model.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("codec_jax.storage.write_json", full)
    fails(capsys, "convert", upstream_directory, tmp_path / "jax", "--to", "jax", "--force", says="No space left")
    assert (tmp_path / "jax/model.safetensors").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"upstream", "jax"}


# ---- the hub -----------------------------------------------------------------------------------


@pytest.fixture
def hub(upstream_directory, tmp_path, monkeypatch):
    """A cache that holds one repository, as huggingface_hub lays it out, and no network."""
    repository = tmp_path / "hub" / "models--someone--speech-codec"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    shutil.copytree(upstream_directory, repository / "snapshots" / ("a" * 40))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_a_hub_id_loads_and_converts(hub, tmp_path, upstream_directory, capsys):
    codec = codec_jax.load("someone/speech-codec")
    jax.tree.map(np.testing.assert_array_equal, codec.params, codec_jax.load(upstream_directory).params)
    convert("someone/speech-codec", tmp_path / "jax", "--to", "jax")
    assert cli.main(["info", "someone/speech-codec"]) == 0
    assert "187,232" in capsys.readouterr().out
    fails(capsys, "convert", "someone/else", tmp_path / "x", "--to", "jax", says="no directory someone/else")


def test_without_the_extra_a_hub_id_says_so(monkeypatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(codec_jax.UserError, match=r"pip install codec-jax\[hub\]"):
        codec_jax.load("someone/speech-codec")
