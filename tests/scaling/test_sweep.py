"""A sweep on disk: written whole, read again, priced, and refused where it is none. And the jobs of clusters."""

import csv
import json
import pathlib
import shlex

import pytest

from codec_jax import cli
from codec_jax.errors import UserError
from codec_jax.experiment import load_config
from codec_jax.scaling import clusters, costs, grid, sweep
from tests import tiny

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
NANO = f"--config={CONFIGS}/taae.py:nano"


@pytest.fixture(scope="module")
def runs():
    base = load_config(f"{CONFIGS}/taae.py:nano")
    return grid.planned(base, grid.parametric([100_000, 300_000], [600.0, 1200.0], [None]), grid.Rules())


@pytest.fixture
def planned(runs, tmp_path):
    estimates = costs.at_mfu(runs, 0.5, 4, 1e12)
    return sweep.write(tmp_path / "sweep", runs, estimates, {"command": "by hand"})


def test_written_and_read(planned, runs):
    found = sweep.read(planned.directory)
    assert found == planned
    assert [entry.name for entry in found.entries] == [run.name for run in runs]
    for entry, run in zip(found.entries, runs):
        assert entry.experiment() == run.experiment
        assert entry.workdir == planned.directory / "runs" / run.name
        assert {"params", "audio_seconds", "bitrate", "flops", "seed", "steps", "batch_size"} <= entry.row.keys()
        assert entry.row["params"] == run.params
        assert entry.row["learning_rate"] == run.experiment.optim.learning_rate
        assert entry.row["config"] == f"configs/{run.name}.json"
        assert entry.row["workdir"] == f"runs/{run.name}"
    data = json.loads((planned.directory / "sweep.json").read_text())
    assert data["version"] == 1
    assert data["planned"]["command"] == "by hand"
    assert not list(planned.directory.parent.glob(".*"))  # nothing is left of its making
    assert not (planned.directory / "runs").exists()


def test_the_cost_table(planned, runs):
    with (planned.directory / "costs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["flops"]) for row in rows] == [run.flops for run in runs]
    assert [float(row["chip_hours"]) for row in rows] == pytest.approx([run.flops / 5e11 / 3600 * 4 for run in runs])
    table = sweep.table(planned)
    assert len(table.splitlines()) == len(runs) + 2
    assert f"{sum(run.flops for run in runs):.3g} FLOPs" in table


def test_planned_anew(planned, runs):
    """Only when asked, and trained runs stay where they are."""
    kept = planned.directory / "runs" / "old" / "metrics.jsonl"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    nothing = [costs.NOTHING]
    with pytest.raises(UserError, match="holds a sweep already"):
        sweep.write(planned.directory, runs[:1], nothing, {})
    again = sweep.write(planned.directory, runs[:1], nothing, {}, force=True)
    assert [entry.name for entry in again.entries] == [runs[0].name]
    assert [path.stem for path in (planned.directory / "configs").iterdir()] == [runs[0].name]
    assert kept.exists()


def test_other_directories_are_refused(runs, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    for target, sentence in ((tmp_path, "holds no sweep"), (tmp_path / "thesis.tex", "is a file")):
        with pytest.raises(UserError, match=sentence):
            sweep.write(target, runs[:1], [costs.NOTHING], {}, force=True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "holds no sweep.json"),
        ("{", "is no JSON"),
        ('{"version": 2, "runs": []}', "of version 2"),
        ('{"version": 1}', "does not list its runs"),
        ('{"version": 1, "runs": [{"params": 3}]}', "does not list its runs"),
        ('{"version": 1, "runs": [{"name": "a", "config": "configs/a.json"}]}', "there is no"),
        ('{"version": 1, "runs": [{"name": "../a", "config": "x"}]}', "no name of a run"),
        ('{"version": 1, "runs": [{"name": "a", "config": "x"}, {"name": "a", "config": "x"}]}', "twice"),
    ],
)
def test_what_is_no_sweep(tmp_path, text, sentence):
    if text is not None:
        (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match=sentence):
        sweep.read(tmp_path)
    with pytest.raises(UserError, match="no sweep directory"):
        sweep.read(tmp_path / "nowhere")


# ---- the verb ----------------------------------------------------------------------------------


def test_the_verb(tmp_path, capsys):
    out = tmp_path / "sweep"
    flags = ["--params=0.1m,0.3m", "--flops=1e12,3e12", "--mup", "--config.data.max_valid_clips=3"]
    assert cli.main(["scaling", "plan", NANO, *flags, f"-o{out}"]) == 0
    said = capsys.readouterr().out
    assert "4 runs" in said
    assert "nothing has been run" in said
    found = sweep.read(out)
    assert {entry.experiment().data.max_valid_clips for entry in found.entries} == {3}
    assert {entry.row["asked"]["flops"] for entry in found.entries} == {1e12, 3e12}
    rules = found.planned["rules"]
    assert rules["mup"] is True
    assert any("lr0" in line for line in rules["formulas"])
    assert found.planned["flags"]["overrides"] == ["--config.data.max_valid_clips=3"]
    assert cli.main(["scaling", "plan", NANO, *flags, f"-o{out}"]) == 1  # it is there


