"""`vit21k.cli.doctor`: what is judged ok, worth a look, or bad."""

import os
import resource
from pathlib import Path

import pytest

from vit21k.cli.doctor import (
    Fact,
    cpu_precision_fact,
    folder_facts,
    gpu_fact,
    installed,
    memory_fact,
    open_files_fact,
    package_facts,
    probe_torch,
    root_fact,
    torch_facts,
)

FAKE_TORCH = """
class version:
    cuda = None
class cuda:
    device_count = staticmethod(lambda: 0)
"""


@pytest.fixture
def torch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which a new interpreter imports torch and torchvision first."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "torch.py").write_text(FAKE_TORCH)
    (tmp_path / "torchvision.py").write_text("")
    return tmp_path


def _facts_of_torch(gpus: list[str] | None = None) -> dict[str, Fact]:
    return {fact.name: fact for fact in torch_facts(probe_torch(), gpus or [])}


def test_an_interpreter_that_does_not_start_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/no/python")

    fact = _facts_of_torch()["import torch"]

    assert (fact.mark, fact.value) == (
        "bad",
        "`/no/python` does not start: No such file or directory",
    )


def test_a_pair_that_imports_is_ok(torch_folder: Path) -> None:
    facts = _facts_of_torch()

    assert facts["import torch"].value == "works, CPU"
    assert facts["torch and torchvision"].mark == "ok"
    assert list(facts) == ["import torch", "torch and torchvision"]


def test_the_known_failure_of_the_pair_is_explained(torch_folder: Path) -> None:
    message = "operator torchvision::nms does not exist"
    (torch_folder / "torchvision.py").write_text(f"raise RuntimeError({message!r})")

    pair = _facts_of_torch()["torch and torchvision"]

    assert pair.mark == "bad"
    assert message in pair.value
    assert "different builds" in (pair.hint or "")


def test_a_torch_that_ends_the_interpreter_is_reported(torch_folder: Path) -> None:
    (torch_folder / "torch.py").write_text("import os; os.kill(os.getpid(), 11)")

    facts = _facts_of_torch()

    assert facts["import torch"].mark == "bad"
    assert facts["import torch"].value == "exit status -11: no message"


def test_a_torch_that_raises_is_reported_in_its_own_words(torch_folder: Path) -> None:
    (torch_folder / "torch.py").write_text("raise OSError('libcudart.so.13: not found')")

    assert _facts_of_torch()["import torch"].value.endswith("OSError: libcudart.so.13: not found")


def test_gpus_that_torch_does_not_see_are_bad(torch_folder: Path) -> None:
    facts = _facts_of_torch(gpus=["NVIDIA H200"])

    assert facts["torch and gpu"].mark == "bad"


def test_no_gpu_is_worth_a_look() -> None:
    assert gpu_fact([]).mark == "look"
    assert gpu_fact(["NVIDIA H200"]) == Fact("gpu", "NVIDIA H200")


def test_every_dependency_of_the_core_is_listed_and_installed() -> None:
    facts = {fact.name: fact for fact in package_facts()}

    assert facts["pyarrow"] == Fact("pyarrow", installed("pyarrow") or "")
    assert installed("no-such-package") is None


@pytest.mark.parametrize(
    ("free_gib", "mark"), [(3.9, "look"), (4.1, "ok")], ids=["little", "enough"]
)
def test_little_free_memory_is_worth_a_look(free_gib: float, mark: str) -> None:
    assert memory_fact(total=64 << 30, free=int(free_gib * 2**30)).mark == mark


def test_few_open_files_are_worth_a_look() -> None:
    assert open_files_fact(256, 4096).mark == "look"
    assert open_files_fact(1024, 4096) == Fact("open files", "1,024 (may be raised to 4,096)")
    assert open_files_fact(resource.RLIM_INFINITY, resource.RLIM_INFINITY).mark == "ok"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_bad(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    assert [fact.mark for fact in folder_facts("manifests", tmp_path / "new")] == ["bad"]


def test_a_full_disk_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {"free": 1 << 20})
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)

    assert next(folder_facts("manifests", tmp_path)).mark == "bad"


def test_an_image_root_that_is_not_there_is_bad(tmp_path: Path) -> None:
    assert root_fact(str(tmp_path / "nowhere")).mark == "bad"
    assert str(tmp_path) in root_fact(str(tmp_path)).value


def test_an_image_root_on_a_network_is_worth_a_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vit21k.machine.file_system_of", lambda _path: "nfs4")

    assert root_fact(str(tmp_path)).mark == "look"


def test_a_processor_without_bfloat16_is_worth_a_look_where_it_trains() -> None:
    assert cpu_precision_fact(True, []).mark == "ok"
    assert cpu_precision_fact(False, ["an H100"]).mark == "ok"

    alone = cpu_precision_fact(False, [])

    assert (alone.value, alone.mark) == ("emulated", "look")
    assert "precision=fp32" in (alone.hint or "")


@pytest.mark.parametrize("in_hardware", [True, False])
def test_a_gpu_without_bfloat16_is_worth_a_look(torch_folder: Path, in_hardware: bool) -> None:
    (torch_folder / "torch.py").write_text(
        "class version:\n    cuda = '12'\n"
        "class cuda:\n    device_count = staticmethod(lambda: 1)\n"
        f"    is_bf16_supported = staticmethod(lambda including_emulation: {in_hardware})\n"
    )

    facts = _facts_of_torch(["Tesla V100"])

    assert ("bfloat16 on the GPU" in facts) is not in_hardware
