"""`tools/bench/bench_loader.py`: what is not asked for need not be installed."""

import re
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import bench_loader
import pytest


@pytest.fixture
def no_dali(monkeypatch):
    def version(name):
        if "dali" in name:
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(bench_loader, "version", version)


@pytest.mark.usefixtures("no_dali")
def test_by_default_a_loader_that_is_not_installed_is_skipped_and_named(capsys):
    names = bench_loader.chosen(None)

    assert set(names) == {*bench_loader.PEERS, *bench_loader.OURS} - {"DALI (CPU)"}
    assert "DALI (CPU) is skipped: nvidia-dali-cuda120 is not installed" in capsys.readouterr().err


@pytest.mark.usefixtures("no_dali")
def test_a_loader_asked_for_must_be_installed():
    with pytest.raises(SystemExit, match="not installed: nvidia-dali-cuda120"):
        bench_loader.chosen("ImageFolder,DALI (CPU)")
    with pytest.raises(SystemExit, match="no loader is called"):
        bench_loader.chosen("ImageFolders")


@pytest.mark.usefixtures("no_dali")
def test_a_table_names_the_packages_of_its_own_loaders():
    one = {"images": 64, "wall": 1.0, "cpu": 2.0}
    result = {
        "rounds": [{"ImageFolder": one, "webdataset": one}],
        "pixels": {"ImageFolder": None, "webdataset": None},
    }
    data = SimpleNamespace(num_images=64, img_size=224)

    about = bench_loader.table(result, data, 1_000_000).splitlines()[0]

    assert re.findall(r"(\S+) 1\.0", about) == [*bench_loader.PACKAGES, "webdataset"]
