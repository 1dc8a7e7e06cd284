"""The 953 M parameter model with weights from the recipe: exact tokens, and memory. Slow: gigabytes, about a minute."""

import hashlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow
PRESETS = ("1x46656_400bps", "2x15625_700bps", "4x729_1000bps")


def test_full_size_model(golden):
    """In a process of its own, so that its peak memory is its own."""
    script = [sys.executable, "-m", "tests.parity.test_taae_full", str(golden.path("taae/full"))]
    root = pathlib.Path(__file__).resolve().parents[2]
    done = subprocess.run(script, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["parameters"] == 953_319_756
    assert figures["recipe"]
    assert figures["wrong_tokens"] == 0
    assert figures["latents"] < 1e-3
    assert figures["audio"] < 1e-3
    assert figures["peak_gib"] < 10


def measure(directory: pathlib.Path) -> dict:
    import jax
    import jax.numpy as jnp
    from safetensors.numpy import load_file

    from codec_jax.convert.taae import from_torch
    from codec_jax.models import taae
    from tests.memory import peak_gib
    from tests.parity.recipe import RecipeTensors

    meta = json.loads((directory / "meta.json").read_text())
    keys = json.loads((directory / "state_dict_keys.json").read_text())
    weights = RecipeTensors({name: tuple(shape) for name, shape, *_ in keys["keys"]}, meta["salt"])
    hashes = {
        name: hashlib.sha256(np.asarray(weights[name]).tobytes()).hexdigest()[:16]
        for name in meta["sha256_16_of_fp32_bytes"]
    }
    cfg, variables, _ = from_torch(weights, meta["config"])
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables))
    variables = jax.tree.map(jnp.asarray, variables)
    golden = load_file(directory / "tensors.safetensors")

    def relative(ours, theirs):
        return float(np.abs(np.asarray(ours).swapaxes(1, 2) - theirs).max() / np.abs(theirs).max())

    worst, wrong = {"latents": 0.0, "audio": 0.0}, 0
    for name in ("2s", "10s"):
        latents = jax.jit(taae.analyse, static_argnums=0)(
            cfg, variables, jnp.asarray(golden[f"{name}/input"]).swapaxes(1, 2)
        )
        worst["latents"] = max(worst["latents"], relative(latents, golden[f"{name}/pre_bottleneck_latents"]))
        codes = taae.quantise(latents, taae.rate(cfg))
        wrong += int((codes[:, 0] != golden[f"{name}/indices"][..., 0]).sum())
        for preset in PRESETS:
            codes = taae.quantise(latents, taae.rate(cfg, preset))
            for stage in range(codes.shape[1]):
                wrong += int((codes[:, stage] != golden[f"{name}/{preset}/tokens{stage}"][..., 0]).sum())
        codes = jnp.asarray(golden[f"{name}/codes"]).swapaxes(1, 2)
        audio = jax.jit(taae.synthesise, static_argnums=0)(cfg, variables, codes)
        worst["audio"] = max(worst["audio"], relative(audio, golden[f"{name}/decoded"]))
    peak = peak_gib()
    recipe = hashes == meta["sha256_16_of_fp32_bytes"]
    return {"parameters": parameters, "recipe": recipe, "wrong_tokens": wrong, **worst, "peak_gib": peak}


if __name__ == "__main__":
    print(json.dumps(measure(pathlib.Path(sys.argv[1]))))
