"""ESC: upstream's sizes and ablations, and two for a laptop."""

import dataclasses

from codec_jax.experiment import DataConfig, Experiment, LossConfig, OptimConfig, StageConfig, TrainingConfig
from codec_jax.models.discriminators import DACDiscriminatorConfig
from codec_jax.models.esc import ESCConfig, VQConfig
from codec_jax.scaling import ladder


def get_config(variant: str = "nano") -> Experiment:
    """One of VARIANTS, or a rung of the ladder (ladder-30m); underscores, as upstream writes them, are hyphens too."""
    variant = variant.replace("_", "-")
    if variant.startswith("ladder-"):
        return ladder.variant(dataclasses.replace(base(), bottleneck=VQConfig(stream_dropout=0.0)), variant)
    if variant not in VARIANTS:
        known = ", ".join([*VARIANTS, "ladder-30m"])
        raise ValueError(f"configs/esc.py has no variant {variant}: choose from {known}, ...")
    return VARIANTS[variant]()


def nano() -> Experiment:
    """Minutes on two CPU cores."""
    return dataclasses.replace(
        _upstream(),
        model=ESCConfig(h_dims=(16, 24, 32, 48, 64, 96), num_heads=(1, 2, 2, 4, 4), mlp_ratio=2.0),
        bottleneck=VQConfig(codebook_dims=(16, 16, 12, 12, 8, 8), stream_dropout=0.3),
        data=DataConfig(batch_size=4, crop_seconds=0.955),
        optim=OptimConfig(
            learning_rate=2e-3, warmup_steps=100, final_fraction=0.02, weight_decay=0.01, clip_norm=0.5, ema_decay=0.99
        ),
        stages={"continuous": StageConfig(steps=0.25, quantise=False), "quantised": StageConfig(steps=0.75)},
        training=TrainingConfig(steps=560, eval_every=560, checkpoint_every=280),
    )


def base() -> Experiment:
    """8.7 M parameters, as upstream's 9kbps_esc_base: batches of 36 clips of 3 s."""
    return _upstream(bottleneck=VQConfig(codebook_dims=(32, 32, 16, 12, 8, 6)))


def base_adv() -> Experiment:
    """8.4 M parameters and 42.5 M of discriminators, as upstream's 9kbps_esc_base_adv."""
    return _adversarial(_upstream())


def nano_adv() -> Experiment:
    """The same recipe for two CPU cores: nano, and discriminators of 69 thousand parameters that hear half a second."""
    return dataclasses.replace(
        _adversarial(nano()),
        discriminator=DACDiscriminatorConfig(period_widths=(4, 8, 16, 32, 32), band_width=4),
        discriminator_seconds=0.5,
    )


def _adversarial(plain: Experiment) -> Experiment:
    """Upstream's adversarial recipe (spec ESC sections 6 and 7): mel distance and discriminators, no power-law loss.

    Discriminators begin with quantisation. They are moved by the codec's optimiser with a clip of their own, from the
    same forward pass. What upstream does besides, and is not done here: it computes the power-law loss and multiplies
    it by zero (zero times infinity is NaN), and with --pretrain_ckp it starts from a trained codec and divides the rate
    by ten, which the optimiser state that it loads undoes.
    """
    mel = LossConfig(l1=0.0, stft=0.0, mel=15.0, commitment=0.25, codebook=1.0, spectrum=0.0, gan="least_squares")
    return dataclasses.replace(
        plain,
        losses=mel,
        optim=dataclasses.replace(plain.optim, clip_norm=1e3),
        stages={
            "continuous": plain.stages["continuous"],
            "adversarial": dataclasses.replace(
                plain.stages["quantised"],
                losses=dataclasses.replace(mel, adversarial=1.0, feature_matching=2.0),
                discriminate=True,
                discriminator_optim=dataclasses.replace(plain.optim, clip_norm=10.0),
            ),
        },
        discriminator=DACDiscriminatorConfig(),
    )


def _upstream(
    model: ESCConfig | None = None, bottleneck: VQConfig | None = None, pretraining: float = 15
) -> Experiment:
    """Upstream's recipe (spec ESC section 7): a continuous bottleneck first, then quantised with stream dropout."""
    return Experiment(
        family="esc",
        model=model or ESCConfig(),
        bottleneck=bottleneck or VQConfig(),
        data=DataConfig(batch_size=36, crop_seconds=2.995, loudness_jitter=5.0, phase_flip=0.0),
        losses=LossConfig(l1=0.0, stft=0.0, mel=0.25, commitment=0.25, codebook=1.0, spectrum=1.0),
        optim=OptimConfig(
            learning_rate=1e-4,
            b2=0.999,
            weight_decay=0.01,
            decay_all=True,
            schedule="constant",
            warmup_steps=1,
            clip_norm=0.5,
            ema_decay=0.0,
        ),
        stages={
            "continuous": StageConfig(steps=pretraining / 80, quantise=False),
            "quantised": StageConfig(steps=1 - pretraining / 80, fresh_optim=True),
        },
        training=TrainingConfig(steps=250_000),
    )


CONV = ESCConfig(backbone="convolution")
RVQ = VQConfig(quantiser="rvq", codebook_dims=(8,))
VARIANTS = {
    "nano": nano,
    "nano-adv": nano_adv,
    "base": base,
    "base-adv": base_adv,
    "large": lambda: _upstream(ESCConfig(depth=4)),
    "csvq-swin": lambda: _upstream(pretraining=8),
    "csvq-conv": lambda: _upstream(CONV, pretraining=8),
    "rvq-swin": lambda: _upstream(bottleneck=RVQ, pretraining=8),
    "rvq-conv": lambda: _upstream(CONV, RVQ, pretraining=8),
}
