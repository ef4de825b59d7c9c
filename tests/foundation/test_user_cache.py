"""Where things are cached, and what happens to a user whom the system does not know."""

import pwd
from pathlib import Path

import pytest

from vit21k.convert.download import cache_dir
from vit21k.errors import UsageError
from vit21k.machine import user_cache


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_uid: int) -> None:
        raise KeyError

    for name in ("HOME", "XDG_CACHE_HOME", "VIT21K_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_the_cache_is_where_the_system_keeps_caches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    at_home = user_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))

    assert at_home == tmp_path / ".cache" / "vit21k"
    assert user_cache() == tmp_path / "elsewhere" / "vit21k"


@pytest.mark.usefixtures("homeless")
def test_without_a_home_there_is_none_and_whoever_wants_one_says_so() -> None:
    assert user_cache() is None
    with pytest.raises(UsageError, match="no home"):
        cache_dir()
