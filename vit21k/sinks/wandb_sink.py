"""A run's lines in Weights & Biases, or in its offline files where there is no server.

``WANDB_MODE``, ``WANDB_PROJECT``, ``WANDB_ENTITY``, ``WANDB_BASE_URL`` ... are honoured, as always.
A resumed run goes on in its W&B run.  Nothing is ever asked on the terminal.
"""

import os
import secrets
from collections.abc import Mapping
from typing import Any, cast

from vit21k.errors import MissingExtraError
from vit21k.sinks.sink import LoggedRun

_ID_FILE = "wandb-run.txt"
_DEFAULT_PROJECT = "vit21k"
_SECONDS = 15.0


class WandbSink:
    """Goes on with the run's W&B run, or begins one; logs through wandb's own process."""

    def __init__(self, run: LoggedRun) -> None:
        try:
            import wandb  # noqa: PLC0415
        except ImportError as error:
            raise MissingExtraError(
                "wandb is not installed", hint="pip install 'vit21k[wandb]'"
            ) from error
        self._wandb = wandb
        asked = os.environ.get("WANDB_MODE")
        try:
            self._run = self._begin(run, asked or "online")
        except (wandb.Error, TimeoutError) as error:
            if asked in ("offline", "disabled"):
                raise
            first = str(error).partition("\n")[0]
            run.warn(f"W&B cannot be reached ({first}); it logs to files, for `wandb sync`")
            self._run = self._begin(run, "offline")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log all values; wandb sends them when it can."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """End W&B's run; wandb waits for its server as long as its settings say."""
        self._run.finish()

    def _begin(self, run: LoggedRun, mode: str) -> Any:
        settings = self._wandb.Settings(
            init_timeout=_SECONDS,
            login_timeout=1,
            finish_timeout=_SECONDS,
            console="off",
            silent=True,
            disable_git=True,
            save_code=False,
        )
        return self._wandb.init(
            mode=cast("Any", mode),
            project=os.environ.get("WANDB_PROJECT", _DEFAULT_PROJECT),
            id=run.known_id(_ID_FILE) or run.keep_id(_ID_FILE, secrets.token_hex(4)),
            resume="allow",
            name=run.run_dir.name,
            dir=run.run_dir,
            config=dict(run.recipe),
            settings=settings,
        )


open_sink = WandbSink
