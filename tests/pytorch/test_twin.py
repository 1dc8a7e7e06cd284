"""The PyTorch twin against upstream's golden sets and against our JAX model."""

import json
import math
import pathlib
import shutil
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn import functional as F

from codec_jax import pytorch
from codec_jax.convert.taae import from_torch
from codec_jax.models import taae
from codec_jax.ops import rope
from codec_jax.pytorch import attention, checkpoint, fsq
from codec_jax.pytorch.conv import WNConvTranspose1d
from tests import tiny_esc
from tests.parity.recipe import recipe_tensor

TOLERANCE = 1e-5


def relative(ours, theirs):
    ours, theirs = (np.asarray(x.detach() if isinstance(x, torch.Tensor) else x) for x in (ours, theirs))
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


# ---- golden sets -------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["A", "E"])
def case(request, golden):
    """The loaded model and the golden tensors of one set."""
    tensors = golden(f"taae/{request.param}/tensors.safetensors")
    return pytorch.load(golden.path(f"taae/{request.param}")), {k: torch.from_numpy(v) for k, v in tensors.items()}


def test_latents_tokens_and_audio(case):
    model, tensors = case
    with torch.no_grad():
        latents = model.latents(tensors["input"])
        assert relative(latents.mT, tensors["pre_bottleneck_latents"]) < TOLERANCE
        assert torch.equal(fsq.quantise(latents, model.config.levels).mT, tensors["fsq_codes"])
        assert relative(model.decode_latents(tensors["fsq_codes"].mT), tensors["decoded"]) < TOLERANCE
        assert relative(model(tensors["input"]), tensors["decoded"]) < TOLERANCE
    tokens = model.encode(tensors["input"])
    assert torch.equal(tokens[:, 0], tensors["fsq_indices"][..., 0])
    assert relative(model.decode(tokens), tensors["decoded_from_tokens"]) < TOLERANCE


@pytest.mark.parametrize("preset", fsq.PRESETS)
def test_posthoc_tokens_and_audio(case, preset):
    model, tensors = case
    tokens = model.encode(tensors["input"], preset)
    for stage in range(tokens.shape[1]):
        assert torch.equal(tokens[:, stage], tensors[f"posthoc/{preset}/tokens{stage}"][..., 0])
    assert relative(model.decode(tokens, preset), tensors[f"posthoc/{preset}/decoded"]) < TOLERANCE
    assert torch.equal(model.encode(tensors["input"], list(fsq.PRESETS[preset])), tokens)


@pytest.mark.parametrize("name", ["short", "ragged"])
def test_short_and_ragged_latents_decode(case, name):
    model, tensors = case
    tokens = fsq.encode(tensors[f"len/{name}/latents"].mT, model.config.levels)[:, None]
    assert relative(model.decode(tokens), tensors[f"len/{name}/decoded"]) < TOLERANCE


def test_every_module_of_upstream_has_its_activation(case):
    """Module names are upstream's, so a forward hook on NAME gives the golden `act/NAME`, axes included."""
    model, tensors = case
    found: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: found.update({name: out}))
        for name, module in model.named_modules()
    ]
    with torch.no_grad():
        model(tensors["input"])
    for hook in hooks:
        hook.remove()
    wanted = {name.removeprefix("act/"): value for name, value in tensors.items() if name.startswith("act/")}
    assert len(wanted) >= 40
    errors = {name: relative(found[name], value) for name, value in wanted.items()}
    assert max(errors.values()) < TOLERANCE, max(errors, key=errors.get)


@pytest.mark.parametrize("block", [None, 3])
@pytest.mark.parametrize("index", range(9))
def test_window_semantics_of_upstream(golden, index, block):
    meta = json.loads((golden.path("taae/attn") / "meta.json").read_text())[index]
    tensors = golden("taae/attn/tensors.safetensors")
    window = (meta["L"], 0 if meta["causal"] else meta["R"])
    q, k, v = (torch.from_numpy(tensors[f"{index}/{name}"]) for name in "qkv")
    ours = attention.banded_attention(q, k, v, window, block=block)
    np.testing.assert_allclose(ours, tensors[f"{index}/out"], atol=2e-6)


