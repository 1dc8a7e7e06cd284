"""Running a sweep: nothing twice, nothing lost, nobody taken along by another's crash."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from codec_jax import cli
from codec_jax.errors import UserError
from codec_jax.experiment import to_json
from codec_jax.scaling import costs, grid, runner, sweep
from codec_jax.train import loop
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]


def base(corpus, **training):
    plain = tiny.experiment(**training)
    data = tiny.changed(plain.data, train=str(corpus / "train"), valid=str(corpus / "valid"), batch_size=2)
    return tiny.changed(plain, data=data)


def planned(corpus, directory, seconds=(20.0, 24.0), **rules):
    """Runs of a tiny codec, 100 and 120 steps, a checkpoint every twentieth of them."""
    points = grid.parametric([30_000], list(seconds), [None])
    runs = grid.planned(base(corpus), points, grid.Rules(**{"checkpoints": 20, **rules}))
    return sweep.write(directory, runs, [costs.NOTHING] * len(runs), {})


@pytest.fixture
def fake(corpus, tmp_path, monkeypatch):
    """A sweep whose workers do what `act[name]` says instead of training: a shell command each."""
    found, act = planned(corpus, tmp_path / "sweep", (20.0, 24.0, 28.0)), {}

    def start(sweep_, entry, slot, workers):
        path = sweep_.log(entry.name)
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as file:
            return subprocess.Popen(["bash", "-c", act[entry.name]], stdout=file, stderr=file, start_new_session=True)

    monkeypatch.setattr(runner, "_start", start)
    return found, act


def finish(entry, loss=1.0, steps=None):
    """What a finished run leaves, as far as it matters."""
    steps = steps or entry.row["steps"]
    (entry.workdir / "checkpoints" / str(steps)).mkdir(parents=True)
    (entry.workdir / "config.json").write_text(to_json(entry.experiment()))
    (entry.workdir / "metrics.jsonl").write_text(json.dumps({"step": steps, "valid/mel_distance": loss}) + "\n")


# ---- done --------------------------------------------------------------------------------------


def test_done_is_evaluated_and_checkpointed_at_the_last_step(corpus, tmp_path):
    entry = planned(corpus, tmp_path / "sweep").entries[0]
    assert not runner.is_done(entry)
    finish(entry)
    assert runner.is_done(entry)
    rows = entry.workdir / "metrics.jsonl"
    whole = rows.read_text()
    for text in ("", '{"step": 50, "valid/mel_distance": 1.0}\n', '{"step": 100, "train/loss": 1.0}\n', whole[:20]):
        rows.write_text(text)
        assert not runner.is_done(entry)
    rows.write_text(whole.replace("1.0", "null"))  # not finite: done all the same, and for the fit to leave out
    assert runner.is_done(entry)
    (entry.workdir / "checkpoints" / "100").rename(entry.workdir / "checkpoints" / "95")
    assert not runner.is_done(entry)


def test_a_run_of_another_config_is_none_of_ours(corpus, tmp_path):
    entry = planned(corpus, tmp_path / "sweep").entries[0]
    finish(entry)
    other = tiny.changed(entry.experiment(), optim=tiny.changed(entry.experiment().optim, learning_rate=1.0))
    (entry.workdir / "config.json").write_text(to_json(other))
    with pytest.raises(UserError, match="another config"):
        runner.is_done(entry)


# ---- locks -------------------------------------------------------------------------------------


def test_a_lock_is_held_by_one_and_freed_by_death(tmp_path):
    path = tmp_path / "locks" / "a.lock"
    assert not runner.is_locked(path)
    code = (
        "import pathlib, sys, time\nfrom codec_jax.scaling import runner\n"
        "with runner.locked(pathlib.Path(sys.argv[1])) as ours:\n    print(ours, flush=True)\n    time.sleep(600)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "True\n"
    assert runner.is_locked(path)
    assert str(holder.pid) in runner.holder(path)
    with runner.locked(path, patience=0.0) as ours:
        assert not ours
    holder.kill()
    holder.wait()
    assert path.exists()  # the file is still there, and means nothing
    assert not runner.is_locked(path)
    with runner.locked(path, patience=0.0) as ours:
        assert ours
        assert str(os.getpid()) in runner.holder(path)


def test_a_run_that_another_process_has_is_left_alone(fake):
    found, act = fake
    first, second, third = found.entries
    finish(third)
    act[second.name] = f"exit {runner.HELD}"  # taken between our look and the worker's
    said = []
    with runner.locked(found.lock(first.name)):
        outcomes = {o.name: o for o in runner.run(found, say=said.append)}
    assert outcomes[first.name].state == outcomes[second.name].state == runner.BUSY
    assert str(os.getpid()) in outcomes[first.name].why
    assert outcomes[third.name] == runner.Outcome(third.name, runner.DONE)
    assert len(said) == 4  # and one that was started


# ---- failures ----------------------------------------------------------------------------------


def test_a_crash_ends_no_other_run(fake, capsys):
    """One dies of a signal, one says why, one is well; all are told at the end, with exit code 1."""
    found, act = fake
    killed, wrong, well = found.entries
    act[killed.name] = "kill -SEGV $$"
    act[wrong.name] = "echo 'the disk is full'; exit 1"
    done = found.directory / "prepared"
    entry = well._replace(workdir=done)
    finish(entry)
    act[well.name] = f"mkdir -p {well.workdir.parent} && cp -r {done} {well.workdir}"
    assert cli.main(["scaling", "run", str(found.directory)]) == 1
    out, err = capsys.readouterr()
    assert f"{well.name}: done" in out
    assert "1 done" in out
    assert f"failed: {killed.name}: killed by SIGSEGV" in err
    assert f"failed: {wrong.name}: exit code 1: the disk is full" in err
    assert "2 of 3 runs are not done" in err
    act[well.name] = "exit 3"  # never started again
    assert runner.run(found.named([well.name])) == [runner.Outcome(well.name, runner.DONE)]


def test_exit_code_nought_is_not_taken_for_done(fake):
    found, act = fake
    for entry in found.entries:
        act[entry.name] = "true"
    assert {o.state for o in runner.run(found, workers=3)} == {runner.FAILED}


def test_workers_run_side_by_side(fake):
    """Three that wait for each other."""
    found, act = fake
    for i, entry in enumerate(found.entries):
        meet = f"touch {found.directory}/here{i}; for k in $(seq 300); do "
        act[entry.name] = meet + f"[ $(ls {found.directory} | grep -c here) = 3 ] && exit 7; sleep 0.1; done; exit 1"
    assert all("exit code 7" in o.why for o in runner.run(found, workers=3))


def test_told_to_stop(fake):
    """SIGTERM goes on to what runs; what waits is not begun."""
    found, act = fake
    for entry in found.entries:
        act[entry.name] = "trap 'exit 143' TERM; kill -TERM $PPID; for k in $(seq 300); do sleep 0.1; done"
    first, *rest = runner.run(found)
    assert (first.state, first.why) == (runner.STOPPED, "saved")
    assert {o.why for o in rest} == {"not started"}
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_gpus_are_shared_out():
    env = {"CUDA_VISIBLE_DEVICES": "0,1,2,10"}
    assert runner.devices_of(0, 2, env) == {"CUDA_VISIBLE_DEVICES": "0,2"}
    assert runner.devices_of(1, 2, env) == {"CUDA_VISIBLE_DEVICES": "1,10"}
    assert runner.devices_of(0, 1, env) == {}
    assert runner.devices_of(3, 8, env) == {}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--only=nothing"], "has no run nothing"),
        (["--workers=0"], "at least 1"),
        (["--cluster=xpk", "--topology=x"], "no topology"),
    ],
)
def test_bad_flags(corpus, tmp_path, flags, sentence, capsys):
    planned(corpus, tmp_path / "sweep")
    assert cli.main(["scaling", "run", str(tmp_path / "sweep"), *flags]) == 1
    assert sentence in capsys.readouterr().err


# ---- the real thing ----------------------------------------------------------------------------


def figures(entry):
    """Rows without what depends on the clock."""
    timed = ("steps_per_second", "audio_seconds_per_second", "tflops_per_device", "data_wait", "goodput")
    rows = [json.loads(line) for line in (entry.workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.endswith(timed)} for row in rows]


def launch(found, *flags):
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # as in conftest.py
    command = [sys.executable, "-m", "codec_jax", "scaling", "run", str(found.directory), *flags]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def until(condition, process, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition(), process.communicate()[0] if process.poll() is not None else "nothing happened"


def pid_of(found, name):
    with contextlib.suppress(OSError, json.JSONDecodeError, KeyError):
        return json.loads(found.lock(name).read_text())["pid"]


@pytest.mark.slow
def test_killed_stopped_and_resumed_is_the_uninterrupted_sweep(corpus, tmp_path):
    """The first run's worker is killed, then the whole sweep is told to stop, then it goes on: the same rows, once each."""
    whole = planned(corpus, tmp_path / "whole")
    assert launch(whole).wait(600) == 0
    found = planned(corpus, tmp_path / "sweep")
    first, second = found.entries

    process = launch(found)
    until(lambda: (first.workdir / "checkpoints" / "10").is_dir(), process)
    os.kill(pid_of(found, first.name), signal.SIGKILL)
    until(lambda: (second.workdir / "checkpoints" / "12").is_dir(), process)
    process.terminate()
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 1
    assert "killed by SIGKILL" in said
    assert f"{second.name}: stopped" in said

    process = launch(found)
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said
    assert "2 done" in said
    for ours, theirs in zip(found.entries, whole.entries):
        assert figures(ours) == figures(theirs)
    fits = []
    for one in (found, whole):  # two runs are no law, and what there is to say of them is the same
        assert cli.main(["scaling", "fit", str(one.directory), "-o", str(one.directory / "fit")]) == 1
        fits.append((one.directory / "fit" / "fit.json").read_bytes())
    assert fits[0] == fits[1]
    assert b"refused" in fits[0]
    before = [(entry.workdir / "metrics.jsonl").stat().st_mtime_ns for entry in found.entries]
    said = launch(found).communicate(timeout=300)[0]
    assert said.count("done already") == 2
    assert [(entry.workdir / "metrics.jsonl").stat().st_mtime_ns for entry in found.entries] == before


