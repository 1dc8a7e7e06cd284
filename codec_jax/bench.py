"""How fast this machine runs a codec, beside the PyTorch twin with the same weights, as ratios of one run.

The sides take turns, so that a machine that slows down slows both. What the two libraries' matrix products alone take
is measured beside: no codec can differ from it by much for reasons of its own. Needs torch.
"""

import dataclasses
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch

from codec_jax import convert, models, pytorch
from codec_jax.experiment import Experiment, MeshConfig
from codec_jax.models.protocol import spread
from codec_jax.storage import Extras
from codec_jax.train import cost, sharding, stages, step

_MATMUL = 2048


class Case(NamedTuple):
    """One thing, done by both sides once per call; every call waits for its result. flops: of one call, ours."""

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    flops: float


class Timing(NamedTuple):
    """Medians in seconds; ratio: median of theirs over ours, pair by pair, above 1 where ours is faster."""

    name: str
    ours: float
    theirs: float
    ratio: float
    gflops_per_second: float


def run(experiment: Experiment, batch: int, seconds: float, repeats: int = 5) -> list[Timing]:
    """All cases on `batch` clips of `seconds` s, on one device and all torch threads: the training step is one of the
    experiment's longest stage without discriminators, which the twin has not.

    encode + decode is of one clip of 10 s.
    """
    return [_timed(case, repeats) for case in cases(experiment, batch, seconds)]


def machine() -> dict[str, Any]:
    """What the figures belong to."""
    return {
        "device": jax.devices()[0].device_kind,
        "cpu": platform.processor() or platform.machine(),
        "torch_threads": torch.get_num_threads(),
        "jax": jax.__version__,
        "torch": torch.__version__,
    }


def _timed(case: Case, repeats: int) -> Timing:
    sides = (case.ours, case.theirs)
    for side in sides:  # compilation, allocation
        side()
    pairs = [tuple(_settled(side) for side in sides) for _ in range(repeats)]
    ours, theirs = (statistics.median(times) for times in zip(*pairs))
    ratio = statistics.median(b / a for a, b in pairs)
    return Timing(case.name, ours, theirs, ratio, case.flops / ours / 1e9)


def _settled(side: Callable[[], Any]) -> float:
    """Of a second call in a row: the first one after the other side's turn asks Linux for its memory again.

    No training run pays for that, and it can double a step (docs/training.md).
    """
    side()
    return _seconds(side)


def _seconds(side: Callable[[], Any]) -> float:
    began = time.perf_counter()
    side()
    return time.perf_counter() - began


# ---- cases -------------------------------------------------------------------------------------


def cases(experiment: Experiment, batch: int, seconds: float) -> list[Case]:
    """Matrix products, encode + decode, forward + backward, and the real training step beside that of the twin."""
    family, cfg = models.FAMILIES[experiment.family], experiment.codec
    variables = nn.unbox(family.init(cfg, jax.random.key(0)))
    twin = _twin(experiment.family, cfg, variables)
    rate = family.geometry(cfg).sample_rate
    audio = _noise(batch, family.padded_length(cfg, round(seconds * rate)))
    forward = sum(family.flops(cfg, audio.shape[1]).values()) * batch
    backward = _torch_backward(twin, audio)
    return [
        _matmul(),
        _reconstruct(family, cfg, variables, twin, _noise(1, family.padded_length(cfg, 10 * rate))),
        Case("forward + backward", _backward(family, cfg, variables, audio), backward, 3 * forward),
        _step(experiment, audio, backward),
    ]


def _noise(batch: int, samples: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, (batch, samples)).astype(np.float32)


def _twin(name: str, cfg: Any, variables: Any) -> torch.nn.Module:
    """The same codec in PyTorch."""
    config, tensors = convert.FAMILIES[name].to_torch(cfg, variables, Extras({}, {}), "twin")
    twin = pytorch.MODELS[name](config)
    twin.load_state_dict({key: torch.tensor(np.asarray(value)) for key, value in tensors.items()})
    return twin


def _matmul() -> Case:
    a = np.random.default_rng(1).normal(size=(_MATMUL, _MATMUL)).astype(np.float32)
    ours, theirs, product = jnp.asarray(a), torch.from_numpy(a), jax.jit(jnp.matmul)
    name = f"matrix product, {_MATMUL} cubed"
    return Case(name, lambda: product(ours, ours).block_until_ready(), lambda: theirs @ theirs, 2.0 * _MATMUL**3)


def _reconstruct(family: Any, cfg: Any, variables: Any, twin: Any, audio: np.ndarray) -> Case:
    rate, x = family.rate(cfg, None, None), torch.from_numpy(audio)

    def ours():
        codes = family.encode(cfg, variables, jnp.asarray(audio)[:, :, None], None, rate)
        return jax.block_until_ready(family.decode(cfg, variables, codes, None, rate))

    flops = sum(family.flops(cfg, audio.shape[1]).values())
    return Case("encode + decode, 10 s", ours, lambda: twin.decode(twin.encode(x)), flops)


def _backward(family: Any, cfg: Any, variables: Any, audio: np.ndarray) -> Callable[[], Any]:
    """The gradient of mean |x - x̂| with respect to all parameters."""
    x, rest = jnp.asarray(audio)[:, :, None], {k: v for k, v in variables.items() if k != "params"}

    def loss(params, key):
        keys = spread(key, jnp.arange(len(x)))
        found = family.forward(cfg, {"params": params, **rest}, x, keys, train=True)
        return jnp.abs(found.audio - found.target).mean()

    gradient = jax.jit(jax.grad(loss), compiler_options=step.compiler_options(jax.default_backend()))
    return lambda: jax.block_until_ready(gradient(variables["params"], jax.random.key(0)))


def _torch_backward(twin: torch.nn.Module, audio: np.ndarray) -> Callable[[], Any]:
    x = torch.from_numpy(audio)[:, None]

    def run():
        twin.zero_grad(set_to_none=True)
        (x - twin(x)[..., : x.shape[-1]]).abs().mean().backward()

    return run


def _step(experiment: Experiment, audio: np.ndarray, theirs: Callable[[], Any]) -> Case:
    """Losses, quantiser noise, optimiser, average and guard included; the twin's side has none of these."""
    rate = models.FAMILIES[experiment.family].geometry(experiment.codec).sample_rate
    data = dataclasses.replace(experiment.data, batch_size=len(audio), crop_seconds=audio.shape[1] / rate)
    experiment = dataclasses.replace(experiment, data=data)
    mesh = sharding.make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    resolved = stages.resolve(experiment)
    alone = [stage for stage in resolved if stage.discriminator_optim is None]
    stage = max(alone or resolved, key=lambda stage: stage.steps)
    abstract = step.abstract_state(experiment, stage, mesh)
    held = {"state": step.init_state(experiment, stage, abstract)}
    train = step.make_train_step(experiment, stage, abstract, mesh)
    batch = {"audio": jnp.asarray(audio)[:, None], "place": jnp.arange(len(audio))}

    def ours():
        held["state"], metrics = train(held["state"], batch)
        jax.block_until_ready(metrics["loss"])

    flops = cost.total(cost.step_flops(experiment, stage), recompute=False)
    return Case("train step; theirs forward + backward", ours, theirs, flops)
