"""`doctor`: what is installed, what the machine has, and what to do about it."""

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from vit21k import errors
from vit21k.cli import console
from vit21k.cli.options import DEFAULT_MANIFESTS, AsJson, ImageRoot, Manifests

if TYPE_CHECKING:
    from vit21k.cli.doctor_facts import Fact


def register(app: typer.Typer) -> None:
    """Add `doctor` to *app*."""
    app.command("doctor", rich_help_panel="Help")(doctor_command)


def doctor_command(
    manifests: Manifests = DEFAULT_MANIFESTS,
    root: ImageRoot = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Do not try torch, which takes seconds.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look at the installation and the machine.

    Each line is marked: `ok`, `look` (may be what you want) or `bad` (will not work; exit code 1).

    [bold]Examples[/bold]

        vit21k doctor

        vit21k doctor --root /data/ImageNet21K

        vit21k doctor --json > doctor.json
    """
    from vit21k.cli.doctor_facts import all_facts

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
    console.note("next: `vit21k demo`")


def _show(facts: "list[Fact]") -> None:
    rows = [[fact.mark, fact.name, fact.value] for fact in facts]
    console.print_table(["mark", "what", "found"], rows)
    for fact in facts:
        if fact.hint:
            console.note(f"{fact.mark}: {fact.name}: {fact.hint}")
