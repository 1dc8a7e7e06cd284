"""A small run in a process of its own, to be killed, moved to other meshes, or joined by others.

python -m tests.train.target WORKDIR CORPUS DEVICES REPLICA FSDP TENSOR STEPS OPTIMISER FAMILY
"""

import dataclasses
import sys

import jax

jax.config.update("jax_num_cpu_devices", int(sys.argv[3]))
jax.config.update("jax_disable_most_optimizations", True)  # as in conftest.py: compiling is most of it

from codec_jax.experiment import LossConfig, MeshConfig, OptimConfig, StageConfig  # noqa: E402
from codec_jax.models.discriminators import DiscriminatorConfig  # noqa: E402
from codec_jax.train import loop, processes  # noqa: E402
from tests import tiny, tiny_esc  # noqa: E402


def experiment(corpus, mesh, steps, optimiser, family):
    """Warm-up, then both players; a checkpoint every three steps."""
    rhythm = {"steps": steps, "eval_every": steps, "checkpoint_every": 3, "log_every": 1}
    base = taae(**rhythm) if family == "taae" else tiny_esc.experiment(**rhythm)
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, train=f"{corpus}/train", valid=f"{corpus}/valid"),
        optim=OptimConfig(name=optimiser, learning_rate=1e-3 if optimiser == "adamw" else 0.05, warmup_steps=2),
        mesh=MeshConfig(*mesh),
    )


def taae(**rhythm):
    smooth = LossConfig(l1=0.0, l2=1.0, stft=0.0)
    judged = dataclasses.replace(smooth, adversarial=0.5, feature_matching=2.0)
    return dataclasses.replace(
        tiny.experiment(**rhythm),
        losses=smooth,
        stages={"warm": StageConfig(1.0), "adversarial": StageConfig(2.0, losses=judged, discriminate=True)},
        discriminator=DiscriminatorConfig(n_ffts=(30,), filters=4, dilations=(2,), spec_scale_pow=0.0),
    )


if __name__ == "__main__":
    processes.start()
    workdir, corpus, _, *numbers, optimiser, family = sys.argv[1:]
    *mesh, steps = map(int, numbers)
    loop.run(experiment(corpus, mesh, steps, optimiser, family), workdir)
