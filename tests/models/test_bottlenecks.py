"""TAAE's kinds of bottleneck: what they compute, cost and refuse."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codec_jax import experiment
from codec_jax.errors import UserError
from codec_jax.experiment import MeshConfig, StageConfig
from codec_jax.models import bottlenecks, taae
from codec_jax.models.bottlenecks import BottleneckConfig
from codec_jax.models.protocol import Keys, Rate, spread
from codec_jax.quantizers import residual_fsq
from codec_jax.train import sharding
from tests import tiny
from tests.models.test_flops import compiled_flops

RVQ = BottleneckConfig("residual_vq", num_codebooks=3, codebook_size=16, codebook_dim=4, codebook_dropout=0.5)
SCALABLE = BottleneckConfig(levels=(5,) * 3, num_codebooks=2, codebook_dropout=0.5)
NONE = BottleneckConfig("none")
ALL = {"fsq": tiny.CONFIG.bottleneck, "residual_vq": RVQ, "scalable": SCALABLE, "none": NONE}


def taae_config(bottleneck):
    return taae.Config(tiny.MODEL, bottleneck)


def latents_of(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def params_of(bottleneck, latent_dim=3):
    return nn.unbox(bottlenecks.init(bottleneck, latent_dim, jax.random.key(0)))


@pytest.mark.parametrize("kind", ALL)
def test_a_batch_in_parts_is_the_batch(kind):
    """Every clip draws from its own key; losses are means over clips."""
    cfg, params, latents = ALL[kind], params_of(ALL[kind]), latents_of(8, 5, 3)
    keys = spread(jax.random.key(1), jnp.arange(8))
    whole = bottlenecks.train(cfg, params, latents, keys)
    parts = [bottlenecks.train(cfg, params, latents[i::2], Keys(keys.step, keys.clips[i::2])) for i in (0, 1)]
    for i, part in enumerate(parts):
        np.testing.assert_allclose(part.latents, whole.latents[i::2], atol=1e-6)
        np.testing.assert_array_equal(part.codes, whole.codes[i::2])
    for name, loss in whole.losses.items():
        np.testing.assert_allclose(loss, (parts[0].losses[name] + parts[1].losses[name]) / 2, rtol=1e-5)


def test_clips_of_one_batch_keep_different_numbers_of_codebooks():
    """Dropped codebooks leave the sum of those before them; codes are of all."""
    params, latents = params_of(RVQ), latents_of(64, 5, 3)
    out = bottlenecks.train(RVQ, params, latents, spread(jax.random.key(1), jnp.arange(64)))
    partial = [
        bottlenecks.decode(RVQ, params, 3, np.asarray(out.codes[:, :n]), Rate(f"{n}streams", (n,))) for n in (1, 2, 3)
    ]
    same = np.stack([np.abs(np.asarray(out.latents - p)).max((1, 2)) < 1e-4 for p in partial])
    np.testing.assert_array_equal(same.sum(0), 1)
    counts = same.sum(1)  # a half keeps all, and a third of the rest
    assert counts.min() >= 4
    assert counts[2] > 32
    undropped = dataclasses.replace(RVQ, codebook_dropout=0.0)
    out = bottlenecks.train(undropped, params, latents, spread(jax.random.key(1), jnp.arange(64)))
    np.testing.assert_allclose(out.latents, partial[2], atol=1e-4)


@pytest.mark.parametrize("kind", ALL)
def test_tokens_are_what_the_decoder_is_trained_with(kind):
    cfg, params, latents = ALL[kind], params_of(ALL[kind]), latents_of(2, 40, 3)
    passed = bottlenecks.infer(cfg, params, latents)
    if kind == "none":
        np.testing.assert_array_equal(passed.latents, jnp.tanh(latents))
        assert passed.codes.shape == (2, 0, 40)
        return
    rate = bottlenecks.rate(cfg, 3)
    tokens = bottlenecks.encode(cfg, params, latents, rate)
    np.testing.assert_array_equal(tokens, passed.codes)
    np.testing.assert_allclose(bottlenecks.decode(cfg, params, 3, tokens, rate), passed.latents, atol=1e-5)
    left_open = bottlenecks.unquantised(cfg, params, latents)
    np.testing.assert_array_equal(left_open.latents, latents if kind == "residual_vq" else jnp.tanh(latents))
    assert not any(np.asarray(loss).any() for loss in left_open.losses.values())


def test_scalable_tokens_are_the_presets():
    cfg, latents = BottleneckConfig(levels=(5,) * 6, num_codebooks=2), latents_of(3, 50, 6)
    tokens = bottlenecks.encode(cfg, {}, latents, bottlenecks.rate(cfg, 6))
    np.testing.assert_array_equal(tokens, residual_fsq.encode(latents, residual_fsq.PRESETS["2x15625_700bps"]))
    first = bottlenecks.encode(cfg, {}, latents, bottlenecks.rate(cfg, 6, None, 1))
    np.testing.assert_array_equal(first, tokens[:, :1])
    assert bottlenecks.codebook_sizes(cfg, bottlenecks.rate(cfg, 6)) == (15625, 15625)


def test_usage_counts_every_latent():
    latents = latents_of(2, 40, 3)
    for kind, shape in (("fsq", (3, 5)), ("residual_vq", (3, 16)), ("scalable", (6, 5)), ("none", (0, 1))):
        cfg, params = ALL[kind], params_of(ALL[kind])
        counts = np.asarray(bottlenecks.usage(cfg, latents, bottlenecks.infer(cfg, params, latents).codes))
        assert counts.shape == shape
        np.testing.assert_array_equal(counts.sum(1), 80)


# ---- parameters --------------------------------------------------------------------------------


def test_other_parameters_are_the_same_whatever_the_kind():
    ours, theirs = (nn.unbox(taae.init(taae_config(b), jax.random.key(0)))["params"] for b in (RVQ, ALL["fsq"]))
    shapes = {name: leaf.shape for name, leaf in ours.pop("bottleneck").items()}
    assert shapes == {"down": (3, 3, 4), "codebook": (3, 16, 4), "up": (3, 4, 3)}
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    for kind in ("scalable", "none"):
        assert "bottleneck" not in jax.eval_shape(lambda k=kind: taae.init(taae_config(ALL[k]), jax.random.key(0)))


def test_projections_are_cut_over_fsdp():
    cfg = taae.Config(tiny.changed(tiny.MODEL, latent_dim=8), RVQ)
    mesh = sharding.make_mesh(MeshConfig(1, 4, 2))
    boxed = jax.eval_shape(lambda: taae.init(cfg, jax.random.key(0)))["params"]["bottleneck"]
    specs = {name: tuple(where.spec) for name, where in sharding.shardings(boxed, mesh).items()}
    assert specs == {"down": (None, "fsdp", None), "codebook": (None, None, None), "up": (None, None, "fsdp")}


def test_flops_of_the_codebooks():
    cfg = BottleneckConfig("residual_vq", num_codebooks=2, codebook_size=256, codebook_dim=128)
    model = tiny.changed(tiny.MODEL, latent_dim=128)
    found = taae.flops(taae.Config(model, cfg), 100 * model.hop_length)
    order = [name.split("/")[0] for name in found]
    assert order == sorted(order, key=["encoder", "bottleneck", "decoder"].index)
    ours = sum(count for name, count in found.items() if name.startswith("bottleneck/"))
    params = jax.eval_shape(lambda: params_of(cfg, 128))
    latents = jax.ShapeDtypeStruct((1, 100, 128), jnp.float32)
    theirs = compiled_flops(lambda p, x: bottlenecks.infer(cfg, p, x).latents, params, latents)
    assert ours == pytest.approx(theirs, rel=0.05)  # norms and distances are small beside the products


# ---- configs and refusals ----------------------------------------------------------------------


def test_configs_older_than_the_kinds_load():
    data = experiment.to_dict(tiny.experiment())
    data["bottleneck"] = {name: data["bottleneck"][name] for name in ("levels", "train_levels", "noise_dropout")}
    assert experiment.from_dict(data) == tiny.experiment()
    assert experiment.codec_from_dict(data) == ("taae", tiny.experiment().codec)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"kind": "vq"}, 'one of fsq, residual_vq, none, not "vq"'),
        ({"kind": "residual_vq", "num_codebooks": 0}, "num_codebooks is at least 1"),
        ({"kind": "residual_vq", "codebook_dim": 0}, "codebook_dim is at least 1"),
        ({"kind": "residual_vq", "codebook_size": 1}, "codebook_size is at least 2"),
        ({"kind": "residual_vq", "num_codebooks": 2, "codebook_dropout": 1.5}, "codebook_dropout is a probability"),
        ({"kind": "residual_vq", "codebook_dropout": 0.5}, "needs several codebooks"),
        ({"codebook_dropout": 0.5}, "needs several codebooks"),
        ({"num_codebooks": 2, "levels": (5, 5, 3)}, "equal in all dimensions"),
        ({"num_codebooks": 2, "levels": (2, 2, 2)}, "3 or more"),
        ({"num_codebooks": 2, "train_levels": ((3,) * 3,)}, "train_levels must be empty"),
        ({"num_codebooks": 9, "levels": (9,) * 3}, "finer than float32"),
    ],
)
def test_contradictions_are_one_sentence(fields, match):
    with pytest.raises(UserError, match=match) as error:
        taae_config(BottleneckConfig(**{"levels": (5,) * 3, **fields})).validate()
    assert "\n" not in str(error.value)


def test_one_flag_changes_the_kind():
    """What the other kinds need is left alone, whatever it is."""
    for variant in ("nano", "small"):
        for kind in ("residual_vq", "none", "fsq"):
            config = experiment.load_config(f"configs/taae.py:{variant}", [f"--config.bottleneck.kind={kind}"])
            assert config.bottleneck.kind == kind
    for bottleneck in (RVQ, NONE):  # the default levels are of six dimensions, and these latents of three
        taae_config(bottleneck).validate()


def test_the_ablations_spend_the_same_bits():
    names = ("fsq", "fsq-sampled", "rvq", "scalable")
    for name in names:
        config = experiment.load_config(f"configs/taae.py:ablation-{name}")
        assert experiment.from_dict(experiment.to_dict(config)) == config
        sizes = taae.codebook_sizes(config.codec, taae.rate(config.codec))
        assert sum(map(np.log2, sizes)) == 24
        base = experiment.load_config("configs/taae.py:nano")
        model = dataclasses.replace(config.model, latent_dim=base.model.latent_dim)
        back = dataclasses.replace(config, model=model, bottleneck=base.bottleneck)
        if name == "rvq":  # weights of terms that no other kind has
            assert config.losses == dataclasses.replace(base.losses, commitment=10.0, codebook=10.0)
            back = dataclasses.replace(back, losses=base.losses)
        assert back == base
    none = experiment.load_config("configs/taae.py:ablation-none")
    assert not taae.has_tokens(none.codec)


def test_rates_by_kind():
    names = {kind: list(bottlenecks.rates(cfg, 3)) for kind, cfg in ALL.items()}
    assert names == {
        "fsq": ["train"],
        "residual_vq": ["num_streams=1", "num_streams=2", "num_streams=3"],
        "scalable": ["num_streams=1", "num_streams=2"],
        "none": [],
    }
    presets = set(residual_fsq.PRESETS)
    assert presets == set(bottlenecks.rates(NONE, 6)) == set(bottlenecks.rates(BottleneckConfig(), 6)) - {"train"}


@pytest.mark.parametrize(
    ("kind", "bottleneck", "num_streams", "match"),
    [
        ("fsq", None, 1, "several codebooks, which this is not"),
        ("none", None, 1, "several codebooks, which this is not"),
        ("none", None, None, "a codec without bottleneck has no tokens"),
        ("none", "train", None, "a codec without bottleneck has no tokens"),
        ("none", "1x46656_400bps", None, "6 dimensions"),
        ("residual_vq", tiny.STAGES, None, "not bounded"),
        ("residual_vq", None, 4, "1 to 3 codebooks"),
        ("scalable", None, 0, "1 to 2 codebooks"),
        ("scalable", tiny.STAGES, 1, "not both"),
    ],
)
def test_rates_that_are_not_there(kind, bottleneck, num_streams, match):
    with pytest.raises(UserError, match=match):
        taae.rate(taae_config(ALL[kind]), bottleneck, num_streams)


def test_codebooks_are_tended_where_there_are_some():
    base = dataclasses.replace(tiny.experiment(), stages={"only": StageConfig(kmeans=2, revive_after=3)})
    dataclasses.replace(base, bottleneck=RVQ).validate()
    for kind in ("fsq", "scalable", "none"):
        with pytest.raises(UserError, match="need a codec with codebooks: this taae has none"):
            dataclasses.replace(base, bottleneck=ALL[kind]).validate()
