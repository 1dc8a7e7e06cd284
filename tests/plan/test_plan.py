"""codec-jax plan: real steps compiled for topologies that are not here. Skipped without libtpu."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest

from codec_jax import cli
from codec_jax.errors import UserError
from codec_jax.experiment import LossConfig, MeshConfig, StageConfig
from codec_jax.models.discriminators import DiscriminatorConfig
from codec_jax.ops import platform
from codec_jax.train import chips, hlo, plan, sharding, stages, step
from tests import tiny

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="no libtpu: pip install '.[plan]'")

JUDGED = LossConfig(l1=1.0, stft=0.0, adversarial=1.0, feature_matching=1.0)


def experiment():
    """Both players, in sizes that divide over four chips."""
    base = tiny.experiment()
    model = tiny.changed(base.model, channels=128, head_dim=64, patch_size=40, remat="full", dtype="bfloat16")
    return tiny.changed(
        base,
        model=model,
        losses=LossConfig(l1=1.0, stft=0.0),
        discriminator=DiscriminatorConfig(n_ffts=(30,), filters=4, dilations=(2,)),
        stages={"warm": StageConfig(), "adversarial": StageConfig(losses=JUDGED, discriminate=True)},
    )


@pytest.fixture(scope="module", autouse=True)
def _flags_of_cpus_aside():
    """libtpu reads XLA_FLAGS too, and ends the process at one it does not know."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS", raising=False)
        yield


@pytest.fixture(scope="module")
def planned():
    return plan.plan(experiment(), "v5e:2x2", batch_per_device=3)


@pytest.mark.slow
def test_the_stage_with_the_largest_peak(planned):
    assert planned.stage == "adversarial"
    assert planned.fits
    assert planned.devices == 4
    assert planned.batch_size == 12
    assert 0 < planned.argument_bytes < planned.peak_bytes < planned.hbm_bytes == 16 * 2**30
    assert planned.params_by_player["codec"] == planned.params
    assert set(planned.flops_by_player) == {"codec", "losses", "discriminator"}
    assert planned.flops_executed > planned.flops_per_step > 0
    bounds = (planned.compute_seconds, planned.memory_seconds, planned.network_seconds)
    assert planned.step_seconds == max(bounds) > 0
    assert 0 < planned.mfu_estimate <= planned.mfu_upper_bound <= 1
    assert planned.collective_bytes["all-gather"] > 0  # of parameters that are cut over fsdp


@pytest.mark.slow
def test_state_is_cut_over_all_chips(planned):
    """Parameters, two moments and the average, each 4 bytes, a quarter per chip; the rest is small."""
    whole = 16 * planned.params_by_player["codec"] + 12 * planned.params_by_player["discriminator"]
    audio = 3 * 4 * experiment().crop_samples
    assert planned.argument_bytes - audio < 0.5 * whole


@pytest.mark.slow
def test_no_tensor_carries_the_global_batch():
    """13 clips per data shard, 38 frames and 19 latents a clip: sizes that nothing else here has."""
    config = dataclasses.replace(experiment(), mesh=MeshConfig(2, 2, 2))
    mesh = sharding.make_mesh(config.mesh, chips.devices("v5e:2x4"))
    shards = mesh.shape["replica"] * mesh.shape["fsdp"]
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, batch_size=13 * shards, crop_seconds=0.095)
    )
    with platform.tracing_for("tpu"):
        lowered = step.lower_train_step(config, stages.resolve(config)[1], mesh)
    text = lowered.compile().as_text()
    counts = (1, 19, 38, config.crop_samples)
    assert hlo.carriers(text, {13 * count for count in counts})  # every chip's own share is there
    assert hlo.carriers(text, {13 * shards * count for count in counts}) == []


@pytest.mark.parametrize(
    ("topology", "slices"), [("v5e:16x16", 1), ("v6e:16x16", 1), ("v5p:4x4x4", 1), ("v5e:16x16", 2)]
)
def test_a_torus_is_cut_anywhere(topology, slices):
    """4 x 64 of 16 x 16 chips, which JAX refuses by default but for v5e."""
    devices = chips.devices(topology, slices)
    mesh = sharding.make_mesh(MeshConfig(4 * slices, -1, 1), devices)
    assert dict(mesh.shape) == {"replica": 4 * slices, "fsdp": len(devices) // slices // 4, "tensor": 1}
    assert {device.id for device in mesh.devices.flat} == {device.id for device in devices}
    if slices == 2:  # one slice after the other along the first axis: only gradients cross
        assert [len({device.slice_index for device in half.flat}) for half in np.split(mesh.devices, 2)] == [1, 1]


@pytest.mark.slow
def test_two_slices():
    two = plan.plan(dataclasses.replace(experiment(), mesh=MeshConfig(2, -1, 1)), "v5e:2x2", "warm", 1, slices=2)
    assert (two.devices, two.mesh["replica"]) == (8, 2)
    assert two.dcn_bytes > 0
    with pytest.raises(UserError, match="slices"):
        plan.plan(experiment(), "v5e:2x2", "warm", 1, slices=2)


@pytest.mark.slow
def test_what_does_not_fit_is_said(capsys):
    found = plan.plan(experiment(), "v5e:2x2", "warm", 300_000)
    assert not found.fits
    assert found.peak_bytes >= found.hbm_bytes  # the compiler names no size where one buffer alone is too large
    assert found.message
    assert found.mfu_upper_bound == 0


@pytest.mark.slow
def test_the_verb(tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text("from tests.plan.test_plan import experiment\n\n\ndef get_config():\n    return experiment()\n")
    out = tmp_path / "plan.json"
    command = ["plan", f"--config={config}", "--topology=v5e:2x2", "--stage=warm", "--hours=10", f"--json={out}"]
    assert cli.main([*command, "--sweep", "batch=1,2", "remat=none"]) == 0
    assert capsys.readouterr().out.count("*") == 2  # the best, and what the star means
    rows = json.loads(out.read_text())
    assert [row["batch_per_device"] for row in rows] == [1, 2]
    assert sum(row["best"] for row in rows) == 1
    assert {"topology", "devices", "hbm_bytes", "temp_bytes", "compile_seconds", "days_lower_bound"} <= rows[0].keys()
    assert cli.main(command) == 1  # plan.json is there
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--topology=v9:2x2"], "no topology"),
        (["--topology=v5e"], "no topology"),
        (["--topology=v5e:3x5"], "does not come as"),
        (["--topology=v5e:2x2", "--stage=nowhere", "--batch-per-device=1"], "no stage nowhere"),
        (["--topology=v5e:4x4", "--config.data.batch_size=6"], "does not divide"),
        (["--topology=v5e:2x2", "--sweep", "colour=red"], "--sweep takes"),
        (["--topology=v5e:2x2", "--sweep", "mesh=1x2"], "replica x fsdp x tensor"),
    ],
)
def test_bad_input(arguments, sentence, capsys):
    assert cli.main(["plan", "--config=configs/taae.py:nano", *arguments]) == 1
    assert sentence in capsys.readouterr().err


def test_undominated_stages():
    names = [stage.name for stage in plan.undominated(stages.resolve(experiment()))]
    assert names == ["adversarial"]
    frozen = tiny.changed(experiment(), stages={"warm": StageConfig(), "tuned": StageConfig(freeze=("encoder",))})
    assert [stage.name for stage in plan.undominated(stages.resolve(frozen))] == ["warm"]
