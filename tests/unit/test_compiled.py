"""Libraries that are compiled for a machine are for machines of its kind alone."""

import shutil
from pathlib import Path

import pytest

from vit21k import compiled

CPUINFO = """processor\t: {number}
vendor_id\t: GenuineIntel
model\t\t: 143
model name\t: Xeon
cpu MHz\t\t: {mhz}
flags\t\t: fpu sse2 {flags}
"""


def _library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpuinfo: str) -> str:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(compiled, "_CPUINFO", tmp_path / "cpuinfo")
    return compiled.compiled_library(tmp_path / "one.c")._name


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_a_library_is_shared_by_machines_of_one_kind_and_by_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "one.c").write_text("int one(void) { return 1; }")
    two_processors = CPUINFO + "\n" + CPUINFO

    here = _library(tmp_path, monkeypatch, CPUINFO.format(number=0, mhz=2000, flags="avx512f"))
    alike = two_processors.format(number=0, mhz=3100, flags="avx512f")
    older = CPUINFO.format(number=0, mhz=2000, flags="avx2")

    assert _library(tmp_path, monkeypatch, alike) == here
    assert _library(tmp_path, monkeypatch, older) != here
