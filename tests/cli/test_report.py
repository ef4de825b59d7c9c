"""`vit21k report` as a user runs it."""

import json
from pathlib import Path

from photolike import encoded, photolike
from typer.testing import CliRunner

from vit21k.cli.app import app

run = CliRunner().invoke


def test_it_writes_the_page_next_to_the_manifests_and_counts_the_merges(tmp_path: Path) -> None:
    for folder in ("n02088364", "n07753592"):
        (tmp_path / "tree" / folder).mkdir(parents=True)
        (tmp_path / "tree" / folder / "0.jpg").write_bytes(encoded(photolike(0)))
    manifests = ["--manifests", str(tmp_path / "m")]
    for command in (["hash", str(tmp_path / "tree")], ["relabel"]):
        assert run(app, [*command, *manifests]).exit_code == 0

    result = run(app, ["report", *manifests, "--json", "--title", "Mine"])

    answer = json.loads(result.stdout)
    page = tmp_path / "m" / "report.html"
    assert result.exit_code == 0
    assert answer["path"] == str(page)
    assert answer["num_bytes"] == page.stat().st_size
    assert "report: 1 images, 1 under several classes (1 shown, 0 not)" in result.stderr
    assert "<title>Mine</title>" in page.read_text(encoding="utf-8")

    (tmp_path / "tree" / "n02088364" / "0.jpg").unlink()  # the kept one
    result = run(app, ["report", *manifests, "--json"])

    assert result.exit_code == 3
    assert json.loads(result.stdout)["num_unread"] == 1
    assert "1 images could not be read and are not shown" in result.stderr
    assert "could not be read</span>" in page.read_text(encoding="utf-8")
