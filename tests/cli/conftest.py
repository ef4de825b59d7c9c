"""Fixtures shared by the tests of commands: a way to run one, a small run, its images."""

import signal
import sys
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from small_run import CLASSES, save_run, write_manifests

from vit21k.cli.app import main


class Result(NamedTuple):
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def vit21k(monkeypatch, capsys, tmp_path):
    """Run a command in this process, in *tmp_path*; torch is imported once for all of them."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["vit21k", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return Result(code, *capsys.readouterr())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def images(tmp_path):
    """Six images in `tree`, and all of them in the manifests of `data_manifests`."""
    rows = []
    for number in range(6):
        wnid = CLASSES.wnids[number % 3]
        path = tmp_path / "tree" / wnid / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        labels = [number % 3] if number else [0, 2]
        rows.append(
            {
                "digest": bytes([number]) * 16,
                "path": f"{wnid}/{number}.png",
                "num_bytes": path.stat().st_size,
                "label_ids": labels,
                "num_files": 1,
            }
        )
    write_manifests(tmp_path / "data_manifests", rows, CLASSES)
    return rows


@pytest.fixture
def run_dir(tmp_path):
    """A run with one checkpoint of a small model for `CLASSES`."""
    pytest.importorskip("torch")
    return save_run(tmp_path / "runs" / "small")
