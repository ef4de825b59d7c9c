"""Run every command block of README and docs/ on small data, and compare the output with the page.

python tools/docs/run_doc_commands.py [PAGE ...]    all pages, or those named: docs/use.md
    --images DIR      a tree of class folders in place of the generated one
    --keep DIR        keep the scratch folder there

Every page gets a folder of its own with a small dataset, its manifests and trained runs, in which
its commands run in order, as typed but for what `doc_commands.toml` lists: commands that cannot
run here, with the reason, and what is made smaller. The exit status is 1 if a command fails, or
prints something else than its page shows.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import doc_world

CHECKOUT = Path(__file__).parents[2]
RULES: dict[str, Any] = tomllib.loads(
    Path(__file__).with_name("doc_commands.toml").read_text(encoding="utf-8")
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```(?:\n\n```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)
SHELLS = ("sh", "bash", "console")
LIMIT_SECONDS = 300
VOLATILE = re.compile(r"images/s|MFU|step \d|probability|tree.* s$")
NUMBER = re.compile(r"\d[\d,]*(?:\\?\.\d+)?(?:e[+\\-]*\d+)?")


class Command(NamedTuple):
    """A command of a page: its text, its language, and the output that the page shows."""

    text: str
    kind: str
    shown: list[str]


@dataclass(frozen=True)
class Outcome:
    """What became of a command: "as documented", "otherwise" or "not run", and why."""

    command: Command
    verdict: str
    why: str = ""


def commands_of(page: str) -> Iterator[Command]:
    """Yield the commands of the Markdown text *page*, in order."""
    for kind, body, output in BLOCK.findall(page):
        if kind in SHELLS:
            yield from _of_shell(body, kind)
        elif kind in ("python", "sql"):
            yield Command(body, kind, output.splitlines())


def _of_shell(body: str, kind: str) -> Iterator[Command]:
    """Yield the lines of a shell block; in ``console`` they begin with $, and output follows."""
    typed, shown = "", []
    for line in body.splitlines():
        if typed.endswith("\\\n"):
            typed += line
        elif kind == "console" and not line.startswith("$ "):
            shown.append(line)
        elif kind != "console" and line.startswith("#"):
            shown.append(line.removeprefix("# "))
        else:
            yield from _made(typed, shown)
            typed, shown = line.removeprefix("$ ") if kind == "console" else line, []
        if typed.endswith("\\"):
            typed += "\n"
    yield from _made(typed, shown)


def _made(typed: str, shown: list[str]) -> Iterator[Command]:
    typed = re.sub(r"\s+#.*$", "", typed)
    if typed.strip() and not typed.startswith("#"):
        yield Command(typed, "sh", [line for line in shown if line.strip()])


def rule_for(kind: str, page: str, text: str) -> dict[str, str] | None:
    """Return the first rule of *kind* in doc_commands.toml for a command of *page*."""
    rules: list[dict[str, str]] = RULES.get(kind, [])
    for rule in rules:
        if re.search(rule.get("page", ""), page) and re.search(rule["pattern"], text):
            return rule
    return None


def smaller(page: str, text: str) -> str:
    """Return a command with everything that doc_commands.toml makes smaller."""
    for rule in RULES["small"]:
        if re.search(rule.get("page", ""), page):
            text = re.sub(rule["pattern"], rule["replace"], text)
    return text


def is_shown(shown: Sequence[str], printed: str) -> str | None:
    """Return the first line of *shown* that *printed* does not have, in order; None if it has all.

    `...` stands for any text. Numbers are compared except in lines on speed and progress.
    """
    lines = iter(" ".join(line.split()) for line in printed.splitlines())
    for line in shown:
        if line.strip() == "...":
            continue
        pattern = re.escape(" ".join(line.split())).replace(r"\.\.\.", ".*")
        if VOLATILE.search(line):
            pattern = NUMBER.sub(r"\\d[\\d,.e+-]*", pattern)
        if not any(re.fullmatch(pattern, each) for each in lines):
            return line
    return None


class Page:
    """A folder in which the commands of one page run, and the servers that they started."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str]) -> None:
        self.name = name
        self._folder = folder
        self._environment = environment
        self._session = ""
        self._servers: list[subprocess.Popen[bytes]] = []

    def run(self, command: Command) -> Outcome:
        """Run one command, unless doc_commands.toml says why it cannot."""
        if rule := rule_for("skip", self.name, command.text):
            return Outcome(command, "not run", rule["reason"])
        text = smaller(self.name, command.text).replace("WORLD", str(self._folder))
        if rule_for("server", self.name, text):
            self._servers.append(self._start(text))
            return self._when_ready(command)
        if command.kind == "python":  # a session: blocks use the names of those before
            self._session += text
            (self._folder / "block.py").write_text(self._session, encoding="utf-8")
            text = "python block.py"
        elif command.kind == "sql":
            (self._folder / "block.sql").write_text(text, encoding="utf-8")
            text = f"python {Path(__file__).with_name('run_queries.py')} --query block.sql"
        return self._finished(command, text)

    def _start(self, text: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            ["bash", "-c", text],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _when_ready(self, command: Command) -> Outcome:
        server = self._servers[-1]
        for line in server.stdout or ():
            if b"http://" in line:
                return Outcome(command, "as documented")
        return Outcome(command, "otherwise", f"ended with exit code {server.wait()}")

    def _finished(self, command: Command, text: str) -> Outcome:
        process = self._start(text)
        try:
            printed = process.communicate(timeout=LIMIT_SECONDS)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return Outcome(command, "otherwise", f"runs for more than {LIMIT_SECONDS} s")
        rule = rule_for("exit", self.name, text)
        if process.returncode != int(rule["code"] if rule else 0):
            why = f"exit code {process.returncode}: {printed[-800:]}"
            return Outcome(command, "otherwise", why)
        is_compared = not rule_for("output", self.name, text)
        missing = is_shown(command.shown, printed) if is_compared else None
        if missing is not None:
            return Outcome(command, "otherwise", f"not printed: {missing}\n{printed[-1500:]}")
        return Outcome(command, "as documented")

    def close(self) -> None:
        """Stop the servers."""
        for server in self._servers:
            os.killpg(server.pid, signal.SIGTERM)
            server.communicate(timeout=30)


def run_page(name: str, world: Path, scratch: Path, environment: dict[str, str]) -> list[Outcome]:
    """Run the commands of one page in a copy of *world*."""
    found = list(commands_of((CHECKOUT / name).read_text(encoding="utf-8")))
    if all(rule_for("skip", name, each.text) for each in found):
        return [Outcome(e, "not run", rule_for("skip", name, e.text)["reason"]) for e in found]  # type: ignore[index]
    folder = scratch / name.replace("/", "-").removesuffix(".md")
    shutil.copytree(world, folder, symlinks=True)
    page = Page(name, folder, environment)
    try:
        return [page.run(command) for command in found]
    finally:
        page.close()


def report(results: dict[str, list[Outcome]], seconds: float) -> int:
    """Print the table; return the exit status."""
    verdicts = ("as documented", "otherwise", "not run")
    print(f"{'page':34} {'run':>5} {'as documented':>14} {'otherwise':>10} {'not run':>8}")
    totals = [0, 0, 0]
    for page, outcomes in results.items():
        counts = [sum(o.verdict == verdict for o in outcomes) for verdict in verdicts]
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        print(_row(page, counts))
    print(_row("all", totals))
    reasons = [o.why for outcomes in results.values() for o in outcomes if o.verdict == "not run"]
    for reason in sorted(set(reasons)):
        print(f"not run, {reasons.count(reason)}: {reason}")
    print(f"{seconds:.0f} s")
    return int(totals[1] > 0)


def _row(page: str, counts: Sequence[int]) -> str:
    as_documented, otherwise, not_run = counts
    run = as_documented + otherwise
    return f"{page:34} {run:5} {as_documented:14} {otherwise:10} {not_run:8}"


def pages_with_commands() -> list[str]:
    """Return README, CONTRIBUTING and the pages of docs/ that have command blocks."""
    paths = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *CHECKOUT.glob("docs/**/*.md")]
    texts = {str(path.relative_to(CHECKOUT)): path.read_text(encoding="utf-8") for path in paths}
    return sorted(name for name, text in texts.items() if list(commands_of(text)))


def main(arguments: Sequence[str]) -> int:
    """Run the pages; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("pages", nargs="*")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args(arguments)
    started_at = time.monotonic()
    pages = args.pages or pages_with_commands()
    with tempfile.TemporaryDirectory(prefix="vit21k-docs-") as temporary:
        scratch = (args.keep or Path(temporary)).resolve()
        environment = doc_world.environment(scratch)
        world = doc_world.make(scratch, environment, args.images)
        results = {}
        for page in pages:
            page_started_at = time.monotonic()
            results[page] = run_page(page, world, scratch, environment)
            print(f"{page}: {time.monotonic() - page_started_at:.1f} s", flush=True)
            for outcome in results[page]:
                if outcome.verdict == "otherwise":
                    print(f"$ {outcome.command.text.strip()}\n    {outcome.why}\n", flush=True)
    return report(results, time.monotonic() - started_at)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
