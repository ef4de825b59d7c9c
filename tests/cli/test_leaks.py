"""`vit21k leaks` as a user runs it."""

import json
from pathlib import Path

import pytest
from photolike import encoded, photolike
from PIL import Image
from typer.testing import CliRunner

from vit21k.cli.app import app

run = CliRunner().invoke


@pytest.fixture
def world(tmp_path: Path) -> Path:
    for seed in range(4):
        path = tmp_path / "train" / f"n0000000{seed % 2}" / f"{seed}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photolike(seed), quality=90))
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "2.jpg").write_bytes(encoded(photolike(2), quality=50))
    manifests = ["--manifests", str(tmp_path / "m")]
    for command in (["hash", str(tmp_path / "train")], ["relabel"], ["make-val"]):
        assert run(app, [*command, *manifests]).exit_code == 0
    return tmp_path


def leaks(world: Path, *options: str, test: str = "test") -> list[str]:
    return ["leaks", "--against", str(world / test), "--manifests", str(world / "m"), *options]


def test_the_last_line_adds_up(world: Path) -> None:
    result = run(app, leaks(world))

    assert result.exit_code == 0
    assert (
        "leaks: 4 training images: 1 in the evaluation set (0 exact, 0 pixel, 1 near), 3 not; "
        "1 of its 1 images are in train" in result.stderr
    )


def test_names_of_two_lines_are_on_sheets_and_in_lists(world: Path) -> None:
    (world / "test" / "2.jpg").rename(world / "test" / "two\nlines.jpg")

    result = run(app, leaks(world, "--sheets", str(world / "s")))

    assert result.exit_code == 0, result.output
    assert (world / "s" / "001.png").is_file()


def test_json_sheets_and_the_cleaned_manifest_come_together(world: Path) -> None:
    options = [
        "--json",
        "--sheets",
        str(world / "s"),
        "--remove",
        "near",
        "--out",
        str(world / "c"),
    ]

    result = run(app, leaks(world, *options))

    answer = json.loads(result.stdout)
    assert answer["num_found"] == {"exact": 0, "pixel": 0, "near": 1}
    assert answer["removed"]["num_left"] == 3
    assert answer["sheets"] == [str(world / "s" / "001.png")]
    with Image.open(answer["sheets"][0]) as sheet:
        assert sheet.size == (324, 200)


def test_remove_needs_to_know_where_to(world: Path) -> None:
    result = run(app, leaks(world, "--remove", "near"))

    assert result.exit_code != 0
    assert "go together" in str(result.exception)


def test_an_evaluation_image_that_cannot_be_decoded_is_named_and_ends_with_3(
    world: Path,
) -> None:
    (world / "test" / "bad.jpg").write_bytes(b"no image")

    result = run(app, leaks(world))

    assert result.exit_code == 3
    assert "`bad.jpg` of the evaluation set" in result.stderr
    assert "1 of its 2 images are in train" in result.stderr


def test_contact_sheets_are_never_written_into_an_image_tree(world: Path) -> None:
    for folder in ("train", "test"):
        result = run(app, leaks(world, "--sheets", str(world / folder / "sheets")))

        assert "inside the image root" in str(result.exception)
        assert not (world / folder / "sheets").exists()


def test_what_is_not_looked_at_is_counted_and_ends_with_3(world: Path) -> None:
    (world / "test" / "more.tar").write_bytes(b"")

    result = run(app, leaks(world))

    assert result.exit_code == 3
    assert "1 of its 1 images are in train; 1 entries skipped" in result.stderr
    assert "1 entry was not read: `more.tar` (an archive that cannot be read)" in result.stderr

    (world / "test" / "more.tar").rename(world / "test" / "more.txt")
    result = run(app, leaks(world))

    assert result.exit_code == 0
    assert "`more.txt` (another suffix)" in result.stderr


@pytest.mark.parametrize("command", ["leaks", "near-duplicates"])
def test_what_could_not_be_read_is_listed_and_ends_with_3(world: Path, command: str) -> None:
    path = world / "train" / "n00000000" / "0.jpg"
    path.rename(world / "away.jpg")
    options = ["--manifests", str(world / "m"), "--num-workers", "1"]
    words = leaks(world) if command == "leaks" else ["labels", command, *options]

    result = run(app, words)

    assert result.exit_code == 3
    assert "`n00000000/0.jpg` could not be read and was not compared: the file is not there" in (
        result.stderr
    )
    assert "1 not read" in result.stderr
    (world / "away.jpg").rename(path)
    assert run(app, words).exit_code == 0