def test_state_dict_is_upstreams_name_by_name(golden):
    """All 969 keys, in upstream's order, parameters and buffers alike."""
    full = json.loads((golden.path("taae/full") / "state_dict_keys.json").read_text())
    with torch.device("meta"):
        model = pytorch.TAAE(full["config"])
    buffers = {name for name, _ in model.named_buffers()}
    ours = [[k, list(v.shape), "buffer" if k in buffers else "param"] for k, v in model.state_dict().items()]
    assert ours == [entry[:3] for entry in full["keys"]]
    assert len(ours) == 969
    assert sum(parameter.numel() for parameter in model.parameters()) == 953_319_756
    assert (model.sample_rate, model.hop_length, model.frame_rate) == (16_000, 640, 25.0)


# ---- our JAX model -----------------------------------------------------------------------------


def upstream_config(levels=5, audio_channels=1, patch_size=4, soft_clip=False, **fields):
    """model_config.json of a tiny model."""
    half = {"channels": 16, "c_mults": [1, 1], "strides": [1, 2], "latent_dim": 3, "transformer_depths": [1, 1]}
    half |= {"sliding_window": [3, 4], "use_snake": False, "conformer": False, "layer_scale": True}
    half |= {"use_dilated_conv": False, **fields}
    hop = patch_size * math.prod(half["strides"])
    return {
        "model_type": "autoencoder",
        "sample_rate": 16_000,
        "audio_channels": audio_channels,
        "model": {
            "encoder": {"type": "taae", "config": {**half, "in_channels": patch_size * audio_channels}},
            "decoder": {
                "type": "taae",
                "config": {**half, "out_channels": patch_size * audio_channels, "soft_clip": soft_clip},
            },
            "pretransform": {"type": "patched", "config": {"channels": audio_channels, "patch_size": patch_size}},
            "bottleneck": {"type": "dithered_fsq", "config": {"dim": 3, "levels": levels}},
            "latent_dim": 3,
            "downsampling_ratio": hop,
            "io_channels": audio_channels,
        },
    }


def recipe_weights(model, salt):
    rng = np.random.default_rng(0)

    def value(name, shape):
        if name.endswith((".alpha", ".beta")) and "norm" not in name:  # of a snake: the recipe has none
            return (0.3 * rng.normal(size=shape)).astype(np.float32)
        return recipe_tensor(name, shape, salt)

    return {name: value(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}


def build(config, dim_heads=8, salt="twin"):
    """The twin with recipe weights, and those weights as arrays."""
    with torch.device("meta"):
        model = pytorch.TAAE(config, dim_heads)
    weights = recipe_weights(model, salt)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()}, assign=True)
    return model.eval(), weights


