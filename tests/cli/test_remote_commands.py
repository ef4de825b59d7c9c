"""Commands on images behind a URL: the results of a disk."""

import json
import math
from pathlib import Path
from typing import Any

import flaky_files
import pytest
from flaky_files import BackEndError, FlakyFiles, failing, put
from packable import write_manifests, write_tree
from run_processes import run_command

from vit21k.errors import UsageError
from vit21k.inference.files import find_images
from vit21k.manifest.io import open_manifest, read_manifest
from vit21k.manifest.schema import FINGERPRINTS, LEAKS, TRAIN, UNDECODABLE
from vit21k.sources import remote

TRAIN_OPTIONS = (
    *(
        "train",
        "--recipe",
        "tiny",
        "--device",
        "cpu",
        "--num-workers",
        "1",
        "--device-batch-size=4",
    ),
    *("--set=total_steps=6", "--set=data.global_batch_size=8", "--set=run.log_every_steps=1"),
    *(
        "--set=run.eval_every_steps=0",
        "--set=data.on_bad_image=fail",
        "--set=schedule.warmup_steps=1",
    ),
)


@pytest.fixture(scope="module")
def home(native_extension: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree, its manifests and a pack of it."""
    home = tmp_path_factory.mktemp("home")
    write_manifests(write_tree(home / "tree"), home / "manifests", holdout=True)
    run("pack", "--manifests", home / "manifests", "--out", home / "pack", "--lossless", cwd=home)
    return home


@pytest.fixture(autouse=True)
def _flaky_files(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_DELAY_S", 0.0)
    flaky_files.start_flaky_files()
    put(
        {
            f"tree/{p.relative_to(home / 'tree')}": p.read_bytes()
            for p in (home / "tree").glob("*/*")
        }
    )
    put({f"pack/{path.name}": path.read_bytes() for path in (home / "pack").glob("*.tar")})


TREE, PACK = f"{flaky_files.URL}/tree", f"{flaky_files.URL}/pack"


def run(*arguments: Any, cwd: Path, code: int = 0) -> str:
    result = run_command(*arguments, cwd=cwd)
    assert result.returncode == code, result.stderr
    return str(result.stdout)


def losses(run_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def rows(manifests: Path, kind: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_manifest(manifests, kind).to_pylist()
    return found


def test_training_has_the_losses_of_a_disk(home: Path, tmp_path: Path) -> None:
    pack = ("--manifests", home / "pack")
    run(*TRAIN_OPTIONS, *pack, "--run-dir", "disk", cwd=tmp_path)
    far = ("--root", PACK, "--cache", "cache", "--cache-size", "1GB")
    failing(3, BackEndError("503"), ".tar", "cat_file")

    run(*TRAIN_OPTIONS, *pack, *far, "--run-dir", "far", cwd=tmp_path)
    FlakyFiles.requests.clear()
    run(*TRAIN_OPTIONS, *pack, *far, "--run-dir", "again", cwd=tmp_path)

    assert losses(tmp_path / "far") == losses(tmp_path / "again") == losses(tmp_path / "disk")
    assert all(map(math.isfinite, losses(tmp_path / "far")))
    assert not [name for name, *_ in FlakyFiles.requests if name == "cat_file"]


def test_training_reads_a_tree_too(home: Path, tmp_path: Path) -> None:
    trees = ("--manifests", home / "manifests")
    run(*TRAIN_OPTIONS, *trees, "--run-dir", "disk", cwd=tmp_path)

    run(*TRAIN_OPTIONS, *trees, "--root", TREE, "--run-dir", "far", cwd=tmp_path)

    assert losses(tmp_path / "far") == losses(tmp_path / "disk")


def test_a_size_that_is_none_is_refused(home: Path, tmp_path: Path) -> None:
    cached = ("--cache", "cache", "--cache-size", "much")

    run(*TRAIN_OPTIONS, "--manifests", home / "pack", *cached, cwd=tmp_path, code=2)


def test_a_pack_is_made_and_verified_behind_a_url(home: Path, tmp_path: Path) -> None:
    made = ("--manifests", home / "manifests", "--root", TREE, "--lossless")

    run("pack", *made, "--out", "pack", cwd=tmp_path)

    for path in (home / "pack").glob("*.tar"):
        assert (tmp_path / "pack" / path.name).read_bytes() == path.read_bytes()
    run("verify", "--manifests", home / "pack", "--root", PACK, "--decode", cwd=tmp_path)
    shard = next((home / "pack").glob("*train*.tar"))
    put({f"pack/{shard.name}": shard.read_bytes()[:-2000]})
    run("verify", "--manifests", home / "pack", "--root", PACK, cwd=tmp_path, code=4)


def test_leaks_are_those_of_a_disk(home: Path, tmp_path: Path) -> None:
    write_manifests(home / "tree", tmp_path / "disk")
    write_manifests(home / "tree", tmp_path / "far")
    for name, options in (("disk", ()), ("far", ("--root", TREE))):
        against = ("leaks", "--manifests", name, "--against", home / "tree" / "n00000000")
        run(*against, *options, cwd=tmp_path)

    for kind in (FINGERPRINTS, LEAKS):
        assert rows(tmp_path / "far", kind) == rows(tmp_path / "disk", kind)


def test_images_are_decoded_in_full(home: Path, tmp_path: Path) -> None:
    write_manifests(home / "tree", tmp_path / "m")

    run("verify", "--decode", "--manifests", "m", "--root", TREE, cwd=tmp_path)

    assert rows(tmp_path / "m", UNDECODABLE) == []


def test_a_report_shows_the_images_of_a_url(home: Path, tmp_path: Path) -> None:
    write_manifests(home / "tree", tmp_path / "m")
    run("report", "--manifests", "m", "--out", "disk.html", cwd=tmp_path)

    run("report", "--manifests", "m", "--root", TREE, "--out", "far.html", cwd=tmp_path)

    disk, far = ((tmp_path / name).read_text() for name in ("disk.html", "far.html"))
    assert far.count("data:image/jpeg") == disk.count("data:image/jpeg") > 0


def test_predictions_are_those_of_a_disk(home: Path, tmp_path: Path) -> None:
    pack = ("--manifests", home / "pack")
    run(*TRAIN_OPTIONS, *pack, "--run-dir", "run", cwd=tmp_path)
    images = ("predict", "run", "--manifest", home / "pack" / "train.parquet", "--json")

    far = run(*images, "--root", PACK, cwd=tmp_path)

    assert far == run(*images, cwd=tmp_path)
    assert len(json.loads(far)) == open_manifest(home / "pack", TRAIN).num_rows


def test_urls_are_refused_where_images_have_to_be_on_a_disk(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaks = ("leaks", "--manifests", home / "manifests", "--against", TREE)

    refused = run_command(*leaks, cwd=tmp_path)

    assert refused.returncode == 2
    hash_again = f"`vit21k hash {TREE} --manifests DIR`, `vit21k relabel --manifests DIR`"
    assert f"`{TREE}` is not on a disk" in refused.stderr
    assert hash_again in " ".join(refused.stderr.split())
    with pytest.raises(UsageError, match="is not on a disk"):
        find_images([Path(f"{TREE}/a.jpg")])
    (tmp_path / "s3:" / "n1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_images([Path("s3:/n1")]) == []


def test_status_does_not_miss_a_url(home: Path, tmp_path: Path) -> None:
    run("hash", TREE, "--manifests", "m", cwd=tmp_path)

    result = run_command("status", "--manifests", "m", cwd=tmp_path)

    assert "does not exist" not in result.stderr
