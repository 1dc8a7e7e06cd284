"""953 M parameters from upstream's layout to ours and back: the same bytes, in bounded memory. Slow: gigabytes on disk."""

import filecmp
import json
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_there_and_back_at_full_size(golden, tmp_path):
    script = [sys.executable, "-m", "tests.test_convert_full", str(golden.path("taae/full")), str(tmp_path)]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["tensors"] == 969
    assert figures["same"]
    largest_stacked = 20 * 8192 * 1024 * 4 / 2**30  # the first feed-forward matrix of 20 layers
    assert figures["to_jax_gib"] < 1 + largest_stacked
    assert figures["to_torch_gib"] < 1


def measure(directory: pathlib.Path, work: pathlib.Path) -> dict:
    from codec_jax import cli, storage
    from tests import memory
    from tests.parity.recipe import RecipeTensors

    meta = json.loads((directory / "meta.json").read_text())
    keys = json.loads((directory / "state_dict_keys.json").read_text())
    tensors = RecipeTensors({name: tuple(shape) for name, shape, *_ in keys["keys"]}, meta["salt"])
    upstream = work / "upstream"
    upstream.mkdir()
    storage.write_json(upstream / "model_config.json", meta["config"])
    storage.write_tensors(upstream / storage.WEIGHTS, tensors, {"format": "pt"})
    figures = {"tensors": len(tensors)}
    steps = {"to_jax_gib": (upstream, work / "jax", "jax"), "to_torch_gib": (work / "jax", work / "torch", "torch")}
    for name, (source, destination, to) in steps.items():
        with memory.anonymous_peak() as peak:
            assert cli.main(["convert", str(source), str(destination), "--to", to]) == 0
        figures[name] = peak[0]
    figures["same"] = filecmp.cmp(upstream / storage.WEIGHTS, work / "torch" / storage.WEIGHTS, shallow=False)
    return figures


if __name__ == "__main__":
    print(json.dumps(measure(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))))
