"""`doctor`: check the installation and the machine."""

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vit21k import errors, machine
from vit21k.cli import console
from vit21k.cli.next_steps import print_next
from vit21k.cli.options import (
    DEFAULT_MANIFESTS,
    INSTALL_SERVE,
    INSTALL_TRAIN,
    AsJson,
    ImageRoot,
    Manifests,
)

Mark = Literal["ok", "look", "bad"]


@dataclass(frozen=True)
class Fact:
    """One line of the report.

    Attributes:
        name: What was checked.
        value: What was found.
        mark: "ok"; "look", which may be intended; or "bad", which does not work.
        hint: What to do, unless it is ok.
    """

    name: str
    value: str
    mark: Mark = "ok"
    hint: str | None = None


CORE = ("numpy", "pandas", "pillow", "pyarrow", "pydantic", "pyyaml", "rich", "typer", "xxhash")
TRAIN = ("safetensors", "torch", "torchvision")
SERVE = ("starlette", "uvicorn")

_TO_TRAIN = f"needed to train; install it with: {INSTALL_TRAIN}"
_TO_SERVE = f"needed by `review` and `serve`; install it with: {INSTALL_SERVE}"
_GIB = 1 << 30
_LITTLE_MEMORY_BYTES = 4 * _GIB
_LITTLE_DISK_BYTES = 10 * _GIB
_NO_DISK_BYTES = 1 * _GIB
_FEW_INODES = 100_000
_FEW_OPEN_FILES = 1024
_REMOTE = ("9p", "afs", "beegfs", "ceph", "cifs", "fuse", "gpfs", "lustre", "nfs", "smb")

_PROBE = """
import json, torch
found = {"cuda": torch.version.cuda, "gpus": torch.cuda.device_count(), "pair": None}
if found["gpus"]:
    found["bf16"] = torch.cuda.is_bf16_supported(including_emulation=False)
try:
    import torchvision
except Exception as error:
    found["pair"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""
_PROBE_SECONDS = 180

_PAIR_HINTS = {
    "torchvision::nms does not exist": (
        "torch and torchvision are of different builds (as CPU torch with CUDA torchvision): "
        "uninstall both, then install both from one index with one `pip install torch torchvision`"
    ),
    "No module named 'torchvision'": _TO_TRAIN,
}


def all_facts(*, manifests: Path, root: str | None, with_torch: bool) -> Iterator[Fact]:
    """Yield every fact, the slowest last.

    Args:
        manifests: The manifest folder, which need not exist.
        root: The image root, if known.
        with_torch: Start a process that imports torch, which takes seconds.
    """
    yield from package_facts()
    yield compiled_fact()
    yield cores_fact()
    yield memory_fact(*machine.memory_bytes())
    yield open_files_fact(*resource.getrlimit(resource.RLIMIT_NOFILE))
    yield from folder_facts("working folder", Path())
    yield from folder_facts("manifests", manifests)
    if root is not None:
        yield root_fact(root)
    gpus = machine.nvidia_gpus()
    yield gpu_fact(gpus)
    yield cpu_precision_fact(machine.cpu_multiplies("bf16"), gpus)
    if with_torch and installed("torch"):
        yield from torch_facts(probe_torch(), gpus)


def compiled_fact() -> Fact:
    """Check whether the compiled extension was built with the package."""
    from vit21k.prep.scan import compiled_reader

    reader, why = compiled_reader()
    if reader:
        return Fact("compiled extension", "works")
    hint = "slower without: install a C compiler (`apt install gcc`), then install vit21k again"
    return Fact("compiled extension", (why or "").splitlines()[0], "look", hint)


def installed(package: str) -> str | None:
    """Return the version of *package*, None if it is not installed; nothing is imported."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def package_facts() -> Iterator[Fact]:
    """Yield the versions of Python, vit21k and its dependencies."""
    yield Fact("python", f"{platform.python_version()} ({sys.executable})")
    yield Fact("vit21k", installed("vit21k") or "not installed")
    for package in CORE:
        if found := installed(package):
            yield Fact(package, found)
        else:
            yield Fact(package, "not installed", "bad", "install vit21k again with pip")
    for packages, hint in ((TRAIN, _TO_TRAIN), (SERVE, _TO_SERVE)):
        for package in packages:
            if found := installed(package):
                yield Fact(package, found)
            else:
                yield Fact(package, "not installed", "look", hint)


def cores_fact() -> Fact:
    """Return the number of cores, and how many may be used."""
    usable, present = machine.num_cores(), os.cpu_count() or 1
    if usable < present:
        hint = "an affinity or a quota limits this process; set --num-workers accordingly"
        return Fact("cores", f"{usable:g} of {present} may be used", "look", hint)
    return Fact("cores", f"{present}")


def memory_fact(total: int, free: int) -> Fact:
    """Check the memory this process may use."""
    value = f"{free / _GIB:.1f} GiB free of {total / _GIB:.1f} GiB"
    if free < _LITTLE_MEMORY_BYTES:
        return Fact("memory", value, "look", "large manifests and training may need more")
    return Fact("memory", value)


def open_files_fact(soft: int, hard: int) -> Fact:
    """Check the limit of open files (`ulimit -n`)."""
    words = ["no limit" if n == resource.RLIM_INFINITY else f"{n:,}" for n in (soft, hard)]
    value = f"{words[0]} (may be raised to {words[1]})"
    if soft != resource.RLIM_INFINITY and soft < _FEW_OPEN_FILES:
        return Fact("open files", value, "look", f"raise it with `ulimit -n {_FEW_OPEN_FILES}`")
    return Fact("open files", value)


