"""Fuzz the compiled code (the JPEG code and the file scanner) under the sanitizers.

Inputs are those of tests/fixtures/fuzz, mutated: by libFuzzer where clang has it, and else by
tools/fuzz/driver.c, built by GCC. Both targets run at the same time. What crashes, hangs, or gives
different results in two variants of the code is an error: its input is kept. Needs nothing but
Python and a C compiler; where there is none, nothing is fuzzed.

    python tools/fuzz/fuzz_native.py --seconds 120
    python tools/fuzz/fuzz_native.py --seconds 0 FILE    run a kept input again

Exit code 1: an error was found.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).parents[2]
SOURCES = CHECKOUT / "tools" / "fuzz"
JPEG = CHECKOUT / "vit21k" / "_native" / "jpeg"
SEEDS = (CHECKOUT / "tests/fixtures/fuzz", CHECKOUT / "tests/fixtures/images")

TARGETS = {
    "fuzz_jpeg": (SOURCES / "fuzz_jpeg.c", JPEG / "crop.c", JPEG / "crop_avx2.c"),
    "fuzz_scan": (SOURCES / "fuzz_scan.c",),
}
FLAGS = ("-O1", "-g", "-ffp-contract=off", "-fwrapv", "-Wno-psabi", "-Wno-unknown-warning-option")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DCHECK_ARENA")


class Build(NamedTuple):
    """How the targets are built.

    Attributes:
        compiler: Its name.
        flags: Of the code under test.
        driver_flags: Of the driver, and of linking.
        is_libfuzzer: libFuzzer runs the targets, not the driver.
    """

    compiler: str
    flags: tuple[str, ...] = SANITIZE
    driver_flags: tuple[str, ...] = SANITIZE
    is_libfuzzer: bool = False


LIBFUZZER = Build(
    "clang",
    (*SANITIZE, "-fsanitize=fuzzer-no-link"),
    (*SANITIZE, "-fsanitize=fuzzer", "-DWITH_LIBFUZZER"),
    is_libfuzzer=True,
)


def main() -> int:
    """Build and run both targets; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, help="inputs; default: the committed ones")
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--compiler", choices=("clang", "gcc"), help="default: whichever works")
    args = parser.parse_args()
    files = [path.resolve() for path in args.files] or seeds()
    with tempfile.TemporaryDirectory() as name:
        build = usable_build(Path(name), args.compiler)
        if build is None:
            print("fuzz: no C compiler with sanitizers: nothing was fuzzed")
            return 0
        how = "libFuzzer" if build.is_libfuzzer else "driver.c"
        print(f"fuzz: {build.compiler}, {how}, {len(files)} inputs, {args.seconds} s", flush=True)
        programs = {target: build_target(target, build, Path(name)) for target in TARGETS}
        return int(run_all(programs, files, args.seconds, is_libfuzzer=build.is_libfuzzer))


def seeds() -> list[Path]:
    """Return the committed inputs that mutation starts from."""
    suffixes = (".jpg", ".ppm", ".png", ".gif", ".webp", ".tif", ".bmp")
    return sorted(path for folder in SEEDS for path in folder.iterdir() if path.suffix in suffixes)


def usable_build(folder: Path, wanted: str | None) -> Build | None:
    """Return the best way to build that works on this machine; None: there is none."""
    traced = "-fsanitize-coverage=trace-pc"
    ways = [LIBFUZZER, *(Build(name, (*SANITIZE, traced)) for name in ("gcc", "clang"))]
    probe = folder / "probe.c"
    for way in ways:
        if (wanted and way.compiler != wanted) or not shutil.which(way.compiler):
            continue
        entry = "LLVMFuzzerTestOneInput" if way.is_libfuzzer else "main"
        probe.write_text(f"int {entry}() {{ return 0; }}\n", encoding="utf-8")
        command = [way.compiler, *way.driver_flags, "-w", str(probe), "-o", str(folder / "probe")]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return way
    return None


def build_target(target: str, build: Build, folder: Path) -> Path:
    """Compile a target and its driver; return the program."""
    objects = []
    flags = {SOURCES / "driver.c": build.driver_flags} | dict.fromkeys(TARGETS[target], build.flags)
    for source, own_flags in flags.items():
        made = folder / f"{target}-{source.stem}.o"
        subprocess.run(
            [build.compiler, *FLAGS, *own_flags, "-c", str(source), "-o", str(made)], check=True
        )
        objects.append(str(made))
    program = folder / target
    command = [build.compiler, *build.driver_flags, *objects, "-lm", "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def run_all(
    programs: dict[str, Path], files: Sequence[Path], seconds: int, *, is_libfuzzer: bool
) -> bool:
    """Run the programs at the same time, each in a folder of its own; return whether one failed."""
    running = {}
    for target, program in programs.items():
        folder = program.parent / f"{target}-work"
        folder.mkdir()
        arguments = [str(seconds), "0", *map(str, files)]
        if is_libfuzzer:
            (folder / "corpus").mkdir()
            for number, path in enumerate(files):
                shutil.copyfile(path, folder / "corpus" / f"{number}")
            limit = f"-max_total_time={seconds}" if seconds else "-runs=0"
            arguments = [limit, "-seed=1", "-timeout=20", "-max_len=65536", "-verbosity=0"]
            arguments += ["-print_final_stats=1", "corpus"]
        log = (folder / "log").open("wb")
        running[target] = subprocess.Popen(
            [str(program), *arguments], cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )
    failures = [
        report(target, process, programs[target].parent / f"{target}-work")
        for target, process in running.items()
    ]
    return any(failures)


def report(target: str, process: "subprocess.Popen[bytes]", folder: Path) -> bool:
    """Wait for *process* and print how it ended; if it failed, keep its input and return True."""
    exit_code = process.wait()
    lines = (folder / "log").read_text(encoding="utf-8", errors="replace").splitlines()
    if not exit_code:
        stats = [line for line in lines if line.startswith(("runs ", "stat::number_of"))]
        print(f"{target}: {' '.join(stats)}, no errors")
        return False
    print("\n".join(lines[-60:]))
    inputs = [*folder.glob("crash-*"), *folder.glob("timeout-*"), *folder.glob("last-input")]
    kept = CHECKOUT / f"{target}-failure.bin"
    if inputs:
        shutil.copyfile(inputs[0], kept)
    print(f"{target}: FAILED with {exit_code}; its input is {kept.name}. To run it again:")
    print(f"    python tools/fuzz/fuzz_native.py --seconds 0 {kept.name}")
    return True


if __name__ == "__main__":
    sys.exit(main())