CONFIGS = {
    "long, blocked": ({}, 4800),
    "stereo, odd strides, two widths, mixed levels, clipped": (
        {"levels": [5, 9, 4], "audio_channels": 2, "strides": [3, 5], "c_mults": [1, 2], "transformer_depths": [1, 2]}
        | {"soft_clip": True, "sliding_window": [2, -1]},
        4 * 15 * 9,
    ),
    "every switch": (
        {"use_snake": True, "conformer": True, "use_dilated_conv": True, "layer_scale": False, "strides": [2, 3]}
        | {"c_mults": [2, 1]},
        4 * 6 * 20,
    ),
    "dilated with ELU, a stage without a transformer, three stages": (
        {"use_dilated_conv": True, "strides": [1, 2, 1], "c_mults": [1, 1, 1], "transformer_depths": [0, 1, 2]},
        8 * 30,
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_twin_and_jax_agree(name):
    fields, samples = CONFIGS[name]
    config = upstream_config(**fields)
    twin, weights = build(config)
    cfg, variables, _ = from_torch(weights, config)
    variables = jax.tree.map(jnp.asarray, variables)
    rng = np.random.default_rng(1)
    audio = rng.normal(size=(2, cfg.model.audio_channels, samples)).astype(np.float32)

    latents = jax.jit(taae.analyse, static_argnums=0)(cfg, variables, jnp.asarray(audio).swapaxes(1, 2))
    ours = twin.latents(torch.from_numpy(audio))
    assert relative(ours, latents) < TOLERANCE
    codes = np.tanh(rng.normal(size=latents.shape)).astype(np.float32)
    want = jax.jit(taae.synthesise, static_argnums=0)(cfg, variables, jnp.asarray(codes)).swapaxes(1, 2)
    assert relative(twin.decode_latents(torch.from_numpy(codes)), want) < TOLERANCE

    for bottleneck in ("train", [((6, 6, 6), 1.0), ((3, 5, 4), 0.2)]):
        rate = taae.rate(cfg, bottleneck)
        tokens = twin.encode(torch.from_numpy(audio), bottleneck)
        np.testing.assert_array_equal(tokens, taae.quantise(latents, rate))


# ---- attention ---------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [(3, 5), (0, 0), (9, 0), (-1, 2), (2, -1), (63, 64)])
def test_blocked_equals_dense(window):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 37, 8, requires_grad=True)
    inv_freq = attention.inverse_frequencies(8)
    dense, blocked = (attention.banded_attention(q, k, v, window, inv_freq, block=block) for block in (37, 5))
    torch.testing.assert_close(dense, blocked, atol=3e-6, rtol=0)
    weight = torch.randn_like(dense)
    for a, b in zip(*(torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (dense, blocked))):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


def test_long_sequences_never_see_a_quadratic_mask(monkeypatch):
    shapes = []

    def spied(q, k, v, attn_mask):
        shapes.append(attn_mask.shape)
        return v[..., : q.shape[-2], :]

    monkeypatch.setattr(F, "scaled_dot_product_attention", spied)
    x = torch.zeros(1, 1, 5000, 8)
    assert attention.banded_attention(x, x, x, (63, 64)).shape == x.shape
    assert max(keys for _, keys in shapes) <= 256 + 127
    assert sum(queries for queries, _ in shapes) == 5000


@pytest.mark.parametrize("head_dim", [4, 8, 16, 32, 64, 128])
def test_inverse_frequencies_are_those_of_jax(head_dim):
    """Here bit for bit; torch's power may round the last bit otherwise on another processor."""
    ours, theirs = attention.inverse_frequencies(head_dim), rope.inverse_frequencies(head_dim)
    np.testing.assert_allclose(ours, theirs, rtol=1.3e-7)


def test_inverse_frequencies_are_upstreams(golden):
    for name in ("A", "E"):
        stored = {k: v for k, v in golden(f"taae/{name}/model.safetensors").items() if k.endswith("inv_freq")}
        assert stored
        for value in stored.values():
            np.testing.assert_array_equal(attention.inverse_frequencies(4 * len(value)), value)


# ---- the model's own promises ------------------------------------------------------------------


@pytest.fixture
def tiny():
    return build(upstream_config())[0]


def test_shapes_padding_and_a_single_frame(tiny):
    hop = tiny.hop_length
    for samples, frames in ((0, 1), (1, 1), (hop, 1), (hop + 1, 2)):
        tokens = tiny.encode(torch.randn(3, samples))
        assert tokens.shape == (3, 1, frames)
        assert tiny.decode(tokens).shape == (3, 1, frames * hop)
        assert tiny.decode(tokens, length=samples).shape == (3, 1, samples)
    audio = torch.randn(2, 1, 3 * hop - 5)
    padded = F.pad(audio, (0, 5))
    assert torch.equal(tiny.latents(audio), tiny.latents(padded))
    assert torch.equal(tiny.latents(audio), tiny.latents(audio[:, 0]))
    assert tiny.encode(audio, [([5] * 3, 1.0), ([5] * 3, 0.25)]).shape == (2, 2, 3)
    for bad in (torch.zeros(8), torch.zeros(1, 2, 8)):
        with pytest.raises(ValueError, match="audio is"):
            tiny.latents(bad)
    with pytest.raises(ValueError, match="tokens are"):
        tiny.decode(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="6 dimensions"):
        tiny.encode(audio, "1x46656_400bps")


def test_gradients_reach_every_parameter_and_the_input(tiny):
    audio = torch.randn(2, 1, 20 * tiny.hop_length, requires_grad=True)
    tiny(audio).square().mean().backward()
    assert audio.grad.abs().max() > 0
    for name, parameter in tiny.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    tokens = tiny.encode(audio)
    assert not tiny.decode(tokens).requires_grad


def test_initialisation_is_pytorchs():
    model = pytorch.TAAE(upstream_config(layer_scale=True, use_snake=True))
    conv, block = model.encoder.layers[0], model.encoder.layers[1].layers[2][1]
    torch.testing.assert_close(conv.weight, conv.weight_v)  # g = |v|
    assert 0.8 / np.sqrt(28) < conv.weight_v.abs().max() <= 1 / np.sqrt(28)
    assert (block.ff_scale.scale == 1e-5).all()
    assert not model.encoder.layers[3].alpha.any()
    assert block.self_attn.head_dim == 16  # min(128, width)
    block = pytorch.TAAE(upstream_config(layer_scale=False, dim_heads=4)).encoder.layers[1].layers[2][1]
    assert not any(p.any() for p in (block.self_attn.to_out.weight, *block.ff.ff[2].parameters()))
    assert block.self_attn.head_dim == 4
    assert block.state_dict().keys().isdisjoint({"ff_scale.scale", "self_attn_scale.scale"})


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_transposed_convolution_keeps_the_length(stride):
    module = WNConvTranspose1d(3, 5, stride)
    x = torch.randn(1, 3, 6)
    padding = -(-stride // 2)
    short = F.conv_transpose1d(x, module.weight, module.bias, stride, padding)  # upstream's, which loses a sample
    ours = module(x)
    assert ours.shape == (1, 5, 6 * stride)
    torch.testing.assert_close(ours[..., : short.shape[-1]], short)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"strides": [2]}, "one entry per stage"),
        ({"channels": 12, "dim_heads": 8}, "multiple"),
        ({"sliding_window": [-2, 3]}, "sliding_window"),
        ({"sliding_window": None}, "structure"),
        ({"c_mults": [1, 2], "strides": [2, 1]}, "stride 1"),
        ({"levels": [5, 5]}, "latent"),
        ({"levels": 1}, "at least 2"),
        ({"causal": True}, "sets causal"),
    ],
)
def test_impossible_configs(fields, match):
    with pytest.raises(ValueError, match=match):
        pytorch.TAAE(upstream_config(**fields))


