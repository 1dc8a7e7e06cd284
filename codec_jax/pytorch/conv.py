"""Weight-normalised convolutions over [batch, channel, time], and the activations between them (spec section 2)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _WeightNormed(nn.Module):
    """Parameters of w = g * v / |v|, one norm per slice of the first axis, under upstream's names.

    That axis is the output channel of a convolution, but the *input* channel of a transposed one.
    """

    bias: nn.Parameter | None

    def __init__(self, shape: tuple[int, int, int], out_channels: int, bias: bool):
        super().__init__()
        v = torch.empty(shape)
        nn.init.kaiming_uniform_(v, a=math.sqrt(5))
        bound = 1 / math.sqrt(shape[1] * shape[2])
        initial = torch.empty(out_channels).uniform_(-bound, bound)
        self.register_parameter("bias", nn.Parameter(initial) if bias else None)
        self.weight_g = nn.Parameter(_norm(v))
        self.weight_v = nn.Parameter(v)

    @property
    def weight(self) -> Tensor:
        return self.weight_v * (self.weight_g / _norm(self.weight_v))


def _norm(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v, dim=(1, 2), keepdim=True)


class WNConv1d(_WeightNormed):
    """[batch, in, time] -> [batch, out, ~time / stride], with `padding` zeros on both sides."""

    def __init__(
        self,
        into: int,
        out: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = True,
    ):
        super().__init__((out, into, kernel), out, bias)
        self.stride, self.padding, self.dilation = stride, padding, dilation

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight, self.bias, self.stride, self.padding, self.dilation)


class WNConvTranspose1d(_WeightNormed):
    """[batch, in, frame] -> [batch, out, stride * frame]: kernel 2 * stride, ceil(stride / 2) cropped on the left.

    Upstream loses the last sample of odd strides; here it is kept, so that the length is always a multiple of the hop.
    """

    def __init__(self, into: int, out: int, stride: int):
        super().__init__((into, out, 2 * stride), out, bias=True)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        padding, extra = -(-self.stride // 2), self.stride % 2
        return F.conv_transpose1d(x, self.weight, self.bias, self.stride, padding, output_padding=extra)


class SnakeBeta(nn.Module):
    """x + sin²(e^alpha x) / (e^beta + 1e-9), with one alpha and beta per channel, kept as logarithms."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        alpha, beta = self.alpha.exp()[:, None], self.beta.exp()[:, None]
        return x + torch.sin(alpha * x) ** 2 / (beta + 1e-9)


class ResidualUnit(nn.Module):
    """Activation → dilated conv k7 → activation → conv k1, plus the input. SnakeBeta or ELU."""

    def __init__(self, channels: int, dilation: int, use_snake: bool):
        super().__init__()
        self.layers = nn.Sequential(
            SnakeBeta(channels) if use_snake else nn.ELU(),
            WNConv1d(channels, channels, 7, padding=3 * dilation, dilation=dilation),
            SnakeBeta(channels) if use_snake else nn.ELU(),
            WNConv1d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)
