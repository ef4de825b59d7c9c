"""`vit21k predict`."""

import errno
import io
import json
import os
import sys
import tarfile

import pyarrow.parquet as pq
import pytest
import torch  # noqa: F401 (see conftest.py)

from vit21k.inference import predict


def test_predict_prints_index_folder_name_and_probability(vit21k, images, run_dir):
    result = vit21k("predict", run_dir, "tree/ant/0.png", "--top-k", 3)

    path, *lines = result.stdout.splitlines()
    words = [line.split(maxsplit=3) for line in lines]
    assert result.code == 0
    assert path == "tree/ant/0.png"
    assert sorted(row[1:3] for row in words) == [["0", "ant"], ["1", "bee"], ["2", "cat"]]
    assert [row[3:] for row in sorted(words, key=lambda row: row[1])] == [["an ant"], [], ["a cat"]]
    assert [float(row[0]) for row in words] == sorted(
        (float(row[0]) for row in words), reverse=True
    )
    assert result.stderr.splitlines()[-1] == ("predict: 1 images: 1 predicted, 0 could not be read")


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_predict_names_bad_images_does_the_rest_and_ends_with_3(
    vit21k, images, run_dir, tmp_path, as_json
):
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff")

    result = vit21k("predict", run_dir, "cut.jpg", "tree/ant", "gone.jpg", *as_json)

    assert result.code == 3
    assert "`cut.jpg`: " in result.stderr
    assert "`gone.jpg`: the file is not there" in result.stderr
    assert "4 images: 2 predicted, 2 could not be read" in result.stderr
    assert "tree/ant/3.png" in result.stdout


@pytest.mark.parametrize("command", ["predict", "features"])
@pytest.mark.usefixtures("images")
def test_what_is_not_looked_at_is_counted_and_ends_with_3(vit21k, run_dir, tmp_path, command):
    (tmp_path / "tree" / "readme.txt").touch()
    assert vit21k(command, run_dir, "tree", "--out", "one.parquet").code == 0
    (tmp_path / "tree" / "more.zip").touch()

    result = vit21k(command, run_dir, "tree", "--out", "two.parquet", "--json")

    assert result.code == 3
    assert "2 entries were not read: `tree/more.zip` (an archive)" in result.stderr
    assert ", 2 entries skipped; `two.parquet`" in result.stderr
    assert [one["path"] for one in json.loads(result.stdout)["skipped"]] == [
        "tree/more.zip", "tree/readme.txt",
    ]  # fmt: skip


def test_predict_prints_names_that_are_not_utf_8(vit21k, images, run_dir, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / "tree" / images[0]["path"]).rename(tmp_path / name)
    (tmp_path / os.fsdecode(b"bad\xe9.png")).touch()

    for as_json in ([], ["--json"]):
        result = vit21k("predict", run_dir, name, os.fsdecode(b"bad\xe9.png"), *as_json)

        assert result.code == 3
        assert "caf\\xe9.png" in result.stdout.replace("\\\\", "\\")
        assert "bad\\xe9.png" in result.stderr


def test_predict_prints_a_name_of_two_lines_on_one(vit21k, images, run_dir, tmp_path):
    (tmp_path / "two\nlines.png").write_bytes((tmp_path / "tree/ant/0.png").read_bytes())

    result = vit21k("predict", run_dir, "two\nlines.png", "--top-k", "1")

    assert result.code == 0
    assert result.stdout.splitlines()[0] == "two\\nlines.png"
    assert len(result.stdout.splitlines()) == 2


def test_a_list_that_is_not_there_is_no_fault_of_the_disk(vit21k, run_dir):
    result = vit21k("predict", run_dir, "--from-file", "gone.txt")

    assert result.code == 2
    assert "No such file or directory: `gone.txt`" in result.stderr


