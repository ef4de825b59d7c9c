"""`vit21k review` and `vit21k labels apply` as a user runs them."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from review_world import BEAGLE, make_world
from typer.testing import CliRunner

from vit21k.cli.app import app
from vit21k.errors import MissingExtraError

run = CliRunner().invoke


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("cli-review"))


def decide(address: str, **fields: object) -> None:
    request = urllib.request.Request(
        f"{address}decide",
        data=json.dumps(fields).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


def test_ctrl_c_ends_it_and_apply_uses_what_was_decided(manifests: Path, tmp_path: Path) -> None:
    decisions = ["--manifests", str(manifests), "--decisions", str(tmp_path / "d.jsonl")]
    command = [sys.executable, "-m", "vit21k", "review", *decisions]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        decide(address, index=2, action="drop", wnid=BEAGLE)
        decide(address, index=0, action="accept")
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=20)

    result = run(app, ["labels", "apply", *decisions, "--out", str(tmp_path / "out"), "--json"])

    assert process.returncode == 0
    assert "review: 4 items; 2 decisions in effect on 2 items: 1 x leak, 1 x merge" in told
    assert json.loads(result.stdout)["num_applied"] == 2
    assert "apply: 2 decisions: 2 applied, 0 confirmed, 0 not applied" in result.stderr
    assert "5 images became 4, 2 of the old ones changed" in result.stderr
    assert result.exit_code == 0


def test_decisions_that_no_longer_fit_are_named_and_end_with_3(
    manifests: Path, tmp_path: Path
) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"action": "accept", "kind": "leak", "path": "gone.jpg"}\n', encoding="utf-8")

    command = ["labels", "apply", "--manifests", str(manifests), "--decisions", str(path)]
    result = run(app, [*command, "--out", str(tmp_path / "out")])

    assert result.exit_code == 3
    assert "not applied to `gone.jpg`: the image is not in the manifest" in result.stderr


def test_decisions_are_never_kept_in_the_image_tree(manifests: Path) -> None:
    path = manifests.parent / "tree" / "d.jsonl"

    result = run(app, ["review", "--manifests", str(manifests), "--decisions", str(path)])

    assert "inside the image root" in str(result.exception)
    assert not path.exists()


def test_without_the_web_server_the_extra_is_named(
    manifests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "starlette", None)

    result = run(app, ["review", "--manifests", str(manifests)])

    assert isinstance(result.exception, MissingExtraError)
    assert "`vit21k review` needs starlette" in result.exception.message
    assert "pip install 'vit21k[serve]'" in str(result.exception.hint)


def test_a_port_that_is_taken_is_named(manifests: Path, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    command = ["review", "--manifests", str(manifests), "--decisions", str(tmp_path / "d.jsonl")]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run(app, [*command, "--port", str(port)])

    assert f"cannot listen on 127.0.0.1 port {port}: " in str(result.exception)
