"""Checkpoints of other projects, both ways: one module per codec family, without torch.

A family has CONFIG_FILE (upstream's name of its config), PREFIXES (of its tensors in a training checkpoint, and which
weights they are), LOADING (Markdown: how upstream's own code opens an export), from_torch, from_torch_lazily, to_torch
and notes.
"""

from types import ModuleType

from codec_jax.convert import esc, taae

FAMILIES: dict[str, ModuleType] = {"taae": taae, "esc": esc}
