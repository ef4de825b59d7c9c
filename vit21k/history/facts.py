"""``run.json``: what a run is, written by training when it begins or goes on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit21k.atomic import write_atomic

FILE_NAME = "run.json"


def write_facts(run_dir: Path, facts: Mapping[str, Any]) -> None:
    """Write ``run.json``; *facts* are JSON values.

    ``recipe``: its name; ``total_steps``; ``global_batch_size``; ``num_params``;
    ``flops_per_image``; ``peak_flops``; ``device``; ``world_size``; ``num_train_images``;
    ``origin``: the first weights, if not from scratch; ``vit21k`` and ``torch``: versions.
    """
    write_atomic(run_dir / FILE_NAME, json.dumps(facts, indent=2).encode() + b"\n")


def read_facts(run_dir: Path) -> dict[str, Any]:
    """Return what ``run.json`` says; nothing if it is not there or cannot be read."""
    try:
        facts = json.loads((run_dir / FILE_NAME).read_bytes())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