def test_predict_writes_a_folder_to_parquet(vit21k, images, run_dir, tmp_path):
    (tmp_path / "tree" / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    printed = json.loads(vit21k("predict", run_dir, "tree", "--top-k", 2, "--json").stdout)

    result = vit21k("predict", run_dir, "tree", "--top-k", 2, "--out", "out/p.parquet")

    rows = pq.read_table(tmp_path / "out" / "p.parquet").to_pylist()
    assert result.code == 3
    assert result.stdout == ""
    assert "7 images: 6 predicted, 1 could not be read; `out/p.parquet`" in result.stderr
    assert [row["path"] for row in rows] == [row["path"] for row in printed]
    for row, wanted in zip(rows, printed, strict=True):
        assert row["problem"] == wanted["problem"]
        assert row["class_indices"] == [score["class_index"] for score in wanted["top"]]
        assert row["wnids"] == [score["wnid"] for score in wanted["top"]]
        assert row["names"] == [score["name"] for score in wanted["top"]]
        assert row["probabilities"] == pytest.approx([s["probability"] for s in wanted["top"]])


def test_a_file_that_cannot_be_finished_does_not_appear(vit21k, images, run_dir, tmp_path):
    (tmp_path / "p.parquet").write_bytes(b"old")

    result = vit21k("predict", run_dir, "tree", "--device-batch-size", 2, "--out", "p.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "ROW_GROUP_ROWS", 2)
        patch.setattr(predict, "_row", _full_disk(after=3))
        full = vit21k("predict", run_dir, "tree", "--out", "p.parquet")

    assert (result.code, full.code) == (2, 74)
    assert (tmp_path / "p.parquet").read_bytes() == b"old"
    assert not list(tmp_path.glob(".p.parquet*"))


def _full_disk(after):
    rows = iter(range(after))
    plain = predict._row

    def row(prediction):
        if next(rows, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(prediction)

    return row


def as_stdin(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def tops(result):
    return [[score["wnid"] for score in row["top"]] for row in json.loads(result.stdout)]


def test_an_image_can_come_from_stdin(vit21k, images, run_dir, tmp_path, monkeypatch):
    as_stdin(monkeypatch, (tmp_path / "tree/bee/1.png").read_bytes())

    piped = vit21k("predict", run_dir, "-", "--json")

    assert tops(piped) == tops(vit21k("predict", run_dir, "tree/bee/1.png", "--json"))
    assert json.loads(piped.stdout)[0]["path"] == "-"


def test_no_bytes_on_stdin_are_a_bad_image(vit21k, run_dir, monkeypatch):
    as_stdin(monkeypatch, b"")

    result = vit21k("predict", run_dir, "-")

    assert result.code == 3
    assert "the file is empty" in result.stderr


@pytest.mark.parametrize("where", ["list.txt", "-"])
def test_paths_can_come_from_a_list(vit21k, images, run_dir, tmp_path, monkeypatch, where):
    listed = b"tree/cat/5.png\n\n" + b"tree/bee/caf\xe9.png\r\n"
    (tmp_path / "tree/bee/1.png").rename(tmp_path / os.fsdecode(b"tree/bee/caf\xe9.png"))
    (tmp_path / "list.txt").write_bytes(listed)
    as_stdin(monkeypatch, listed)

    result = vit21k("predict", run_dir, "--from-file", where, "--json")

    assert result.code == 0
    assert [row["path"] for row in json.loads(result.stdout)] == [
        "tree/cat/5.png",
        "tree/bee/caf\\xe9.png",
    ]


def test_images_can_come_from_a_manifest_and_an_archive(vit21k, images, run_dir, tmp_path):
    with tarfile.open(tmp_path / "tree.tar", "w") as tar:
        for row in images:
            tar.add(tmp_path / "tree" / row["path"], row["path"])
    names = [row["path"] for row in images]

    manifest = vit21k("predict", run_dir, "--manifest", "data_manifests/val.parquet", "--json")
    archive = vit21k("predict", run_dir, "tree.tar", "--json")
    member = vit21k("predict", run_dir, f"tree.tar/{names[4]}", "--json")

    assert [row["path"] for row in json.loads(manifest.stdout)] == names
    assert [row["path"] for row in json.loads(archive.stdout)] == [f"tree.tar/{n}" for n in names]
    assert tops(archive) == tops(manifest)
    assert tops(member) == tops(manifest)[4:5]


def test_a_threshold_gives_each_image_as_many_classes_as_reach_it(vit21k, images, run_dir):
    everything = json.loads(vit21k("predict", run_dir, "tree", "--top-k", 3, "--json").stdout)

    found = json.loads(vit21k("predict", run_dir, "tree", "--threshold", 0.5, "--json").stdout)

    for row, wanted in zip(found, everything, strict=True):
        assert row["top"] == [score for score in wanted["top"] if score["probability"] >= 0.5]


@pytest.mark.parametrize(
    "arguments",
    [[], ["tree", "--from-file", "list"], ["tree", "--manifest", "m"], ["-", "tree"]],
)
def test_images_come_from_one_place(vit21k, images, run_dir, arguments):
    result = vit21k("predict", run_dir, *arguments)

    assert (result.code, result.stdout) == (2, "")
    assert "error: " in result.stderr
