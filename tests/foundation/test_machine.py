"""`vit21k.machine`: limits of control groups count, on made-up machines."""

import os
from pathlib import Path

import pytest

from vit21k import machine

GIB = 1 << 30


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    _write(tmp_path, "proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    return tmp_path


def _write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_without_control_groups_the_machine_is_the_limit(fake: Path) -> None:
    assert machine.cpu_quota(fake) is None
    assert machine.memory_bytes(fake) == (16 * GIB, 8 * GIB)


def test_the_tightest_group_above_counts_in_version_2(fake: Path) -> None:
    _write(fake, "proc/self/cgroup", "0::/jobs/42\n")
    _write(fake, "sys/fs/cgroup/jobs/42/cpu.max", "max 100000\n")
    _write(fake, "sys/fs/cgroup/jobs/cpu.max", "150000 100000\n")
    _write(fake, "sys/fs/cgroup/jobs/memory.max", f"{2 * GIB}\n")
    _write(fake, "sys/fs/cgroup/jobs/memory.current", f"{2 * GIB}\n")
    _write(fake, "sys/fs/cgroup/jobs/memory.stat", f"anon 7\ninactive_file {GIB}\n")

    assert machine.cpu_quota(fake) == 1.5
    assert machine.memory_bytes(fake) == (2 * GIB, GIB)  # cached files give way


def test_limits_are_found_in_version_1_too(fake: Path) -> None:
    _write(fake, "proc/self/cgroup", "5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n")
    _write(fake, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n")
    _write(fake, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    _write(fake, "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{4 * GIB}\n")
    _write(fake, "sys/fs/cgroup/memory/memory.usage_in_bytes", f"{GIB}\n")

    assert machine.cpu_quota(fake) == 0.5
    assert machine.memory_bytes(fake) == (4 * GIB, 3 * GIB)


def test_no_limit_is_not_a_limit(fake: Path) -> None:
    _write(fake, "proc/self/cgroup", "4:memory:/\n3:cpu:/\n")
    _write(fake, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    _write(fake, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    _write(fake, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")

    assert machine.cpu_quota(fake) is None
    assert machine.memory_bytes(fake)[0] == 16 * GIB


def test_the_deepest_and_latest_mount_holds_a_folder(fake: Path) -> None:
    lines = [
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw",
        "23 22 0:5 / /data/my\\040images rw shared:1 - nfs4 server:/x rw",
        "24 22 0:6 / /data/my\\040images rw - xfs /dev/sdb1 rw",
    ]
    _write(fake, "proc/self/mountinfo", "\n".join(lines))

    assert machine.file_system_of(Path("/data/my images/n01440764"), fake) == "xfs"
    assert machine.file_system_of(Path("/data/my"), fake) == "ext4"


def test_this_machine_answers() -> None:
    assert 0 < machine.num_cores() <= (os.cpu_count() or 1)
    total, free = machine.memory_bytes()
    assert 0 < free <= total
    assert machine.file_system_of(Path("/proc")) == "proc"


def test_a_missing_folder_is_in_an_existing_one(tmp_path: Path) -> None:
    assert machine.existing_folder(tmp_path / "not" / "there") == tmp_path


def test_gpus_are_what_nvidia_smi_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.nvidia_gpus() == []

    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771 MiB'\n")
    program.chmod(0o755)
    assert machine.nvidia_gpus() == ["NVIDIA H200, 143771 MiB"]

    program.write_text("#!/bin/sh\necho 'no driver'; exit 9\n")
    assert machine.nvidia_gpus() == []


@pytest.mark.parametrize(("cores", "threads"), [(0.5, 1), (2.0, 2), (3.7, 3)])
def test_threads_are_whole_cores_and_at_least_one(
    monkeypatch: pytest.MonkeyPatch, cores: float, threads: int
) -> None:
    monkeypatch.setattr(machine, "num_cores", lambda: cores)

    assert machine.num_threads() == threads


@pytest.mark.parametrize(
    ("cpuinfo", "bf16", "fp16"),
    [
        ("flags\t\t: fpu avx2 fma\nbugs : x\n" * 2, False, False),
        ("flags\t\t: fpu avx512f avx512_bf16\n", True, False),
        ("flags\t\t: avx512_fp16 amx_bf16 amx_tile\n", True, True),
        ("processor\t: 0\nFeatures\t: fp asimd asimdhp svebf16\n", False, True),
        ("Features\t: fp asimd asimdhp bf16\n", True, True),
        ("cpu : POWER9\n", False, False),
    ],
)
def test_16_bit_products_are_those_that_the_processor_has_instructions_for(
    fake: Path, cpuinfo: str, bf16: bool, fp16: bool
) -> None:
    _write(fake, "proc/cpuinfo", cpuinfo)

    assert machine.cpu_multiplies("bf16", fake) is bf16
    assert machine.cpu_multiplies("fp16", fake) is fp16


def test_a_processor_that_says_nothing_has_none(tmp_path: Path) -> None:
    assert machine.cpu_features(tmp_path) == frozenset()
