"""Files of fall11 that are known to be unreadable, in the output of `hash` and `verify`."""

import json
from pathlib import Path

from conftest import MakeTree
from malformed_images import encoded
from typer.testing import CliRunner

from vit21k.cli.app import app


def test_hash_and_verify_say_how_many_problems_are_known(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    root = make_tree(
        {
            "n01678043/n01678043_6448.JPEG": b"",
            "n01896844/n01896844_997.JPEG": encoded()[:-300],
            "n01896844/n01896844_1.JPEG": encoded(),
        }
    )
    run = CliRunner().invoke

    hashed = run(app, ["hash", str(root), "--manifests", str(tmp_path / "m")])
    verified = run(app, ["verify", "--decode", "--json", "--manifests", str(tmp_path / "m")])

    assert "1 of 27 known unreadable files of fall11 are among them" in hashed.stderr
    assert "1 of 27 known unreadable files of fall11" in verified.stderr
    assert json.loads(verified.stdout)["decode"]["num_known_problems"] == 1
