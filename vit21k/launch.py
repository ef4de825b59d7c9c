"""Job files for clusters (Slurm, Kubernetes): text that the cluster's own tools take as it is."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from vit21k.errors import UsageError

PORT = 29500
"""Where torchrun's processes meet, on the first machine; torchrun's own default."""

# A signal without a handler would end torchrun and its processes. Child processes inherit ignored
# signals until they install a handler, as `vit21k train` does.
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
        cpus_per_node: Cores of each, for decoding images.
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


_SCRIPT = """\
#!/bin/bash
{directives}

# Printed by `vit21k launch slurm`.  Submit it with sbatch; the job resumes from its newest
# checkpoint whenever it is started again, by Slurm or by you.
set -euo pipefail
{setup}
# {grace} s before the time limit Slurm signals this shell, which passes it on to the training
# processes: they save after the step they are in, and end; then the job is queued again.
is_out_of_time=0
out_of_time() {{
    is_out_of_time=1
    scancel --signal=USR1 "$SLURM_JOB_ID"
}}
trap out_of_time USR1

first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun --kill-on-bad-exit=1 bash -c {ignoring} torchrun-job \\
    torchrun \\
    --nnodes="$SLURM_JOB_NUM_NODES" \\
    --nproc-per-node={processes} \\
    --rdzv-backend=c10d \\
    --rdzv-id="$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}" \\
    --rdzv-endpoint="$first_node:{port}" \\
    -m vit21k train \\
    {arguments} &
step=$!

# A signal interrupts `wait`: repeat it until the step itself has ended.
code=0
while true; do
    wait "$step" && code=0 || code=$?
    kill -0 "$step" 2>/dev/null || break
done

if [ "$is_out_of_time" = 1 ] && [ "$code" != 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


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
        job: What is asked for.
        time_limit: As Slurm reads it: "24:00:00", "2-00:00:00", minutes.
        partition: Of the cluster; None: its default.
        account: Who is charged; None: the user's default.
        setup: A line of shell before training, such as one that makes `torchrun` be found.
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
    return _SCRIPT.format(
        directives="\n".join(f"#SBATCH {directive}" for directive in directives),
        setup=f"{setup}\n" if setup else "",
        grace=job.grace_seconds,
        ignoring=shlex.quote(IGNORING_USR1),
        processes=job.processes_per_node,
        port=PORT,
        arguments=shlex.join(job.arguments),
    )


_HEAD = """\
# Printed by `vit21k launch k8s`.  Create it with `kubectl create -f`; pods that are evicted or fail
# are started again, and training resumes from its newest checkpoint.
"""
_MOST_FAILURES = 20
# Before a pod is ended, its training processes are asked to save, and waited for; process 1 is
# torchrun, which ends when they do.
_SAVE_AND_WAIT = "kill -USR1 -1; while kill -0 1; do sleep 1; done"
_TORCHRUN = IGNORING_USR1.replace(
    'exec "$@"', 'exec torchrun --node-rank="$JOB_COMPLETION_INDEX" "$@"'
)


def k8s_manifest(job: Job, *, image: str, volumes: Mapping[str, str]) -> str:
    """Return the manifests of *job* as YAML.

    Args:
        job: What is asked for.
        image: Has vit21k, torch and bash.
        volumes: Name of each claim (PersistentVolumeClaim) -> where it is mounted.
    """
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": job.name},
        "spec": {
            "clusterIP": "None",
            "selector": {"batch.kubernetes.io/job-name": job.name},
            "publishNotReadyAddresses": True,
            "ports": [{"name": "rendezvous", "port": PORT}],
        },
    }
    parts = [service, _job(job, image, volumes)]
    return _HEAD + yaml.safe_dump_all(parts, sort_keys=False, width=100)


def _job(job: Job, image: str, volumes: Mapping[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job.name},
        "spec": {
            "completionMode": "Indexed",
            "completions": job.num_nodes,
            "parallelism": job.num_nodes,
            "backoffLimit": _MOST_FAILURES,
            # An eviction is no failure of the training.
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "Ignore",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    }
                ]
            },
            "template": {"spec": _pod(job, image, volumes)},
        },
    }


def _pod(job: Job, image: str, volumes: Mapping[str, str]) -> dict[str, Any]:
    claims = [{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in volumes]
    # Processes of one machine talk through shared memory, of which a container has 64 MB.
    memory = {"name": "shared-memory", "emptyDir": {"medium": "Memory"}}
    return {
        "restartPolicy": "Never",
        "subdomain": job.name,
        "terminationGracePeriodSeconds": job.grace_seconds,
        "containers": [_container(job, image, volumes)],
        "volumes": [*claims, memory],
    }


def _container(job: Job, image: str, volumes: Mapping[str, str]) -> dict[str, Any]:
    mounts = [{"name": claim, "mountPath": path} for claim, path in volumes.items()]
    gpus = {"nvidia.com/gpu": job.gpus_per_node} if job.gpus_per_node else {}
    return {
        "name": "train",
        "image": image,
        "command": ["bash", "-c", _TORCHRUN, "torchrun-job"],
        "args": [
            f"--nnodes={job.num_nodes}",
            f"--nproc-per-node={job.processes_per_node}",
            f"--master-addr={job.name}-0.{job.name}",
            f"--master-port={PORT}",
            "-m",
            "vit21k",
            "train",
            *job.arguments,
        ],
        "resources": {"requests": {"cpu": job.cpus_per_node, **gpus}, "limits": {**gpus}},
        "lifecycle": {"preStop": {"exec": {"command": ["bash", "-c", _SAVE_AND_WAIT]}}},
        "volumeMounts": [*mounts, {"name": "shared-memory", "mountPath": "/dev/shm"}],  # noqa: S108
    }