def folder_facts(name: str, folder: Path) -> Iterator[Fact]:
    """Yield whether *folder* is writable, and its free space."""
    there = machine.existing_folder(folder)
    if not os.access(there, os.W_OK | os.X_OK):
        yield Fact(name, f"{there}", "bad", "not writable; name another folder")
        return
    free = shutil.disk_usage(there).free
    value = f"{free / _GIB:.1f} GiB free on {machine.file_system_of(there)} ({there})"
    mark: Mark = "ok" if free >= _LITTLE_DISK_BYTES else "look"
    mark = "bad" if free < _NO_DISK_BYTES else mark
    yield Fact(name, value, mark, None if mark == "ok" else "free some space first")
    inodes = os.statvfs(there)
    if inodes.f_files > 0 and inodes.f_favail < _FEW_INODES:
        hint = "only few more files can be created there"
        yield Fact(f"{name}, inodes", f"{inodes.f_favail:,} free", "look", hint)


def root_fact(root: str) -> Fact:
    """Check the image root."""
    from vit21k.sources.read import existing_root
    from vit21k.sources.remote import is_url

    try:
        existing_root(root, None)
    except (errors.Vit21kError, OSError) as error:
        return Fact("image root", str(error), "bad", "name the image root with --root")
    if is_url(root):
        return Fact("image root", root)
    file_system = machine.file_system_of(Path(root))
    if file_system.startswith(_REMOTE):
        hint = "many small files are slow over a network; give `hash` more --num-workers"
        return Fact("image root", f"{root} on {file_system}", "look", hint)
    return Fact("image root", f"{root} on {file_system}")


def gpu_fact(gpus: list[str]) -> Fact:
    """Check the GPUs of the driver."""
    if not gpus:
        return Fact("gpu", "none", "look", "training runs on the CPU: small models only")
    return Fact("gpu", "; ".join(gpus))


def cpu_precision_fact(has_bf16: bool, gpus: list[str]) -> Fact:
    """Check whether the processor supports bfloat16, which most recipes use."""
    name = "bfloat16 on the CPU"
    if has_bf16:
        return Fact(name, "in hardware")
    if gpus:
        return Fact(name, "emulated")
    hint = (
        "recipes with `precision: bf16` or `fp16` are many times slower here than with "
        "`train --set precision=fp32`; `precision: auto` chooses fp32"
    )
    return Fact(name, "emulated", "look", hint)


def probe_torch() -> dict[str, Any]:
    """Import torch, then torchvision, in another process.

    Returns:
        "cuda" (version that torch was built for, or None), "gpus" (their number), "bf16" (whether
        they support it in hardware) and "pair" (error of importing torchvision, or None); or
        "error" alone.
    """
    command = [sys.executable, "-c", _PROBE]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {_PROBE_SECONDS} s"}
    except OSError as error:
        return {"error": f"`{sys.executable}` does not start: {error.strerror}"}
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        return {"error": f"exit status {answer.returncode}: {last}"}
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


def torch_facts(found: dict[str, Any], gpus: list[str]) -> Iterator[Fact]:
    """Check the result of `probe_torch` against the GPUs of the driver."""
    if error := found.get("error"):
        yield Fact("import torch", error, "bad", "install torch again with pip")
        return
    yield Fact("import torch", "works" + (f", CUDA {found['cuda']}" if found["cuda"] else ", CPU"))
    yield pair_fact(found["pair"])
    if gpus and not found["gpus"]:
        hint = "torch was built without CUDA, or for a newer driver than this machine's"
        yield Fact("torch and gpu", f"torch sees none of {len(gpus)}", "bad", hint)
    if not found.get("bf16", True):
        hint = "recipes with `precision: bf16` are slow here; use `train --set precision=fp16`"
        yield Fact("bfloat16 on the GPU", "emulated", "look", hint)


def pair_fact(error: str | None) -> Fact:
    """Check whether torchvision can be imported with torch."""
    name = "torch and torchvision"
    if error is None:
        return Fact(name, "compatible")
    hints = [hint for part, hint in _PAIR_HINTS.items() if part in error]
    hint = hints[0] if hints else "install both again, from one index"
    return Fact(name, error.splitlines()[0], "bad", hint)


def doctor_command(
    manifests: Manifests = DEFAULT_MANIFESTS,
    root: ImageRoot = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Do not import torch, which takes seconds.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check the installation and the machine.

    Each line is marked `ok`, `look` (may be intended) or `bad` (does not work; exit code 1).

    [bold]Examples[/bold]

        vit21k doctor

        vit21k doctor --root /data/ImageNet21K

        vit21k doctor --json > doctor.json
    """
    facts = list(all_facts(manifests=manifests, root=root, with_torch=not quick))
    counts = Counter(fact.mark for fact in facts)
    if as_json:
        console.print_json({"facts": [asdict(fact) for fact in facts], "num_bad": counts["bad"]})
    else:
        _show(facts)
    console.done(
        f"doctor: {len(facts)} facts: "
        f"{counts['ok']} ok, {counts['look']} to look at, {counts['bad']} bad"
    )
    if counts["bad"]:
        raise typer.Exit(errors.EXIT_FAILED)
    print_next("vit21k hash -h" if find_spec("torch") is None else "vit21k demo")


def _show(facts: "list[Fact]") -> None:
    rows = [[fact.mark, fact.name, fact.value] for fact in facts]
    console.print_table(["mark", "what", "found"], rows)
    for fact in facts:
        if fact.hint:
            console.note(f"{fact.mark}: {fact.name}: {fact.hint}")
