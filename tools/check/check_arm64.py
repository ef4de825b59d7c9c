"""Run the compiled code for 64-bit ARM under an emulator: the same results as on this processor?

Both fuzz targets (tools/fuzz) are compiled for this processor and for ARM, without sanitizers and
with the flags of the extension, and run on the committed inputs and on mutated ones, which are the
same on both. Pixels, recoded data, digests and facts of files are compared through a digest.

    python tools/check/check_arm64.py --runs 2000
    python tools/check/check_arm64.py --runs 0 FILE...

Needs a cross compiler and an emulator (Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross,
qemu-user). Exit code 1: something differs.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "fuzz"))

from fuzz_native import TARGETS, Build, build_target, seeds

OPTIMIZE = ("-O3", "-g0")
HERE = Build("gcc", OPTIMIZE, OPTIMIZE)
ARM64 = Build("aarch64-linux-gnu-gcc", OPTIMIZE, (*OPTIMIZE, "-static"))
EMULATOR = "qemu-aarch64"


def main() -> int:
    """Build and run both targets in both ways; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, help="inputs; default: the committed ones")
    parser.add_argument("--runs", type=int, default=2000, help="of mutated inputs, of each target")
    args = parser.parse_args()
    files = [path.resolve() for path in args.files] or seeds()
    with tempfile.TemporaryDirectory() as name:
        differences = sum(differs(target, files, args.runs, Path(name)) for target in TARGETS)
    return int(differences > 0)


def differs(target: str, files: list[Path], num_runs: int, folder: Path) -> bool:
    """Run a target here and under the emulator, print what differs; return whether anything did."""
    results = []
    for build, emulator in ((HERE, []), (ARM64, [EMULATOR])):
        own_folder = folder / f"{target}-{build.compiler}"
        own_folder.mkdir()
        program = build_target(target, build, own_folder)
        command = [*emulator, str(program), "0", str(num_runs), *map(str, files)]
        done = subprocess.run(command, cwd=own_folder, capture_output=True, text=True, check=True)
        results.append(done.stdout.splitlines())
    different = [
        f"{here}, on ARM: {arm}" for here, arm in zip(*results, strict=True) if here != arm
    ]
    print("\n".join(different) or f"{target}: {len(files)} files equal, {results[0][-1]}")
    return bool(different)


if __name__ == "__main__":
    sys.exit(main())
