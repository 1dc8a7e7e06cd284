"""FLOPs of one training step by player, from the config alone.

A product of F FLOPs going forward costs F again for the gradient to its input and F for that to its parameters. What no
gradient is asked of costs nothing: the input of the first layer, parts that are frozen and all that lies before them.
"""

from collections.abc import Mapping

from codec_jax import models
from codec_jax.experiment import Experiment, LossConfig
from codec_jax.losses.spectral import ESC_MEL_SCALES
from codec_jax.models import discriminators, phone_head, wavlm
from codec_jax.models.flops import stft_flops
from codec_jax.train.stages import Stage
from codec_jax.train.state import HEAD
from codec_jax.train.teachers import WAVLM

Costs = dict[str, dict[str, float]]


def step_flops(experiment: Experiment, stage: Stage) -> Costs:
    """By player, then forward, backward and recompute (of rematerialised layers), over the whole batch.

    `losses` are the transforms of the reconstruction terms. With `training.alternate`, the codec's turn.
    """
    family, clips = models.FAMILIES[experiment.family], experiment.data.batch_size
    forward = family.flops(experiment.codec, experiment.crop_samples)
    costs = {
        "codec": {
            "forward": sum(forward.values()),
            "backward": _backward(forward, stage.freeze),
            "recompute": _recomputed(forward, getattr(experiment.model, "remat", "none")),
        },
        "losses": _losses(stage.losses, experiment.crop_samples),
    }
    if stage.discriminator_optim is not None:
        turn = experiment.training.alternate
        costs["discriminator"] = _discriminators(experiment, stage.losses.adversarial_terms, not turn)
    if stage.losses.perceptual:
        costs[WAVLM] = _wavlm(experiment)
    if stage.losses.ctc:
        costs[HEAD] = _head(experiment)
    return {player: {kind: clips * count for kind, count in parts.items()} for player, parts in costs.items()}


def total(costs: Costs, recompute: bool) -> float:
    """All players; with `recompute` what is executed, without it what the mathematics asks for."""
    return sum(count for parts in costs.values() for kind, count in parts.items() if recompute or kind != "recompute")


def _backward(forward: Mapping[str, float], freeze: tuple[str, ...]) -> float:
    """Of modules in the order of execution."""
    count, moving = 0.0, False  # whether anything trained lies before
    for name, flops in forward.items():
        if name.endswith("/lookup"):  # a code has no gradient
            continue
        frozen = any(name == part or name.startswith(f"{part}/") for part in freeze)
        if name.endswith("/attention"):  # products of activations
            count += 2 * flops if moving or not frozen else 0.0
        else:
            count += (moving + (not frozen)) * flops
        moving |= not frozen
    return count


def _recomputed(forward: Mapping[str, float], remat: str) -> float:
    """Blocks once more ("full"), or of them what "dots" keeps no product of: attention, and convolutions."""
    parts = {"none": (), "dots": ("/attention", "/units"), "full": ("",)}[remat]
    blocks = {name: flops for name, flops in forward.items() if "/blocks/" in name}
    return sum((flops for name, flops in blocks.items() if name.endswith(parts)), 0.0)


def _discriminators(experiment: Experiment, heard: bool, train: bool) -> dict[str, float]:
    """Of original and decoded audio, one forward each; a gradient to parameters and one to the decoded audio.

    heard: the codec listens. train: they move. The gradient to the parameters passes every layer but the first.
    """
    whole = sum(discriminators.flops(experiment.discriminator, experiment.discriminator_samples).values())
    return {"forward": 2 * whole, "backward": (4 * train + heard) * whole}


def _wavlm(experiment: Experiment) -> dict[str, float]:
    """Original and decoded audio, and the answer on its way to the latter: of its weights no gradient is asked."""
    config, channels = experiment.perceptual, models.FAMILIES[experiment.family].geometry(experiment.codec).channels
    counts = wavlm.flops(config.model, experiment.crop_samples, max(config.layers))
    once, products = channels * sum(counts.values()), channels * counts.get("blocks/attention", 0.0)
    blocks = channels * sum(count for name, count in counts.items() if name.startswith("blocks/"))
    again = blocks if config.model.remat else 0.0
    return {"forward": 2 * once, "backward": once + products, "recompute": again}


def _head(experiment: Experiment) -> dict[str, float]:
    hop, latent_dim = (
        models.FAMILIES[experiment.family].geometry(experiment.codec).hop_length,
        experiment.model.latent_dim,
    )
    once = phone_head.flops(
        experiment.ctc.hidden, experiment.ctc.num_phones, latent_dim, experiment.crop_samples // hop
    )
    return {"forward": once, "backward": 2 * once}


def _losses(losses: LossConfig, samples: int) -> dict[str, float]:
    """Both signals are transformed, and the decoded one's gradient comes back the same way."""
    once = 0.0
    if losses.stft:
        sizes = zip(losses.mrstft.fft_sizes, losses.mrstft.hop_sizes)
        once += sum(stft_flops(1 + samples // hop, n_fft) for n_fft, hop in sizes)
    if losses.mel:
        once += sum(stft_flops(1 + 4 * samples // n_fft, n_fft) for n_fft, _ in ESC_MEL_SCALES)
    return {"forward": 2 * once, "backward": once}
