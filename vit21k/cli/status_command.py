"""`status`: where am I, and what do I type next?"""

from dataclasses import asdict

import typer

from vit21k.cli import console
from vit21k.cli.options import DEFAULT_MANIFESTS, AsJson, Manifests, for_manifests


def register(app: typer.Typer) -> None:
    """Add `status` to *app*."""
    app.command("status", rich_help_panel="Help")(status_command)


def status_command(manifests: Manifests = DEFAULT_MANIFESTS, as_json: AsJson = False) -> None:
    """Show which manifests are there, which are stale, and what to type next.

    [bold]Examples[/bold]

      vit21k status

      vit21k status --manifests in21k_manifests --json
    """
    from vit21k.prep.status import status_of

    status = status_of(manifests)
    next_command = for_manifests(status.next, manifests)
    if as_json:
        console.print_json({**asdict(status), "next": next_command})
    else:
        console.print_table(
            ["manifest", "state", "rows", "one row is a", "made by"],
            [
                [
                    each.kind,
                    f"{each.state}: {each.detail}" if each.detail else each.state,
                    "-" if each.num_rows is None else f"{each.num_rows:,}",
                    each.row,
                    each.next,
                ]
                for each in status.manifests
            ],
        )
    if status.root:
        console.note(
            f"image root: {status.root}{'' if status.has_root else ' (not there: use `--root`)'}"
        )
    states = [each.state for each in status.manifests]
    console.done(
        f"status: {len(states)} manifests: "
        + ", ".join(
            f"{states.count(state)} {state}" for state in ("fresh", "stale", "missing", "damaged")
        )
    )
    console.note(f"next: `{next_command}`")
