"""Activations of ESC at every module boundary, JAX against upstream's golden sets or against the PyTorch twin."""

import functools
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import yaml
from safetensors.numpy import load_file

from codec_jax import pytorch
from codec_jax.convert import esc as convert
from codec_jax.models import esc
from codec_jax.models.esc_network import Network

# Inside a block or unit: upstream's name, ours.
BLOCK = {
    "": (),
    ".norm1": ("norm_1",),
    ".attn": ("attn",),
    ".attn.qkv": ("attn", "qkv"),
    ".attn.proj": ("attn", "proj"),
    ".norm2": ("norm_2",),
    ".mlp": ("mlp",),
    ".mlp.linear_1": ("mlp", "linear_1"),
    ".mlp.linear_2": ("mlp", "linear_2"),
}
UNIT = {"": ()} | {f".block.{i}": (f"{('conv', 'norm', 'act')[i % 3]}_{i // 3 + 1}",) for i in range(6)}
GOLDEN = (
    (r"^enc\.", "encoder."),
    (r"^dec\.", "decoder."),
    (r"\.block(\d)", r".blocks.\1"),
    (r"\.swin(\d)", r".swint_blocks.\1"),
    (r"^vq(\d)\.", r"quantizers.\1."),
    (r"^vq\.", "quantizers."),
)


def names(cfg: esc.Config) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Upstream's module and our path, in the order of computation but for quantisers, which come last."""
    yield "encoder.patch_embed", ("encoder", "patch_embed")
    for path, name, scale, to in convert.stages(cfg):
        yield name, path
        transformer = cfg.model.backbone == "transformer"
        parts = (BLOCK, "swint_blocks", "block") if transformer else (UNIT, "blocks", "unit")
        depth = cfg.model.depth if transformer else cfg.model.conv_depth * (scale != to)
        for i in range(depth):
            for theirs, ours in parts[0].items():
                yield f"{name}.{parts[1]}.{i}{theirs}", (*path, f"{parts[2]}_{i}", *ours)
        if transformer:
            yield f"{name}.subsample", (*path, "resample")
            continue
        for i, ours in enumerate(("resample", "norm", "act")):
            yield f"{name}.blocks.{depth + i}", (*path, ours)
    yield "decoder.patch_deembed", ("decoder", "patch_deembed")
    yield "quantizers", ("quantizer",)
    for i in range(cfg.bottleneck.num_streams):
        yield f"quantizers.{i}", (f"quantizer_{i}",)


def golden_errors(directory: pathlib.Path) -> dict[str, float]:
    """JAX against every activation that a golden set holds."""
    tensors = load_file(directory / "golden.safetensors")
    return errors(directory, tensors["audio"], {"stft": tensors["stft"], **upstreams_names(tensors)})


def upstreams_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The outputs among a golden set's tensors, by the modules that gave them."""
    found = {}
    for name, array in tensors.items():
        if name.endswith(".out"):
            for pattern, new in GOLDEN:
                name = re.sub(pattern, new, name)
            found[name.removesuffix(".out")] = array
    return found


def twin_errors(directory: pathlib.Path) -> dict[str, float]:
    """JAX against every module of the twin: on a golden set's audio, else on noise."""
    twin = pytorch.load(directory)
    audio = 0.1 * np.random.default_rng(0).standard_normal((2, twin.padded_length(16_000)), dtype=np.float32)
    if (directory / "golden.safetensors").exists():
        audio = load_file(directory / "golden.safetensors")["audio"]
    found: dict[str, np.ndarray] = {}

    def hook(name):
        return lambda _, __, out: found.update({name: getattr(out, "features", out)})

    hooked = [m.register_forward_hook(hook(n)) for n, m in twin.named_modules() if n not in ("", "encoder")]
    with torch.no_grad():
        twin(torch.from_numpy(audio))
        found["stft"] = twin._spectrum(torch.from_numpy(audio))
    for handle in hooked:
        handle.remove()
    tensors = {name: out.numpy() for name, out in found.items() if isinstance(out, torch.Tensor)}
    return errors(directory, audio, tensors)


def errors(directory: pathlib.Path, audio: np.ndarray, theirs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Largest difference over largest magnitude at every boundary in `theirs`.

    directory: upstream's config and weights. audio: [batch, time]. theirs: activations by upstream's module names.
    """
    config = yaml.safe_load((directory / "config.yaml").read_text())
    cfg, variables, _ = convert.from_torch(load_file(directory / "model.safetensors"), config)
    spectrum = esc.to_spectrum(cfg, jnp.asarray(audio)[..., None])
    network = functools.partial(Network(cfg).apply, capture_intermediates=True, mutable=["intermediates"])
    _, collected = jax.jit(network, static_argnums=2)(variables, spectrum, cfg.bottleneck.num_streams)
    rows = {"stft": _error(jnp.moveaxis(spectrum, -1, 1), theirs["stft"])}
    for name, path in names(cfg):
        ours = _find(collected["intermediates"], path)
        if name in theirs and ours is not None:
            rows[name] = _error(_layout(np.asarray(ours), name, theirs[name].shape), theirs[name])
    return rows


def layer(name: str) -> str:
    """What a row of the twin's table gathers: a stage's block, unit or resampling."""
    return re.match(r"(quantizers|\w+)(\.\w+)?(\.\d+)?((\.swint_blocks|\.blocks)\.\d+)?(\.subsample)?", name)[0]


def _find(tree, path):
    for key in path:
        if key not in tree:
            return None
        tree = tree[key]
    value = tree["__call__"][0] if "__call__" in tree else None
    return getattr(value, "grid", value)


def _layout(ours: np.ndarray, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Ours is channels-last; convolutions are [batch, channel, row, column] upstream, and inside the twin's stages."""
    if ours.shape == shape and "patch_deembed" not in name:
        return ours
    moved = np.moveaxis(ours, -1, 1)
    return moved if moved.shape == shape else ours.reshape(shape)


def _error(ours, theirs) -> float:
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
