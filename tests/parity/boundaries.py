"""Activations at every module boundary against upstream's: the table of docs/parity.md.

python -m tests.parity.boundaries ../shared/golden/taae/A ../shared/golden/taae/E
"""

import json
import pathlib
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from codec_jax.convert.taae import from_torch
from codec_jax.models import taae

# Inside a transformer block: upstream's name, ours.
BLOCK = {
    "": (),
    "pre_norm": ("pre_norm",),
    "self_attn": ("self_attn",),
    "self_attn.to_qkv": ("self_attn", "to_qkv"),
    "self_attn.q_norm": ("self_attn", "q_norm"),
    "self_attn.k_norm": ("self_attn", "k_norm"),
    "self_attn.to_out": ("self_attn", "to_out"),
    "self_attn_scale": ("self_attn_scale",),
    "conformer": ("conformer",),
    "conformer.in_norm": ("conformer", "in_norm"),
    "conformer.pointwise_conv": ("conformer", "pointwise_conv"),
    "conformer.glu.proj": ("conformer", "glu"),
    "conformer.depthwise_conv": ("conformer", "depthwise_conv"),
    "conformer.mid_norm": ("conformer", "mid_norm"),
    "conformer.pointwise_conv_2": ("conformer", "pointwise_conv_2"),
    "ff_norm": ("ff_norm",),
    "ff": ("ff",),
    "ff.ff.0.proj": ("ff", "proj"),
    "ff.ff.2": ("ff", "out"),
    "ff_scale": ("ff_scale",),
}
CONVOLUTIONAL = ("pointwise_conv", "depthwise_conv", "pointwise_conv_2")


def names(model: taae.TAAEConfig) -> Iterator[tuple[str, tuple[str, ...], int | None]]:
    """Upstream's activation, our module path, and the layer where ours are stacked."""
    last = len(model.strides)
    for half in ("encoder", "decoder"):
        yield f"{half}.layers.0", (half, "conv_in"), None
        yield f"{half}.layers.{last + 1}", (half, "act"), None
        yield f"{half}.layers.{last + 2}", (half, "conv_out"), None
        for i, depth in enumerate(model.transformer_depths):
            name = f"{half}.layers.{i + 1 if half == 'encoder' else last - i}"
            path = (half, f"stage_{i}")
            yield name, path, None
            offset = 3 if model.use_dilated_conv else 0
            first, act, resample, stack = (0, offset, offset + 1, offset + 2) if half == "encoder" else (3, 1, 2, 0)
            for r in range(offset):
                yield f"{name}.layers.{first + r}", (*path, f"residual_{r}"), None
                for k, part in enumerate(("act_1", "conv_1", "act_2", "conv_2")):
                    yield f"{name}.layers.{first + r}.layers.{k}", (*path, f"residual_{r}", part), None
            yield f"{name}.layers.{act}", (*path, "act"), None
            yield f"{name}.layers.{resample}", (*path, "resample"), None
            for layer in range(depth):
                for theirs, ours in BLOCK.items():
                    block = f"{name}.layers.{stack}.{layer + 1}" + (f".{theirs}" if theirs else "")
                    yield block, (*path, "transformer", "blocks", *ours), layer


def errors(directory: pathlib.Path) -> dict[str, float]:
    """Largest difference over largest magnitude, for every boundary that the golden set holds."""
    tensors = load_file(directory / "tensors.safetensors")
    config = json.loads((directory / "model_config.json").read_text())
    cfg, variables, _ = from_torch(load_file(directory / "model.safetensors"), config)
    inputs = {
        "encoder": taae.patch(jnp.asarray(tensors["input"]).swapaxes(1, 2), cfg.model.patch_size),
        "decoder": jnp.asarray(tensors["fsq_codes"]).swapaxes(1, 2),
    }
    modules = {"encoder": taae.Encoder(cfg.model), "decoder": taae.Decoder(cfg.model)}
    found = {
        half: jax.jit(lambda p, x, m=module: m.apply(p, x, capture_intermediates=True, mutable=["intermediates"])[1])(
            {"params": variables["params"][half]}, inputs[half]
        )["intermediates"]
        for half, module in modules.items()
    }
    rows = {"pretransform": _error(inputs["encoder"].swapaxes(1, 2), tensors["pretransform"])}
    for name, path, layer in names(cfg.model):
        if f"act/{name}" in tensors and (ours := _find(found, path)) is not None:
            ours = ours if layer is None else ours[layer]
            rows[name] = _error(_layout(ours, name, layer, tensors[f"act/{name}"].shape), tensors[f"act/{name}"])
    return rows


def _find(tree, path):
    for key in path:
        if key not in tree:
            return None
        tree = tree[key]
    value = tree["__call__"][0] if "__call__" in tree else None
    return value[0] if isinstance(value, tuple) else value


def _layout(ours, name, layer, shape):
    """Ours is channels-last with heads before channels unmerged; theirs [B, C, T] in convolutions, [B, H, n, d] in heads."""
    part = name.rsplit(".", 1)[-1]
    if part in ("q_norm", "k_norm"):
        return ours.swapaxes(1, 2)
    if layer is None or part in CONVOLUTIONAL:
        return ours.swapaxes(1, 2)
    return ours.reshape(shape)


def _error(ours, theirs) -> float:
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def main() -> None:
    for directory in map(pathlib.Path, sys.argv[1:]):
        rows = errors(directory)
        print(f"\n### Set {directory.name}: {len(rows)} boundaries, largest {max(rows.values()):.1e}\n")
        print("| upstream module | relative error |\n|---|---|")
        for name, error in rows.items():
            print(f"| `{name}` | {error:.1e} |")


if __name__ == "__main__":
    main()
