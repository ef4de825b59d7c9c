"""What `eval` says on the terminal."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vit21k.cli import console

if TYPE_CHECKING:
    from vit21k.inference.study import Study
    from vit21k.manifest.classes import ClassList


def show(
    found: "Study",
    about: Mapping[str, str],
    prefix: str,
    classes: "ClassList",
    *,
    as_json: bool,
) -> None:
    """Print the metrics, each after *prefix*, and the most confused pairs, then the counts."""
    metrics = {f"{prefix}/{name}": value for name, value in found.metrics.items()}
    metrics |= {f"real/{name}": value for name, value in found.real.items()}
    confused = [
        {
            "label": classes.wnids[pair.label],
            "predicted": classes.wnids[pair.predicted],
            "num_images": pair.num_images,
        }
        for pair in found.confused
    ]
    if as_json:
        extra = {"confused": confused} if confused else {}
        console.print_json({**about, **metrics, **extra})
    else:
        console.print_table(["metric", "value"], [[k, _in_words(v)] for k, v in metrics.items()])
    if confused and not as_json:
        console.print_lines("")
        rows = [[str(cell) for cell in pair.values()] for pair in confused]
        console.print_table(["label", "taken for", "images"], rows)
    _tell_counts(found, about, len(classes))


def _tell_counts(found: "Study", about: Mapping[str, str], num_classes: int) -> None:
    num_skipped = found.metrics.get("num_skipped", 0)
    console.done(
        f"eval: {found.metrics['num_images']:,} images of `{about['manifest']}`, "
        f"model `{about['model']}`; {num_classes:,} classes, "
        f"{found.metrics['num_empty_classes']:,} of them without images here and left out of the "
        "means over classes"
        + (f"; {num_skipped:,} images could not be decoded" if num_skipped else "")
    )


def _in_words(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
