"""Upstream's parsed `config.yaml` of an ESC as a checked dataclass (spec ESC section 8)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

KERNEL = (5, 2)
_BACKBONES = {"swinT": "transformer", "conv": "convolution"}


@dataclasses.dataclass(frozen=True)
class Config:
    """The whole codec; scale 0 is the finest.

    quantiser: "csvq" or "rvq". win_length, stft_hop_length: samples. patch_size: bins, frames. num_heads, depth, window
    and mlp_ratio: of transformers. conv_depth: of convolutions. overlap: patches per code frame. codebook_dims: one
    per stream, of "rvq" one.
    """

    sample_rate: int
    in_freq: int
    win_length: int
    stft_hop_length: int
    patch_size: tuple[int, int]
    backbone: str
    h_dims: tuple[int, ...]
    num_heads: tuple[int, ...]
    depth: int
    window: int
    mlp_ratio: float
    conv_depth: int
    quantiser: str
    num_streams: int
    overlap: int
    num_groups: int
    codebook_size: int
    codebook_dims: tuple[int, ...]
    l2norm: bool

    def __post_init__(self) -> None:
        halved = self.patch_size[0] * 2 ** (self.scales - 1)
        if self.scales < 2 or self.in_freq % halved:
            raise ValueError(f"in_freq {self.in_freq} is no multiple of {halved}, which {self.scales} scales need.")
        if not self.stft_hop_length <= self.win_length <= self.n_fft:
            raise ValueError(f"a window of {self.win_length} samples is under a hop or above an FFT of {self.n_fft}.")
        if self.backbone == "transformer":
            if len(self.num_heads) != self.scales - 1:
                raise ValueError(f"swin_heads needs {self.scales - 1} entries, one fewer than h_dims.")
            for heads, pair in zip(self.num_heads, zip(self.h_dims, self.h_dims[1:])):
                if any(width % heads for width in pair):
                    raise ValueError(f"{heads} heads do not divide widths of {pair[0]} and {pair[1]}.")
        wanted = self.num_streams if self.quantiser == "csvq" else 1
        if len(self.codebook_dims) != wanted:
            raise ValueError(f"there are {len(self.codebook_dims)} codebook dimensions, but {wanted} are needed.")
        if self.quantiser == "csvq" and self.num_streams != self.scales:
            raise ValueError(f"max_streams is {self.num_streams}, but h_dims has {self.scales} entries.")

    @property
    def n_fft(self) -> int:
        """Samples per transform."""
        return 2 * (self.in_freq - 1)

    @property
    def scales(self) -> int:
        """Resolutions of the network."""
        return len(self.h_dims)

    @property
    def hop_length(self) -> int:
        """Samples per code frame."""
        return self.stft_hop_length * self.patch_size[1] * self.overlap

    def rows(self, scale: int) -> int:
        """Rows of patches at a scale."""
        return self.in_freq // self.patch_size[0] // 2**scale

    def scale(self, stream: int) -> int:
        """Where a stream quantises."""
        return self.scales - 1 if self.quantiser == "rvq" else self.scales - 1 - max(0, stream - 1)


def read_config(config: Mapping[str, Any], codebook_dims: Sequence[int] | None = None) -> Config:
    """Upstream's dict to ours; `codebook_dims` overrides its. ValueError: another model, or a missing entry."""
    try:
        quantiser, _, name = config["model_name"].partition("+")
        model = config["model"]
        if quantiser not in ("csvq", "rvq") or name not in _BACKBONES:
            raise ValueError("the config describes another model: an ESC is csvq or rvq + swinT or conv.")
        if tuple(model.get("kernel_size", KERNEL)) != KERNEL:
            raise ValueError(f"kernel_size is {model['kernel_size']}, but only {list(KERNEL)} keeps the shape.")
        said = model.get("codebook_dims", model.get("codebook_dim"))  # published ablations mistake one for the other
        dims = codebook_dims or (said if isinstance(said, list) else [said])
        swin = name == "swinT"
        return Config(
            sample_rate=model["sr"],
            in_freq=model["in_freq"],
            win_length=int(model["win_len"] * model["sr"] * 1e-3),
            stft_hop_length=int(model["hop_len"] * model["sr"] * 1e-3),
            patch_size=tuple(model["patch_size"]),
            backbone=_BACKBONES[name],
            h_dims=tuple(model["h_dims"]),
            num_heads=tuple(model["swin_heads"]) if swin else (),
            depth=model["swin_depth"] if swin else 0,
            window=model["window_size"] if swin else 1,
            mlp_ratio=model["mlp_ratio"] if swin else 0.0,
            conv_depth=model.get("conv_depth", 1),
            quantiser=quantiser,
            num_streams=model["max_streams"] if quantiser == "csvq" else model["num_rvqs"],
            overlap=model["overlap"],
            num_groups=model["group_size"],
            codebook_size=model["codebook_size"],
            codebook_dims=tuple(dims if quantiser == "csvq" else dims[:1]),
            l2norm=model["l2norm"],
        )
    except KeyError as error:
        raise ValueError(f"the config has no entry {error}, which an ESC needs.") from error
    except (TypeError, AttributeError) as error:
        raise ValueError("the config does not have the structure of an ESC's config.yaml.") from error
