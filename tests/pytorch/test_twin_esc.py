"""The PyTorch twin of ESC against upstream's golden sets and against our JAX model."""

import copy
import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from codec_jax import pytorch
from codec_jax.models import esc
from codec_jax.models.esc_network import Network
from codec_jax.pytorch import swin, vq
from codec_jax.storage import Extras
from tests import tiny_esc
from tests.parity import esc_boundaries
from tests.pytorch.test_twin import relative

TOLERANCE = 1e-5
MARGIN = 1e-5  # below it roundoff may choose another codeword
SETS = ("A", "A_csvq_conv", "A_rvq_swinT", "A_rvq_conv")


# ---- golden sets -------------------------------------------------------------------------------


class Case:
    """One golden set, and the twin of it."""

    def __init__(self, golden, name):
        self.directory = golden.path(f"esc/{name}")
        self.meta = json.loads((self.directory / "meta.json").read_text())
        self.tensors = {k: torch.from_numpy(v) for k, v in golden(f"esc/{name}/golden.safetensors").items()}
        self.model = pytorch.load(self.directory)


@pytest.fixture(scope="module", params=[*SETS, pytest.param("base", marks=pytest.mark.slow)])
def case(request, golden):
    return Case(golden, request.param)


def test_state_dict_is_upstreams_name_by_name(case):
    """In upstream's order, buffers included."""
    ours = {name: list(tensor.shape) for name, tensor in case.model.state_dict().items()}
    theirs = case.meta["params"]
    assert list(ours.items()) == [(name, entry["shape"]) for name, entry in theirs.items()]
    # The set holds 64-bit integers as 32-bit ones.
    for name, tensor in case.model.state_dict().items():
        assert str(tensor.dtype) == f"torch.{theirs[name]['dtype']}".replace("int32", "int64"), name
    assert sum(parameter.numel() for parameter in case.model.parameters()) == case.meta["n_params"]


def test_codes_and_audio_of_any_number_of_streams(case):
    model, codes = case.model, case.tensors["codes"].flatten(1, 2)
    for streams in range(1, model.config.num_streams + 1):
        first = codes[:, : streams * model.config.num_groups]
        assert torch.equal(model.encode(case.tensors["audio"], streams), first)
        audio = model.decode(first)[:, 0]
        assert relative(audio, case.tensors[f"recon_s{streams}"]) < TOLERANCE
    assert torch.equal(model.encode(case.tensors["audio"][:, None]), codes)
    with torch.no_grad():
        assert relative(model(case.tensors["audio"])[:, 0], case.tensors["recon_forward_full"]) < TOLERANCE


def test_every_module_of_upstream_has_its_activation(case):
    """Module names are upstream's; where upstream is [batch, token, channel] or channels-first, ours is a grid."""
    found = {}
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: found.update({name: getattr(out, "features", out)}))
        for name, module in case.model.named_modules()
    ]
    with torch.no_grad():
        case.model(case.tensors["audio"])
    for hook in hooks:
        hook.remove()
    for name, theirs in esc_boundaries.upstreams_names(case.tensors).items():
        ours = found[name]
        if theirs.ndim == 4 and "patch_deembed" not in name:
            ours = ours.permute(0, 3, 1, 2)
        assert relative(ours.reshape(theirs.shape), theirs) < TOLERANCE, name


def test_training_passes(case, golden):
    """Losses for every number of streams; codes, audio and running statistics of two of them."""
    recorded = golden(f"esc/{case.directory.name}/train.safetensors")
    names = {"commitment": "cm_loss", "codebook": "cb_loss", "spectrum": "stft_loss"}
    for run, theirs in case.meta["train"].items():
        model = copy.deepcopy(case.model).train()
        quantise = run != "freeze"
        with torch.no_grad():
            out = model.train_pass(case.tensors["audio"], int(run[1:]) if quantise else None, quantise)
        for ours, loss in names.items():
            np.testing.assert_allclose(out.losses[ours], np.mean(theirs[loss]), rtol=1e-5)
        if f"train.{run}.recon" in recorded:
            assert relative(out.audio[:, 0], recorded[f"train.{run}.recon"]) < TOLERANCE
            np.testing.assert_array_equal(out.codes, recorded[f"train.{run}.codes"].reshape(out.codes.shape))
            statistics = {k: v for k, v in recorded.items() if k.startswith(f"train.{run}.bn:")}
            for name, value in statistics.items():
                np.testing.assert_allclose(model.state_dict()[name.partition("bn:")[2]], value, atol=1e-6)


