"""TAAE, from a laptop's few minutes to the paper's billion parameters. Widths are one head or whole heads of 128."""

import dataclasses
from typing import Any

from codec_jax.experiment import (
    CTCConfig,
    DataConfig,
    Experiment,
    LossConfig,
    OptimConfig,
    PerceptualConfig,
    StageConfig,
    TrainingConfig,
)
from codec_jax.losses.spectral import STFTLossConfig
from codec_jax.models import wavlm
from codec_jax.models.discriminators import DiscriminatorConfig
from codec_jax.models.taae import BottleneckConfig, TAAEConfig
from codec_jax.scaling import ladder

# Of the ablations. Every bottleneck with codes spends exactly 24 bits a frame, 4,800 bit/s at nano's 200 frames a
# second, and no code is lost to rounding up to whole bits: 16 levels in 6 dimensions (4 · 6), 3 codebooks of 256 words
# (3 · 8), 2 codebooks of 4 levels in 6 dimensions (2 · 2 · 6).
ABLATION_LEVELS = ((4,) * 6, (8,) * 6, (16,) * 6)
PAPER_LEVELS = ((5,) * 6, (9,) * 6, (17,) * 6)


def get_config(variant: str = "nano") -> Experiment:
    """One of VARIANTS, or a rung of the ladder: ladder-30m, ladder-2b, of twelve layers a half ladder-30m-d12."""
    if variant.startswith("ladder-"):
        return ladder.variant(rung(), variant)
    if variant not in VARIANTS:
        raise ValueError(
            f"configs/taae.py has no variant {variant}: choose from {', '.join(VARIANTS)}, ladder-30m, ..."
        )
    return VARIANTS[variant]()


def nano() -> Experiment:
    """Minutes on two CPU cores. Short patches, 200 latents a second: long patches learn no phase in that time."""
    return Experiment(
        family="taae",
        model=TAAEConfig(patch_size=40, channels=128, transformer_depths=(1, 1), sliding_window=(15, 16)),
        bottleneck=BottleneckConfig(levels=(17,) * 6),
        data=DataConfig(batch_size=6, crop_seconds=0.5),
        losses=LossConfig(
            l1=100.0,
            stft=1.0,
            mel=1.0,
            mrstft=STFTLossConfig(fft_sizes=(512, 1024, 256), hop_sizes=(128, 256, 64), win_lengths=(512, 1024, 256)),
        ),
        optim=OptimConfig(learning_rate=4e-3, warmup_steps=200, final_fraction=0.01, ema_decay=0.999),
        training=TrainingConfig(steps=2_400, eval_every=800, checkpoint_every=400),
    )


def small() -> Experiment:
    """14 M parameters, 25 Hz as the paper: hours on a single accelerator."""
    return _paper(channels=256, depths=(2, 4), batch_size=32, steps=200_000)


def small_adversarial() -> Experiment:
    """The paper's recipe where two CPU cores can watch it: `small`, judged in half-second windows."""
    plain, losses = small(), LossConfig(mel=1.0)
    judged = dataclasses.replace(losses, adversarial=0.1, feature_matching=5.0)
    optim = OptimConfig(learning_rate=1e-3, schedule="wsd", warmup_steps=100, ema_decay=0.999)
    slower = dataclasses.replace(optim, learning_rate=5e-4, schedule="constant", warmup_steps=50)
    return dataclasses.replace(
        plain,
        model=dataclasses.replace(plain.model, unroll=True),
        data=DataConfig(batch_size=6, crop_seconds=2.0),
        losses=losses,
        discriminator=dataclasses.replace(plain.discriminator, filters=8),
        discriminator_seconds=0.5,
        optim=optim,
        stages={
            "reconstruction": StageConfig(steps=1200.0),
            "adversarial": StageConfig(steps=1020.0, losses=judged, discriminate=True, optim=slower),
        },
        training=TrainingConfig(steps=2_220, log_every=20, eval_every=600, checkpoint_every=300),
    )


def large(channels: int, depths: tuple[int, int], batch_size: int = 128) -> Experiment:
    """The paper's training shape, 128 crops of 5.12 s a step, in bfloat16 where the house allows it."""
    base = _paper(channels, depths, batch_size=batch_size, steps=500_000)
    model = dataclasses.replace(base.model, dtype="bfloat16", remat="full")
    return dataclasses.replace(
        base, model=model, discriminator=dataclasses.replace(base.discriminator, dtype="bfloat16")
    )


def _paper(channels: int, depths: tuple[int, int], batch_size: int, steps: int) -> Experiment:
    """The paper's shape: 320-sample patches, stride 2, 25 Hz latents of 6 dimensions, windows of 128.

    Its recipe: reconstruction first, then discriminators, whose feature matching becomes the main signal while the
    reconstruction terms fade by 0.9999 a step. Weights are ours: the published configs do not tell them.
    """
    judged = LossConfig(adversarial=0.1, feature_matching=5.0, decay=0.9999)
    return Experiment(
        family="taae",
        model=TAAEConfig(channels=channels, transformer_depths=depths),
        bottleneck=BottleneckConfig(train_levels=PAPER_LEVELS),
        data=DataConfig(batch_size=batch_size, crop_seconds=5.12),
        discriminator=DiscriminatorConfig(filters=32, stride=(1, 2)),
        discriminator_seconds=1.0,
        stages={
            "reconstruction": StageConfig(steps=0.1),
            "adversarial": StageConfig(steps=0.9, losses=judged, discriminate=True),
        },
        training=TrainingConfig(steps=steps),
    )