@pytest.mark.slow
def test_two_runners_share_a_sweep(corpus, tmp_path):
    """Both start at once: every run has the rows of one run, and one log's beginning."""
    found = planned(corpus, tmp_path / "sweep")
    both = [launch(found), launch(found)]
    said = [process.communicate(timeout=600)[0] for process in both]
    assert all(runner.is_done(entry) for entry in found.entries), said
    for entry in found.entries:
        steps = [row["step"] for row in figures(entry) if "train/loss" in row]
        assert steps == sorted(set(steps))
        assert found.log(entry.name).read_text().count("parameters,") == 1


def test_a_worker_is_train_run(corpus, tmp_path, monkeypatch):
    """One run in this process: the worker's code, the lock, and that a second call trains no more."""
    from codec_jax.scaling import worker

    found = planned(corpus, tmp_path / "sweep", (20.0,), evaluations=1)
    (entry,) = found.entries
    seen = []
    monkeypatch.setattr(loop, "run", None)
    monkeypatch.setattr("codec_jax.train.run", lambda e, w: (seen.append((e, w)), finish(entry)))
    monkeypatch.setattr("codec_jax.accelerators.ask_for_huge_pages", lambda: None)
    monkeypatch.setattr(sys, "argv", ["worker", str(found.directory), entry.name])
    with runner.locked(found.lock(entry.name)):
        assert worker.main() == runner.HELD
    assert worker.main() == 0
    assert worker.main() == 0
    assert seen == [(entry.experiment(), entry.workdir)]
    monkeypatch.setattr(sys, "argv", ["worker", str(found.directory), "nothing"])
    assert worker.main() == 1
