"""The newcomer's command on the synthetic corpus, and what it must reach. Slow: minutes of training.

1,000 of its 2,400 steps, with the learning rate's schedule scaled to them: enough for every bound here.
"""

import csv
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch

import codec_jax
from codec_jax import cli, pytorch
from codec_jax.audio import files
from codec_jax.evaluate import metrics
from tests.parity import boundaries

pytestmark = pytest.mark.slow
STEPS = 1000
ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("espeakng_loader", reason="needs the extra demo")
    workdir = tmp_path_factory.mktemp("nano") / "run"
    flags = [f"--config.training.{name}={STEPS}" for name in ("steps", "eval_every", "checkpoint_every")]
    command = [sys.executable, "train.py", "--config=configs/taae.py:nano", f"--workdir={workdir}"]
    # As users run it: the tests' XLA_FLAGS are for programs that LLVM does not optimise, and slow down others.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([*command, *flags], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return workdir, done.stdout


def test_held_out_voices_and_sentences(run):
    workdir, said = run
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "valid/stoi" in row][-1]
    assert last["valid/stoi"] >= 0.75
    assert last["valid/mel_distance"] <= 0.6 * last["valid/mel_distance_control"]
    assert last["valid/stoi_control"] < 0.4  # the control says what ignoring the input scores
    assert "samples" in said
    assert "next: codec-jax reconstruct" in said


def test_recorded_voices(run, speech):
    codec = codec_jax.load(run[0])
    scores = []
    for path in speech:
        audio, rate = files.read(path)
        decoded = codec.decode(codec.encode(audio[0], rate))
        assert len(decoded) == audio.shape[1]
        scores.append(metrics.stoi(audio[0], decoded, rate))
    assert np.nanmean(scores) >= 0.68


def test_the_twin_and_the_way_back(run, tmp_path):
    """What was trained here, in PyTorch: every layer, latents, tokens and audio of a held-out voice; and home again."""
    from codec_jax.data import synth

    exported = tmp_path / "torch"
    assert cli.main(["convert", str(run[0]), str(exported), "--to", "torch"]) == 0
    assert max(boundaries.twin_errors(exported).values()) < 1e-5
    codec, twin = codec_jax.load(run[0]), pytorch.load(exported)
    audio, _ = files.read(sorted((synth.default_corpus() / "valid").rglob("*.flac"))[0])
    audio = audio[:, : len(audio[0]) // codec.hop_length * codec.hop_length]
    with torch.no_grad():
        latents = twin.latents(torch.from_numpy(audio[None])).numpy()
    ours = codec.latents(audio[None])
    assert np.abs(ours - latents).max() / np.abs(latents).max() < 1e-5
    tokens = twin.encode(torch.from_numpy(audio[None]))
    np.testing.assert_array_equal(codec.encode(audio[0], normalize=False).codes, tokens.numpy())
    decoded = codec.decode(codec.encode(audio[0], normalize=False))
    theirs = twin.decode(tokens).numpy()[0, 0]
    assert np.abs(decoded - theirs).max() / np.abs(theirs).max() < 1e-5
    jax.tree.map(np.testing.assert_array_equal, codec_jax.load(exported).params, codec.params)


def test_no_sentence_or_voice_is_on_both_sides(run):
    from codec_jax.data import synth

    with (synth.default_corpus() / "transcripts.tsv").open() as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    for column in ("text", "voice"):
        train, valid = ({row[column] for row in table if row["file"].startswith(part)} for part in ("train/", "valid/"))
        assert train
        assert valid
        assert not train & valid
