"""The smallest codec with every part of a real one, shared by tests: compile time is most of a JAX test."""

import dataclasses

import flax.linen as nn
import jax

from codec_jax.codec import Codec
from codec_jax.experiment import DataConfig, Experiment, LossConfig, MeshConfig, OptimConfig, TrainingConfig
from codec_jax.losses.spectral import STFTLossConfig
from codec_jax.models import taae

MODEL = taae.TAAEConfig(
    patch_size=20, channels=16, transformer_depths=(1, 1), sliding_window=(3, 4), head_dim=8, latent_dim=3
)
ONE_STAGE = dataclasses.replace(MODEL, transformer_depths=(1,), c_mults=(1,), strides=(2,))
CONFIG = taae.Config(MODEL, taae.BottleneckConfig(levels=(5,) * 3, train_levels=((3,) * 3, (5,) * 3)))
STAGES = [([5] * 3, 1.0), ([5] * 3, 0.25)]


def variables(cfg: taae.Config = CONFIG, seed: int = 0):
    """Fresh, but with branches and latents large enough that nothing hides behind a layer scale of 1e-5."""

    def enlarge(path, leaf):
        name = jax.tree_util.keystr(path)
        return leaf * 0 + 0.5 if "_scale" in name else leaf * 3 if "conv_out" in name and "'g'" in name else leaf

    @jax.jit  # one program: operation by operation, it is two hundred
    def fresh(key):
        return jax.tree_util.tree_map_with_path(enlarge, nn.unbox(taae.init(cfg, key))["params"])

    return {"params": fresh(jax.random.key(seed))}


def codec(cfg: taae.Config = CONFIG, seed: int = 0) -> Codec:
    return Codec("taae", cfg, variables(cfg, seed))


def experiment(**training) -> Experiment:
    """A run of seconds; batch of 8 so that eight devices can share it. What a step does to two stages, it does to one."""
    rhythm = {"steps": 6, "log_every": 2, "eval_every": 3, "checkpoint_every": 3, "max_samples": 1}
    return Experiment(
        family="taae",
        model=ONE_STAGE,
        bottleneck=CONFIG.bottleneck,
        data=DataConfig(batch_size=8, crop_seconds=0.1, max_valid_clips=2, num_threads=1, prefetch=8),
        losses=LossConfig(l1=1.0, stft=1.0, mrstft=STFTLossConfig((64,), (16,), (64,))),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=2, ema_decay=0.9),
        training=TrainingConfig(**{**rhythm, **training}),
        mesh=MeshConfig(),
    )


def changed(config, **fields):
    return dataclasses.replace(config, **fields)
