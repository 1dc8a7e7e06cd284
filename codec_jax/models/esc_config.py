"""What an ESC codec is made of (spec ESC sections 1, 3, 4 and 8): frozen dataclasses and their validation."""

import dataclasses

from codec_jax.errors import UserError
from codec_jax.nn.swin import SwinConfig
from codec_jax.quantizers.vq import ProductConfig

BACKBONES = ("transformer", "convolution")
QUANTISERS = ("csvq", "rvq")


@dataclasses.dataclass(frozen=True)
class ESCConfig:
    """The front end and the U-shaped network.

    in_freq: bins of the STFT, of n_fft = 2 (in_freq - 1). win_length, stft_hop_length: samples. patch_size: bins ×
    frames. backbone: "transformer" or "convolution". h_dims: channels per scale, from the finest, each with half the
    rows of the one before. num_heads: of the finest scale, then of every further scale but the last. depth: blocks
    per stage, and conv_depth residual units. remat: "none", "full" or "dots". dtype: of matrix products; parameters,
    STFT, norms, softmax and quantisation stay float32.
    """

    sample_rate: int = 16_000
    in_freq: int = 192
    win_length: int = 320
    stft_hop_length: int = 80
    patch_size: tuple[int, int] = (3, 2)
    backbone: str = "transformer"
    h_dims: tuple[int, ...] = (45, 72, 96, 144, 192, 384)
    num_heads: tuple[int, ...] = (3, 6, 12, 24, 24)
    depth: int = 2
    window_size: int = 4
    mlp_ratio: float = 4.0
    conv_depth: int = 1
    remat: str = "none"
    dtype: str = "float32"

    @property
    def n_fft(self) -> int:
        """Samples per transform."""
        return 2 * (self.in_freq - 1)

    @property
    def scales(self) -> int:
        """Resolutions of the network, and so encoder outputs."""
        return len(self.h_dims)

    def rows(self, scale: int) -> int:
        """Rows of patches at a scale; 0 is the finest."""
        return self.in_freq // self.patch_size[0] // 2**scale

    @property
    def swin(self) -> SwinConfig:
        """What every transformer block shares."""
        return SwinConfig(self.window_size, self.mlp_ratio, self.remat, self.dtype)


@dataclasses.dataclass(frozen=True)
class VQConfig:
    """Streams of product VQ. quantiser: "csvq" (stream 0 and 1 at the coarsest scale, every further one a scale
    finer) or "rvq" (all at the coarsest).

    overlap: patches per code frame. num_groups: codebooks per stream. codebook_dims: one per stream, of "rvq" one.
    l2norm: nearest by direction. stream_dropout: probability that a training step draws its number of streams.
    """

    quantiser: str = "csvq"
    num_streams: int = 6
    overlap: int = 2
    num_groups: int = 3
    codebook_size: int = 1024
    codebook_dims: tuple[int, ...] = (8,) * 6
    l2norm: bool = True
    stream_dropout: float = 0.75

    @property
    def product(self) -> ProductConfig:
        """What all quantisers share."""
        return ProductConfig(self.overlap, self.num_groups, self.codebook_size, self.l2norm)


@dataclasses.dataclass(frozen=True)
class Config:
    """An ESC codec: the network and its quantisers."""

    model: ESCConfig = dataclasses.field(default_factory=ESCConfig)
    bottleneck: VQConfig = dataclasses.field(default_factory=VQConfig)

    @property
    def stft_frames(self) -> int:
        """STFT frames per code frame."""
        return self.model.patch_size[1] * self.bottleneck.overlap

    @property
    def hop_length(self) -> int:
        """Samples per code frame."""
        return self.model.stft_hop_length * self.stft_frames

    def scale(self, stream: int) -> int:
        """The scale at which a stream quantises; 0 is the finest."""
        last = self.model.scales - 1
        return last if self.bottleneck.quantiser == "rvq" else last - max(0, stream - 1)

    def validate(self) -> None:
        """Raises UserError where fields contradict each other."""
        _validate_model(self.model)
        _validate_bottleneck(self.bottleneck)
        if self.bottleneck.quantiser == "csvq" and self.bottleneck.num_streams != self.model.scales:
            raise UserError(
                f"bottleneck.num_streams is {self.bottleneck.num_streams}, but csvq has one per entry of model.h_dims "
                f"({self.model.scales}): change one of them."
            )
        for stream in range(self.bottleneck.num_streams):
            scale = self.scale(stream)
            size = self.bottleneck.overlap * self.model.rows(scale) * self.model.h_dims[scale]
            if size < self.bottleneck.num_groups:
                raise UserError(f"bottleneck.num_groups is more than the {size} entries of stream {stream}: lower it.")


