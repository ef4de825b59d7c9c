"""What was found out by trial, kept with the run, so that a run that goes on does the same."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from vit21k.atomic import write_atomic
from vit21k.device import device_name


class TrialMemory:
    """What was found out by trial in this run, on this device and for these shapes."""

    def __init__(self, path: Path | None, facts: Mapping[str, Any], device: torch.device) -> None:
        """Read what is known; of a file that is damaged, nothing: trials can be made again.

        Args:
            path: Where it is kept; None: nowhere.
            facts: Plain values that a choice depends on, beside device and torch.
            device: Where the trials run.
        """
        self._key = {**facts, "device": device_name(device), "torch": torch.__version__}
        self._path = path
        self._found: dict[str, Any] = {}
        self._is_new = False
        if path is not None and path.is_file():
            with suppress(ValueError, LookupError, TypeError):
                saved = json.loads(path.read_bytes())
                if saved["key"] == self._key:
                    self._found = saved["found"]

    def recall(self, what: str) -> Any:
        """Return what was chosen before; None: nothing was."""
        return self._found.get(what, {}).get("choice")

    def remember(self, what: str, choice: str, measured: Mapping[Any, str]) -> None:
        """Note a choice and what it rests on."""
        self._found[what] = {"choice": choice, "measured": dict(measured)}
        self._is_new = True

    def shown(self, what: str) -> str:
        """Return what a choice rests on, in words."""
        measured = self._found[what]["measured"]
        return ", ".join(f"{name} {value}" for name, value in measured.items())

    def save(self) -> None:
        """Write it down, if there is anything new."""
        if self._path is not None and self._is_new:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps({"key": self._key, "found": self._found}, indent=2)
            write_atomic(self._path, content.encode())
