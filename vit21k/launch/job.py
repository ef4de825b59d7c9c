"""What a cluster is asked for, whatever the cluster."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vit21k.errors import UsageError

PORT = 29500
"""Where torchrun's processes meet, on the first machine; torchrun's own default."""

# torchrun would die of a signal that it does not know, and its processes with it; what is ignored
# stays ignored in what is started, until a process says otherwise, as `vit21k train` does.
IGNORING_USR1 = """trap "" USR1; exec "$@\""""

# A name of Kubernetes, which becomes a part of host names; Slurm takes any.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training job.

    Attributes:
        name: Lower-case letters, digits and hyphens, 52 at most.
        num_nodes: Machines.
        gpus_per_node: GPUs of each; 0: none are asked for.
        processes_per_node: Usually one for each GPU.
        cpus_per_node: Cores of each, for decoding pictures.
        grace_seconds: From the signal to the end: for the step and the checkpoint.
        arguments: Of `vit21k train`.

    Raises:
        UsageError: The name is not one.
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
                hint="lower-case letters, digits and hyphens, 52 at most: --name vit-l16",
            )
