"""Faults on purpose, while a command runs: killed, disk full, disk failing; and what is left then.

A *stage* is a command with all that it reads, and with what an earlier run of it wrote.  It runs in
a forked child that something happens to.  Afterwards every file it writes must be the old one or
the new one, byte for byte and readable; the same command must then succeed, leave nothing else
behind, and write what it writes when nothing happens.

Errors of the disk are injected by strace into the n-th call of a kind.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

EXIT_STORAGE = 74
CALLS = {"write": "write", "fsync": "fsync", "rename": "rename,renameat,renameat2"}
EFFECTS = {"kill": "signal=SIGKILL", "ENOSPC": "error=ENOSPC", "EIO": "error=EIO"}

_HANG_SECONDS = 60
_NOT_RESULTS = {".lock", ".hash-cache"}  # who was last to hold it; what need not be read again

Files = dict[str, bytes]


@dataclass(frozen=True)
class Stage:
    """A command, and a folder for it to work in.

    Attributes:
        name: Of the command.
        before: Content of the folder when it begins; copied for every run.
        run: Does it, in the working directory; returns the exit code.
        check: Raises if the content of the working directory cannot be read.
    """

    name: str
    before: Path
    run: Callable[[], int]
    check: Callable[[], None]


@dataclass
class Tally:
    """What came of many faults.

    Attributes:
        found: How often the files were all old, all new, or some of each.
        codes: How often the command ended with which code; -9 is a kill.
        failures: What must not happen, in words.
    """

    found: Counter[str] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def num_faults(self) -> int:
        """How many faults struck."""
        return self.codes.total()


class References(NamedTuple):
    """Files before the command, and after it when nothing happens; how long that takes."""

    old: Files
    new: Files
    seconds: float


def files_in(folder: Path) -> Files:
    """Return every file below *folder* that is a result."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in _NOT_RESULTS
    }


def run_undisturbed(stage: Stage, work: Path) -> References:
    """Run *stage* in *work* and return what there was before and is after."""
    old = files_in(stage.before)
    seconds = []
    for _ in range(3):
        reset(stage, work)
        start = time.perf_counter()
        if code := wait_for(fork(stage.run, work)):
            raise RuntimeError(f"{stage.name} fails undisturbed: {code}")
        seconds.append(time.perf_counter() - start)
    return References(old, files_in(work), min(seconds))


def reset(stage: Stage, work: Path) -> None:
    """Put *work* into the state before *stage*."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(stage.before, work)


def fork(run: Callable[[], int], work: Path, *, is_stopped: bool = False) -> int:
    """Run in a child, in *work*, with the error stream closed to nothing; return its number.

    Args:
        run: What to do; its result is the exit code.
        work: Working directory.
        is_stopped: The child stops itself before it begins.
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.chdir(work)
        sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
        if is_stopped:
            os.kill(os.getpid(), signal.SIGSTOP)
        code = run()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else bool(stop.code)
    finally:
        os._exit(code)


def wait_for(child: int) -> int:
    """Return the exit code of *child*; minus the signal that ended it.

    Raises:
        TimeoutError: It hangs; it is killed.
    """
    for _ in range(1000 * _HANG_SECONDS):  # not by the clock: this process may be stopped
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError("it hangs")


def kill_at_random(
    stage: Stage, work: Path, *, times: int, seed: int = 0, references: References | None = None
) -> Tally:
    """Kill *stage* so many *times*, each at a random moment of its run."""
    references = references or run_undisturbed(stage, work)
    draw = random.Random(seed)
    tally = Tally()
    for _ in range(times):
        reset(stage, work)
        child = fork(stage.run, work)
        time.sleep(draw.uniform(0, 1.05 * references.seconds))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        judge(stage, work, references, wait_for(child), tally, expected={-9, 0})
    return tally


