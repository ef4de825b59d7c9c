"""Rewrite the table of checkpoints of other programs in docs/models.md; takes half a minute.

python tools/docs/opened_page.py            rewrite
python tools/docs/opened_page.py --check    exit 1 if that is out of date
"""

import sys
from pathlib import Path

import torch
from generated_block import write_or_check
from weight_cases import IMAGES, opened_cases

from vit21k.checkpoint.load import load_model

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
EQUAL = 1e-5  # of the largest logit


def opened_table() -> str:
    """Return a row for each checkpoint, which is built, opened and compared here."""
    columns = ("checkpoint", "format", "not in the file", "logits", "preprocessing", "classes")
    lines = [f"| {' | '.join(columns)} |", "|---|---|---|---|---|--:|"]
    with opened_cases() as cases:
        for case, path, wanted in cases:
            model, card = load_model(path, model_args=case.args, weights=case.weights)
            with torch.no_grad():
                difference = (model(IMAGES) - wanted).abs().max() / wanted.abs().max()
            missing = [f"`{key}`" for key in case.args]
            missing += [f"`--weights {case.weights}`"] * bool(case.weights)
            assumed = any("how images are prepared" in text for text in card.warnings)
            how = card.eval_settings
            cells = [
                case.name,
                case.format,
                ", ".join(missing),
                "equal" if difference <= EQUAL else f"differ by {difference:.0e}",
                f"{how.mode} {how.interpolation}, mean {how.mean[0]:.3f}{' (assumed)' * assumed}",
                str(len(card.classes) or "none"),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    is_check = "--check" in sys.argv[1:]
    sys.exit(write_or_check(PAGE, {"opened": opened_table()}, check=is_check))
