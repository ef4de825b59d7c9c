"""`verify`, `diff`, `status` at the command line: lines, counts, exit codes."""

import json
from pathlib import Path

import pytest
from conftest import TINY_FILES
from malformed_images import encoded
from typer.testing import CliRunner, Result

from vit21k.cli.app import app
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.relabel import relabel


def _run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def manifests(tiny_tree: Path, tmp_path: Path) -> Path:
    hash_tree(tiny_tree, tmp_path / "m")
    relabel(tmp_path / "m")
    return tmp_path / "m"


def test_verify_of_the_same_tree_prints_nothing_and_counts(manifests: Path) -> None:
    result = _run("verify", "--manifests", manifests)

    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr == (
        "verify: 6 listed files: 6 same, 0 different, 0 missing, 0 unreadable; 0 not listed\n"
        f"next: `vit21k make-val --manifests {manifests}`\n"
    )


def test_verify_prints_differences_and_exits_with_4(manifests: Path, tiny_tree: Path) -> None:
    (tiny_tree / "n01440764" / "n01440764_1.JPEG").write_bytes(b"other")
    (tiny_tree / "n01440764" / "new\nline.jpg").write_bytes(b"new")

    result = _run("verify", "--manifests", manifests)

    assert result.exit_code == 4
    assert result.stdout.splitlines() == [
        "* n01440764/n01440764_1.JPEG",
        r"+ n01440764/new\nline.jpg",
    ]
    assert "5 same, 1 different, 0 missing, 0 unreadable; 1 not listed" in result.stderr


def test_verify_finds_damage_in_the_other_manifests(manifests: Path) -> None:
    path = manifests / "images.parquet"
    content = bytearray(path.read_bytes())
    content[60] ^= 4
    path.write_bytes(content)

    result = _run("verify", "--manifests", manifests)

    assert result.exit_code == 4
    assert "`images.parquet`: " in result.stderr
    assert "6 same" in result.stderr


def test_verify_combined_has_a_line_for_every_file(manifests: Path, tmp_path: Path) -> None:
    result = _run("verify", "--manifests", manifests, "--combined", tmp_path / "c.txt")

    assert result.stdout == ""
    lines = (tmp_path / "c.txt").read_text().splitlines()
    assert lines == [f"= {path}" for path in sorted(TINY_FILES)]


def test_verify_never_writes_into_the_image_tree(manifests: Path, tiny_tree: Path) -> None:
    result = _run("verify", "--manifests", manifests, "--combined", tiny_tree / "c.txt")

    assert result.exit_code != 0
    assert not (tiny_tree / "c.txt").exists()


def test_verify_decode_lists_what_cannot_be_decoded(manifests: Path, tiny_tree: Path) -> None:
    decoded = _run("verify", "--manifests", manifests, "--decode", "--json")

    assert decoded.exit_code == 3
    assert json.loads(decoded.stdout)["decode"] == {
        "num_images": 4,
        "num_decoded": 0,
        "problems": {"not_an_image": 4},
        "num_known_problems": 0,
    }
    assert "decode: 4 images: 0 decoded, 4 not" in decoded.stderr
    for path in TINY_FILES:
        (tiny_tree / path).write_bytes(encoded())
    hash_tree(tiny_tree, manifests)
    assert _run("verify", "--manifests", manifests, "--decode").exit_code == 0


def test_diff_of_a_folder_with_itself_is_nothing(manifests: Path) -> None:
    result = _run("diff", manifests, manifests)

    assert (result.exit_code, result.stdout) == (0, "")
    assert "4 same, 0 added, 0 removed, 0 with other labels, 0 in another split" in result.stderr


def test_diff_prints_a_line_for_each_difference(
    manifests: Path, tiny_tree: Path, tmp_path: Path
) -> None:
    (tiny_tree / "n02512053" / "n02512053_9.JPEG").write_bytes(b"another fish")
    hash_tree(tiny_tree, tmp_path / "other")
    relabel(tmp_path / "other")

    result = _run("diff", manifests, tmp_path / "other")
    as_json = json.loads(_run("diff", manifests, tmp_path / "other", "--json").stdout)

    assert result.exit_code == 4
    assert result.stdout.splitlines() == [
        "* n01443537/n01443537_2.JPEG\tn01443537,n02512053 -> n01443537",
        "+ n02512053/n02512053_9.JPEG\tn02512053",
    ]
    assert as_json["num_changes"] == {"added": 1, "removed": 0, "relabelled": 1, "moved": 0}
    assert len(as_json["differences"]) == 2


def test_status_names_the_next_command(manifests: Path) -> None:
    result = _run("status", "--manifests", manifests)
    as_json = json.loads(_run("status", "--manifests", manifests, "--json").stdout)

    assert result.exit_code == 0
    assert as_json["next"] == f"vit21k make-val --manifests {manifests}"
    assert result.stderr.splitlines()[-1] == f"next: `{as_json['next']}`"
    assert [each["kind"] for each in as_json["manifests"] if each["state"] == "missing"] == [
        "train",
        "val",
    ]


def test_relabel_can_compare_bytes_before_it_merges(manifests: Path, tiny_tree: Path) -> None:
    equal = _run("relabel", "--manifests", manifests, "--verify-bytes")
    (tiny_tree / "n02512053" / "n02512053_9.JPEG").write_bytes(b"fake")
    before = (manifests / "images.parquet").read_bytes()
    other = _run("relabel", "--manifests", manifests, "--verify-bytes")
    by_content = _run("relabel", "--manifests", manifests, "--verify-bytes", "--by", "content")

    assert equal.exit_code == 0
    assert "2 files compared" in equal.stderr
    assert "not the same bytes" in str(other.exception)
    assert (manifests / "images.parquet").read_bytes() == before
    assert "--by content" in str(by_content.exception.hint)  # type: ignore[union-attr]
