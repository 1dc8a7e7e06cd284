"""Configs: variants, flags, JSON, and every way to get one wrong."""

import json
import pathlib

import pytest

from codec_jax import experiment
from codec_jax.errors import UserError
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[1]
TAAE = str(ROOT / "configs" / "taae.py")


@pytest.mark.parametrize("variant", ["nano", "small", "250m", "500m", "1b"])
def test_shipped_configs_are_valid_and_survive_json(variant):
    config = experiment.load_config(f"{TAAE}:{variant}")
    assert experiment.from_dict(json.loads(experiment.to_json(config))) == config
    assert hash(config.codec) == hash(experiment.from_dict(experiment.to_dict(config)).codec)


def test_flags_override_every_kind_of_field():
    flags = [
        "--config.training.steps=200",
        "--config.optim.learning_rate=3e-4",
        "--config.data.train=some/where",
        "--config.model.use_snake=true",
        "--config.model.sliding_window=(3, 4)",
        "--config.losses.mrstft.fft_sizes=(128,)",
        "--config.losses.mrstft.hop_sizes=(32,)",
        "--config.losses.mrstft.win_lengths=(128,)",
    ]
    config = experiment.load_config(f"{TAAE}:nano", flags)
    assert config.training.steps == 200
    assert config.optim.learning_rate == 3e-4
    assert config.data.train == "some/where"
    assert config.model.use_snake
    assert config.model.sliding_window == (3, 4)
    assert config.losses.mrstft.fft_sizes == (128,)


@pytest.mark.parametrize(
    ("flag", "match"),
    [
        ("--config.training.stepz=200", "stepz"),
        ("--config.training.steps=many", "steps"),
        ("--config.model.channels=130", "multiple"),
        ("--config.training.steps=0", "training.steps"),
        ("--config.data.crop_seconds=0.001", "crop_seconds"),
        ("--config.data.valid=somewhere", "data.train"),
        ("--config.optim.ema_decay=1.0", "ema_decay"),
        ("--config.losses.l1=-1.0", "weights"),
        ("--steps=3", "no flag"),
    ],
)
def test_wrong_flags_are_one_sentence(flag, match):
    with pytest.raises(UserError, match=match) as error:
        experiment.load_config(f"{TAAE}:nano", [flag])
    assert "\n" not in str(error.value)


def test_wrong_files_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no config file"):
        experiment.load_config("configs/none.py:nano")
    with pytest.raises(UserError, match="no variant huge"):
        experiment.load_config(f"{TAAE}:huge")
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    with pytest.raises(UserError, match="get_config"):
        experiment.load_config(str(empty))


def test_unknown_fields_and_wrong_types_in_json():
    data = experiment.to_dict(tiny.experiment())
    for change, match in (
        ({"modle": {}}, "modle"),
        ({"model": {**data["model"], "depth": 3}}, r"model\.depth"),
        ({"model": {**data["model"], "strides": [1, "2"]}}, r"model\.strides"),
        ({"training": {**data["training"], "steps": 2.5}}, r"training\.steps"),
        ({"family": "vocoder"}, "family"),
    ):
        with pytest.raises(UserError, match=match):
            experiment.from_dict({**data, **change})


def test_crops_are_whole_hops():
    config = tiny.experiment()
    assert config.crop_samples == 1600
    assert config.crop_samples % config.codec.model.hop_length == 0
