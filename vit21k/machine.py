"""Resources of this process: cores, memory, file systems, GPUs, the cache folder.

In containers and batch jobs, limits of control groups (cgroups, versions 1 and 2) apply.
"""

import os
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

_ROOT = Path("/")
_MEMORY_FILES = (  # of versions 2 and 1
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)
_PRODUCTS = {  # x86, then ARM
    "bf16": {"amx_bf16", "avx512_bf16", "bf16"},
    "fp16": {"amx_fp16", "avx512_fp16", "asimdhp"},
}
_UNLIMITED_BYTES = 1 << 60  # what version 1 shows for no limit is just below 2**63
_OTHER_OPEN_FILES = 64


def num_cores() -> float:
    """Return the number of cores this process may use; a quota may be a fraction."""
    return min(float(len(os.sched_getaffinity(0))), cpu_quota() or float("inf"))


def num_threads() -> int:
    """Return the number of threads that can compute in parallel, at least one."""
    return max(1, int(num_cores()))


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Return the lowest quota of the control groups, in cores; None if there is none."""
    quotas = []
    for folder in _groups(root, "cpu"):
        words = _words(folder / "cpu.max") or [
            *_words(folder / "cpu.cfs_quota_us"),
            *_words(folder / "cpu.cfs_period_us"),
        ]
        match words:
            case [quota, period] if quota.isdigit() and period.isdigit():  # not "max", not -1
                quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_bytes(root: Path = _ROOT) -> tuple[int, int]:
    """Return the total and the free memory of this process, in bytes."""
    info = dict(re.findall(r"(\w+):\s+(\d+) kB", (root / "proc/meminfo").read_text()))
    total, free = int(info["MemTotal"]) * 1024, int(info["MemAvailable"]) * 1024
    for folder in _groups(root, "memory"):
        for limit, used in _MEMORY_FILES:
            words = _words(folder / limit)
            if words and words[0].isdigit() and int(words[0]) < _UNLIMITED_BYTES:
                total = min(total, int(words[0]))
                free = min(free, int(words[0]) - _used_bytes(folder, used))
    return total, max(free, 0)


def _used_bytes(group: Path, used: str) -> int:
    """Return the memory use of a group, without reclaimable cached files."""
    cached = re.search(
        r"(?m)^(?:total_)?inactive_file (\d+)", "\n".join(_lines(group / "memory.stat"))
    )
    return int(" ".join(_words(group / used)) or 0) - int(cached[1] if cached else 0)


def cpu_features(root: Path = _ROOT) -> frozenset[str]:
    """Return the instruction sets of the processor, as Linux names them."""
    info = "\n".join(_lines(root / "proc/cpuinfo"))
    return frozenset(" ".join(re.findall(r"(?m)^(?:flags|Features)\s*:(.*)", info)).split())


def cpu_multiplies(precision: Literal["bf16", "fp16"], root: Path = _ROOT) -> bool:
    """Return whether the processor has instructions for matrix products in 16 bits.

    Without them, products are many times slower than in float32.
    """
    return not _PRODUCTS[precision].isdisjoint(cpu_features(root))


def file_system_of(path: Path, root: Path = _ROOT) -> str:
    """Return the type of the file system that *path* is, or would be, on: "ext4", "nfs4", ..."""
    path = path.resolve()
    best, found = -1, "unknown"
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, source = line.partition(" - ")
        folder = Path(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), mount.split()[4]))
        if path.is_relative_to(folder) and len(folder.parts) >= best:
            best, found = len(folder.parts), source.split()[0]
    return found


def nvidia_gpus() -> list[str]:
    """Return the name and memory of each GPU that NVIDIA's driver shows."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (subprocess.SubprocessError, OSError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def existing_folder(path: Path) -> Path:
    """Return *path*, or its nearest existing parent."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control group and of those above it."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if controllers else "")
        folder = top / group.lstrip("/")
        yield folder
        yield from (above for above in folder.parents if above.is_relative_to(top))


def _words(path: Path) -> list[str]:
    return [word for line in _lines(path) for word in line.split()]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []


def allow_open_files(count: int) -> None:
    """Raise the limit of open files of this process to allow *count* more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHER_OPEN_FILES
    if soft not in (resource.RLIM_INFINITY, hard) and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def user_cache() -> Path | None:
    """Return the folder of vit21k in the user's cache; None if the user has no home folder.

    A container may run as an unknown user.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path("~/.cache").expanduser()) / "vit21k"
    except RuntimeError:
        return None


def has_nvidia_gpu() -> bool:
    """Return whether there is a device file of an NVIDIA GPU; takes microseconds."""
    return any(path.name[6:].isdigit() for path in (_ROOT / "dev").glob("nvidia[0-9]*"))
