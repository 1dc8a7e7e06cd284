"""codec-jax bench: both sides run, and the twin is the same codec. No time is judged."""

import json

import numpy as np
import pytest
import torch

from codec_jax import bench, cli


@pytest.mark.slow
def test_the_verb(tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text("from tests import tiny\n\n\ndef get_config():\n    return tiny.experiment()\n")
    out = tmp_path / "bench.json"
    command = ["bench", f"--config={config}", "--batch=2", "--seconds=0.1", "--repeats=1", f"--json={out}"]
    assert cli.main(command) == 0
    assert "encode + decode" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert (found["batch"], len(found["cases"])) == (2, 4)
    assert all(case["ratio"] > 0 and case["gflops_per_second"] > 0 for case in found["cases"])
    assert cli.main(command) == 1
    assert cli.main(["bench", f"--config={config}", "--repeats=0"]) == 1


def test_both_sides_are_one_codec():
    import flax.linen as nn
    import jax

    from codec_jax.models import taae
    from tests import tiny

    variables = tiny.variables()
    twin = bench._twin("taae", tiny.CONFIG, variables)
    audio = bench._noise(1, 800)
    ours = jax.jit(taae.analyse, static_argnums=0)(tiny.CONFIG, nn.unbox(variables), audio[:, :, None])
    np.testing.assert_allclose(ours, twin.latents(torch.from_numpy(audio)).detach().numpy(), atol=1e-5)


def test_the_twin_of_an_esc_codes_and_learns():
    from tests import tiny_esc

    twin = bench._twin("esc", tiny_esc.CONFIG, tiny_esc.variables())
    audio = bench._noise(2, 992)
    bench._torch_backward(twin, audio)()
    assert twin.encoder.patch_embed.proj.weight.grad.abs().max() > 0
    assert twin.decode(twin.encode(torch.from_numpy(audio))).shape == (2, 1, 992)