def test_the_directory_with_a_pickle(golden, tmp_path):
    """model.pth as upstream's trainer writes it, with a NumPy scalar."""
    source = golden.path("esc/A")
    for name in ("config.yaml", "model.pth"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    ours, theirs = pytorch.load(tmp_path).state_dict(), pytorch.load(source).state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


# ---- our JAX model -----------------------------------------------------------------------------


def twin_of(name):
    config, tensors = tiny_esc.upstream(name)
    twin = pytorch.ESC(config)
    twin.load_state_dict({key: torch.from_numpy(array) for key, array in tensors.items()}, strict=True)
    return twin.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_every_module_of_jax_has_its_activation(golden, name):
    """What docs/parity.md tabulates."""
    found = esc_boundaries.twin_errors(golden.path(f"esc/{name}"))
    assert len(found) > 70
    assert max(found.values()) < TOLERANCE, max(found, key=found.get)


def some_slow(*names):
    """All four ablations: compiling transformers takes long."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in names else name for name in tiny_esc.ABLATIONS]


@pytest.mark.parametrize("name", some_slow("rvq+transformer"))
def test_twin_and_jax_agree(name, monkeypatch):
    """A clip that neither fits whole frames nor whole windows; all codes where no margin is small, and audio."""
    cfg, variables, twin = tiny_esc.ABLATIONS[name], tiny_esc.variables(name), twin_of(name)
    margins = []
    nearest = vq.Codebook.nearest

    def watched(self, z):
        words = self.embedding.weight
        if self.l2norm:
            z, words = (torch.nn.functional.normalize(x, dim=-1) for x in (z, words))
        first, second = torch.cdist(z, words[None].expand(len(z), -1, -1)).square().topk(2, largest=False)[0].unbind(-1)
        margins.append((second - first).min().item())
        return nearest(self, z)

    monkeypatch.setattr(vq.Codebook, "nearest", watched)
    audio = tiny_esc.noise(2, 1500)
    padded = np.pad(audio, ((0, 0), (0, esc.padded_length(cfg, 1500) - 1500)))
    assert twin.padded_length(1500) == padded.shape[1]
    codes = esc.encode(cfg, variables, jnp.asarray(padded)[..., None], None, esc.rate(cfg))
    ours = twin.encode(torch.from_numpy(audio))
    assert min(margins) > MARGIN, "choose another seed"
    np.testing.assert_array_equal(ours, codes)
    for streams in (1, 3):
        few = codes[:, : 3 * streams]
        wave = esc.decode(cfg, variables, few, None, esc.rate(cfg, None, streams)).swapaxes(1, 2)
        assert relative(twin.decode(torch.from_numpy(np.array(few))), wave) < TOLERANCE


@pytest.mark.parametrize("name", some_slow("csvq+transformer", "rvq+transformer", "rvq+convolution"))
def test_gradients_are_those_of_jax(name):
    """Of commitment, codebook and a squared error, with two of three streams: straight through, cut where JAX cuts."""
    cfg, variables, twin = tiny_esc.ABLATIONS[name], tiny_esc.variables(name), twin_of(name).train()
    audio = tiny_esc.noise(2, 992)
    rest = {key: value for key, value in variables.items() if key != "params"}

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(cfg, params):
        def loss(params):
            target = esc.to_spectrum(cfg, jnp.asarray(audio)[..., None])
            network = functools.partial(Network(cfg).apply, {"params": params, **rest}, target, 2, train=True)
            out = network(mutable=["batch_stats"])[0] if rest else network()
            return jnp.square(out.spectrum - target).mean() + 0.25 * out.losses[0].mean() + out.losses[1].mean()

        return jax.grad(loss)(params)

    theirs = tiny_esc.convert.to_torch(cfg, {"params": gradient(cfg, variables["params"]), **rest}, Extras())
    target = twin._spectrum(torch.from_numpy(audio))
    found = {}
    hook = twin.decoder.patch_deembed.register_forward_hook(lambda _, __, y: found.update(y=y))
    out = twin.train_pass(torch.from_numpy(audio), 2)
    hook.remove()
    loss = (found["y"] - target).square().mean() + 0.25 * out.losses["commitment"] + out.losses["codebook"]
    loss.backward()
    whole = max(np.abs(np.asarray(array)).max() for array in theirs[1].values())
    for key, parameter in twin.named_parameters():
        if parameter.grad is not None:
            wanted = np.asarray(theirs[1][key])
            scale = max(np.abs(wanted).max(), 1e-3 * whole)  # some are zero in theory
            assert np.abs(parameter.grad.numpy() - wanted).max() < 1e-3 * scale, key


# ---- the model's own promises ------------------------------------------------------------------


@pytest.fixture
def twin():
    return twin_of("csvq+transformer")


def test_lengths_and_shapes(twin):
    for samples in (0, 1, 47, 48, 96, 97, 224):
        codes = twin.encode(torch.randn(3, 1, samples))
        frames = (twin.padded_length(samples) + 32) // 128
        assert codes.shape == (3, 9, frames)
        assert twin.encode(torch.randn(3, samples), 2).shape == (3, 6, frames)
        assert twin.decode(codes).shape == (3, 1, 128 * frames - 32)
        assert twin.decode(codes, length=samples).shape == (3, 1, samples)
    assert (twin.sample_rate, twin.hop_length, twin.frame_rate) == (16_000, 128, 125.0)
    assert not twin.decode(codes).requires_grad


def test_what_it_does_not_have_is_refused(twin):
    for audio in (torch.zeros(8), torch.zeros(1, 2, 8)):
        with pytest.raises(ValueError, match="audio is"):
            twin.encode(audio)
    for streams in (0, 4):
        with pytest.raises(ValueError, match="1 to 3 streams"):
            twin.encode(torch.zeros(1, 100), streams)
    for codes, match in (
        (torch.zeros(1, 2, 4, dtype=torch.long), r"\[batch, 3 to 9 by 3, frame\]"),
        (torch.zeros(1, 12, 4, dtype=torch.long), "by 3"),
        (torch.zeros(3, 4, dtype=torch.long), "by 3"),
        (torch.zeros(1, 3, 4), "integers"),
        (torch.full((1, 3, 4), 16), "0 to 15, not 16 to 16"),
    ):
        with pytest.raises(ValueError, match=match):
            twin.decode(codes)


def test_without_overlap():
    """Upstream's own encode and decode fail there."""
    cfg = esc.Config(tiny_esc.CONFIG.model, dataclasses.replace(tiny_esc.CONFIG.bottleneck, overlap=1))
    config = tiny_esc.convert.esc_config.write(cfg, {}, "twin")
    twin = pytorch.ESC(config)
    assert twin.decode(twin.encode(torch.randn(1, 500))).shape == (1, 1, twin.padded_length(500))


def test_coding_never_uses_batch_statistics():
    twin = twin_of("csvq+convolution")
    audio = torch.from_numpy(tiny_esc.noise(2, 500))
    codes, audio_out = twin.encode(audio), twin.decode(twin.encode(audio))
    twin.train()
    twin.encoder.blocks[0].eval()  # frozen by hand: stays so
    assert torch.equal(twin.encode(audio), codes)
    assert torch.equal(twin.decode(codes), audio_out)
    assert twin.training
    assert twin.decoder.blocks[0].training
    assert not twin.encoder.blocks[0].training
    assert not any(twin.state_dict()[name].any() for name in twin.state_dict() if name.endswith("tracked"))


def test_initialisation_is_upstreams(twin):
    fresh = pytorch.ESC(tiny_esc.upstream()[0])
    table = fresh.encoder.pre_nn.swint_blocks[0].attn.relative_position_bias_table
    assert 0.005 < table.std() < 0.04
    words = fresh.quantizers[0].vqs[0].embedding.weight
    assert 0.3 < words.std() / np.sqrt(2 / words.shape[1]) < 1.7
    assert fresh.state_dict().keys() == twin.state_dict().keys()


def test_masks_and_indices_are_those_of_jax():
    from codec_jax.nn import swin as ours

    labels = np.asarray(ours.region_labels(8, 12, 4, None)).reshape(-1, 16)
    mask = np.where(labels[:, :, None] != labels[:, None, :], -100, 0)
    np.testing.assert_array_equal(swin.shift_mask(8, 12, 4, torch.device("cpu")), mask)
    for window in (2, 3, 4):
        np.testing.assert_array_equal(swin.relative_position_index(window), ours.relative_position_index(window))
    x = torch.randn(2, 8, 12, 5)
    np.testing.assert_array_equal(
        swin.partition(x, 4), np.asarray(ours.partition(jnp.asarray(x.numpy()), 4)).reshape(-1, 16, 5)
    )
    assert torch.equal(swin.unpartition(swin.partition(x, 4), 2, 3, 4), x)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("in_freq", 50, "in_freq 50 is no multiple"),
        ("win_len", 50, "window of 800 samples"),
        ("swin_heads", [2], "2 entries"),
        ("swin_heads", [3, 4], "3 heads do not divide"),
        ("codebook_dims", [8], "1 codebook dimensions, but 3"),
        ("max_streams", 2, "codebook dimensions|max_streams"),
        ("kernel_size", [3, 2], "kernel_size"),
        ("h_dims", None, "structure"),
    ],
)
def test_impossible_configs(name, value, match):
    config = copy.deepcopy(tiny_esc.upstream()[0])
    config["model"][name] = value
    with pytest.raises(ValueError, match=match):
        pytorch.ESC(config)


def test_foreign_configs():
    for config, match in (({}, "model_name"), ({"model_name": "dac", "model": {}}, "another model")):
        with pytest.raises(ValueError, match=match):
            pytorch.ESC(config)


def test_the_tensors_know_the_dimensions_of_codewords(tmp_path):
    config, tensors = tiny_esc.upstream()
    config["model"]["codebook_dims"] = [32, 16, 8]
    tiny_esc.write_upstream(tmp_path / "esc", config, tensors)
    assert pytorch.load(tmp_path / "esc").config.codebook_dims == (6, 4, 4)


@pytest.mark.parametrize("text", ["a: [1, 2", "a: !!python/object:os.system x", "- 1", "just text"])
def test_what_is_no_config_is_refused(text, tmp_path):
    config, tensors = tiny_esc.upstream()
    tiny_esc.write_upstream(tmp_path / "esc", config, tensors)
    (tmp_path / "esc" / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match="config"):
        pytorch.load(tmp_path / "esc")
