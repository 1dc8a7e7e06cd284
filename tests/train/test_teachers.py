"""WavLM in the step: found on disk, listened to, trained under, on any mesh; in no checkpoint. And `init_from`."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import WavLMConfig as TheirConfig
from transformers import WavLMModel

from codec_jax import checkpoint
from codec_jax.codec import Codec
from codec_jax.convert import wavlm as convert
from codec_jax.errors import UserError
from codec_jax.experiment import LossConfig, MeshConfig, PerceptualConfig, StageConfig, from_dict, to_dict
from codec_jax.models.taae import BottleneckConfig
from codec_jax.train import cost, loop, plan, sharding, stages, step, teachers
from codec_jax.train.state import CODEC
from tests import tiny, tiny_esc

LISTENER = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "conv_dim": (8, 8), "conv_kernel": (10, 4), "conv_stride": (5, 4), "num_buckets": 8, "max_bucket_distance": 8,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer", "do_stable_layer_norm": True,
}  # fmt: skip
LAYERS = (-1, 1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """As Hugging Face stores one."""
    torch.manual_seed(0)
    model = WavLMModel(TheirConfig(**LISTENER))
    directory = tmp_path_factory.mktemp("wavlm")
    (directory / "config.json").write_text(json.dumps(model.config.to_dict()))
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, directory / "model.safetensors"
    )
    return directory


def listening(weights, layers=LAYERS, **training):
    base = tiny.experiment(**training)
    model = convert.read_config(json.loads((weights / "config.json").read_text()))
    return dataclasses.replace(
        base,
        losses=LossConfig(l1=0.0, l2=1.0, stft=0.0, perceptual=1.0),
        perceptual=PerceptualConfig(str(weights), model, layers),
    )


def one_step(config, mesh_sizes, clips):
    """Loss, gradients and terms of one step on a mesh."""
    mesh = sharding.make_mesh(MeshConfig(*mesh_sizes), jax.devices()[: int(np.prod(mesh_sizes))])
    (stage,) = stages.resolve(config)
    abstract = step.abstract_state(config, stage, mesh)
    state, frozen = step.init_state(config, stage, abstract), teachers.load(config, stage, mesh)
    where = {CODEC: jax.tree.map(lambda leaf: leaf.sharding, abstract.players[CODEC].params)}
    batch = {"audio": clips, "place": np.arange(len(clips), dtype=np.int32)}
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))

    def run(state, batch, frozen):
        found = step.accumulated(config, stage, (CODEC,), state, batch, frozen)
        return found.grads, found.metrics

    with step.on_mesh(mesh):
        found = jax.jit(run, out_shardings=(where, None))(state, batch, frozen)
    return jax.tree.map(np.asarray, found)


def clips(config):
    return 0.1 * np.random.default_rng(0).standard_normal((8, 1, config.crop_samples)).astype(np.float32)


@pytest.mark.slow
def test_on_meshes(weights):
    config = listening(weights)
    wanted, *found = (one_step(config, mesh, clips(config)) for mesh in ((1, 1, 1), (1, 8, 1), (2, 2, 2)))
    for grads, metrics in found:
        np.testing.assert_allclose(metrics["perceptual"], wanted[1]["perceptual"], rtol=1e-5)
        floor = 1e-6 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted[0]))
        for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted[0])):
            np.testing.assert_allclose(ours, theirs, atol=max(floor, 1e-5 * np.abs(theirs).max()), rtol=0)


def training(weights, corpus, **rhythm):
    config = listening(weights, eval_every=4, checkpoint_every=2, log_every=1, **{"steps": 4, **rhythm})
    return tiny.changed(
        config,
        data=tiny.changed(config.data, train=f"{corpus}/train", valid=f"{corpus}/valid"),
        optim=tiny.changed(config.optim, schedule="constant", warmup_steps=1),  # the same for two steps and four
    )


@pytest.fixture(scope="module")
def trained(weights, corpus, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("listening") / "run"
    loop.run(training(weights, corpus), workdir)
    return workdir


def players(workdir):
    return checkpoint.restore_subtree(workdir / "checkpoints", ("players",))[0]


def test_it_is_heard_and_in_no_checkpoint(trained):
    rows = [json.loads(row) for row in (trained / "metrics.jsonl").read_text().splitlines()]
    heard = [row["train/perceptual"] for row in rows if "train/loss" in row]
    assert len(heard) == 4
    assert min(heard) > 0
    assert players(trained).keys() == {CODEC}


def test_stopped_and_resumed_equals_uninterrupted(weights, corpus, trained, tmp_path):
    for steps in (2, 4):
        loop.run(training(weights, corpus, steps=steps), tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, players(tmp_path / "run"), players(trained))


def test_a_run_begins_with_another_ones_average(weights, corpus, trained, tmp_path):
    going_on = dataclasses.replace(training(weights, corpus), init_from=str(trained))
    said = []
    mesh = sharding.make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    checkpoints = checkpoint.Checkpoints(tmp_path / "none", keep=1)
    state, _ = loop.start(going_on, mesh, checkpoints, None, said.append)
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, state.players[CODEC].params, players(trained)[CODEC]["ema"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.players[CODEC].opt_state))
    assert said == [f"from {trained} (ema weights): codec; fresh: moments, step count"]


def test_only_what_is_heard_is_loaded(weights):
    mesh = sharding.make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    for layers, parts in (((-1,), {"front_end"}), ((0,), {"front_end", "projection", "projection_norm", "positions"})):
        config = listening(weights, layers)
        found = teachers.load(config, stages.resolve(config)[0], mesh)
        assert found["wavlm"]["params"].keys() == parts
    silent = dataclasses.replace(config, losses=LossConfig())
    assert teachers.load(silent, stages.resolve(silent)[0], mesh) == {}


def test_half_precision_weights(weights):
    config = listening(weights)
    model = dataclasses.replace(config.perceptual.model, dtype="bfloat16")
    config = dataclasses.replace(config, perceptual=dataclasses.replace(config.perceptual, model=model))
    mesh = sharding.make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    found = teachers.load(config, stages.resolve(config)[0], mesh)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("bfloat16")}


def test_its_part_of_a_plan(weights):
    """Parameters and bytes per device, of 8; the step is lowered without the weights."""
    config, mesh = listening(weights), sharding.make_mesh(MeshConfig(1, 8, 1), jax.devices()[:8])
    (stage,) = stages.resolve(config)
    frozen = teachers.load(config, stage, mesh)
    leaves = jax.tree.leaves(frozen)
    count, share = sum(leaf.size for leaf in leaves), sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    assert plan.teachers_of(config, stage, mesh) == {"wavlm": {"params": count, "bytes": share}}
    assert share < 4 * count / 2
    without = tiny.changed(config, perceptual=tiny.changed(config.perceptual, weights="nowhere"))
    (_, _, wanted), _ = step.lower_train_step(without, stage, mesh).in_avals
    assert jax.tree.map(jnp.shape, wanted) == jax.tree.map(jnp.shape, frozen)


def test_its_work_is_counted(weights):
    config = listening(weights)
    costs = cost.step_flops(config, stages.resolve(config)[0])
    assert costs["wavlm"]["backward"] > costs["wavlm"]["forward"] / 2 > 0


def test_it_travels_through_json(weights):
    config = listening(weights)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_what_is_refused(weights, tmp_path):
    config = listening(weights)
    mesh = sharding.make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])

    def load(**fields):
        changed = dataclasses.replace(config, perceptual=dataclasses.replace(config.perceptual, **fields))
        changed.validate()
        return teachers.load(changed, stages.resolve(changed)[0], mesh)

    wider = dataclasses.replace(config.perceptual.model, width=32)
    (tmp_path / "config.json").write_text('{"model_type": "wav2vec2"}')
    for fields, says in (
        ({"model": wider}, "its width is 16, not 32"),
        ({"layers": (3,)}, "to 2, not 3"),
        ({"layers": ()}, "at least one layer"),
        ({"weights": str(tmp_path)}, '"model_type": "wavlm"'),
        ({"weights": str(tmp_path / "none")}, "there is no model"),
    ):
        with pytest.raises(UserError, match=says):
            load(**fields)


def test_a_codec_of_another_family_or_size_is_no_beginning(tmp_path):
    mesh = sharding.make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    Codec("esc", tiny_esc.CONFIG, tiny_esc.variables()).save(tmp_path / "esc")
    deeper = dataclasses.replace(
        tiny.CONFIG,
        model=dataclasses.replace(tiny.ONE_STAGE, latent_dim=4),
        bottleneck=BottleneckConfig(levels=(5,) * 4),
    )
    tiny.codec(deeper).save(tmp_path / "wider")
    checkpoints = checkpoint.Checkpoints(tmp_path / "none", keep=1)
    for name, says in (("esc", "is an ESC, and this run trains a TAAE"), ("wider", "of another size: its .*conv")):
        config = dataclasses.replace(tiny.experiment(), init_from=str(tmp_path / name))
        with pytest.raises(UserError, match=says):
            loop.start(config, mesh, checkpoints, None, print)
    checkpoints.close()


def test_nothing_is_written_for_weights_that_do_not_fit(weights, corpus, tmp_path):
    """Neither of a codec to begin with, nor of a listener that only a later stage has."""
    Codec("esc", tiny_esc.CONFIG, tiny_esc.variables()).save(tmp_path / "esc")
    tiny.codec().save(tmp_path / "deeper")
    config = training(weights, corpus)
    wider = dataclasses.replace(config.perceptual, model=dataclasses.replace(config.perceptual.model, width=32))
    later = {"alone": StageConfig(losses=LossConfig()), "listened_to": StageConfig(losses=config.losses)}
    for fields, says in (
        ({"init_from": str(tmp_path / "esc")}, "is an ESC, and this run trains a TAAE"),
        ({"init_from": str(tmp_path / "deeper")}, "of another size"),
        ({"perceptual": wider}, "its width is 16, not 32"),
        ({"perceptual": wider, "stages": later}, "its width is 16, not 32"),
    ):
        with pytest.raises(UserError, match=says):
            loop.run(dataclasses.replace(config, **fields), tmp_path / "run")
        assert not (tmp_path / "run").exists()
