"""`hash --shard`, `relabel SHARD...`, `--engine ray`: what the commands say."""

import sys
from pathlib import Path

import pytest
from conftest import needs_extra
from typer.testing import CliRunner, Result

from vit21k.cli.app import app
from vit21k.errors import DataError, MissingExtraError, UsageError, Vit21kError


def _vit21k(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _error(*arguments: object) -> Vit21kError:
    error = _vit21k(*arguments).exception
    assert isinstance(error, Vit21kError), error
    return error


def test_shards_are_hashed_and_put_together_as_the_commands_say(
    tiny_tree: Path, tmp_path: Path
) -> None:
    manifests, whole = tmp_path / "m", tmp_path / "whole"
    _vit21k("hash", tiny_tree, "--manifests", whole)

    hashed = [
        _vit21k("hash", tiny_tree, "--manifests", manifests, "--shard", f"{n}/2") for n in (2, 1)
    ]
    folders = sorted((manifests / "shards").iterdir())
    merged = _vit21k("relabel", *reversed(folders), "--manifests", manifests)

    assert [result.exit_code for result in hashed] == [0, 0]
    told = f"next: `vit21k relabel {manifests}/shards/* --manifests {manifests}`"
    assert told in hashed[0].output.replace("\n", "")
    assert [folder.name for folder in folders] == ["0001-of-0002", "0002-of-0002"]
    assert merged.exit_code == 0
    assert "2 shards merged: 6 files in digests.parquet" in merged.output
    assert "relabel: 6 files -> 4 unique images" in merged.output
    for name in ("digests.parquet", "problems.parquet"):
        assert (manifests / name).read_bytes() == (whole / name).read_bytes()


def test_a_missing_shard_is_asked_for_by_its_command(tiny_tree: Path, tmp_path: Path) -> None:
    _vit21k("hash", tiny_tree, "--manifests", tmp_path, "--shard", "1/3")

    error = _error("relabel", tmp_path / "shards" / "0001-of-0003", "--manifests", tmp_path)

    assert isinstance(error, DataError)
    assert error.message == "shards are missing: 2, 3"
    assert error.hint == "run `vit21k hash ... --shard 2/3`"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hash", "tree", "--shard", "4/3"], "`4/3` is not a shard"),
        (["hash", "tree", "--address", "a:1"], "`--address` needs `--engine ray`"),
        (["relabel", "--address", "a:1"], "`--address` needs `--engine ray`"),
        (["hash", "s3://bucket", "--mode", "quick"], "a URL is always read in full"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: list[str], message: str) -> None:
    error = _error(*arguments)

    assert isinstance(error, UsageError)
    assert error.message.startswith(message)


def test_without_ray_its_extra_is_named(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)

    error = _error("hash", tiny_tree, "--manifests", tmp_path, "--engine", "ray")

    assert isinstance(error, MissingExtraError)
    assert error.hint == "`pip install 'vit21k[ray]'`"


def test_content_is_not_merged_on_ray(tiny_tree: Path, tmp_path: Path) -> None:
    needs_extra("ray")
    _vit21k("hash", tiny_tree, "--manifests", tmp_path)

    error = _error("relabel", "--manifests", tmp_path, "--engine", "ray", "--by", "content")

    assert isinstance(error, UsageError)
    assert "all their bytes" in error.message
