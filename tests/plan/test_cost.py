"""FLOPs of a whole step by player, against the compiler's count of the real step, unrolled, on one CPU device."""

import dataclasses

import jax
import pytest

from codec_jax.experiment import LossConfig, StageConfig
from codec_jax.losses.spectral import STFTLossConfig
from codec_jax.models.discriminators import DACDiscriminatorConfig, DiscriminatorConfig
from codec_jax.models.esc import ESCConfig, VQConfig
from codec_jax.models.taae import BottleneckConfig, TAAEConfig
from codec_jax.train import cost, sharding, stages, step
from tests import tiny

MODEL = TAAEConfig(patch_size=40, channels=256, transformer_depths=(1, 2), sliding_window=(15, 16), unroll=True)
PLAIN = LossConfig(l1=1.0, stft=1.0, mrstft=STFTLossConfig((256,), (64,), (256,)))
JUDGED = dataclasses.replace(PLAIN, adversarial=1.0, feature_matching=1.0)


def experiment(stage, **model):
    return dataclasses.replace(
        tiny.experiment(),
        model=dataclasses.replace(MODEL, **model),
        bottleneck=BottleneckConfig(),
        data=tiny.changed(tiny.experiment().data, batch_size=2, crop_seconds=0.25),
        losses=PLAIN,
        stages={"only": stage},
        discriminator=DiscriminatorConfig(n_ffts=(78, 206), filters=16),
    )


def one_device():
    auto = (jax.sharding.AxisType.Auto,) * 3
    return jax.make_mesh((1, 1, 1), sharding.AXES, axis_types=auto, devices=jax.devices()[:1])


def both_counts(config):
    """Ours, and the compiler's of the same step."""
    mesh = one_device()
    (stage,) = stages.resolve(config)
    compiled = step.lower_train_step(config, stage, mesh).compile()
    costs = cost.step_flops(config, stage)
    params = sum(
        leaf.size for leaf in jax.tree.leaves(step.abstract_state(config, stage, mesh).players["codec"].params)
    )
    return costs, compiled.cost_analysis()["flops"] - 40 * params  # AdamW, EMA, norms, guard: 36 to 42 per parameter


@pytest.mark.parametrize("remat", ["none", *(pytest.param(r, marks=pytest.mark.slow) for r in ("full", "dots"))])
def test_reconstruction(remat):
    costs, compiled = both_counts(experiment(StageConfig(), remat=remat))
    assert cost.total(costs, recompute=True) == pytest.approx(compiled, rel=0.03)
    assert (costs["codec"]["recompute"] > 0) == (remat != "none")


@pytest.mark.slow
def test_residual_vq():
    """Codebooks as wide as the model: of the distances to their words no gradient is asked."""
    bottleneck = BottleneckConfig("residual_vq", num_codebooks=4, codebook_size=1024, codebook_dim=128)
    config = dataclasses.replace(experiment(StageConfig(), latent_dim=128), bottleneck=bottleneck)
    costs, compiled = both_counts(config)
    _, plain = both_counts(experiment(StageConfig()))
    lookup = 2 * 2.0 * 50 * 4 * 128 * 1024  # clips, frames
    assert compiled - plain > lookup
    assert cost.total(costs, recompute=True) == pytest.approx(compiled, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("freeze", [("encoder",), ("encoder/stage_0", "encoder/conv_in"), ("decoder/stage_1",)])
def test_frozen_parts_cost_no_gradient(freeze):
    costs, compiled = both_counts(experiment(StageConfig(freeze=freeze)))
    assert cost.total(costs, recompute=True) == pytest.approx(compiled, rel=0.03)


@pytest.mark.parametrize(
    ("backbone", "remat"), [("transformer", "full"), ("convolution", "full"), ("convolution", "dots")]
)
def test_esc_computed_again(backbone, remat):
    """What rematerialising adds to the program before the CPU's compiler, which merges the copies again, sees it.

    Wide, since the program's count has GELU in it: 15 % of a width of 96, next to nothing of this one.
    """
    base = experiment(StageConfig())
    plain = dataclasses.replace(
        base,
        family="esc",
        model=ESCConfig(h_dims=(768, 1152, 1536), num_heads=(4, 4), backbone=backbone),
        bottleneck=VQConfig(num_streams=3, codebook_size=16, codebook_dims=(6, 4, 4)),
        losses=LossConfig(l1=1.0, stft=0.0, spectrum=0.0),
        data=tiny.changed(base.data, crop_seconds=0.315),
    )
    again = dataclasses.replace(plain, model=dataclasses.replace(plain.model, remat=remat))
    (stage,) = stages.resolve(plain)
    more = cost.step_flops(again, stage)["codec"]["recompute"]
    lowered = [step.lower_train_step(config, stage, one_device()).cost_analysis()["flops"] for config in (plain, again)]
    assert more == pytest.approx(lowered[1] - lowered[0], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("alternate", [False, True])
def test_discriminators(alternate):
    config = experiment(StageConfig(losses=JUDGED, discriminate=True))
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, alternate=alternate))
    costs, compiled = both_counts(config)
    assert cost.total(costs, recompute=True) == pytest.approx(compiled, rel=0.05)
    assert costs["discriminator"]["backward"] == (0.5 if alternate else 2.5) * costs["discriminator"]["forward"]


@pytest.mark.slow
def test_dac_discriminators():
    losses = dataclasses.replace(JUDGED, gan="least_squares")
    judges = DACDiscriminatorConfig(periods=(3,), period_widths=(8, 32, 64, 64), fft_sizes=(256,), band_width=16)
    config = dataclasses.replace(experiment(StageConfig(losses=losses, discriminate=True)), discriminator=judges)
    costs, compiled = both_counts(config)
    _, plain = both_counts(experiment(StageConfig()))
    assert cost.total(costs, recompute=True) == pytest.approx(compiled, rel=0.05)
    assert sum(costs["discriminator"].values()) == pytest.approx(compiled - plain, rel=0.05)


def test_totals():
    costs = {"codec": {"forward": 1.0, "backward": 2.0, "recompute": 1.0}, "losses": {"forward": 0.5}}
    assert (cost.total(costs, recompute=True), cost.total(costs, recompute=False)) == (4.5, 3.5)
