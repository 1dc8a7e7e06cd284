"""Configs: variants, flags, JSON, and every way to get one wrong."""

import json
import pathlib

import pytest

from codec_jax import experiment
from codec_jax.errors import UserError
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[1]
TAAE = str(ROOT / "configs" / "taae.py")
ESC = str(ROOT / "configs" / "esc.py")


@pytest.mark.parametrize("variant", ["nano", "small", "250m", "500m", "1b"])
def test_shipped_configs_are_valid_and_survive_json(variant):
    config = experiment.load_config(f"{TAAE}:{variant}")
    assert experiment.from_dict(json.loads(experiment.to_json(config))) == config
    assert hash(config.codec) == hash(experiment.from_dict(experiment.to_dict(config)).codec)


def test_escs_adversarial_recipe():
    """Spec ESC sections 6 to 8, under upstream's spelling; its discriminators survive JSON."""
    config = experiment.load_config(f"{ESC}:base_adv")
    first, second = config.stages.values()
    losses, judged = second.losses, config.discriminator
    assert (first.discriminate, first.quantise, second.discriminate, second.quantise) == (False, False, True, True)
    assert (losses.mel, losses.commitment, losses.codebook, losses.spectrum) == (15.0, 0.25, 1.0, 0.0)
    assert (losses.gan, losses.adversarial, losses.feature_matching) == ("least_squares", 1.0, 2.0)
    assert (config.optim.clip_norm, second.discriminator_optim.clip_norm) == (1e3, 10.0)
    assert (config.optim.learning_rate, config.optim.b1, config.optim.b2) == (1e-4, 0.9, 0.999)
    assert (judged.periods, judged.fft_sizes) == ((2, 3, 5, 7, 11), (2048, 1024, 512))
    assert experiment.from_dict(json.loads(experiment.to_json(config))) == config
    small = experiment.load_config(f"{ESC}:nano-adv", ["--config.discriminator.periods=(2, 3)"])
    assert small.discriminator.periods == (2, 3)


def test_discriminators_of_older_configs_have_no_kind():
    data = experiment.to_dict(tiny.experiment())
    del data["discriminator"]["kind"], data["losses"]["gan"]
    assert experiment.from_dict(data) == tiny.experiment()
    for discriminator, match in (
        ({"kind": "none"}, "one of stft, dac"),
        ({"kind": "dac", "n_ffts": [30]}, r"discriminator\.n_ffts"),
        (3, "must be a set of fields"),
    ):
        with pytest.raises(UserError, match=match):
            experiment.from_dict({**data, "discriminator": discriminator})
    with pytest.raises(UserError, match="one of hinge, least_squares"):
        experiment.from_dict({**data, "losses": {"gan": "wasserstein"}}).validate()


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


def test_a_resolved_config_is_a_config(tmp_path):
    """What a run stores starts another, flags on top."""
    file = tmp_path / "resolved.json"
    file.write_text(experiment.to_json(tiny.experiment()))
    assert experiment.load_config(str(file)) == tiny.experiment()
    assert experiment.load_config(str(file), ["--config.training.steps=7"]).training.steps == 7
    for text, match in ((None, "there is no"), ("[]", "no JSON object"), ('{"family": "x"}', "family is one of")):
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)
        with pytest.raises(UserError, match=match):
            experiment.load_config(str(file))
