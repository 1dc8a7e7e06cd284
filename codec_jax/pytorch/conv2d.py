"""Stages of 2-D convolutions over a grid [batch, row, column, channel], with upstream's names (spec ESC section 5)."""

from torch import Tensor, nn

from .esc_config import KERNEL, Config


class Convolution2D(nn.Module):
    """Kernel 5 x 2 over [batch, channel, row, column], looking one column back.

    step: 1 halves the rows, rounding down, -1 doubles them, 0 keeps them.
    """

    def __init__(self, into: int, out: int, step: int = 0):
        super().__init__()
        self.step = step
        stride = (2 if step else 1, 1)
        self.conv: nn.Module
        if step < 0:
            self.conv = nn.ConvTranspose2d(into, out, KERNEL, stride, padding=(1, 0))
        else:
            self.conv = nn.Conv2d(into, out, KERNEL, stride, padding=(2, 1))

    def forward(self, x: Tensor) -> Tensor:
        rows = {0: x.shape[2], 1: x.shape[2] // 2, -1: 2 * x.shape[2]}[self.step]
        return self.conv(x)[:, :, :rows, : x.shape[3]]


class PlainConvolution(Convolution2D):
    """The stage that neither resamples nor has a norm, over a grid."""

    def forward(self, x: Tensor) -> Tensor:
        return _to_grid(super().forward(_from_grid(x)))


class ResidualUnit(nn.Module):
    """Convolution → BatchNorm → PReLU, twice, plus the input."""

    def __init__(self, dim: int):
        super().__init__()
        self.block = nn.Sequential(*_normed(dim, dim), *_normed(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class ConvStage(nn.Module):
    """Residual units at one scale, then a convolution to the next finer or coarser one."""

    def __init__(self, config: Config, scale: int, to: int):
        super().__init__()
        dim, out = config.h_dims[scale], config.h_dims[to]
        units = (ResidualUnit(dim) for _ in range(config.conv_depth))
        self.blocks = nn.Sequential(*units, *_normed(dim, out, to - scale))

    def forward(self, x: Tensor) -> Tensor:
        return _to_grid(self.blocks(_from_grid(x)))


def _normed(into: int, out: int, step: int = 0) -> list[nn.Module]:
    return [Convolution2D(into, out, step), nn.BatchNorm2d(out), nn.PReLU()]


def _from_grid(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _to_grid(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)
