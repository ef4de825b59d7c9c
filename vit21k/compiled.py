"""C files of this package, compiled by the system's compiler when they are first needed.

The libraries are kept in the user's cache folder, under names that hang on the source and the kind
of machine.  So the package needs no compiler to install, and is the same file for every platform.
Nothing needs a compiler to run either: who calls this has another way.

Performance: compiling takes 0.2 to 1.4 s, once for each version and user.
"""

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import xxhash

from vit21k.errors import Vit21kError
from vit21k.user_cache import user_cache

_FLAGS = ["-O3", "-shared", "-fPIC"]
_SECONDS = 120
_CPUINFO = Path("/proc/cpuinfo")
_CPUINFO_CHARACTERS = 1 << 14  # more than one processor has; a machine may have hundreds
_OF_THE_KIND = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU ", "isa")


class NoCompilerError(Vit21kError):
    """There is no C compiler, or it does not work; what it said is the message."""


def compiled_library(source: Path, *included: Path, flags: Sequence[str] = ()) -> ctypes.CDLL:
    """Return the library that *source* makes, which is compiled first if it has to be.

    Args:
        source: A C file.
        included: Files of this package that it includes.
        flags: More of them for the compiler.

    Raises:
        NoCompilerError: It cannot be.
    """
    path = _cache_folder() / f"{source.stem}-{_key(flags, source, *included)}.so"
    if not path.is_file():
        _compile(source, path, flags)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:  # a cache folder that programs may not be run from
        raise NoCompilerError(f"`{path}` cannot be loaded: {error}") from error


def _key(flags: Sequence[str], *sources: Path) -> str:
    machine = f"{platform.machine()} {_processor()} {platform.libc_ver()}"
    what = f"{machine} {_FLAGS} {list(flags)}".encode()
    return xxhash.xxh3_64_hexdigest(b"".join(path.read_bytes() for path in sources) + what)


def _processor() -> str:
    """Return what the first processor is and can do, as far as Linux says it.

    What is compiled for this one (`-march=native`) would end programs of another machine with an
    illegal instruction, where the cache lies on a disk that both share.
    """
    try:
        with _CPUINFO.open(encoding="utf-8") as file:
            first = file.read(_CPUINFO_CHARACTERS).partition("\n\n")[0]
    except OSError:
        return ""
    return " ".join(line for line in first.splitlines() if line.startswith(_OF_THE_KIND))


def _cache_folder() -> Path:
    """Return a folder that only this user can write to: what lies there is run."""
    folder = user_cache()
    if folder is None:
        raise NoCompilerError("no cache folder: the user has no home")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
    except OSError as error:
        raise NoCompilerError(f"no cache folder: {error}") from error
    if state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise NoCompilerError(f"`{folder}` may be written to by others: what lies there is not run")
    return folder


def _compile(source: Path, path: Path, flags: Sequence[str]) -> None:
    """Compile to a file beside *path*, which then takes its name: others may do the same."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    compiler = compiler or shutil.which("clang")
    if not compiler:
        raise NoCompilerError("there is no C compiler")
    partial = None
    command = [*compiler.split(), *_FLAGS, *flags, "-o", "", str(source)]
    try:
        descriptor, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        os.close(descriptor)
        command[-2] = partial
        done = subprocess.run(  # noqa: S603 (the system's compiler, on a file of this package)
            command, capture_output=True, text=True, check=False, timeout=_SECONDS
        )
        if done.returncode:
            raise NoCompilerError(f"`{command[0]}` failed: {done.stderr.strip()[-500:]}")
        Path(partial).replace(path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCompilerError(f"`{command[0]}` failed: {error}") from error
    finally:
        if partial:
            Path(partial).unlink(missing_ok=True)
