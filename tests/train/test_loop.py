"""A run from start to end on real files: what it writes, that it resumes exactly, and what it refuses."""

import json
import pathlib
import signal

import jax
import numpy as np
import pytest

import codec_jax
from codec_jax import checkpoint, train
from codec_jax.errors import UserError
from codec_jax.experiment import LossConfig, MeshConfig, StageConfig
from codec_jax.models.discriminators import DiscriminatorConfig
from codec_jax.train import loop
from tests import tiny


def experiment(corpus, **training):
    base = tiny.experiment(**training)
    data = tiny.changed(base.data, train=str(corpus / "train"), valid=str(corpus / "valid"))
    return tiny.changed(base, data=data)


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    loop.run(experiment(corpus), workdir)
    return workdir


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_what_a_run_leaves(finished):
    assert json.loads((finished / "config.json").read_text())["family"] == "taae"
    train = [row["step"] for row in rows(finished) if "train/loss" in row]
    valid = [row for row in rows(finished) if "valid/mel_distance" in row]
    assert train == [1, 2, 4, 6]
    assert [row["step"] for row in valid] == [0, 3, 6]
    assert {"valid/stoi", "valid/si_sdr", "valid/mel_distance_control", "valid/stoi_control"} <= set(valid[0])
    assert {"valid/stft_distance_taae", "valid/mel_distance_taae"} <= set(valid[0])
    assert {"train/l1", "train/stft", "train/grad_norm", "train/steps_per_second"} <= set(rows(finished)[1])
    for step in (0, 3, 6):
        samples = finished / "samples" / f"step_{step:07d}"
        assert len(list(samples.glob("*_decoded.wav"))) == len(list(samples.glob("*.png"))) == 1
    assert list((finished / "tensorboard").iterdir())
    assert (finished / "checkpoints" / "6").is_dir()


def test_a_run_directory_loads(finished):
    averaged, raw = codec_jax.load(finished), codec_jax.load(finished, weights="raw")
    difference = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(averaged.params), jax.tree.leaves(raw.params))]
    assert max(difference) > 0
    audio = np.sin(np.arange(1003) * 0.1).astype(np.float32) * 0.1
    assert averaged.decode(averaged.encode(audio)).shape == (1003,)


def test_stopped_and_resumed_equals_uninterrupted(corpus, finished, tmp_path, monkeypatch):
    """Killed in step 5, after the checkpoint at 3: the same command gives bit-equal parameters and the same rows."""
    monkeypatch.chdir(tmp_path)
    workdir = pathlib.Path("runs/run")  # relative, as people type it

    class Killed(Exception):
        pass

    write = loop.MetricsWriter.write

    def write_until_four(self, step, values):
        if step > 4:
            raise Killed
        write(self, step, values)

    with monkeypatch.context() as patched:
        patched.setattr(loop.MetricsWriter, "write", write_until_four)
        with pytest.raises(Killed):
            loop.run(experiment(corpus), workdir)
    assert [row["step"] for row in rows(workdir)] == [0, 1, 2, 3, 4]
    loop.run(experiment(corpus), workdir)
    for name in ("params", "ema"):
        ours = checkpoint.restore_subtree(workdir / "checkpoints", ("players", "codec", name))[0]
        theirs = checkpoint.restore_subtree(finished / "checkpoints", ("players", "codec", name))[0]
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)

    def results(workdir):
        timed = ("steps_per_second", "audio_seconds_per_second", "tflops_per_device", "data_wait", "goodput")
        return [{k: v for k, v in row.items() if not k.endswith(timed)} for row in rows(workdir)]

    assert results(workdir) == results(finished)


@pytest.fixture(scope="module")
def staged(corpus):
    """Three steps of warm-up, then three with discriminators."""
    base = experiment(corpus, steps=6, eval_every=6, checkpoint_every=2, log_every=1)
    losses = LossConfig(l1=1.0, stft=0.0, adversarial=1.0, feature_matching=1.0)
    stages = {"warm": StageConfig(), "adversarial": StageConfig(losses=losses, discriminate=True)}
    judge = DiscriminatorConfig(n_ffts=(30,), filters=4, dilations=(2,))
    return tiny.changed(
        base, losses=LossConfig(stft=0.0), stages=stages, discriminator=judge, mesh=MeshConfig(1, -1, 1)
    )


@pytest.mark.slow
def test_stages_follow_each_other_and_sigterm_saves(staged, tmp_path, monkeypatch, capsys):
    """Told to stop in step 4, of the second stage: saved there and then, and gone on from there with both players."""
    write = loop.MetricsWriter.write

    def tell_in_four(self, step, values):
        if step == 4:
            signal.raise_signal(signal.SIGTERM)
        write(self, step, values)

    with monkeypatch.context() as patched:
        patched.setattr(loop.MetricsWriter, "write", tell_in_four)
        with pytest.raises(train.Preempted, match="step 4 is saved"):
            loop.run(staged, tmp_path / "run")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    loop.run(staged, tmp_path / "run")
    said = capsys.readouterr().out
    assert "stage warm: steps 1 to 3, training the codec" in said
    assert "stage adversarial: steps 4 to 6, training the codec and its discriminators" in said
    assert "going on from step 4" in said
    found = [row for row in rows(tmp_path / "run") if "train/loss" in row]
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert ["train/d_loss" in row for row in found] == [False] * 3 + [True] * 3
    assert {"train/codes/entropy", "train/d_accuracy_real", "train/goodput"} <= set(found[-1])
    codec_jax.load(tmp_path / "run")


def test_a_finished_run_is_left_alone(corpus, finished):
    before = (finished / "metrics.jsonl").read_text()
    loop.run(experiment(corpus), finished)
    assert (finished / "metrics.jsonl").read_text() == before
    with pytest.raises(UserError, match="already at step 6"):
        loop.run(experiment(corpus, steps=4), finished)


def test_other_directories_are_refused(corpus, finished, tmp_path):
    other = experiment(corpus)
    other = tiny.changed(other, model=tiny.changed(other.model, patch_size=40))
    with pytest.raises(UserError, match="another model"):
        loop.run(other, finished)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        loop.run(experiment(corpus), tmp_path / "full")
    with pytest.raises(UserError, match="is a file"):
        loop.run(experiment(corpus), tmp_path / "full" / "thesis.tex")
    nothing = tiny.changed(experiment(corpus), data=tiny.changed(experiment(corpus).data, train=str(tmp_path / "none")))
    with pytest.raises(UserError):
        loop.run(nothing, tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()
