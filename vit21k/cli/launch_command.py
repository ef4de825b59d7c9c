"""`launch`: a training run as a job of a cluster."""

import shutil
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vit21k.cli import console
from vit21k.errors import MissingExtraError, UsageError, Vit21kError

if TYPE_CHECKING:
    from vit21k.launch.job import Job

TrainArguments = Annotated[
    list[str], typer.Argument(metavar="-- ARGUMENTS...", help="Of `vit21k train`.")
]
Name = Annotated[str, typer.Option(help="Of the job.")]
Nodes = Annotated[int, typer.Option(min=1, help="Machines.")]
GpusPerNode = Annotated[int, typer.Option(min=0, help="GPUs of each machine; 0: none.")]
ProcessesPerNode = Annotated[
    int | None, typer.Option(min=1, help="Default: one for each GPU, or 1.")
]
CpusPerNode = Annotated[
    int | None, typer.Option(min=1, help="Cores of each machine; default: 12 for each process.")
]
GraceSeconds = Annotated[
    int, typer.Option(min=30, help="How long before the end training is asked to save.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the file; submit nothing.")]


def register(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    launch = typer.Typer(no_args_is_help=True, help="Train on a cluster: Slurm, Kubernetes.")
    launch.command("slurm")(slurm_command)
    launch.command("k8s")(k8s_command)
    app.add_typer(launch, name="launch", rich_help_panel="Train")


def slurm_command(
    arguments: TrainArguments,
    name: Name = "vit21k",
    nodes: Nodes = 1,
    gpus_per_node: GpusPerNode = 8,
    processes_per_node: ProcessesPerNode = None,
    cpus_per_node: CpusPerNode = None,
    time_limit: Annotated[
        str, typer.Option("--time", metavar="LIMIT", help="As Slurm reads it.")
    ] = "24:00:00",
    partition: Annotated[str | None, typer.Option(help="Default: the cluster's.")] = None,
    account: Annotated[str | None, typer.Option(help="Default: the user's.")] = None,
    setup: Annotated[
        str | None,
        typer.Option(metavar="SHELL", help="A line before training: modules, an environment."),
    ] = None,
    grace_seconds: GraceSeconds = 300,
    dry_run: DryRun = False,
) -> None:
    """Submit training to Slurm, or print the batch script.

    Before the time limit training saves and the job is queued again; it goes on where it was.

    [bold]Examples[/bold]

      vit21k launch slurm --nodes 4 --dry-run -- --stage pretrain > job.sh

      vit21k launch slurm --partition h200 --setup "source venv/bin/activate" -- --stage pretrain
    """
    from vit21k.launch.slurm import slurm_script

    job = _job(
        name, nodes, gpus_per_node, processes_per_node, cpus_per_node, grace_seconds, arguments
    )
    script = slurm_script(
        job, time_limit=time_limit, partition=partition, account=account, setup=setup
    )
    _print_or_submit(script, ["sbatch"], dry_run)


def k8s_command(
    arguments: TrainArguments,
    image: Annotated[str, typer.Option(help="Has vit21k, torch and bash.")],
    volume: Annotated[
        list[str] | None,
        typer.Option(metavar="CLAIM:PATH", help="Mount a claim at a path; repeatable."),
    ] = None,
    name: Name = "vit21k",
    nodes: Nodes = 1,
    gpus_per_node: GpusPerNode = 8,
    processes_per_node: ProcessesPerNode = None,
    cpus_per_node: CpusPerNode = None,
    grace_seconds: GraceSeconds = 300,
    dry_run: DryRun = False,
) -> None:
    """Submit training to Kubernetes as an Indexed Job, or print the manifest.

    A pod that is evicted makes all of them save; they are started again and go on.

    [bold]Examples[/bold]

      vit21k launch k8s --nodes 4 --image registry/vit21k:1 --dry-run -- --stage pretrain > job.yaml

      vit21k launch k8s --image registry/vit21k:1 --volume imagenet:/data -- --stage pretrain
    """
    from vit21k.launch.k8s import k8s_manifest

    job = _job(
        name, nodes, gpus_per_node, processes_per_node, cpus_per_node, grace_seconds, arguments
    )
    manifest = k8s_manifest(job, image=image, volumes=_mounts(volume or []))
    _print_or_submit(manifest, ["kubectl", "create", "-f", "-"], dry_run)


def _job(
    name: str,
    num_nodes: int,
    gpus_per_node: int,
    processes_per_node: int | None,
    cpus_per_node: int | None,
    grace_seconds: int,
    arguments: Sequence[str],
) -> "Job":
    from vit21k.launch.job import Job

    processes = processes_per_node or gpus_per_node or 1
    return Job(
        name=name,
        num_nodes=num_nodes,
        gpus_per_node=gpus_per_node,
        processes_per_node=processes,
        cpus_per_node=cpus_per_node or 12 * processes,
        grace_seconds=grace_seconds,
        arguments=arguments,
    )


def _mounts(volumes: list[str]) -> dict[str, str]:
    mounts = {}
    for volume in volumes:
        claim, colon, path = volume.partition(":")
        if not colon or not claim or not path.startswith("/"):
            raise UsageError(
                f"cannot read the volume `{volume}`", hint="write it as CLAIM:/path/in/the/pod"
            )
        mounts[claim] = path
    return mounts


def _print_or_submit(text: str, command: list[str], dry_run: bool) -> None:
    """Write *text* to the standard output, or give it to the cluster's own program.

    Raises:
        MissingExtraError: The program is not on this machine.
        Vit21kError: It refused the job.
    """
    if dry_run:
        console.print_lines(text)
        return
    program = shutil.which(command[0])
    if program is None:
        raise MissingExtraError(
            f"`{command[0]}` is not on this machine",
            hint="print the file with --dry-run, and submit it where it is",
        )
    done = subprocess.run(
        [program, *command[1:]], input=text, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise Vit21kError(f"`{' '.join(command)}` refused the job: {done.stderr.strip()}")
    console.done(f"launch: {done.stdout.strip()}")
