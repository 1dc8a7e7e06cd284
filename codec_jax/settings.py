"""How a run goes: data, losses, optimisers, stages, rhythm, mesh. `experiment.py` gathers them with the model's own."""

import dataclasses

from codec_jax.errors import UserError
from codec_jax.losses.adversarial import GAMES
from codec_jax.losses.spectral import STFTLossConfig
from codec_jax.models import wavlm
from codec_jax.models.wavlm import WavLMConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where audio comes from. Directories are searched recursively; None means the synthetic corpus.

    valid: None with `train` given holds out `valid_fraction` of the training files (at least one).
    batch_size: crops per step over all devices. loudness: LUFS of a crop, jittered by up to +-loudness_jitter.
    """

    train: str | None = None
    valid: str | None = None
    valid_fraction: float = 0.05
    max_valid_clips: int = 32
    batch_size: int = 128
    crop_seconds: float = 5.12
    loudness: float = -20.0
    loudness_jitter: float = 5.0
    phase_flip: float = 0.5
    num_threads: int = 4
    prefetch: int = 64


_PAPER_STFT = STFTLossConfig(fft_sizes=(2048,), hop_sizes=(512,), win_lengths=(2048,))


TERMS = (
    "l1", "l2", "stft", "mel", "adversarial", "feature_matching", "perceptual", "ctc",
    "commitment", "codebook", "spectrum",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the generator's terms; a zero leaves the term out.

    l1, l2: on the waveform. stft: `mrstft` (spec TAAE section 6). mel: the seven-scale mel distance that validation
    reports. adversarial, feature_matching: what the discriminators say. gan: "hinge", where both are means over judges
    and maps (TAAE), or "least_squares", where they are plain sums (DAC, ESC): their sources differ in this, so a weight
    means something else in either. normalize_features: of "hinge", every feature map's distance over its magnitude, the
    paper's way; "least_squares" never divides. decay: the first four weights are multiplied by decay^t at step t of
    the stage (upstream's option; 1 leaves them alone). perceptual: between what the WavLM of `PerceptualConfig` hears
    in both signals. ctc: of the phones that `CTCConfig` describes; its head trains along. commitment, codebook,
    spectrum: of what a codec reports itself: an ESC all three (spec ESC sections 4 and 6), a TAAE with a residual VQ
    the first two, other TAAEs nothing.
    """

    l1: float = 1.0
    l2: float = 0.0
    stft: float = 1.0
    mel: float = 0.0
    adversarial: float = 0.0
    feature_matching: float = 0.0
    perceptual: float = 0.0
    ctc: float = 0.0
    gan: str = "hinge"
    normalize_features: bool = True
    decay: float = 1.0
    commitment: float = 0.25
    codebook: float = 1.0
    spectrum: float = 1.0
    mrstft: STFTLossConfig = _PAPER_STFT

    @property
    def adversarial_terms(self) -> bool:
        """True where the generator listens to discriminators."""
        return bool(self.adversarial or self.feature_matching)

    def validate(self) -> None:
        """Raises UserError for negative weights, or for none at all, and for an unknown game."""
        weights = {name: getattr(self, name) for name in TERMS}
        if min(weights.values()) < 0 or not any(weights.values()):
            raise UserError(f"losses need weights of at least 0, and one above, not {weights}.")
        if self.gan not in GAMES:
            raise UserError(f'losses.gan is one of {", ".join(GAMES)}, not "{self.gan}".')
        if not 0 < self.decay <= 1:
            raise UserError(f"losses.decay is a factor per step in (0, 1], not {self.decay}.")
        self.mrstft.validate()


@dataclasses.dataclass(frozen=True)
class PerceptualConfig:
    """The listener of `losses.perceptual`, frozen and in no checkpoint.

    weights: a directory with config.json and model.safetensors or pytorch_model.bin of Hugging Face's `WavLMModel`, or
    its id there (extra `hub`). model: what these weights must be of. layers: whose features are compared, -1 for the
    convolutions, which are all that upstream compares (spec TAAE section 6); the choice among the others is ours.
    """

    weights: str = "microsoft/wavlm-large"
    model: WavLMConfig = wavlm.LARGE
    layers: tuple[int, ...] = (wavlm.CONVOLUTIONS,)

    def validate(self) -> None:
        """Raises UserError for layers that the model has not."""
        self.model.validate()
        if not self.layers:
            raise UserError("perceptual.layers must name at least one layer.")
        for layer in self.layers:
            wavlm.check_layer(self.model, layer)