def _validate_model(model: ESCConfig) -> None:
    sizes = (model.sample_rate, model.stft_hop_length, *model.patch_size, model.window_size, model.mlp_ratio)
    if len(model.patch_size) != 2 or min(*sizes, *model.h_dims, 1) <= 0 or min(model.depth, model.conv_depth) < 0:
        raise UserError("sizes of an ESC must be positive, and model.patch_size is (bins, frames).")
    if model.backbone not in BACKBONES:
        raise UserError(f'model.backbone is "transformer" or "convolution", not "{model.backbone}".')
    if model.scales < 2:
        raise UserError("model.h_dims needs at least two scales.")
    halved = model.patch_size[0] * 2 ** (model.scales - 1)
    if model.in_freq % halved:
        raise UserError(
            f"model.in_freq is {model.in_freq}, and {model.scales} scales of patches of {model.patch_size[0]} bins "
            f"need a multiple of {halved}."
        )
    if not model.stft_hop_length <= model.win_length <= model.n_fft:
        raise UserError(
            f"model.win_length is {model.win_length}: choose stft_hop_length ({model.stft_hop_length}) to n_fft "
            f"({model.n_fft}, from in_freq)."
        )
    if model.backbone == "transformer":
        _validate_heads(model)
    if model.remat not in ("none", "full", "dots"):
        raise UserError(f'model.remat is "none", "full" or "dots", not "{model.remat}".')
    if model.dtype not in ("float32", "bfloat16"):
        raise UserError(f'model.dtype is "float32" or "bfloat16", not "{model.dtype}".')


def _validate_heads(model: ESCConfig) -> None:
    if len(model.num_heads) != model.scales - 1:
        raise UserError(f"model.num_heads needs {model.scales - 1} entries, one fewer than model.h_dims.")
    for i, heads in enumerate(model.num_heads):
        # Of two scales: the encoder attends before it goes down, the decoder before it goes up.
        for width in model.h_dims[i : i + 2]:
            if heads < 1 or width % heads:
                raise UserError(
                    f"model.num_heads has {heads}, which does not divide a width of {width} (model.h_dims)."
                )


def _validate_bottleneck(bottleneck: VQConfig) -> None:
    if bottleneck.quantiser not in QUANTISERS:
        raise UserError(f'bottleneck.quantiser is "csvq" or "rvq", not "{bottleneck.quantiser}".')
    sizes = (bottleneck.num_streams, bottleneck.overlap, bottleneck.num_groups, bottleneck.codebook_size)
    if min(*sizes, *bottleneck.codebook_dims, 1) < 1:
        raise UserError("num_streams, overlap, num_groups, codebook_size and codebook_dims must be at least 1.")
    wanted = bottleneck.num_streams if bottleneck.quantiser == "csvq" else 1
    if len(bottleneck.codebook_dims) != wanted:
        raise UserError(
            f"bottleneck.codebook_dims has {len(bottleneck.codebook_dims)} entries, and {bottleneck.quantiser} of "
            f"{bottleneck.num_streams} streams needs {wanted}."
        )
    if not 0 <= bottleneck.stream_dropout <= 1:
        raise UserError(f"bottleneck.stream_dropout is a probability, not {bottleneck.stream_dropout}.")
