"""A sweep for other people's schedulers: one command a run, a SLURM array, and workloads of XPK or GKE.

Every command is train.py on a planned config: it goes on from the newest checkpoint, a finished run is left alone, and
SIGTERM saves. So all of these can be submitted again, as they are, until the sweep is done.
"""

import pathlib
import shlex
from collections.abc import Mapping
from typing import NamedTuple

from codec_jax.errors import UserError, require
from codec_jax.scaling.sweep import CONFIGS, LOGS, RUNS, Sweep
from codec_jax.train import chips

COMMANDS, SLURM, XPK, GKE = "commands.txt", "slurm.sbatch", "xpk.sh", "gke"
# What Google calls them: node label, XPK's type and whether it counts cores or chips; chips of a host of many.
_TPUS = {
    "v4": ("tpu-v4-podslice", "v4", 2, 4),
    "v5e": ("tpu-v5-lite-podslice", "v5litepod", 1, 4),
    "v5p": ("tpu-v5p-slice", "v5p", 2, 4),
    "v6e": ("tpu-v6e-slice", "v6e", 1, 4),
}


class Job(NamedTuple):
    """Where runs happen. root: the sweep as the machines see it, a shared directory or gs://. hours: a run's limit.

    image: a container with this repository at /app. cluster: XPK's.
    """

    root: str
    topology: str = "v5e:16x16"
    hours: float = 24.0
    image: str = "IMAGE"
    cluster: str = "CLUSTER"


def commands(sweep: Sweep, root: str | None = None) -> dict[str, str]:
    """By run. root: the sweep's directory where the command runs (None: as it is called here)."""
    base = (root or str(sweep.directory)).rstrip("/")
    found = {}
    for entry in sweep.entries:
        config, workdir = f"{base}/{CONFIGS}/{entry.name}.json", f"{base}/{RUNS}/{entry.name}"
        found[entry.name] = f"python train.py --config={shlex.quote(config)} --workdir={shlex.quote(workdir)}"
    return found


def write_slurm(sweep: Sweep, job: Job) -> list[pathlib.Path]:
    """An array with one task a run, to be submitted where train.py lies. Gives the files written."""
    lines = commands(sweep, job.root)
    script = f"""#!/bin/bash
# From the directory of train.py: sbatch {shlex.quote(f"{job.root}/{SLURM}")}
# Again after failures: runs that are done end at once.
#SBATCH --job-name=codec-scaling
#SBATCH --array=0-{len(lines) - 1}
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --time={_slurm_time(job.hours)}
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output={job.root}/{LOGS}/slurm-%A_%a.log
set -euo pipefail
command=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {shlex.quote(f"{job.root}/{COMMANDS}")})
echo "$command"
exec srun bash -c "$command"
"""
    (sweep.directory / LOGS).mkdir(exist_ok=True)
    return _written(sweep, {COMMANDS: "".join(f"{line}\n" for line in lines.values()), SLURM: script})


def write_xpk(sweep: Sweep, job: Job) -> list[pathlib.Path]:
    """A script with one XPK workload a run, and the same as JobSets for kubectl. Gives the files written."""
    name, _, shape = job.topology.partition(":")
    chips.chip(job.topology)
    require(name in _TPUS, f"XPK knows no {name}: give --topology of {', '.join(_TPUS)}.")
    try:
        count = 1
        for part in shape.split("x"):
            count *= int(part)
    except ValueError as error:
        raise UserError(f'"{job.topology}" has no shape such as 16x16.') from error
    _, kind, cores, _ = _TPUS[name]
    lines = commands(sweep, job.root)
    script = [
        "#!/bin/bash",
        "# One workload a run; submit again what failed: it goes on from its newest checkpoint.",
        "set -euo pipefail",
    ]
    files: dict[str, str] = {COMMANDS: "".join(f"{line}\n" for line in lines.values())}
    for run, line in lines.items():
        script.append(
            f"xpk workload create --cluster={shlex.quote(job.cluster)} --workload={workload_name(run)} "
            f"--tpu-type={kind}-{count * cores} --num-slices=1 --docker-image={shlex.quote(job.image)} "
            f"--command={shlex.quote('cd /app && ' + line)}"
        )
        files[f"{GKE}/{run}.yaml"] = _jobset(run, line, job, count)
    return _written(sweep, {**files, XPK: "\n".join(script) + "\n"})


def workload_name(run: str) -> str:
    """A name for Kubernetes, of 40 characters at most: lower case, digits and hyphens."""
    clean = "".join(c if c.isalnum() else "-" for c in run.lower()).strip("-")
    return f"cjx-{clean}"[:40].rstrip("-")


def _jobset(run: str, command: str, job: Job, count: int) -> str:
    """A JobSet of one slice: one pod a host."""
    chip, _, shape = job.topology.partition(":")
    label, _, _, per_host = _TPUS[chip]
    per_host = min(per_host, count)
    hosts = count // per_host
    return f"""apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: {workload_name(run)}
spec:
  failurePolicy:
    maxRestarts: 10
  replicatedJobs:
    - name: slice
      replicas: 1
      template:
        spec:
          parallelism: {hosts}
          completions: {hosts}
          backoffLimit: 0
          activeDeadlineSeconds: {round(job.hours * 3600)}
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 120
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: {label}
                cloud.google.com/gke-tpu-topology: {shape}
              containers:
                - name: train
                  image: {job.image}
                  workingDir: /app
                  command: ["bash", "-c", {_yaml(f"exec {command}")}]
                  ports:
                    - containerPort: 8471
                    - containerPort: 8080
                  resources:
                    limits:
                      google.com/tpu: {per_host}
"""


def _yaml(text: str) -> str:
    """A double-quoted scalar."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _slurm_time(hours: float) -> str:
    minutes = max(1, round(hours * 60))
    return f"{minutes // 1440}-{minutes // 60 % 24:02d}:{minutes % 60:02d}:00"


def _written(sweep: Sweep, files: Mapping[str, str]) -> list[pathlib.Path]:
    paths = []
    for name, text in files.items():
        path = sweep.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(text)
        partial.replace(path)
        paths.append(path)
    return paths
