"""The two halves of ESC over spectra [batch, 2, bin, frame], with upstream's names (spec ESC sections 3 and 5).

Between them features are a grid [batch, row, column, channel]: rows are frequency, columns time.
"""

from torch import Tensor, nn

from .conv2d import ConvStage, PlainConvolution
from .esc_config import Config
from .swin import SwinStage


class PatchEmbed(nn.Module):
    """A spectrum [batch, 2, bin, frame] to a grid of patches; the norm is for transformers alone."""

    def __init__(self, config: Config):
        super().__init__()
        self.normed = config.backbone == "transformer"
        self.proj = nn.Conv2d(2, config.h_dims[0], config.patch_size, config.patch_size)
        self.norm = nn.LayerNorm(config.h_dims[0])

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x).permute(0, 2, 3, 1)
        return self.norm(x) if self.normed else x


class PatchDeembed(nn.Module):
    """A grid back to a spectrum: convolution, patches laid out, convolution."""

    def __init__(self, config: Config):
        super().__init__()
        self.patch_size, dim = config.patch_size, config.h_dims[0]
        high, wide = config.patch_size
        self.de_proj1 = nn.Conv2d(dim, high * wide * dim, 5, padding=2)
        self.de_proj2 = nn.Conv2d(dim, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.de_proj1(x.permute(0, 3, 1, 2)).unflatten(1, (*self.patch_size, -1))
        return self.de_proj2(x.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3))


class Encoder(nn.Module):
    """A spectrum to features at every scale, the finest first."""

    def __init__(self, config: Config):
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        self.pre_nn = _stage(config, 0, 0)
        self.blocks = nn.ModuleList(_stage(config, i, i + 1) for i in range(config.scales - 1))

    def forward(self, spectrum: Tensor) -> list[Tensor]:
        features = [self.pre_nn(self.patch_embed(spectrum))]
        for block in self.blocks:
            features.append(block(features[-1]))
        return features


class Decoder(nn.Module):
    """Blocks from the coarsest scale up, between which streams are added, and the way from the finest to a spectrum."""

    def __init__(self, config: Config):
        super().__init__()
        last = config.scales - 1
        self.patch_deembed = PatchDeembed(config)
        self.post_nn = _stage(config, 0, 0)
        self.blocks = nn.ModuleList(_stage(config, last - i, last - i - 1) for i in range(last))

    def finish(self, x: Tensor) -> Tensor:
        """The finest scale to a spectrum [batch, 2, bin, frame]."""
        return self.patch_deembed(self.post_nn(x))


def _stage(config: Config, scale: int, to: int) -> nn.Module:
    """Blocks at one scale, then resampling to another."""
    if config.backbone == "transformer":
        return SwinStage(config, scale, to)
    if scale == to:
        return PlainConvolution(config.h_dims[scale], config.h_dims[scale])
    return ConvStage(config, scale, to)