def test_priced_on_chips(tmp_path, capsys):
    """An MFU as given; hours become budgets; batches divide over chips."""
    flags = ["--params=0.1m", "--topology=v5e:2x2", "--mfu=0.1", "--hours=0.001", "--batch-multiple=4"]
    assert cli.main(["scaling", "plan", NANO, *flags, f"-o{tmp_path / 'a'}"]) == 0
    (entry,) = sweep.read(tmp_path / "a").entries
    assert entry.row["hours"] == pytest.approx(0.001, rel=1e-2)
    assert entry.row["chip_hours"] == pytest.approx(0.004, rel=1e-2)
    assert entry.row["flops"] == pytest.approx(0.1 * 4 * 197e12 * 3.6, rel=1e-2)
    assert entry.row["batch_size"] % 4 == 0
    plan = {"topology": "v5e:2x2", "params": entry.row["params"], "flops_per_step": 2e9, "step_seconds": 1e-3}
    (tmp_path / "plan.json").write_text(json.dumps({**plan, "compiler_seconds": 2e-3}))
    flags = ["--params=0.1m,0.3m", "--topology=v5e:2x2", "--plans", str(tmp_path / "plan.json"), "--seconds=600"]
    assert cli.main(["scaling", "plan", NANO, f"-o{tmp_path / 'b'}", *flags]) == 0
    rows = [entry.row for entry in sweep.read(tmp_path / "b").entries]
    assert [row["estimate"] for row in rows] == ["compiled", "extrapolated"]
    assert [row["hours"] for row in rows] == pytest.approx([row["flops"] / 1e12 / 3600 for row in rows])


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "give one of --flops"),
        (["--flops=1e12", "--seconds=600"], "exclude each other"),
        (["--hours=3"], "give --topology too"),
        (["--flops=cheap"], "takes numbers"),
        (["--seconds=nan"], "takes numbers"),
        (["--seconds=600", "--params=huge"], "no number of parameters"),
        (["--seconds=600", "--seeds=0.5"], "whole numbers"),
        (["--seconds=600", "--bitrates=10"], "no rate of this bottleneck"),
        (["--seconds=600", "--params=1m", "--topology=v9:2x2"], "no topology"),
        (["--seconds=600", "--params=1m", "--topology=v5e:2x2", "--mfu=3"], "is a share"),
        (["--seconds=600", "--topology=v5e:2x2", "--plans", "nowhere.json"], "is no plan"),
        (["--hours=1", "--topology=v5e:2x2"], "needs --mfu"),
    ],
)
def test_bad_flags(tmp_path, flags, sentence, capsys):
    assert cli.main(["scaling", "plan", NANO, f"-o{tmp_path / 'sweep'}", *flags]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


# ---- clusters ----------------------------------------------------------------------------------


def test_commands_are_train_py_on_a_resolved_config(planned, capsys):
    assert (
        cli.main(["scaling", "run", str(planned.directory), "--print-commands", "--only", planned.entries[1].name]) == 0
    )
    (line,) = capsys.readouterr().out.splitlines()
    python, script, config, workdir = shlex.split(line)
    assert (python, script) == ("python", "train.py")
    assert load_config(config.removeprefix("--config=")) == planned.entries[1].experiment()
    assert workdir == f"--workdir={planned.entries[1].workdir}"


def test_a_slurm_array(planned, capsys):
    assert (
        cli.main(["scaling", "run", str(planned.directory), "--cluster=slurm", "--hours=30", "--root=/data/my sweep"])
        == 0
    )
    script = (planned.directory / "slurm.sbatch").read_text()
    assert "#SBATCH --array=0-3\n" in script
    assert "#SBATCH --time=1-06:00:00\n" in script
    lines = (planned.directory / "commands.txt").read_text().splitlines()
    assert len(lines) == 4
    assert all("'/data/my sweep/runs" in line for line in lines)


def test_xpk_and_gke(planned):
    import yaml

    job = clusters.Job("gs://bucket/sweep", "v5e:16x16", 12.0, "registry/image:1", "pod")
    paths = clusters.write_xpk(planned, job)
    script = (planned.directory / "xpk.sh").read_text()
    creates = [shlex.split(line) for line in script.splitlines() if line.startswith("xpk")]
    assert len(creates) == 4
    assert "--tpu-type=v5litepod-256" in creates[0]
    assert any(flag.startswith("--command=cd /app && python train.py --config=gs://bucket/") for flag in creates[0])
    manifests = [yaml.safe_load(path.read_text()) for path in paths if path.suffix == ".yaml"]
    assert len({m["metadata"]["name"] for m in manifests}) == 4
    spec = manifests[0]["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (spec["parallelism"], spec["activeDeadlineSeconds"]) == (64, 43_200)
    (container,) = spec["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["google.com/tpu"] == 4
    assert container["command"][2].startswith("exec python train.py --config=gs://bucket/sweep/configs/")
    with pytest.raises(UserError, match="no shape"):
        clusters.write_xpk(planned, job._replace(topology="v5e:all"))


def test_workload_names():
    assert clusters.workload_name("n95k-d600s") == "cjx-n95k-d600s"
    long = clusters.workload_name("n" * 80)
    assert len(long) == 40


def test_tiny_bases_plan_too():
    """Heads narrower than upstream's, as tests have."""
    (run,) = grid.planned(tiny.experiment(), [grid.Point(30_000, 100.0)], grid.Rules())
    assert run.experiment.model.channels % 8 == 0