@dataclasses.dataclass(frozen=True)
class CTCConfig:
    """The head of `losses.ctc`: latents before the bottleneck to phones, read from transcripts beside the recordings.

    phones: a file with one phone a line (None: data/phones.py). num_phones: how many there are. most: phones of a crop
    at most; batches are padded to it. hidden: width of the head. detach: the head alone learns, not the encoder.
    """

    phones: str | None = None
    num_phones: int = 80
    most: int = 128
    hidden: int = 256
    detach: bool = False

    def validate(self) -> None:
        """Raises UserError for sizes below 1."""
        if min(self.num_phones, self.most, self.hidden) < 1:
            raise UserError("ctc.num_phones, ctc.most and ctc.hidden must be at least 1.")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """One player's optimiser. EMA after ema-pytorch (0: none; of the codec alone).

    name: "adamw", or "sgd" without momentum. decay_all: biases, norms and codebooks decay too, not kernels alone.
    schedule: "cosine" (linear warm-up, then down to `final_fraction` of the peak at the stage's end), "wsd" (warm-up,
    stable, and linear down to `final_fraction` over the last `decay_fraction`), "constant" (after warm-up), or
    "inverse" (upstream's InverseLR: `inv_gamma`, `power`, and its exponential warm-up by the factor `inverse_warmup`).
    """

    name: str = "adamw"
    learning_rate: float = 8e-4
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 1e-3
    decay_all: bool = False
    schedule: str = "cosine"
    warmup_steps: int = 1000
    final_fraction: float = 0.1
    decay_fraction: float = 0.2
    inv_gamma: float = 200_000.0
    power: float = 0.5
    inverse_warmup: float = 0.999
    clip_norm: float = 1.0
    ema_decay: float = 0.9999

    def validate(self) -> None:
        """Raises UserError where a field has no meaning."""
        if self.name not in ("adamw", "sgd"):
            raise UserError(f'optim.name is "adamw" or "sgd", not "{self.name}".')
        if self.schedule not in ("cosine", "wsd", "constant", "inverse"):
            raise UserError(f'optim.schedule is "cosine", "wsd", "constant" or "inverse", not "{self.schedule}".')
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"optim.ema_decay must lie in [0, 1), not {self.ema_decay}.")
        if self.learning_rate <= 0:
            raise UserError(f"optim.learning_rate must be positive, not {self.learning_rate}.")
        if self.clip_norm <= 0:
            raise UserError(f"optim.clip_norm must be positive, not {self.clip_norm} (large: no clipping).")


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """A part of a run. None inherits the experiment's own `losses` or `optim`.

    steps: absolute, or a share of the whole: stages are scaled so that together they fill `training.steps`.
    discriminate: train discriminators, whether or not the losses listen to them (upstream's warm-up does not).
    discriminator_optim: None takes the codec's. freeze: parts of the codec that stay as they are, such as "encoder" or
    "decoder/stage_0". quantise: False leaves the bottleneck continuous (ESC's pre-training).
    fresh_optim: the codec's optimiser forgets its moments at the start. For codecs with codebooks: kmeans, Lloyd
    iterations that set them from the stage's first batch (0: they stay as they are); revive_after, steps in a row
    without use after which a codeword becomes a vector of the batch (0: never).
    """

    steps: float = 1.0
    losses: LossConfig | None = None
    optim: OptimConfig | None = None
    discriminate: bool = False
    discriminator_optim: OptimConfig | None = None
    freeze: tuple[str, ...] = ()
    quantise: bool = True
    fresh_optim: bool = False
    kmeans: int = 0
    revive_after: int = 0

    def validate(self) -> None:
        """Raises UserError for numbers that mean nothing."""
        if self.steps <= 0:
            raise UserError(f"a stage needs steps above 0, not {self.steps}.")
        if min(self.kmeans, self.revive_after) < 0:
            raise UserError(f"kmeans={self.kmeans} and revive_after={self.revive_after} must be at least 0.")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Length and rhythm of a run, in optimiser steps.

    accumulate: parts of a batch that are computed one after the other, their gradients averaged. alternate: as
    upstream, the codec moves at even steps and the discriminators at odd ones; else both at every step.
    keep_every: besides the newest `keep_checkpoints`, one every so many steps stays for good (0: none).
    spike: a step whose gradient norm is over this many times its running mean is skipped (0: none is), from step
    `spike_after` of a stage on; steps that are not finite always are. max_skips: so many in a row end the run.
    hang_seconds: a step that takes longer has the stacks of all threads printed (0: never). profile: (first step,
    steps) to record for TensorBoard.
    """

    steps: int = 500_000
    seed: int = 0
    accumulate: int = 1
    alternate: bool = False
    log_every: int = 50
    eval_every: int = 10_000
    checkpoint_every: int = 5_000
    keep_checkpoints: int = 3
    keep_every: int = 0
    max_samples: int = 4
    spike: float = 100.0
    spike_after: int = 200
    max_skips: int = 20
    hang_seconds: float = 1800.0
    profile: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one of them may be -1 and takes what is left. Slices are joined along `replica`."""

    replica: int = 1
    fsdp: int = -1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class MupConfig:
    """Width-transferred initialisation and learning rates of a TAAE (train/mup.py).

    base_channels: `model.channels` that `optim.learning_rate` was found for (0: plain initialisation, and one rate).
    """

    base_channels: int = 0
