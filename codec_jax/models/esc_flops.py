"""Floating-point operations of ESC, counted as models/flops.py does: two per multiply-add."""

from codec_jax.models.esc_config import Config, ESCConfig
from codec_jax.models.flops import Counts, conv, stft_flops
from codec_jax.nn.conv2d import KERNEL
from codec_jax.quantizers.vq import group_sizes


def network_flops(cfg: Config, samples: int) -> Counts:
    """One forward pass over one clip of `samples` samples, a padded length, by module, in the order of execution."""
    model, last = cfg.model, cfg.model.scales - 1
    frames = samples // model.stft_hop_length + 1
    columns = frames // model.patch_size[1]
    high, wide = model.patch_size
    patches = 2.0 * model.rows(0) * columns
    counts: Counts = {"stft": stft_flops(frames, model.n_fft)}
    counts["encoder/patch_embed"] = patches * high * wide * 2 * model.h_dims[0]
    counts |= _stage(model, 0, 0, columns, "encoder/pre")
    for i in range(last):
        counts |= _stage(model, i, i + 1, columns, f"encoder/stage_{i}")
    if cfg.bottleneck.quantiser == "rvq":
        counts["quantizer"] = _residual_vq(cfg, columns)
    else:
        counts["quantizer_0"] = _product_vq(cfg, 0, columns)
    for i in range(last):
        if cfg.bottleneck.quantiser == "csvq":
            counts[f"quantizer_{i + 1}"] = _product_vq(cfg, i + 1, columns)
        counts |= _stage(model, last - i, last - i - 1, columns, f"decoder/stage_{i}")
    counts |= _stage(model, 0, 0, columns, "decoder/post")
    to_patches = conv((model.rows(0), columns), (5, 5)) * high * wide * model.h_dims[0] ** 2
    to_bins = conv((model.in_freq, frames), (3, 3)) * model.h_dims[0] * 2
    counts["decoder/patch_deembed"] = to_patches + to_bins
    return {**counts, "istft": stft_flops(frames, model.n_fft)}


def _stage(model: ESCConfig, scale: int, to: int, columns: int, name: str) -> Counts:
    """Blocks at `scale`, and resampling to the scale `to`."""
    rows, width, features = model.rows(scale), model.h_dims[scale], model.h_dims[to]
    if model.backbone == "convolution":
        if scale == to:
            return {f"{name}/conv": _convolution(rows, columns) * width * features}
        units = model.conv_depth * 2 * _convolution(rows, columns) * width**2
        resample = _convolution(rows, columns, "down" if to > scale else "up") * width * features
        return {f"{name}/blocks/units": units, f"{name}/resample": resample}
    window = model.window_size
    padded = -(-rows // window) * -(-columns // window) * window**2
    tokens = rows * columns
    product = 2.0 * tokens * width * int(width * model.mlp_ratio)
    counts = {
        f"{name}/blocks/projections": model.depth * 4 * 2.0 * padded * width**2,
        f"{name}/blocks/attention": model.depth * 2 * 2.0 * padded * window**2 * width,
        f"{name}/blocks/mlp": model.depth * product,
        # Not among what rematerialising computes again: the gradients of a block do not ask for its last product.
        f"{name}/mlp_out": model.depth * product,
    }
    if scale != to:
        # Down: pairs of rows become one. Up: every row becomes two.
        counts[f"{name}/resample"] = 2.0 * (tokens if to > scale else 2 * tokens) * width * features
    return counts


def _convolution(rows: int, columns: int, scale: str | None = None) -> float:
    """FLOPs per pair of channels, taps that fall on padding left out."""
    column_taps = KERNEL[1] * columns - 1
    if scale == "up":
        row_taps = sum(0 <= 2 * row + tap - 1 < 2 * rows for row in range(rows) for tap in range(KERNEL[0]))
        return 2.0 * row_taps * column_taps
    stride = 2 if scale == "down" else 1
    return conv((rows,), KERNEL[:1], (stride,), padding=(2,)) * column_taps


def _groups(cfg: Config, stream: int) -> tuple[int, ...]:
    scale = cfg.scale(stream)
    return group_sizes(
        cfg.bottleneck.overlap * cfg.model.rows(scale) * cfg.model.h_dims[scale], cfg.bottleneck.num_groups
    )


def _product_vq(cfg: Config, stream: int, columns: int) -> float:
    """Projections down and up, and the distances to every codeword."""
    vq, sizes = cfg.bottleneck, _groups(cfg, stream)
    entries = 2 * sum(sizes) + vq.num_groups * vq.codebook_size
    return 2.0 * columns // vq.overlap * vq.codebook_dims[stream] * entries


def _residual_vq(cfg: Config, columns: int) -> float:
    vq, sizes = cfg.bottleneck, _groups(cfg, 0)
    projected = sum(size for size in sizes if size != vq.codebook_dims[0])
    entries = 2 * projected + vq.num_streams * vq.num_groups * vq.codebook_size
    return 2.0 * columns // vq.overlap * vq.codebook_dims[0] * entries
