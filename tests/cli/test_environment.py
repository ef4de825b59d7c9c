"""Commands in the environments of containers and clusters: locale, HOME, permissions, width."""

import os
import subprocess
import sys


def run(*arguments, cwd, env):
    command = [sys.executable, "-m", "vit21k", *arguments]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **env}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, check=False)


def test_a_root_with_an_umlaut_is_hashed_in_an_ascii_locale_without_home(make_tree, tmp_path):
    make_tree({"n01440764/1.JPEG": b"fish"}).rename(tmp_path / "bäume")
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    hashed = run("hash", "bäume", cwd=tmp_path, env=env)
    status = run("status", cwd=tmp_path, env=env)

    assert hashed.returncode == 0, hashed.stderr.decode()
    assert "bäume" in status.stderr.decode()


def test_a_folder_that_may_not_be_read_has_its_own_exit_code(
    vit21k, make_tree, tmp_path, monkeypatch
):
    make_tree({"n01440764/1.JPEG": b"fish"}).rename(tmp_path / "closed")
    monkeypatch.setattr("os.access", lambda path, mode: False)

    result = vit21k("hash", "closed")

    assert result.code == 77
    assert "error: Permission denied: `closed`" in result.stderr
    assert f"user id {os.geteuid()}" in result.stderr


def test_a_server_that_does_not_answer_has_its_own_exit_code(vit21k, images):
    result = vit21k("predict", "http://127.0.0.1:9/model.npz", "tree")

    assert result.code == 69
    assert "cannot be reached" in result.stderr


def test_help_fits_a_narrow_terminal(vit21k, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")

    printed = vit21k("hash", "--help").stdout

    assert max(map(len, printed.splitlines())) <= 60
