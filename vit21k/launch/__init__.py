"""Job files for clusters: a batch script for Slurm, a manifest for Kubernetes."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from vit21k.errors import UsageError

_PORT = 29500  # of the rendezvous on the first node; torchrun's default

# torchrun and its processes would be ended by this signal.  Child processes ignore it too until
# they install a handler, as `vit21k train` does.
_IGNORE_USR1 = 'trap "" USR1; exec '

# A valid name in Kubernetes, where it becomes part of host names; Slurm accepts any name.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training job.

    Attributes:
        name: Lower-case letters, digits and hyphens, at most 52.
        num_nodes: Number of nodes.
        gpus_per_node: GPUs of each node; 0: none are requested.
        processes_per_node: Usually one for each GPU.
        cpus_per_node: Cores of each node, for decoding images.
        grace_seconds: From the signal to the end of the job: for the step and the checkpoint.
        arguments: Arguments of `vit21k train`.

    Raises:
        UsageError: The name is not valid.
    """

    name: str
    num_nodes: int
    gpus_per_node: int
    processes_per_node: int
    cpus_per_node: int
    grace_seconds: int
    arguments: Sequence[str]

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"`{self.name}` is not a name for a job",
                hint="lower-case letters, digits and hyphens, at most 52: --name vit-l16",
            )


def slurm_script(
    job: Job,
    *,
    time_limit: str,
    partition: str | None = None,
    account: str | None = None,
    setup: str | None = None,
) -> str:
    """Return the batch script of *job*.

    Args:
        job: The job.
        time_limit: In Slurm's format: "24:00:00", "2-00:00:00", minutes.
        partition: Partition of the cluster; None: its default.
        account: Account that is charged; None: the user's default.
        setup: Shell command before training, such as one that adds `torchrun` to the PATH.
    """
    directives = [
        f"--job-name={job.name}",
        f"--nodes={job.num_nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={job.cpus_per_node}",
        *([f"--gpus-per-node={job.gpus_per_node}"] if job.gpus_per_node else []),
        f"--time={time_limit}",
        f"--signal=B:USR1@{job.grace_seconds}",
        "--requeue",
        "--open-mode=append",
        "--output=%x-%j.out",
        *([f"--partition={partition}"] if partition else []),
        *([f"--account={account}"] if account else []),
    ]
    return _rendered(
        "slurm.sh.j2",
        job=job,
        directives=directives,
        setup=setup,
        ignore_usr1=shlex.quote(f'{_IGNORE_USR1}"$@"'),
        arguments=shlex.join(job.arguments),
    )


def k8s_manifest(job: Job, *, image: str, volumes: Mapping[str, str]) -> str:
    """Return the manifests of *job* as YAML.

    Args:
        job: The job.
        image: Container image with vit21k, torch and bash.
        volumes: Name of each PersistentVolumeClaim -> mount path.
    """
    torchrun = f'{_IGNORE_USR1}torchrun --node-rank="$JOB_COMPLETION_INDEX" "$@"'
    return _rendered("k8s.yaml.j2", job=job, image=image, torchrun=torchrun, volumes=volumes)


def _rendered(template: str, **values: Any) -> str:
    environment = Environment(  # noqa: S701 (no HTML)
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["yaml"] = _yaml
    source = files("vit21k.launch").joinpath(template).read_text(encoding="utf-8")
    return environment.from_string(source).render(port=_PORT, **values)


def _yaml(text: str) -> str:
    """Quote *text* for YAML."""
    return str(yaml.safe_dump(text, default_style='"', width=float("inf"))).strip()
