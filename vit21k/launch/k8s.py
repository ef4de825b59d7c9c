"""A manifest for Kubernetes: an Indexed Job of torchrun's machines, and the name they meet at."""

from collections.abc import Mapping
from typing import Any

import yaml

from vit21k.launch.job import IGNORING_USR1, PORT, Job

_HEAD = """\
# Printed by `vit21k launch k8s`.  Create it with `kubectl create -f`; pods that are evicted or fail
# are started again, and training goes on from its newest checkpoint.
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
