"""Which platform a trace is for. Code that chooses an algorithm by platform asks here, not JAX's default backend.

Planning for a TPU happens on a host without one; what is traced there must be what the TPU would run.
"""

from contextlib import AbstractContextManager

import jax

# Not a ContextVar: a value of JAX's own is part of the key of its trace caches, so no trace for one platform is ever
# taken for another's.
_TRACED_FOR = jax.make_user_context(None)


def tracing_for(platform: str) -> AbstractContextManager[None]:
    """Inside, `current()` is `platform` ("cpu", "gpu", "tpu"), for this thread."""
    return _TRACED_FOR(platform)


def current() -> str:
    """The platform named by the innermost `tracing_for`, or that of JAX's default backend."""
    return _TRACED_FOR.value or jax.default_backend()