def test_foreign_configs():
    config = upstream_config()
    config["model"]["bottleneck"]["type"] = "vae"
    with pytest.raises(ValueError, match="another model"):
        pytorch.TAAE(config)
    for broken, match in (({"model": {}}, "'encoder'"), ({"model": 3}, "structure")):
        with pytest.raises(ValueError, match=match):
            pytorch.TAAE(broken)


# ---- files -------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path, tiny):
    """An upstream directory without weights."""
    (tmp_path / "model_config.json").write_text(json.dumps(upstream_config()))
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_safetensors_of_every_float(directory, tiny, dtype):
    state = {name: tensor.to(dtype) for name, tensor in tiny.state_dict().items()}
    safetensors.torch.save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    model = pytorch.load(directory)
    assert not model.training
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state[name].float())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_weights_are_mapped_and_the_file_is_left_alone(directory, tiny):
    path = directory / "model.safetensors"
    safetensors.torch.save_file(tiny.state_dict(), path)
    path.chmod(0o444)
    before = path.read_bytes()
    model = pytorch.load(directory)
    first, *rest = model.state_dict().values()
    assert {tensor.untyped_storage().data_ptr() for tensor in rest} == {first.untyped_storage().data_ptr()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert path.read_bytes() == before


def test_a_header_that_leaves_data_unaligned(tmp_path):
    data = np.arange(6, dtype=np.float32)
    header = json.dumps({"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    header += b" " * (-len(header) % 4 + 1)
    (tmp_path / "odd").write_bytes(struct.pack("<Q", len(header)) + header + data.tobytes())
    np.testing.assert_array_equal(checkpoint.read_safetensors(tmp_path / "odd")["x"], data.reshape(2, 3))


def test_checkpoint_files(directory, tiny):
    torch.save({"state_dict": tiny.state_dict(), "step": 3}, directory / "model.ckpt")
    model = pytorch.load(directory)
    audio = torch.randn(1, 40)
    assert torch.equal(model.encode(audio), tiny.encode(audio))
    torch.save([1], directory / "model.ckpt")
    with pytest.raises(ValueError, match="no state_dict"):
        pytorch.load(directory)
    (directory / "model.ckpt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="plain tensors"):
        pytorch.load(directory)


def test_the_head_dim_comes_from_the_widest_query_norm(directory):
    config = upstream_config(channels=4, c_mults=[1, 4], strides=[2, 2])
    model, _ = build(config, dim_heads=8)  # 4 in the first stage, 8 in the second
    (directory / "model_config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(model.state_dict(), directory / "model.safetensors")
    audio = torch.randn(1, 64)
    assert torch.equal(pytorch.load(directory).latents(audio), model.latents(audio))


def test_weights_that_do_not_fit_are_named(directory, tiny):
    name = "encoder.layers.1.layers.2.1.ff.ff.2.weight"
    state = tiny.state_dict()
    for changed, match in (
        ({key: value for key, value in state.items() if key != name}, f"no tensor {name}"),
        ({**state, name: state[name][:, 1:].contiguous()}, rf"{name} has the shape \[16, 63\].*\[16, 64\]"),
        ({**state, "more": torch.zeros(1)}, "a tensor more"),
        ({**state, name: state[name].int()}, f"{name} is torch.int32"),
    ):
        safetensors.torch.save_file(changed, directory / "model.safetensors")
        with pytest.raises(ValueError, match=match):
            pytorch.load(directory)


def test_missing_and_broken_files(directory, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no model_config"):
        pytorch.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"neither model.safetensors nor model\.ckpt"):
        pytorch.load(directory)
    entry = json.dumps({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    for content, match in (
        (b"", "cut short"),
        (struct.pack("<Q", 10**12), "cut short"),
        (struct.pack("<Q", 2) + b"{]", "no JSON"),
        (struct.pack("<Q", len(entry)) + entry + b"1234", "outside its file"),
    ):
        (directory / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=match):
            pytorch.load(directory)
    (directory / "model_config.json").write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        pytorch.load(directory)


# ---- torch and the standard library alone ------------------------------------------------------

ALONE = """
import sys, warnings
warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
for name in ("jax", "jaxlib", "flax", "numpy", "scipy", "safetensors", "ml_collections", "etils", "soundfile", "librosa",
             "yaml"):
    sys.modules[name] = None
import importlib, json, torch
torch.set_num_threads(1)
package = importlib.import_module(sys.argv[1])
taae, esc = json.loads(sys.argv[2])
model, audio = package.TAAE(taae), torch.zeros(1, 1, 24)
assert model.decode(model.encode(audio)).shape == (1, 1, 24)
model, audio = package.ESC(esc), torch.zeros(1, 1, 224)
assert model.decode(model.encode(audio)).shape == (1, 1, 224)
top = sys.argv[1].split(".")[0]
others = {name for name in sys.modules if name.split(".")[0] == top and not name.startswith(sys.argv[1])}
assert others <= {top}, others
"""


@pytest.mark.parametrize("copied", [False, True])
def test_it_imports_nothing_but_torch(tmp_path, copied):
    """As codec_jax.pytorch, and as a folder that was copied elsewhere."""
    folder = pathlib.Path(pytorch.__file__).parent
    name, root = "codec_jax.pytorch", folder.parents[1]
    if copied:
        name, root = "twin", tmp_path
        shutil.copytree(folder, tmp_path / "twin", ignore=shutil.ignore_patterns("__pycache__"))
    configs = [upstream_config(), tiny_esc.upstream()[0]]
    command = [sys.executable, "-c", ALONE, name, json.dumps(configs)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