def rung() -> Experiment:
    """What all sizes of the ladder share: the paper's shape, its first stage alone, and one bottleneck, 625 bit/s.

    One stage, since the law's loss should be what is trained: discriminators move their own target. One level set, so
    that all capacity serves the rate that is measured. Losses as nano's, on auraloss' resolutions.
    """
    base = large(1024, (8, 20))
    return dataclasses.replace(
        base,
        bottleneck=BottleneckConfig(levels=PAPER_LEVELS[-1]),
        losses=LossConfig(l1=100.0, stft=1.0, mel=1.0, mrstft=STFTLossConfig()),
        optim=OptimConfig(learning_rate=8e-4, warmup_steps=1000, final_fraction=0.01),
        stages={"reconstruction": StageConfig()},
        training=TrainingConfig(steps=100_000),
    )


def ablation(kind: str = "fsq", latent_dim: int = 6, **bottleneck: Any) -> Experiment:
    """Nano with another bottleneck, for comparisons at one rate; the rest of the recipe is the same."""
    base = nano()
    model = dataclasses.replace(base.model, latent_dim=latent_dim)
    return dataclasses.replace(base, model=model, bottleneck=BottleneckConfig(kind=kind, **bottleneck))


def ablation_fsq() -> Experiment:
    """One fixed level set."""
    return ablation(levels=(16,) * 6)


def ablation_fsq_sampled() -> Experiment:
    """The paper's way: every step draws a level set, of which the largest is the rate compared."""
    return ablation(levels=(16,) * 6, train_levels=ABLATION_LEVELS)


def ablation_rvq() -> Experiment:
    """As in DAC, latents are wide and every codebook projects them down; their width costs no bits.

    Nano's other terms are around 30 and its learning rate is high: with DAC's weights of the two terms (0.25 and 1) the
    latents ran away from the words in 60 steps (commitment 0.46 to 18.6), with these they stay (0.05 to 0.16 in 160).
    """
    base = ablation("residual_vq", latent_dim=64, num_codebooks=3, codebook_size=256, codebook_dim=8)
    return dataclasses.replace(base, losses=dataclasses.replace(base.losses, commitment=10.0, codebook=10.0))


def ablation_none() -> Experiment:
    """What the six latent dimensions could carry at any rate: the upper bound of both FSQs."""
    return ablation("none")


def ablation_scalable() -> Experiment:
    """Residual FSQ whose first codebook alone, 12 bits a frame, is trained too."""
    return ablation(levels=(4,) * 6, num_codebooks=2, codebook_dropout=0.5)


def perceptual(pretrained: Experiment) -> Experiment:
    """The paper's second stage: WavLM-Large listens too. It goes on from a run or a codec: --config.init_from=RUN."""
    (judged,) = (stage.losses for name, stage in pretrained.stages.items() if name == "adversarial")
    listener = dataclasses.replace(wavlm.LARGE, dtype="bfloat16", remat=True)
    return dataclasses.replace(
        pretrained,
        optim=dataclasses.replace(pretrained.optim, learning_rate=1e-4),
        perceptual=PerceptualConfig(model=listener, layers=(wavlm.CONVOLUTIONS, 6, 12, 18, 24)),
        stages={
            "perceptual": StageConfig(losses=dataclasses.replace(judged, perceptual=1.0, decay=1.0), discriminate=True)
        },
        training=dataclasses.replace(pretrained.training, steps=150_000),
    )


def phonetic(pretrained: Experiment, steps: int) -> Experiment:
    """The stage of the released weights: a head reads phones from the latents (docs/training.md, Transcripts)."""
    (judged,) = (stage.losses for name, stage in pretrained.stages.items() if name == "adversarial")
    return dataclasses.replace(
        pretrained,
        optim=dataclasses.replace(pretrained.optim, learning_rate=1e-4),
        stages={"ctc": StageConfig(losses=dataclasses.replace(judged, ctc=1.0, decay=1.0), discriminate=True)},
        training=dataclasses.replace(pretrained.training, steps=steps),
    )


def small_ctc() -> Experiment:
    """What two CPU cores can watch of it: `small` without discriminators, and crops that hold some twenty phones."""
    plain = small()
    return dataclasses.replace(
        plain,
        model=dataclasses.replace(plain.model, unroll=True),
        data=DataConfig(batch_size=8, crop_seconds=2.0),
        losses=LossConfig(mel=1.0, ctc=5.0),
        ctc=CTCConfig(hidden=1024),
        optim=OptimConfig(learning_rate=5e-4, warmup_steps=100, final_fraction=0.01, ema_decay=0.99),
        stages={},
        training=TrainingConfig(steps=4_500, log_every=20, eval_every=250, checkpoint_every=250),
    )


VARIANTS = {
    "nano": nano,
    "small": small,
    "small-adversarial": small_adversarial,
    "250m": lambda: large(768, (4, 9)),
    "500m": lambda: large(1024, (4, 10)),
    "1b": lambda: large(1024, (8, 20), batch_size=512),
    "ablation-fsq": ablation_fsq,
    "ablation-fsq-sampled": ablation_fsq_sampled,
    "ablation-rvq": ablation_rvq,
    "ablation-none": ablation_none,
    "ablation-scalable": ablation_scalable,
    "small-ctc": small_ctc,
    "1b-perceptual": lambda: perceptual(large(1024, (8, 20), batch_size=512)),
    "1b-ctc": lambda: phonetic(large(1024, (8, 20), batch_size=512), steps=500_000),
}
