"""The data commands: exit code, stderr, stdout, files."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeTree
from oracles.plsc_lists import plsc_lists
from run_processes import run_command

GOLDEN = Path(__file__).parents[1] / "golden"
MD5 = "0cc175b9c0f1b6a831c399e269772661"


def _vit21k(
    *arguments: object, cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    if environment is None:
        return run_command(*arguments, cwd=cwd)
    return subprocess.run(
        [sys.executable, "-m", "vit21k", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def _manifests(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def _wait_for_partial(folder: Path) -> None:
    """Wait until a command is at work: it has begun to write into *folder*."""
    for _ in range(1200):
        if list(folder.glob(".*.partial")):
            return
        time.sleep(0.05)
    pytest.fail("nothing was written")


def test_the_pipeline_says_what_it_did(tiny_tree: Path, tmp_path: Path) -> None:
    steps = [
        ("hash", tiny_tree),
        ("relabel",),
        ("make-val", "--per-class", 2),
        ("export-lists", "--out", "lists"),
    ]

    results = [_vit21k(*step, cwd=tmp_path) for step in steps]

    printed = "".join(result.stderr for result in results)
    printed = re.sub("next: `vit21k train.*", "next: `vit21k train` (by data and device)", printed)
    assert printed == (GOLDEN / "data_commands.stderr.txt").read_text()
    assert [(result.returncode, result.stdout) for result in results] == [(0, "")] * 4
    assert sorted(_manifests(tmp_path / "data_manifests")) == [
        "classes.parquet",
        "copies.parquet",
        "digests.parquet",
        "images.parquet",
        "overlabelled.parquet",
        "problems.parquet",
        "train.parquet",
        "val.parquet",
    ]


def test_problems_are_counted_listed_and_give_exit_code_3(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    root = make_tree(
        {"n1/a.jpg": b"a", "n1/b.jpg": b"", "n2/c.txt": b"c", "n2/d.jpg": b"d", "e.jpg": b"e"}
    )

    result = _vit21k("hash", root, "--json", cwd=tmp_path)

    assert result.returncode == 3
    assert json.loads(result.stdout) == {
        "num_entries": 5,
        "num_files": 2,
        "num_bytes": 2,
        "num_bytes_read": 2,
        "num_known": 0,
        "num_without_digest": 0,
        "num_unknown": 2,
        "silently_changed": [],
        "num_classes": 2,
        "num_bad": 2,
        "num_skipped": 1,
        "num_missing": 0,
        "problems": {"empty": 1, "not_in_class_folder": 1, "other_suffix": 1},
        "num_known_problems": 0,
    }
    assert (
        "hash: 5 files scanned, 2 images in 2 classes (0.0 MB), 2 errors, 1 skipped"
        in result.stderr
    )
    assert "warning: 1 x empty: The file holds no bytes." in result.stderr
    assert "listed in `data_manifests/problems.parquet`" in result.stderr


def test_files_that_are_only_skipped_give_exit_code_0(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({"n1/a.jpg": b"a", "n1/b.txt": b"b", ".hidden/c.jpg": b"c"})

    result = _vit21k("hash", root, cwd=tmp_path)

    assert result.returncode == 0
    assert "0 errors, 2 skipped" in result.stderr


def test_json_goes_to_stdout_and_adds_up(tiny_tree: Path, tmp_path: Path) -> None:
    _vit21k("hash", tiny_tree, cwd=tmp_path)
    relabel = json.loads(_vit21k("relabel", "--json", cwd=tmp_path).stdout)
    split = json.loads(
        _vit21k("make-val", "--per-class", 2, "--holdout", "--json", cwd=tmp_path).stdout
    )
    lists = json.loads(_vit21k("export-lists", "--json", cwd=tmp_path).stdout)

    assert relabel["num_files"] == relabel["num_images"] + relabel["num_copies"] == 6
    assert split["num_images"] == split["num_train"] + split["num_val"] == 4
    assert split["short_classes"] == {"n01443537": 1, "n02512053": 0}
    assert split["classes_without_train"] == ["n01440764"]
    assert lists == {
        "data_manifests/image_train_list.txt": 1,
        "data_manifests/image_val_list.txt": 3,
    }


def test_classes_that_are_short_are_named(tiny_tree: Path, tmp_path: Path) -> None:
    _vit21k("hash", tiny_tree, cwd=tmp_path)
    _vit21k("relabel", cwd=tmp_path)

    result = _vit21k("make-val", "--per-class", 2, "--holdout", cwd=tmp_path)

    assert result.returncode == 0
    assert (
        "warning: 2 classes have fewer than 2 images with one label: `n01443537`, `n02512053`"
        in result.stderr
    )
    assert "warning: 1 classes have no image left in train: `n01440764`" in result.stderr


def test_lists_from_an_md5sum_file_are_plscs(tiny_tree: Path, tmp_path: Path) -> None:
    files = sorted(tiny_tree.rglob("*.JPEG"), reverse=True)  # as `find` might list them
    printed = subprocess.run(["md5sum", *files], capture_output=True, text=True, check=True).stdout
    (tmp_path / "md5sum.txt").write_text(printed)
    steps = [
        ("import-md5sum", "md5sum.txt", "--strip-prefix", tiny_tree),
        ("relabel",),
        ("export-lists",),
    ]

    results = [_vit21k(*step, cwd=tmp_path) for step in steps]

    assert [result.returncode for result in results] == [0, 0, 0]
    assert "import-md5sum: 6 lines are 6 files" in results[0].stderr
    exported = tuple(
        (tmp_path / "data_manifests" / name).read_text()
        for name in ("image_all_list.txt", "image_dummy_val_list.txt")
    )
    assert exported == plsc_lists(printed, f"{tiny_tree}/")


def test_two_locales_and_time_zones_give_the_same_bytes(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    root = make_tree({"ä/é.jpg": b"1", "n1/\N{GRINNING FACE}.jpg": b"2", "n1/x.txt": b"3"})
    (root / "n1" / os.fsdecode(b"\xe9.jpg")).write_bytes(b"4")
    for name, environment in (
        ("a", {"LC_ALL": "C", "TZ": "UTC"}),
        ("b", {"LC_ALL": "C.UTF-8", "TZ": "Asia/Tokyo", "PYTHONUTF8": "0"}),
        ("c", {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}),
    ):
        hashed = _vit21k("hash", root, "--manifests", name, cwd=tmp_path, environment=environment)
        assert hashed.returncode == 3, hashed.stderr
        _vit21k("relabel", "--manifests", name, cwd=tmp_path, environment=environment)

    assert _manifests(tmp_path / "a") == _manifests(tmp_path / "b") == _manifests(tmp_path / "c")
    assert len(_manifests(tmp_path / "a")) == 6


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message", "hint"),
    [
        (("hash", "nowhere"), 3, "`nowhere` does not exist", "class folders"),
        (("hash", "file"), 3, "`file` is a file, not a folder", "class folders"),
        (("hash", "empty"), 2, "`empty` holds no class folders", "n01440764/"),
        (("hash", "tree", "--manifests", "tree/m"), 2, "inside the image root", "--manifests"),
        (("relabel",), 3, "no digests manifest at", "vit21k hash"),
        (("make-val",), 3, "no images manifest at", "vit21k relabel"),
        (("export-lists",), 3, "no images manifest at", "vit21k relabel"),
        (("relabel", "--manifests", "m", "--classes", "file"), 3, "is empty", ""),
        (
            ("relabel", "--manifests", "m", "--classes", "one_class"),
            3,
            "`n01443537` and 1 more folders are not in the class list",
            "add it to the list",
        ),
        (("import-md5sum", "nowhere"), 3, "no such file", "md5sum"),
        (("import-md5sum", "one_class"), 3, "line 1 is not a line of md5sum", "md5sum"),
        (("import-md5sum", "absolute"), 3, "has an absolute path", "--strip-prefix"),
        (
            ("import-md5sum", "absolute", "--strip-prefix", "/other"),
            3,
            "line 1 does not begin with `/other/`",
            "",
        ),
    ],
)
def test_wrong_input_is_one_message_a_hint_and_an_exit_code(
    tiny_tree: Path,
    tmp_path: Path,
    arguments: tuple[object, ...],
    exit_code: int,
    message: str,
    hint: str,
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "one_class").write_text("n01440764\n")
    (tmp_path / "absolute").write_text(f"{MD5}  {tiny_tree}/n1/x.jpg\n")
    if "m" in arguments:
        assert _vit21k("hash", tiny_tree, "--manifests", "m", cwd=tmp_path).returncode == 0

    result = _vit21k(*arguments, cwd=tmp_path)

    assert result.returncode == exit_code, result.stderr
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert hint in result.stderr.partition("hint: ")[2]
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_damaged_and_a_stale_manifest_are_refused(tiny_tree: Path, tmp_path: Path) -> None:
    for step in (("hash", tiny_tree), ("relabel",), ("make-val", "--per-class", 1)):
        _vit21k(*step, cwd=tmp_path)
    images = tmp_path / "data_manifests" / "images.parquet"
    whole = images.read_bytes()
    images.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    damaged = _vit21k("make-val", cwd=tmp_path)
    images.write_bytes(whole)
    _vit21k("hash", tiny_tree, "--algorithm", "md5", cwd=tmp_path)
    stale = _vit21k("make-val", cwd=tmp_path)

    assert (damaged.returncode, stale.returncode) == (3, 3)
    assert "is damaged" in damaged.stderr
    assert "is stale: `digests.parquet`" in stale.stderr
    assert "hint: make it again with `vit21k relabel`" in stale.stderr


def test_a_folder_in_use_gives_exit_code_75_and_names_the_holder(
    tiny_tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "data_manifests").mkdir()
    with (tmp_path / "data_manifests" / ".lock").open("wb") as file:
        file.write(b'{"command": "relabel", "pid": 123, "host": "elsewhere"}')
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)

        result = _vit21k("hash", tiny_tree, cwd=tmp_path)

    assert result.returncode == 75
    assert "is in use by `vit21k relabel` (process 123 on elsewhere)" in result.stderr


def test_a_disk_that_is_full_gives_exit_code_74_and_one_message(
    tiny_tree: Path, tmp_path: Path
) -> None:
    _vit21k("hash", tiny_tree, cwd=tmp_path)
    before = _manifests(tmp_path / "data_manifests")
    program = (
        "import errno, os, sys; from vit21k import atomic; from vit21k.cli.app import main;"
        "sys.argv[1:] = ['relabel'];"
        "atomic.os.fsync = lambda fd: (_ for _ in ()).throw(OSError(errno.ENOSPC, 'No space'));"
        "main()"
    )

    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert result.returncode == 74
    assert result.stderr.startswith("error: No space")
    assert "hint: free some space" in result.stderr
    assert "Traceback" not in result.stderr
    assert _manifests(tmp_path / "data_manifests") == before


def test_what_comes_next_names_the_manifests_that_were_named(
    vit21k: Any, tiny_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*command: object) -> str:
        (line,) = re.findall("next: `(.*)`", vit21k(*command).stderr)
        return str(line)

    there = ("--manifests", "my manifests")
    assert told("hash", tiny_tree, *there) == "vit21k relabel --manifests 'my manifests'"
    assert told("relabel", *there) == "vit21k make-val --manifests 'my manifests'"
    train = told("make-val", *there)
    assert train.startswith("vit21k train --recipe ")
    assert train.endswith(" --manifests 'my manifests'")
    assert told("status", *there) == train
    shard = told("hash", tiny_tree, "--shard", "1/2", *there)
    assert shard == "vit21k relabel 'my manifests/shards'/* --manifests 'my manifests'"
    monkeypatch.setenv("VIT21K_MANIFESTS", "elsewhere")
    assert told("hash", tiny_tree) == "vit21k relabel"


def test_a_wrong_path_is_reported_and_nothing_is_written_there(vit21k: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")

    in_the_way = vit21k("relabel", "--manifests", "file")
    below = vit21k("relabel", "--manifests", "file/below")
    gone = vit21k("relabel", "--manifests", "runs/gone")

    assert (in_the_way.code, below.code, gone.code) == (2, 2, 3)
    assert "error: `file` is not a folder" in in_the_way.stderr
    assert "is not a folder" in below.stderr
    assert "no digests manifest" in gone.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_leaves_the_old_manifests_and_says_so(
    make_tree: MakeTree, tmp_path: Path, signum: signal.Signals, exit_code: int
) -> None:
    root = make_tree({f"n1/{number}.jpg": b"%d" % number for number in range(5)})
    _vit21k("hash", root, cwd=tmp_path)
    before = _manifests(tmp_path / "data_manifests")
    make_tree({f"n{n % 50}/{n}.jpg": b"%d" % n for n in range(5000)})
    slow = (
        "import os, sys, time; from vit21k.cli.app import main;"
        "read = os.readv;"
        "os.readv = lambda fd, views: (time.sleep(0.05), read(fd, views))[1];"
        "sys.argv[1:] = ['hash', sys.argv[1]]; print('ready', flush=True); main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", slow, str(root)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        run.stdout.readline()
        _wait_for_partial(tmp_path / "data_manifests")
        run.send_signal(signum)
        _, stderr = run.communicate(timeout=60)

    assert run.returncode == exit_code
    assert f"error: stopped by {signum.name}" in stderr
    assert "Traceback" not in stderr
    assert _manifests(tmp_path / "data_manifests") == before
    assert not list((tmp_path / "data_manifests").glob(".*.partial"))


def test_a_killed_run_leaves_the_old_manifests_and_the_next_run_cleans_up(
    tiny_tree: Path, tmp_path: Path
) -> None:
    _vit21k("hash", tiny_tree, cwd=tmp_path)
    before = _manifests(tmp_path / "data_manifests")
    stuck = (
        "import os, sys, time; from vit21k.cli.app import main;"
        "os.readv = lambda fd, views: time.sleep(60);"
        "sys.argv[1:] = ['hash', '--fresh', sys.argv[1]]; print('ready', flush=True); main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", stuck, str(tiny_tree)], cwd=tmp_path, stdout=subprocess.PIPE
    ) as run:
        partial = tmp_path / "data_manifests"
        _wait_for_partial(partial)
        run.kill()

    assert _manifests(partial) == before
    assert list(partial.glob(".*.partial"))
    assert _vit21k("hash", tiny_tree, cwd=tmp_path).returncode == 0
    assert _manifests(partial) == before
    assert not list(partial.glob(".*.partial"))


def test_folders_that_are_not_named_like_the_others_are_pointed_out(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    files = {f"images/n{number:08}/x.jpg": b"%d" % number for number in range(20)}
    root = make_tree({**files, "images/stray.jpg": b"stray"})

    result = _vit21k("hash", root, cwd=tmp_path)

    assert "warning: `images` become classes, although not named like the other 20" in result.stderr


def test_a_class_list_that_changes_is_pointed_out(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({"n1/x.jpg": b"1", "n3/x.jpg": b"3"})
    _vit21k("hash", root, cwd=tmp_path)
    first = _vit21k("relabel", cwd=tmp_path)
    make_tree({"n2/x.jpg": b"2"})
    _vit21k("hash", root, cwd=tmp_path)

    second = _vit21k("relabel", cwd=tmp_path)

    assert "warning" not in first.stderr
    assert "warning: the class list has changed (2 classes before, now 3)" in second.stderr


def test_names_come_from_wordnet(tiny_tree: Path, tmp_path: Path) -> None:
    _vit21k("hash", tiny_tree, cwd=tmp_path)
    _vit21k("relabel", cwd=tmp_path)
    program = "import vit21k; print(vit21k.read_manifest('classes')['name'].to_pylist()[0])"

    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert result.stdout == "tench, Tinca tinca\n"


@pytest.mark.parametrize(
    "command", ["hash", "relabel", "make-val", "import-md5sum", "export-lists"]
)
def test_help_has_examples_and_needs_neither_torch_nor_pyarrow(
    command: str, tmp_path: Path
) -> None:
    program = (
        "import sys\nfrom vit21k.cli.app import main\nsys.argv = ['vit21k', sys.argv[1], '-h']\n"
        "try:\n    main()\nfinally:\n"
        "    print({'torch', 'pyarrow', 'numpy'} & set(sys.modules), file=sys.stderr)"
    )

    result = subprocess.run(
        [sys.executable, "-c", program, command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert "Examples" in result.stdout
    assert f"vit21k {command}" in result.stdout
    assert result.stderr == "set()\n"


def test_data_commands_never_import_torch() -> None:
    program = (
        "import sys, pkgutil, importlib, vit21k.prep as prep;"
        "names = [module.name for module in pkgutil.iter_modules(prep.__path__)];"
        "[importlib.import_module(f'vit21k.prep.{name}') for name in names];"
        "import vit21k.cli.prepare, vit21k.cli.pack;"
        "sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