def judge(
    stage: Stage,
    work: Path,
    references: References,
    code: int,
    tally: Tally,
    *,
    expected: set[int],
) -> None:
    """Note in *tally* what a run that ended with *code* has left, and what the next one makes."""
    tally.codes[code] += 1
    if code not in expected:
        tally.failures.append(f"{stage.name}: exit code {code}")
    found = files_in(work)
    tally.found[_state(found, references, tally, stage)] += 1
    if code == 0 and found != references.new:
        tally.failures.append(f"{stage.name}: it says that it succeeded, and has not")
    try:
        again = wait_for(fork(_read_and_run(stage), work))
    except TimeoutError:
        again = -1
    if again:
        tally.failures.append(f"{stage.name}: afterwards, exit code {again}")
    if (rerun := files_in(work)) != references.new:
        tally.failures.append(f"{stage.name}: the next run: {difference(rerun, references.new)}")


def _read_and_run(stage: Stage) -> Callable[[], int]:
    def read_and_run() -> int:
        stage.check()
        return stage.run()

    return read_and_run


def _state(found: Files, references: References, tally: Tally, stage: Stage) -> str:
    """Return whether the files are old or new; a file that is neither is a failure."""
    states = set()
    for name in references.old.keys() | references.new.keys():
        old, new, now = (files.get(name) for files in (references.old, references.new, found))
        if now not in (old, new):
            tally.failures.append(f"{stage.name}: `{name}` is neither the old nor the new one")
        if old != new:
            states.add("new" if now == new else "old")
    return "some of each" if len(states) > 1 else (states or {"old"}).pop()


def difference(found: Files, wanted: Files) -> str:
    """Say how two sets of files differ."""
    more, fewer = found.keys() - wanted.keys(), wanted.keys() - found.keys()
    other = [name for name in found.keys() & wanted.keys() if found[name] != wanted[name]]
    return f"more {sorted(more)}, fewer {sorted(fewer)}, other content {sorted(other)}"


def has_strace() -> bool:
    """Return whether strace is there, and allowed to trace."""
    try:
        return subprocess.run(["strace", "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def inject(
    stage: Stage, work: Path, call: str, effect: str, number: int, references: References
) -> Tally | None:
    """Let the call *number* of kind *call* end in *effect*; None if there are fewer calls."""
    reset(stage, work)
    log = work.with_name("strace.log")
    child = fork(stage.run, work, is_stopped=True)
    os.waitpid(child, os.WUNTRACED)
    names = CALLS[call]
    options = ["-e", f"trace={names}", "-e", f"inject={names}:{EFFECTS[effect]}:when={number}"]
    with subprocess.Popen(
        ["strace", "-f", "-o", str(log), *options, "-p", str(child)],
        stderr=subprocess.PIPE,
        text=True,
    ) as tracer:
        if tracer.stderr is None or "attached" not in tracer.stderr.readline():
            raise RuntimeError("strace cannot attach")
        os.kill(child, signal.SIGCONT)
        code = wait_for(child)
        tracer.communicate(timeout=_HANG_SECONDS)
    if "INJECTED" not in (text := log.read_text()) and "SIGKILL" not in text:
        return None
    tally = Tally()
    expected = {-9} if effect == "kill" else {EXIT_STORAGE}
    judge(stage, work, references, code, tally, expected=expected)
    return tally


def inject_everywhere(stage: Stage, work: Path, call: str, effect: str, *, every: int = 1) -> Tally:
    """Do so at the first call, and at each *every*-th after it, until there are no more."""
    references = run_undisturbed(stage, work)
    total = Tally()
    number = 1
    while (tally := inject(stage, work, call, effect, number, references)) is not None:
        total.found += tally.found
        total.codes += tally.codes
        total.failures += [f"{call} {number}, {effect}: {text}" for text in tally.failures]
        number += every
    return total


def flipped(content: bytes, times: int, seed: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield *content* with a bit flipped, at random offsets; and the number of the bit."""
    draw = random.Random(seed)
    for _ in range(times):
        bit = draw.randrange(8 * len(content))
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(damaged)
