"""A batch script for Slurm: torchrun on every machine, a checkpoint before the end, requeued."""

import shlex

from vit21k.launch.job import IGNORING_USR1, PORT, Job

_SCRIPT = """\
#!/bin/bash
{directives}

# Printed by `vit21k launch slurm`.  Submit it with sbatch; the job goes on from its newest
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

# A signal interrupts `wait`: go on until the step itself is over.
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
