"""Files of weights that hold more than weights: nothing in them is executed."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from vit21k.errors import CheckpointError  # noqa: E402
from vit21k.weights.arrays import read_arrays  # noqa: E402


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (Path.write_text, (self.canary, "executed"))


def torch_zip(path, content):
    torch.save(content, path)


def torch_old(path, content):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def paddle(path, content):
    path.write_bytes(pickle.dumps(content, protocol=4))


def npz(path, content):
    np.savez(path, **{name: np.array([value], dtype=object) for name, value in content.items()})


def npz_with_a_pickle(path, content):
    """An archive whose member is a bare pickle instead of an array."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", pickle.dumps(content))


@pytest.mark.parametrize("write", [torch_zip, torch_old, paddle, npz, npz_with_a_pickle])
def test_a_payload_in_any_format_is_not_executed(tmp_path, write):
    canary, path = tmp_path / "canary", tmp_path / "weights.npz"
    write(path, {"a": Payload(canary)})
    assert path.stat().st_size > 0

    with pytest.raises(CheckpointError):
        read_arrays(path)

    assert not canary.exists()


def test_the_payload_would_work(tmp_path):
    canary = tmp_path / "canary"

    pickle.loads(pickle.dumps(Payload(canary)))

    assert canary.read_text() == "executed"


@pytest.mark.parametrize("write", [torch_zip, torch_old])
def test_what_torch_saved_is_read(tmp_path, write):
    write(tmp_path / "w.pth", {"module.a": torch.arange(3.0), "epoch": 4})

    arrays = read_arrays(tmp_path / "w.pth")

    assert arrays.container == "torch"
    assert arrays.tensors.keys() == {"a"}


def test_safetensors_are_told_by_their_content(tmp_path):
    save_file({"a": torch.arange(3.0)}, tmp_path / "w.bin")

    assert read_arrays(tmp_path / "w.bin").container == "safetensors"


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"PK\x03\x04" + bytes(50), b"\x80", b"\x80\x02.", b"hello", b"\x89HDF\r\n\x1a\n",
     b"\xff" * 8 + b"{}", bytes(200)],
)  # fmt: skip
def test_odd_files_are_refused_by_name(tmp_path, content):
    (tmp_path / "odd.pth").write_bytes(content)

    with pytest.raises(CheckpointError, match=r"odd\.pth"):
        read_arrays(tmp_path / "odd.pth")


def test_a_truncated_file_of_any_format_is_refused(tmp_path):
    tensors = {"a": torch.arange(3000.0)}
    for write in (lambda path: save_file(tensors, path), lambda path: torch.save(tensors, path)):
        write(tmp_path / "w")
        content = (tmp_path / "w").read_bytes()
        (tmp_path / "w").write_bytes(content[: len(content) // 2])
        with pytest.raises(CheckpointError, match="damaged"):
            read_arrays(tmp_path / "w")


def test_no_tensors_are_an_error(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "w.pth")

    with pytest.raises(CheckpointError, match="no tensors"):
        read_arrays(tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="is missing"):
        read_arrays(tmp_path / "gone.pth")


def test_numpys_own_compression_is_read(tmp_path):
    np.savez_compressed(tmp_path / "w.npz", a=np.eye(3))

    assert torch.equal(read_arrays(tmp_path / "w.npz").tensors["a"], torch.eye(3).double())
