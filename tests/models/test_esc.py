"""ESC as a family: lengths, rates, clips alone and in a batch, training forward, FLOPs, refusals."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codec_jax.errors import UserError
from codec_jax.models import esc
from codec_jax.models.protocol import spread
from codec_jax.quantizers import vq

MODEL = esc.ESCConfig(
    in_freq=48, win_length=80, stft_hop_length=32, h_dims=(8, 12, 16), num_heads=(2, 4), mlp_ratio=2.0
)
CONFIG = esc.Config(MODEL, esc.VQConfig(num_streams=3, codebook_size=16, codebook_dims=(6, 4, 4), stream_dropout=0.5))
CONV = dataclasses.replace(MODEL, backbone="convolution")
RVQ = dataclasses.replace(CONFIG.bottleneck, quantiser="rvq", codebook_dims=(6,))
ABLATIONS = {
    "csvq+transformer": CONFIG,
    "csvq+convolution": esc.Config(CONV, CONFIG.bottleneck),
    "rvq+transformer": esc.Config(MODEL, RVQ),
    "rvq+convolution": esc.Config(CONV, RVQ),
}
FIRST_FAST = ["csvq+transformer", *(pytest.param(name, marks=pytest.mark.slow) for name in list(ABLATIONS)[1:])]


def variables_of(cfg, seed=0):
    """Fresh, but with biases and norms that are not what they start as."""
    variables = nn.unbox(jax.jit(lambda key: esc.init(cfg, key))(jax.random.key(seed)))
    leaves, structure = jax.tree.flatten(variables["params"])
    rng = np.random.default_rng(seed)
    noisy = [np.asarray(leaf) + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    return {**variables, "params": jax.device_put(jax.tree.unflatten(structure, noisy))}


def noise(*shape, seed=0):
    return 0.3 * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return CONFIG, variables_of(CONFIG)


# ---- facts -------------------------------------------------------------------------------------


def test_lengths_and_geometry():
    cfg = esc.Config()
    assert esc.geometry(cfg) == (16_000, 1, 320, (41, 41), 2, False)
    lengths = {1: 240, 191: 240, 240: 240, 241: 560, 16_000: 16_240, 47_920: 47_920}
    assert {n: esc.padded_length(cfg, n) for n in lengths} == lengths
    for length in lengths.values():  # code frames, and every padded length is its own
        assert esc.padded_length(cfg, length) == length == 320 * -(-length // 320) - 80
    long_hop = dataclasses.replace(cfg.model, stft_hop_length=40, win_length=40)
    assert esc.padded_length(dataclasses.replace(cfg, model=long_hop), 1) == 280  # long enough to reflect 191


def test_rates():
    cfg = esc.Config()
    assert esc.rate(cfg) == esc.rate(cfg, "train", 6) == ("6streams", (6,))
    assert esc.codebook_sizes(cfg, esc.rate(cfg, None, 2)) == (1024,) * 6
    for streams in (0, 7):
        with pytest.raises(UserError, match="1 to 6 streams"):
            esc.rate(cfg, None, streams)
    with pytest.raises(UserError, match="num_streams"):
        esc.rate(cfg, "1x46656_400bps")


@pytest.mark.parametrize(
    ("part", "fields", "says"),
    [
        ("model", {"in_freq": 190}, "a multiple of 96"),
        ("model", {"num_heads": (3, 6, 12, 24)}, "5 entries"),
        ("model", {"num_heads": (3, 5, 12, 24, 24)}, "5, which does not divide a width of 72"),
        ("model", {"backbone": "mamba"}, "mamba"),
        ("model", {"win_length": 400}, "win_length is 400"),
        ("model", {"remat": "some"}, "remat"),
        ("model", {"dtype": "float16"}, "dtype"),
        ("model", {"patch_size": (3, 0)}, "positive"),
        ("model", {"h_dims": (45,), "num_heads": ()}, "two scales"),
        ("bottleneck", {"quantiser": "fsq"}, "fsq"),
        ("bottleneck", {"quantiser": "rvq"}, "needs 1"),
        ("bottleneck", {"codebook_dims": (8,) * 5}, "has 5 entries"),
        ("bottleneck", {"num_streams": 5, "codebook_dims": (8,) * 5}, "one per entry of model.h_dims"),
        ("bottleneck", {"stream_dropout": 1.5}, "probability"),
        ("bottleneck", {"codebook_size": 0}, "at least 1"),
    ],
)
def test_impossible_configs_are_refused(part, fields, says):
    cfg = esc.Config()
    cfg.validate()
    with pytest.raises(UserError, match=says):
        dataclasses.replace(cfg, **{part: dataclasses.replace(getattr(cfg, part), **fields)}).validate()


# ---- clips alone and in a batch ----------------------------------------------------------------


@pytest.mark.parametrize("name", FIRST_FAST)
def test_a_clip_alone_is_the_clip_in_a_batch(name):
    cfg = ABLATIONS[name]
    variables, rate = variables_of(cfg), esc.rate(cfg)
    frames = np.array([9, 1, 4])  # 18, 2, 8 columns in windows of 4
    length = esc.padded_length(cfg, cfg.hop_length * 9 - 32)
    batch = noise(3, length, 1, seed=1)  # what lies behind a clip is not even zero
    codes = esc.encode(cfg, variables, jnp.asarray(batch), jnp.asarray(frames), rate)
    audio = esc.decode(cfg, variables, codes, jnp.asarray(frames), rate)
    for clip, count in enumerate(frames):
        samples = cfg.hop_length * count - 32
        alone = esc.encode(cfg, variables, jnp.asarray(batch[clip : clip + 1, :samples]), None, rate)
        np.testing.assert_array_equal(codes[clip, :, :count], alone[0])
        wave = esc.decode(cfg, variables, alone, None, rate)
        assert wave.shape == (1, samples, 1)
        np.testing.assert_allclose(audio[clip, :samples], wave[0], atol=1e-5)
        assert not np.asarray(audio[clip, samples:]).any()


def test_fewer_streams_are_a_prefix(model):
    cfg, variables = model
    audio = jnp.asarray(noise(2, esc.padded_length(cfg, 900), 1))
    codes = esc.encode(cfg, variables, audio, None, esc.rate(cfg))
    assert codes.shape == (2, 9, 8)
    assert codes.dtype == np.int32
    two = esc.encode(cfg, variables, audio, None, esc.rate(cfg, None, 2))
    np.testing.assert_array_equal(two, codes[:, :6])
    assert esc.decode(cfg, variables, two, None, esc.rate(cfg, None, 2)).shape == audio.shape
    over = jnp.pad(audio, ((0, 0), (0, cfg.model.stft_hop_length), (0, 0)))  # a multiple of the hop
    np.testing.assert_array_equal(esc.encode(cfg, variables, over, None, esc.rate(cfg)), codes)
    with pytest.raises(ValueError, match="pad to padded_length"):
        esc.encode(cfg, variables, audio[:, :-1], None, esc.rate(cfg))


# ---- forward -----------------------------------------------------------------------------------


def forward(cfg, variables, audio, key=0, **flags):
    keys = spread(jax.random.key(key), jnp.arange(len(audio)))
    return jax.jit(lambda v, a: esc.forward(cfg, v, a, keys, **flags))(variables, audio)


def test_forward_is_encode_and_decode(model):
    cfg, variables = model
    audio = jnp.asarray(noise(2, esc.padded_length(cfg, 900) + 100, 1))  # what is over fits no frame
    out = forward(cfg, variables, audio, train=False)
    samples = esc.padded_length(cfg, 900)
    np.testing.assert_array_equal(out.target, audio[:, :samples])
    codes = esc.encode(cfg, variables, out.target, None, esc.rate(cfg))
    np.testing.assert_array_equal(out.codes, codes)
    np.testing.assert_allclose(out.audio, esc.decode(cfg, variables, codes, None, esc.rate(cfg)), atol=1e-5)
    assert out.latents.shape == (2, 8, 2 * 4 * 16)
    assert {name: value.shape for name, value in out.losses.items()} == dict.fromkeys(
        ("commitment", "codebook", "spectrum"), ()
    )
    usage = esc.usage(cfg, out)
    assert usage.shape == (9, 16)
    np.testing.assert_array_equal(usage.sum(1), 16)
    with pytest.raises(ValueError, match="shorter than one code frame"):
        esc.forward(cfg, variables, audio[:, :90], spread(jax.random.key(0), jnp.arange(2)), train=False)


def test_one_draw_of_streams_per_step(model):
    cfg, variables = model
    drawn = [int(vq.draw_streams(jax.random.key(i), 3, 0.5)) for i in range(200)]
    shares = np.bincount(drawn, minlength=4)[1:] / 200
    np.testing.assert_allclose(shares, [1 / 6, 1 / 6, 4 / 6], atol=0.1)
    assert all(int(vq.draw_streams(jax.random.key(i), 3, 0.0)) == 3 for i in range(5))
    audio = jnp.asarray(noise(2, esc.padded_length(cfg, 900), 1))
    evaluated = forward(cfg, variables, audio, train=False)
    step = jax.jit(lambda v, a, key: esc.forward(cfg, v, a, spread(key, jnp.arange(2)), train=True))
    seen = set()
    for i in range(12):
        key = jax.random.key(i)
        streams = int(vq.draw_streams(spread(key, jnp.arange(2)).step, 3, 0.5))
        commitment = float(step(variables, audio, key).losses["commitment"])
        assert (commitment < float(evaluated.losses["commitment"]) - 1e-6) == (streams < 3)
        seen.add(streams)
    assert seen == {1, 2, 3}


def test_continuous_forward_trains_no_codebook(model):
    cfg, variables = model
    audio = jnp.asarray(noise(2, esc.padded_length(cfg, 900), 1))
    keys = spread(jax.random.key(0), jnp.arange(2))

    def total(params):
        out = esc.forward(cfg, {"params": params}, audio, keys, train=True, quantise=False)
        return sum(out.losses.values()), out

    gradients, out = jax.jit(jax.grad(total, has_aux=True))(variables["params"])
    assert not float(out.losses["commitment"])
    assert not np.asarray(gradients["quantizer_0"]["codebook_0"]).any()
    assert np.abs(gradients["quantizer_0"]["down_0"]).max() > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_running_statistics_move_in_training_alone():
    cfg = ABLATIONS["csvq+convolution"]
    variables = variables_of(cfg)
    audio = jnp.asarray(noise(2, esc.padded_length(cfg, 900), 1))
    still = forward(cfg, variables, audio, train=False).variables
    moved = forward(cfg, variables, audio, train=True).variables
    changed = [
        [
            bool((a != b).any())
            for a, b in zip(jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(other["batch_stats"]))
        ]
        for other in (still, moved)
    ]
    assert not any(changed[0])
    assert all(changed[1])
    jax.tree.map(np.testing.assert_array_equal, moved["params"], variables["params"])


def test_silence_has_finite_gradients(model):
    cfg, variables = model
    keys = spread(jax.random.key(0), jnp.arange(1))
    audio = jnp.zeros((1, esc.padded_length(cfg, 900), 1))

    def total(params):
        return sum(esc.forward(cfg, {"params": params}, audio, keys, train=True).losses.values())

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(variables["params"])))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["csvq+transformer", "rvq+convolution"])
def test_bfloat16_is_near(name):
    cfg = ABLATIONS[name]
    variables, audio = variables_of(cfg), jnp.asarray(noise(2, esc.padded_length(cfg, 900), 1))
    half = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, dtype="bfloat16"))
    whole = forward(cfg, variables, audio, train=True, quantise=False)
    near = forward(half, variables, audio, train=True, quantise=False)
    assert near.audio.dtype == jnp.float32
    assert np.abs(near.audio - whole.audio).max() < 0.1 * np.abs(whole.audio).max()


# ---- FLOPs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ABLATIONS)
def test_flops_are_the_compilers(name):
    cfg = ABLATIONS[name]
    wide = dataclasses.replace(cfg.model, h_dims=(384, 384, 384), num_heads=(8, 8), mlp_ratio=4.0)
    sizes = {"codebook_size": 128, "codebook_dims": (16,) * len(cfg.bottleneck.codebook_dims)}
    cfg = dataclasses.replace(cfg, model=wide, bottleneck=dataclasses.replace(cfg.bottleneck, **sizes))
    samples = esc.padded_length(cfg, 1200)  # 10 code frames: 20 columns, and 16, 8, 4 rows
    variables = jax.eval_shape(lambda: nn.unbox(esc.init(cfg, jax.random.key(0))))
    keys = jax.eval_shape(lambda: spread(jax.random.key(0), jnp.arange(1)))
    run = jax.jit(lambda v, a, keys: esc.forward(cfg, v, a, keys, train=False).audio)
    audio = jax.ShapeDtypeStruct((1, samples, 1), jnp.float32)
    counted = run.lower(variables, audio, keys).compile().cost_analysis()["flops"]
    assert sum(esc.flops(cfg, samples).values()) == pytest.approx(counted, rel=0.02)


def test_flops_of_the_published_size():
    """In the order of execution, and two of them by hand: 204 STFT frames are 102 columns."""
    counts = esc.flops(esc.Config(), 16_240)
    assert next(iter(counts)) == "stft"
    assert list(counts)[-1] == "istft"
    assert counts["encoder/patch_embed"] == 2 * 64 * 102 * 12 * 45
    assert counts["encoder/stage_4/resample"] == 2 * 4 * 102 * 192 * 384
