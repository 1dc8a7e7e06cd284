"""Upstream's ESC: names and layouts of every tensor, and its config (spec ESC appendix).

Never imports torch: tensors come in and go out as NumPy arrays under upstream's names.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from codec_jax.convert import esc_config
from codec_jax.convert.layout import Leaf, Tensors, materialise, names, params_from_torch, tensors_from_params
from codec_jax.errors import UserError
from codec_jax.models.esc_config import Config
from codec_jax.models.protocol import Variables
from codec_jax.nn.conv2d import KERNEL
from codec_jax.nn.swin import relative_position_index
from codec_jax.ops.stft import hann
from codec_jax.quantizers.vq import group_sizes
from codec_jax.storage import Extras

CONFIG_FILE = "config.yaml"
PREFIXES = ()
LOADING = """
With upstream's own code, on the model it makes of `config.yaml`:

```python
from safetensors.torch import load_file

model.load_state_dict(load_file("model.safetensors"), strict=True)
```

Its scripts look for a `model.pth`:

```python
import torch

torch.save({"model_state_dict": load_file("model.safetensors")}, "model.pth")
```

Upstream pads nothing: of other lengths than 80 * (4k - 1) samples (of the published configs) it codes less than it was
given, or stops. Call `model.eval()` before coding.
"""
_WINDOW_TOLERANCE, _HALVED_TOLERANCE = 1e-6, 4e-3


def from_torch(tensors: Tensors, config: Mapping[str, Any]) -> tuple[Config, Variables, Extras]:
    """Upstream's `config.yaml` (parsed) and state_dict to config, variables and what has no place in them.

    Raises UserError naming the tensor or field where one is missing, left over, or contradicts another.
    """
    cfg, variables, extras = from_torch_lazily(tensors, config)
    return cfg, materialise(variables), extras


def from_torch_lazily(tensors: Tensors, config: Mapping[str, Any]) -> tuple[Config, Variables, Extras]:
    """`from_torch` with variables that are computed when they are asked for. Everything is checked now."""
    cfg = esc_config.read(config, tensors)
    variables = {"params": params_from_torch(leaves(cfg), tensors)}
    if batch_stats := params_from_torch(statistics(cfg), tensors):
        variables["batch_stats"] = batch_stats
    known = dict(buffers(cfg))
    for name in tensors.keys() - set(names(leaves(cfg))) - set(names(statistics(cfg))) - known.keys():
        raise UserError(f"the checkpoint has a tensor {name}, which its config does not explain.")
    brought = {name: np.asarray(tensors[name]) for name in known if name in tensors}
    for name, array in brought.items():
        _check_buffer(name, array, known[name])
    # A halved window is worth less than one computed anew; the unused norm is upcast as weights are.
    halved = {name for name, array in brought.items() if name.endswith("window") and array.dtype != np.float32}
    kept = {name: _upcast(array) for name, array in brought.items() if name not in halved}
    return cfg, variables, Extras(kept, {"config": config})


def to_torch(cfg: Config, variables: Variables, extras: Extras, target: str = "upstream") -> tuple[dict, dict]:
    """Upstream's config and state_dict (arrays, computed when asked for), buffers included.

    target: "upstream", or "twin" for what only codec_jax.pytorch can load. Raises UserError, one sentence, for a config
    that the target cannot express.
    """
    config = esc_config.write(cfg, extras.upstream.get("config", {}), target)
    tensors: dict[str, Any] = dict(tensors_from_params(leaves(cfg), variables["params"]))
    tensors |= tensors_from_params(statistics(cfg), variables.get("batch_stats", {}))
    tensors |= {name: extras.tensors.get(name, array) for name, array in buffers(cfg)}
    return config, tensors


def notes(cfg: Config, extras: Extras) -> Iterator[str]:
    """Sentences for whoever converts: where the tensors are not what their config says."""
    if "config" not in extras.upstream:
        return
    said, dims = esc_config.codebook_dims(extras.upstream["config"]), list(cfg.bottleneck.codebook_dims)
    if said[: len(dims)] != dims:
        yield f"config.yaml says codebook dimensions {said}, but the checkpoint has {dims}, which are taken."
    if esc_config.misspelt(extras.upstream["config"]):
        yield "config.yaml misspells codebook_dim and codebook_dims, over which upstream fails: exports spell it right."


def buffers(cfg: Config) -> Iterator[tuple[str, np.ndarray]]:
    """What upstream's state_dict holds and our variables do not, as upstream computes or initialises it."""
    window = hann(cfg.model.win_length)
    yield "ft.window", window
    yield "ift.window", window
    if cfg.model.backbone == "convolution":  # a norm that is never used
        yield "encoder.patch_embed.norm.weight", np.ones(cfg.model.h_dims[0], np.float32)
        yield "encoder.patch_embed.norm.bias", np.zeros(cfg.model.h_dims[0], np.float32)
    index = relative_position_index(cfg.model.window_size).astype(np.int64)
    for leaf in leaves(cfg):
        if leaf.names[0].endswith("relative_position_bias_table"):
            yield leaf.names[0].replace("bias_table", "index"), index
    for name in names(statistics(cfg)):
        if name.endswith("running_mean"):
            yield name.replace("running_mean", "num_batches_tracked"), np.zeros((), np.int64)


