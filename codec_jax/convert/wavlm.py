"""WavLM as Hugging Face's `WavLMModel` stores it: config.json and a state_dict, to our parameters. One way only."""

from collections.abc import Iterator, Mapping
from typing import Any

from codec_jax.convert.layout import Leaf, Tensors, params_from_torch
from codec_jax.errors import UserError
from codec_jax.models.wavlm import CONVOLUTIONS, WavLMConfig

_PREFIX = "wavlm."  # of models with a head on top
_FIELDS = {
    "conv_widths": "conv_dim",
    "conv_kernels": "conv_kernel",
    "conv_strides": "conv_stride",
    "conv_bias": "conv_bias",
    "conv_norm": "feat_extract_norm",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "pre_norm": "do_stable_layer_norm",
    "num_buckets": "num_buckets",
    "max_distance": "max_bucket_distance",
    "position_kernel": "num_conv_pos_embeddings",
    "position_groups": "num_conv_pos_embedding_groups",
    "norm_epsilon": "layer_norm_eps",
}
_FIXED = {"model_type": "wavlm", "hidden_act": "gelu", "feat_extract_activation": "gelu"}


def read_config(config: Mapping[str, Any]) -> WavLMConfig:
    """Hugging Face's config.json, parsed. Fields that it leaves out are its defaults, which are `BASE`'s.

    Raises UserError where it is of another model, or asks for what WavLM never has.
    """
    for name, wanted in _FIXED.items():
        found = config.get(name, None if name == "model_type" else wanted)
        if found != wanted:
            raise UserError(f'a WavLM\'s config.json has "{name}": "{wanted}", not {found!r}.')
    given: dict[str, Any] = {ours: config[theirs] for ours, theirs in _FIELDS.items() if theirs in config}
    for name in ("conv_widths", "conv_kernels", "conv_strides"):
        if name in given:
            given[name] = tuple(given[name])
    cfg = WavLMConfig(**given)
    cfg.validate()
    return cfg


def from_torch(tensors: Tensors, cfg: WavLMConfig, highest: int | None = None) -> dict[str, Any]:
    """Variables of what layers up to `highest` (None: all) need, lazily: checked now, read when they are asked for.

    Raises UserError naming a tensor that is missing or has another shape than the config implies.
    """
    bare = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    return {"params": params_from_torch(leaves(cfg, bare, cfg.depth if highest is None else highest), bare)}


def leaves(cfg: WavLMConfig, tensors: Tensors, highest: int) -> Iterator[Leaf]:
    """Every parameter, in order. tensors: weight norm has two spellings, of which they have one."""
    yield from _front_end(cfg)
    if highest == CONVOLUTIONS:
        return
    last = cfg.conv_widths[-1]
    yield from _norm(("projection_norm",), "feature_projection.layer_norm", last)
    yield from _linear(("projection",), "feature_projection.projection", cfg.width, last)
    yield from _positions(cfg, tensors)
    if not cfg.pre_norm:
        yield from _norm(("norm",), "encoder.layer_norm", cfg.width)
    if not highest:
        return
    table = "encoder.layers.0.attention.rel_attn_embed.weight"
    yield Leaf(("position_bias", "table"), (table,), (cfg.num_buckets, cfg.num_heads))
    for leaf in _block(cfg):
        names = tuple(f"encoder.layers.{layer}.{leaf.names[0]}" for layer in range(highest))
        yield leaf._replace(path=("blocks", *leaf.path), names=names, stacked=True)


def _front_end(cfg: WavLMConfig) -> Iterator[Leaf]:
    into = 1
    for i, (width, kernel) in enumerate(zip(cfg.conv_widths, cfg.conv_kernels)):
        name = f"feature_extractor.conv_layers.{i}"
        yield Leaf(
            ("front_end", f"conv_{i}", "kernel"), (f"{name}.conv.weight",), (width, into, kernel), axes=(2, 1, 0)
        )
        if cfg.conv_bias:
            yield Leaf(("front_end", f"conv_{i}", "bias"), (f"{name}.conv.bias",), (width,))
        if cfg.conv_norm == "layer" or i == 0:
            yield from _norm(("front_end", f"norm_{i}"), f"{name}.layer_norm", width)
        into = width


def _positions(cfg: WavLMConfig, tensors: Tensors) -> Iterator[Leaf]:
    name = "encoder.pos_conv_embed.conv"
    new = f"{name}.parametrizations.weight.original0" in tensors
    g, v = (
        ("parametrizations.weight.original0", "parametrizations.weight.original1") if new else ("weight_g", "weight_v")
    )
    taps, group = cfg.position_kernel, cfg.width // cfg.position_groups
    yield Leaf(("positions", "g"), (f"{name}.{g}",), (1, 1, taps), ours=(taps,))
    yield Leaf(("positions", "v"), (f"{name}.{v}",), (cfg.width, group, taps), axes=(2, 1, 0))
    yield Leaf(("positions", "bias"), (f"{name}.bias",), (cfg.width,))


def _block(cfg: WavLMConfig) -> Iterator[Leaf]:
    """One layer, names relative to it."""
    width, heads = cfg.width, cfg.num_heads
    dim = width // heads
    for ours, theirs in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj")):
        path, name = ("attention", ours), f"attention.{theirs}"
        yield Leaf((*path, "kernel"), (f"{name}.weight",), (width, width), axes=(1, 0), ours=(width, heads, dim))
        yield Leaf((*path, "bias"), (f"{name}.bias",), (width,), ours=(heads, dim))
    yield Leaf(
        ("attention", "out", "kernel"), ("attention.out_proj.weight",), (width, width), (1, 0), (heads, dim, width)
    )
    yield Leaf(("attention", "out", "bias"), ("attention.out_proj.bias",), (width,))
    gate = "attention.gru_rel_pos_linear"
    yield Leaf(("attention", "gate", "kernel"), (f"{gate}.weight",), (8, dim), axes=(1, 0), ours=(dim, 2, 4))
    yield Leaf(("attention", "gate", "bias"), (f"{gate}.bias",), (8,), ours=(2, 4))
    constant = "attention.gru_rel_pos_const"
    yield Leaf(("attention", "gate_constant"), (constant,), (1, heads, 1, 1), ours=(heads,))
    yield from _norm(("attention_norm",), "layer_norm", width)
    yield from _linear(("mlp", "in"), "feed_forward.intermediate_dense", cfg.hidden, width)
    yield from _linear(("mlp", "out"), "feed_forward.output_dense", width, cfg.hidden)
    yield from _norm(("mlp_norm",), "final_layer_norm", width)


def _linear(path: tuple[str, ...], name: str, out: int, into: int) -> Iterator[Leaf]:
    yield Leaf((*path, "kernel"), (f"{name}.weight",), (out, into), axes=(1, 0))
    yield Leaf((*path, "bias"), (f"{name}.bias",), (out,))


def _norm(path: tuple[str, ...], name: str, width: int) -> Iterator[Leaf]:
    yield Leaf((*path, "scale"), (f"{name}.weight",), (width,))
    yield Leaf((*path, "bias"), (f"{name}.bias",), (width,))
