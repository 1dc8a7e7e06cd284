"""Activations at every module boundary against upstream's golden sets, or against the PyTorch twin: docs/parity.md.

python -m tests.parity.boundaries golden ../shared/golden/taae/A ../shared/golden/taae/E
python -m tests.parity.boundaries twin ../shared/golden/taae/A ../shared/golden/taae/E nano-torch
python -m tests.parity.boundaries golden ../shared/golden/esc/A

Directories with a config.yaml are ESC's (esc_boundaries.py).
"""

import json
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import torch
from safetensors.numpy import load_file

from codec_jax import pytorch
from codec_jax.convert.taae import from_torch
from codec_jax.models import taae
from codec_jax.pytorch.taae import patch
from tests.parity import esc_boundaries

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


def golden_errors(directory: pathlib.Path) -> dict[str, float]:
    """JAX against every activation that a golden set holds."""
    tensors = load_file(directory / "tensors.safetensors")
    theirs = {name.removeprefix("act/"): array for name, array in tensors.items() if name.startswith("act/")}
    theirs["pretransform"] = tensors["pretransform"]
    return errors(directory, tensors["input"], tensors["fsq_codes"].swapaxes(1, 2), theirs)


def twin_errors(directory: pathlib.Path) -> dict[str, float]:
    """JAX against every module of the PyTorch twin: on a golden set's input, else on noise and codes of other noise."""
    twin = pytorch.load(directory)
    if (directory / "tensors.safetensors").exists():
        tensors = load_file(directory / "tensors.safetensors")
        audio, codes = tensors["input"], np.ascontiguousarray(tensors["fsq_codes"].swapaxes(1, 2))
    else:
        rng = np.random.default_rng(0)
        audio = 0.1 * rng.standard_normal((2, twin.config.audio_channels, 50 * twin.hop_length), dtype=np.float32)
        codes = np.tanh(rng.standard_normal((2, 50, len(twin.config.levels)), dtype=np.float32))
    patches = patch(torch.from_numpy(audio), twin.config.patch_size)
    theirs = {f"encoder.{name}": array for name, array in _activations(twin.encoder, patches).items()}
    theirs |= {
        f"decoder.{name}": array for name, array in _activations(twin.decoder, torch.from_numpy(codes).mT).items()
    }
    return errors(directory, audio, codes, {"pretransform": patches.numpy(), **theirs})


def _activations(module: torch.nn.Module, x: torch.Tensor) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    def hook(name):
        return lambda _, __, out: found.update({name: out.numpy()})

    hooks = [part.register_forward_hook(hook(name)) for name, part in module.named_modules() if name]
    with torch.no_grad():
        module(x)
    for handle in hooks:
        handle.remove()
    return found


def errors(
    directory: pathlib.Path, audio: np.ndarray, codes: np.ndarray, theirs: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Largest difference over largest magnitude at every boundary in `theirs`.

    directory: upstream's config and weights. audio: [batch, channel, time] for the encoder. codes: [batch, frame,
    latent] for the decoder. theirs: activations by upstream's module names, in upstream's layouts.
    """
    config = json.loads((directory / "model_config.json").read_text())
    cfg, variables, _ = from_torch(load_file(directory / "model.safetensors"), config)
    inputs = {
        "encoder": taae.patch(jnp.asarray(audio).swapaxes(1, 2), cfg.model.patch_size),
        "decoder": jnp.asarray(codes),
    }
    modules = {"encoder": taae.Encoder(cfg.model), "decoder": taae.Decoder(cfg.model)}
    found = {
        half: jax.jit(lambda p, x, m=module: m.apply(p, x, capture_intermediates=True, mutable=["intermediates"])[1])(
            {"params": variables["params"][half]}, inputs[half]
        )["intermediates"]
        for half, module in modules.items()
    }
    rows = {"pretransform": _error(inputs["encoder"].swapaxes(1, 2), theirs["pretransform"])}
    for name, path, layer in names(cfg.model):
        if name in theirs and (ours := _find(found, path)) is not None:
            ours = ours if layer is None else ours[layer]
            rows[name] = _error(_layout(ours, name, layer, theirs[name].shape), theirs[name])
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


def layer(name: str) -> str:
    """What a row of the twin's table gathers."""
    return re.match(r"\w+(\.layers\.\d+){0,2}(\.\d+)?", name)[0]


def _by_layer(rows: Mapping[str, float], layer) -> dict[str, float]:
    """The largest error of a layer and everything inside it."""
    worst: dict[str, float] = {}
    for name, error in rows.items():
        worst[layer(name)] = max(error, worst.get(layer(name), 0.0))
    return worst


def _order(name: str) -> tuple:
    return name.startswith("decoder"), [int(n) for n in re.findall(r"\d+", name)]


def main() -> None:
    for directory in map(pathlib.Path, sys.argv[2:]):
        family = esc_boundaries if (directory / "config.yaml").exists() else sys.modules[__name__]
        rows = {"golden": family.golden_errors, "twin": family.twin_errors}[sys.argv[1]](directory)
        print(f"\n### {directory.name}: {len(rows)} boundaries, largest {max(rows.values()):.1e}\n")
        if sys.argv[1] == "twin":
            rows = _by_layer(rows, family.layer)
            if family is not esc_boundaries:
                rows = dict(sorted(rows.items(), key=lambda item: _order(item[0])))
        print("| upstream module | relative error |\n|---|---|")
        for name, error in rows.items():
            print(f"| `{name}` | {error:.1e} |")


if __name__ == "__main__":
    main()
