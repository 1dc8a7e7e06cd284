"""Checkpoints of other projects, both ways: one module per codec family, without torch.

A family has CONFIG_FILE (upstream's name of its config), from_torch, from_torch_lazily, to_torch and notes.
"""

from types import ModuleType

from codec_jax.convert import taae

FAMILIES: dict[str, ModuleType] = {"taae": taae}