def _check_buffer(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    """Raises UserError where a buffer holds what this model would not compute with."""
    if found.shape != expected.shape:
        raise UserError(f"{name} has shape {found.shape} in the checkpoint, but its config implies {expected.shape}.")
    tolerance = _WINDOW_TOLERANCE if found.dtype.itemsize >= 4 else _HALVED_TOLERANCE
    if name.endswith("window") and np.abs(found.astype(np.float32) - expected).max() > tolerance:
        raise UserError(f"{name} holds another window than Hann's, which is what this model computes with.")
    if name.endswith("position_index") and not np.array_equal(found, expected):
        raise UserError(f"{name} orders relative positions in another way than this model.")


def _upcast(array: np.ndarray) -> np.ndarray:
    """Floats as float32, integers as they came."""
    return array if array.dtype.kind in "iu" else array.astype(np.float32, copy=False)


# ---- the table ---------------------------------------------------------------------------------


def leaves(cfg: Config) -> Iterator[Leaf]:
    """Every parameter of the model, in order."""
    model, first = cfg.model, cfg.model.h_dims[0]
    high, wide = model.patch_size
    proj = (first, 2, high, wide)
    yield Leaf(("encoder", "patch_embed", "proj", "kernel"), ("encoder.patch_embed.proj.weight",), proj, (2, 3, 1, 0))
    yield Leaf(("encoder", "patch_embed", "proj", "bias"), ("encoder.patch_embed.proj.bias",), (first,))
    if model.backbone == "transformer":
        yield from _norm(("encoder", "patch_embed", "norm"), "encoder.patch_embed.norm", first)
    for path, name, scale, to in stages(cfg):
        table = _swin_stage if model.backbone == "transformer" else _conv_stage
        yield from table(cfg, path, name, scale, to)
    yield from _conv(
        ("decoder", "patch_deembed", "conv_1"), "decoder.patch_deembed.de_proj1", (high * wide * first, first, 5, 5)
    )
    yield from _conv(("decoder", "patch_deembed", "conv_2"), "decoder.patch_deembed.de_proj2", (2, first, 3, 3))
    yield from _quantisers(cfg)


def statistics(cfg: Config) -> Iterator[Leaf]:
    """Every running statistic, in order."""
    for leaf in leaves(cfg):
        if cfg.model.backbone == "convolution" and leaf.path[-1] == "scale":
            for ours, theirs in (("mean", "running_mean"), ("var", "running_var")):
                name = leaf.names[0].removesuffix("weight") + theirs
                yield leaf._replace(path=(*leaf.path[:-1], ours), names=(name,))


def stages(cfg: Config) -> Iterator[tuple[tuple[str, ...], str, int, int]]:
    """(our path, upstream's name, scale, scale after it) of every stage."""
    last = cfg.model.scales - 1
    yield ("encoder", "pre"), "encoder.pre_nn", 0, 0
    for i in range(last):
        yield ("encoder", f"stage_{i}"), f"encoder.blocks.{i}", i, i + 1
    for i in range(last):
        yield ("decoder", f"stage_{i}"), f"decoder.blocks.{i}", last - i, last - i - 1
    yield ("decoder", "post"), "decoder.post_nn", 0, 0


def _swin_stage(cfg, path, name, scale, to):
    model, width, features = cfg.model, cfg.model.h_dims[scale], cfg.model.h_dims[to]
    for i in range(model.depth):
        heads = model.num_heads[min(scale, to)]
        yield from _swin_block(model, (*path, f"block_{i}"), f"{name}.swint_blocks.{i}", (width, heads))
    if to > scale:
        yield from _norm((*path, "resample", "norm"), f"{name}.subsample.norm", 2 * width)
        kernel = (features, 2 * width)
        yield Leaf((*path, "resample", "linear", "kernel"), (f"{name}.subsample.down.weight",), kernel, (1, 0))
    elif to < scale:
        yield from _norm((*path, "resample", "norm"), f"{name}.subsample.norm", width)
        kernel, ours = (2 * features, width), (width, 2, features)
        yield Leaf((*path, "resample", "linear", "kernel"), (f"{name}.subsample.up.weight",), kernel, (1, 0), ours)


def _swin_block(model, path, name, sizes):
    width, count = sizes
    heads, hidden = (count, width // count), int(width * model.mlp_ratio)
    attn, mlp = (*path, "attn"), (*path, "mlp")
    yield from _norm((*path, "norm_1"), f"{name}.norm1", width)
    table = ((2 * model.window_size - 1) ** 2, count)
    yield Leaf((*attn, "position_bias"), (f"{name}.attn.relative_position_bias_table",), table)
    qkv = (3 * width, width)
    yield Leaf((*attn, "qkv", "kernel"), (f"{name}.attn.qkv.weight",), qkv, (1, 0), (width, 3, *heads))
    yield Leaf((*attn, "qkv", "bias"), (f"{name}.attn.qkv.bias",), (3 * width,), ours=(3, *heads))
    yield Leaf((*attn, "proj", "kernel"), (f"{name}.attn.proj.weight",), (width, width), (1, 0), (*heads, width))
    yield Leaf((*attn, "proj", "bias"), (f"{name}.attn.proj.bias",), (width,))
    yield from _norm((*path, "norm_2"), f"{name}.norm2", width)
    for i, shape in ((1, (hidden, width)), (2, (width, hidden))):
        yield Leaf((*mlp, f"linear_{i}", "kernel"), (f"{name}.mlp.linear_{i}.weight",), shape, (1, 0))
        yield Leaf((*mlp, f"linear_{i}", "bias"), (f"{name}.mlp.linear_{i}.bias",), shape[:1])


def _conv_stage(cfg, path, name, scale, to):
    width, features = cfg.model.h_dims[scale], cfg.model.h_dims[to]
    if scale == to:
        yield from _conv((*path, "conv"), f"{name}.conv", (features, width, *KERNEL))
        return
    depth = cfg.model.conv_depth
    for i in range(depth):
        for j in (1, 2):
            block = f"{name}.blocks.{i}.block.{{}}".format
            place = 3 * (j - 1)
            unit = (*path, f"unit_{i}")
            yield from _conv((*unit, f"conv_{j}"), f"{block(place)}.conv", (width, width, *KERNEL))
            yield from _norm((*unit, f"norm_{j}"), block(place + 1), width)
            yield Leaf((*unit, f"act_{j}", "slope"), (f"{block(place + 2)}.weight",), (1,))
    up = to < scale
    shape = (width, features, *KERNEL) if up else (features, width, *KERNEL)
    yield from _conv((*path, "resample"), f"{name}.blocks.{depth}.conv", shape, up)
    yield from _norm((*path, "norm"), f"{name}.blocks.{depth + 1}", features)
    yield Leaf((*path, "act", "slope"), (f"{name}.blocks.{depth + 2}.weight",), (1,))


def _conv(path, name, shape, transposed=False):
    yield Leaf((*path, "kernel"), (f"{name}.weight",), shape, (2, 3, 0, 1) if transposed else (2, 3, 1, 0))
    yield Leaf((*path, "bias"), (f"{name}.bias",), (shape[1] if transposed else shape[0],))


def _norm(path, name, width):
    yield Leaf((*path, "scale"), (f"{name}.weight",), (width,))
    yield Leaf((*path, "bias"), (f"{name}.bias",), (width,))


def _quantisers(cfg: Config) -> Iterator[Leaf]:
    vq = cfg.bottleneck
    for stream, dim in enumerate(vq.codebook_dims):
        scale = cfg.scale(stream)
        sizes = group_sizes(vq.overlap * cfg.model.rows(scale) * cfg.model.h_dims[scale], vq.num_groups)
        for group, size in enumerate(sizes):
            yield from (_residual if vq.quantiser == "rvq" else _product)(cfg, stream, group, (size, dim))


def _product(cfg, stream, group, sizes):
    (size, dim), path, name = sizes, f"quantizer_{stream}", f"quantizers.{stream}"
    yield Leaf(
        (path, f"codebook_{group}"), (f"{name}.vqs.{group}.embedding.weight",), (cfg.bottleneck.codebook_size, dim)
    )
    yield Leaf((path, f"down_{group}"), (f"{name}.down_projs.{group}.weight",), (dim, size), (1, 0))
    yield Leaf((path, f"up_{group}"), (f"{name}.up_projs.{group}.weight",), (size, dim), (1, 0))


def _residual(cfg, stream, group, sizes):
    (size, dim), vq, name = sizes, cfg.bottleneck, f"quantizers.vqs.{group}"
    words = tuple(f"{name}.vqs.{level}.embedding.weight" for level in range(vq.num_streams))
    yield Leaf(("quantizer", f"codebook_{group}"), words, (vq.codebook_size, dim), stacked=True)
    if size != dim:
        yield Leaf(("quantizer", f"down_{group}"), (f"{name}.proj_down.weight",), (dim, size), (1, 0))
        yield Leaf(("quantizer", f"up_{group}"), (f"{name}.proj_up.weight",), (size, dim), (1, 0))
