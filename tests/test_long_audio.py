"""One hour through a nano-sized codec: bounded memory, and the codes of whole-file encoding. Slow."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_one_hour():
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_long_audio"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["samples"] == 3600 * 16_000
    assert figures["peak_gib"] < 2
    assert figures["wrong_codes"] == 0
    assert figures["unclear"] < 1000
    assert figures["largest_difference"] < 1e-4


def measure() -> dict:
    """Encodes and decodes an hour in chunks, then the first five minutes and a half in one pass to compare."""
    import numpy as np

    from codec_jax import codec as codec_module
    from codec_jax import experiment
    from tests import memory, tiny

    cfg = experiment.load_config("configs/taae.py:nano").codec
    codec = tiny.codec(cfg)
    rng, samples = np.random.default_rng(0), 3600 * 16_000
    audio = rng.standard_normal(samples, dtype=np.float32)
    audio *= np.repeat(rng.random(3600 * 10, dtype=np.float32) * 0.2, 1600)
    encoded = codec.encode(audio, normalize=False)
    decoded = codec.decode(encoded)
    peak = memory.peak_gib()

    codec_module._CHUNK_SECONDS = 1e9
    frames = 330 * 200
    part = codec.encode(audio[: frames * 80], normalize=False)
    right = codec._geometry.receptive_field[1]
    count = frames - right  # the last frames of the part cannot see what follows it
    latents = codec.latents(audio[: frames * 80])[0, :count]
    level = (np.tanh(latents.astype(np.float64)) + 1) * 8
    clear = np.abs(level - np.floor(level) - 0.5).min(-1) > 1e-4
    wrong = (part.codes[0, 0, :count] != encoded.codes[0, 0, :count])[clear].sum()
    ends = (count - right) * 80
    beginning = dataclasses.replace(
        encoded, codes=encoded.codes[:, :, :frames], frames=np.array([frames]), lengths=np.array([frames * 80])
    )
    difference = np.abs(codec.decode(beginning)[:ends] - decoded[:ends]).max()
    return {
        "samples": len(decoded),
        "peak_gib": peak,
        "wrong_codes": int(wrong),
        "unclear": int((~clear).sum()),
        "largest_difference": float(difference),
    }


if __name__ == "__main__":
    print(json.dumps(measure()))
