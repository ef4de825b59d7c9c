"""`vit21k launch`: files that clusters take, and who submits them."""

import os
import shutil
import stat
import subprocess

import pytest
import yaml
from conftest import needs_extra

SLURM = ("launch", "slurm", "--name", "l16", "--nodes", "2", "--gpus-per-node", "4")
K8S = ("launch", "k8s", "--name", "l16", "--nodes", "2", "--image", "registry/vit21k:1")
TRAIN = ("--", "--stage", "pretrain", "--set", "optim.lr=1e-3", "--run-dir", "runs/a b")


def program(folder, name, text):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def cluster(tmp_path):
    """A PATH with what the script calls: programs that write down how they were called."""
    folder = tmp_path / "bin"
    program(folder, "scontrol", 'echo "scontrol $*" >> calls; [ "$1" = show ] && echo node1')
    program(folder, "scancel", 'echo "scancel $*" >> calls')
    program(folder, "srun", 'shift; exec "$@"')
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
    }
    return folder, environment


def test_the_batch_script_asks_for_what_was_said(vit21k):
    result = vit21k(*SLURM, "--time", "2-0", "--partition", "h200", "--dry-run", *TRAIN)

    assert result.code == 0, result.stderr
    directives = [line for line in result.stdout.splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --nodes=2" in directives
    assert "#SBATCH --gpus-per-node=4" in directives
    assert "#SBATCH --cpus-per-task=48" in directives
    assert "#SBATCH --partition=h200" in directives
    assert "#SBATCH --signal=B:USR1@300" in directives


def test_the_batch_script_starts_torchrun_with_the_arguments_as_given(vit21k, tmp_path, cluster):
    folder, environment = cluster
    program(folder, "torchrun", 'printf "%s\\n" "$@" > arguments')
    script = vit21k(*SLURM, "--dry-run", *TRAIN).stdout

    done = subprocess.run(["bash"], input=script, text=True, env=environment, check=False)

    assert done.returncode == 0
    assert (tmp_path / "arguments").read_text().splitlines() == [
        "--nnodes=2",
        "--nproc-per-node=4",
        "--rdzv-backend=c10d",
        "--rdzv-id=7-0",
        "--rdzv-endpoint=node1:29500",
        "-m",
        "vit21k",
        "train",
        *TRAIN[1:],
    ]
    assert "requeue" not in (tmp_path / "calls").read_text()


# torchrun itself must survive the signal that its processes are sent.
_TRAINING = "kill -USR1 $$; kill -USR1 $PPID; sleep 0.3; exit {code}"


@pytest.mark.parametrize(("code", "is_queued_again"), [(1, True), (0, False)])
def test_a_job_that_is_out_of_time_saves_and_is_queued_again_unless_it_is_done(
    vit21k, tmp_path, cluster, code, is_queued_again
):
    folder, environment = cluster
    program(folder, "torchrun", _TRAINING.format(code=code))
    script = vit21k(*SLURM, "--dry-run", *TRAIN).stdout

    done = subprocess.run(["bash"], input=script, text=True, env=environment, check=False)

    assert done.returncode == code
    calls = (tmp_path / "calls").read_text()
    assert "scancel --signal=USR1 7" in calls
    assert ("scontrol requeue 7" in calls) == is_queued_again


def test_a_job_that_fails_in_time_is_not_queued_again(vit21k, tmp_path, cluster):
    folder, environment = cluster
    program(folder, "torchrun", "exit 3")
    script = vit21k(*SLURM, "--dry-run", *TRAIN).stdout

    done = subprocess.run(["bash"], input=script, text=True, env=environment, check=False)

    assert done.returncode == 3
    assert "requeue" not in (tmp_path / "calls").read_text()


def test_the_manifest_is_valid_kubernetes(vit21k):
    validate = needs_extra("kubernetes_validate")
    result = vit21k(*K8S, "--volume", "imagenet:/data", "--dry-run", *TRAIN)

    for part in yaml.safe_load_all(result.stdout):
        validate.validate(part, "1.30", strict=True)


def test_the_manifest_says_what_was_said(vit21k):
    result = vit21k(*K8S, "--volume", "imagenet:/data", "--dry-run", *TRAIN)

    assert result.code == 0, result.stderr
    service, job = yaml.safe_load_all(result.stdout)
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert container["args"][-len(TRAIN) + 1 :] == list(TRAIN[1:])
    # The first pod's name within the service is where the processes meet.
    assert f"--master-addr=l16-0.{service['metadata']['name']}" in container["args"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/data", "/dev/shm"}


def test_the_container_starts_torchrun_for_its_machine(vit21k, tmp_path, cluster):
    folder, environment = cluster
    program(folder, "torchrun", 'printf "%s\\n" "$@" > arguments; kill -USR1 $$')
    result = vit21k(*K8S, "--dry-run", *TRAIN)
    container = list(yaml.safe_load_all(result.stdout))[1]["spec"]["template"]["spec"]["containers"]
    command = [*container[0]["command"], *container[0]["args"]]

    environment["JOB_COMPLETION_INDEX"] = "1"
    done = subprocess.run(command, env=environment, check=False)

    assert done.returncode == 0
    assert (tmp_path / "arguments").read_text().splitlines()[:2] == ["--node-rank=1", "--nnodes=2"]


@pytest.mark.parametrize(
    ("arguments", "name", "said"),
    [(SLURM, "sbatch", "Submitted batch job 7"), (K8S, "kubectl", "job.batch/l16 created")],
)
def test_without_dry_run_the_clusters_own_program_gets_the_file(
    vit21k, tmp_path, monkeypatch, arguments, name, said
):
    folder = tmp_path / "bin"
    program(folder, name, f'cat > file; echo "{said}"')
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    result = vit21k(*arguments, *TRAIN)

    assert result.code == 0, result.stderr
    assert result.stdout == ""
    assert said in result.stderr
    assert (tmp_path / "file").read_text() == vit21k(*arguments, "--dry-run", *TRAIN).stdout


def test_a_refusal_of_the_cluster_is_reported(vit21k, tmp_path, monkeypatch):
    program(tmp_path / "bin", "sbatch", 'echo "invalid partition" >&2; exit 1')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    result = vit21k(*SLURM, *TRAIN)

    assert result.code == 1
    assert "invalid partition" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*SLURM, "--name", "L 16", "--dry-run", *TRAIN), "not a name for a job"),
        ((*K8S, "--volume", "imagenet", "--dry-run", *TRAIN), "cannot read the volume"),
    ],
)
def test_what_makes_no_job_is_refused(vit21k, arguments, message):
    result = vit21k(*arguments)

    assert result.code == 2
    assert message in result.stderr


def test_a_missing_cluster_is_reported(vit21k, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))

    result = vit21k(*SLURM, *TRAIN)

    assert result.code == 1
    assert "--dry-run" in result.stderr


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="needs Slurm")
def test_slurms_own_parser_takes_the_directives(vit21k, tmp_path):
    (tmp_path / "job.sh").write_text(vit21k(*SLURM, "--dry-run", *TRAIN).stdout)

    done = subprocess.run(
        ["sbatch", "--test-only", "job.sh"], capture_output=True, text=True, check=False
    )

    # Without these machines, or without a controller, it can only say that it understood.
    assert "unrecognized" not in done.stderr
    assert "Invalid" not in done.stderr
