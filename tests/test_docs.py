"""Every command of docs/converting.md runs, in its order, on small models."""

import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import soundfile

from codec_jax import cli
from tests import tiny_esc
from tests.test_convert import hub, training_checkpoint  # noqa: F401

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "converting.md"


def blocks():
    return re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_converting_md(run, hub, upstream_directory, recipe, tmp_path, monkeypatch):  # noqa: F811
    config, tensors = recipe
    monkeypatch.chdir(tmp_path)
    shutil.copytree(upstream_directory, "stable-codec")
    training_checkpoint(tensors, "training.ckpt")
    pathlib.Path("model_config.json").write_text(json.dumps(config))
    cache = tmp_path / "hub"
    (cache / "models--someone--speech-codec").rename(cache / "models--stabilityai--stable-codec-speech-16k")
    shutil.copytree(run, "runs/nano")
    esc = tiny_esc.write_upstream(pathlib.Path("esc"), *tiny_esc.upstream())
    for name, copied in (("model.pth", "checkpoints/best.pth"), ("config.yaml", "configs/9kbps_esc_base.yaml")):
        pathlib.Path(copied).parent.mkdir()
        shutil.copy(esc / name, copied)
    soundfile.write("talk.wav", 0.1 * np.random.default_rng(0).standard_normal(20_000), 16_000)
    ran = 0
    for language, text in blocks():
        if language == "python":
            exec(compile(text, str(PAGE), "exec"), {})
        for line in text.splitlines() if language == "bash" else []:
            program, *arguments = shlex.split(line)
            if program == "codec-jax":
                assert cli.main(arguments) == 0, line
            else:
                subprocess.run([program, *arguments], check=True)
            ran += 1
    assert ran >= 19
    assert pathlib.Path("talk.cjx").exists()


def test_the_installed_command_is_the_same():
    installed = pathlib.Path(sys.executable).with_name("codec-jax")
    told = subprocess.run([installed, "convert", "--help"], capture_output=True, text=True, check=True).stdout
    assert "example: codec-jax convert" in told
