"""Several processes as one run: one function, to be called before anything else touches JAX."""

import os

import jax

# Set by cluster managers, or by hand: JAX_COORDINATOR_ADDRESS=host:port JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0.
_SIGNS = ("JAX_COORDINATOR_ADDRESS", "SLURM_JOB_NUM_NODES", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_COORDINATOR_ADDRESS")


def start() -> None:
    """Joins the other processes where there are others: a TPU pod, SLURM, MPI, or JAX_COORDINATOR_ADDRESS by hand.

    Does nothing on a single machine, and nothing the second time.
    """
    if jax.distributed.is_initialized():
        return
    several_tpu_hosts = len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1
    if not several_tpu_hosts and not any(os.environ.get(sign) for sign in _SIGNS):
        return
    if address := os.environ.get("JAX_COORDINATOR_ADDRESS"):
        count, index = (int(os.environ[name]) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
        jax.distributed.initialize(address, count, index)
    else:
        jax.distributed.initialize()
