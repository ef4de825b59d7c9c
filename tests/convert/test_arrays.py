"""Files of weights that hold more than weights: nothing in them is executed."""

import importlib.util
import itertools
import pickle
import random
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vit21k.checkpoint.load import load_model
from vit21k.convert.arrays import read_arrays
from vit21k.errors import CheckpointError, UsageError
from vit21k.models.registry import get_model, model_args


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


def test_safetensors_are_detected_by_their_content(tmp_path):
    save_file({"a": torch.arange(3.0)}, tmp_path / "w.bin")

    assert read_arrays(tmp_path / "w.bin").container == "safetensors"


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"PK\x03\x04" + bytes(50), b"\x80", b"\x80\x02.", b"hello", b"\x89HDF\r\n\x1a\n",
     b"\xff" * 8 + b"{}", bytes(200)],
)  # fmt: skip
def test_other_files_are_refused_by_name(tmp_path, content):
    (tmp_path / "other.pth").write_bytes(content)

    with pytest.raises(CheckpointError, match=r"other\.pth"):
        read_arrays(tmp_path / "other.pth")


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


DATA = Path(__file__).parents[1] / "fixtures" / "weights"


@pytest.mark.parametrize("path", sorted(DATA.iterdir()), ids=lambda path: path.name)
def test_small_files_that_took_all_memory_or_time_are_refused(path):
    with pytest.raises(CheckpointError, match="damaged, or holds no weights"):
        read_arrays(path)


def rezipped(path, *, method=zipfile.ZIP_STORED, change=lambda _name, content: content):
    """Write the zip at *path* again, with other compression or content."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, change(name, content))


def test_records_of_torch_that_are_compressed_are_refused_before_they_grow(tmp_path):
    torch.save({"a": torch.zeros(300_000)}, tmp_path / "w.pth")
    rezipped(tmp_path / "w.pth", method=zipfile.ZIP_DEFLATED)

    with pytest.raises(CheckpointError, match="compressed"):
        read_arrays(tmp_path / "w.pth")


def test_an_npz_that_grows_beyond_any_weights_is_refused_before_it_grows(tmp_path):
    np.savez_compressed(tmp_path / "w.npz", a=np.zeros(5_000_000, np.float32))
    assert (tmp_path / "w.npz").stat().st_size < 50_000

    with pytest.raises(CheckpointError, match="larger than the file"):
        read_arrays(tmp_path / "w.npz")


@pytest.mark.parametrize("shape", ["(4,)", "(2, 99999999999)", "(3, 1)", "(-3,)", "(0x4,)"])
def test_a_header_with_false_facts_about_its_array_is_refused(tmp_path, shape):
    np.savez(tmp_path / "w.npz", a=np.arange(3.0))

    def change(_name, content):
        header = content[10 : content.index(b"\n")].replace(b"(3,)", shape.encode())
        return content[:10] + header[: 128 - 11].ljust(128 - 11) + b"\n" + content[128:]

    rezipped(tmp_path / "w.npz", change=change)

    if shape == "(3, 1)":  # as long as it says
        assert read_arrays(tmp_path / "w.npz").tensors["a"].shape == (3, 1)
        return
    with pytest.raises(CheckpointError, match="`a` is no"):
        read_arrays(tmp_path / "w.npz")


@pytest.mark.parametrize(
    "array", [np.zeros(2, [("x", "f4")]), np.array(["a"]), np.zeros(2, complex)]
)
def test_arrays_of_anything_but_real_numbers_are_named(tmp_path, array):
    np.savez(tmp_path / "w.npz", a=array)

    with pytest.raises(CheckpointError, match="`a` is no array of numbers"):
        read_arrays(tmp_path / "w.npz")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f2", ">f4", "f8", "i8", "u2"])
def test_arrays_of_numpy_keep_their_values_in_any_order_of_bytes_and_axes(tmp_path, dtype, order):
    array = np.asarray(np.arange(6).reshape(2, 3), dtype=dtype, order=order)
    np.savez(tmp_path / "w.npz", a=array, scalar=np.array(3, dtype))

    tensors = read_arrays(tmp_path / "w.npz").tensors

    assert np.array_equal(tensors["a"].numpy(), array.astype(array.dtype.newbyteorder("=")))
    assert tensors["scalar"].item() == 3


@pytest.mark.parametrize("write", [torch_zip, torch_old])
def test_tensors_that_reuse_a_few_bytes_without_end_are_refused(tmp_path, write):
    write(tmp_path / "w.pth", {"a": torch.zeros(1).expand(1_000_000, 1_000_000)})

    with pytest.raises(CheckpointError, match="larger than the file"):
        read_arrays(tmp_path / "w.pth")


@pytest.mark.parametrize("write", [torch_zip, torch_old])
def test_parts_of_storages_are_read_as_torch_reads_them(tmp_path, write):
    whole = torch.arange(24.0).reshape(4, 6)
    content = {"whole": whole, "part": whole[1:3, 2:], "turned": whole.T, "one": whole[2, 3],
               "half": whole.to(torch.bfloat16), "none": torch.zeros(0, 3),
               "parameter": torch.nn.Parameter(whole[0])}  # fmt: skip
    write(tmp_path / "w.pth", content)

    tensors = read_arrays(tmp_path / "w.pth").tensors

    assert tensors.keys() == content.keys()
    for name, tensor in content.items():
        assert torch.equal(tensors[name], tensor), name
        assert tensors[name].dtype == tensor.dtype


@pytest.mark.parametrize("count", ["99999999", "3000", "9" * 4_000])
def test_a_large_number_of_a_block_builds_nothing(tmp_path, count):
    model = get_model("vit_tiny_patch16_224", num_classes=2, depth=1, embed_dim=16, num_heads=2,
                      img_size=32)  # fmt: skip
    state = model.state_dict()
    save_file({**state, f"blocks.{count}.norm1.weight": torch.zeros(16)}, tmp_path / "w")

    with pytest.raises(CheckpointError, match="block 1 is missing"):
        load_model(tmp_path / "w", model_args={"num_heads": 2})


@pytest.mark.parametrize(
    "change",
    [{"depth": 99_999_999}, {"img_size": 10**9}, {"embed_dim": 2**40}, {"depth": [1]},
     {"num_heads": "2"}, {"mlp_ratio": float("nan")}, {"norm_eps": None}, {"qkv_bias": 3}],
)  # fmt: skip
def test_a_config_of_immense_or_malformed_numbers_builds_nothing(change):
    with pytest.raises(UsageError, match=next(iter(change))):
        model_args("vit_tiny_patch16_224", **change)


def mutate_weights():
    path = Path(__file__).parents[2] / "tools/check/mutate_weights.py"
    spec = importlib.util.spec_from_file_location("mutate_weights", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate_weights"] = module
    spec.loader.exec_module(module)
    return module


def test_mutated_files_and_configs_are_read_or_refused_with_one_message(tmp_path, monkeypatch):
    """A sample of `tools/check/mutate_weights.py`, which bounds time and memory as well."""
    tool, chance = mutate_weights(), random.Random(3)
    monkeypatch.setattr(tool, "MAX_SECONDS", float("inf"))
    monkeypatch.setattr(tool, "MAX_MB", float("inf"))
    cases = itertools.chain(
        tool.file_cases(tmp_path, 12, chance), tool.config_cases(tmp_path, 110, chance)
    )

    problems = [outcome for outcome in map(tool.outcome_of, cases) if outcome.problem]

    assert not problems
