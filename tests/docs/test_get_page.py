"""`docs/get-imagenet21k.md`: its commands work on small imitations of what is published."""

import io
import json
import re
import shlex
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from vit21k.cli.app import app
from vit21k.manifest.io import read_manifest
from vit21k.manifest.schema import DIGESTS

PAGE = (Path(__file__).parents[2] / "docs/get-imagenet21k.md").read_text()
COMMANDS = sorted(set(re.findall(r"^\|.*`vit21k (hash [^`]+)`", PAGE, re.MULTILINE)))
CLASSES = ("n01440764", "n01443537")
IMAGES = {f"{wnid}/{wnid}_{k}.JPEG": f"{wnid} {k}".encode() for wnid in CLASSES for k in range(2)}


def _tar(members: Mapping[str, bytes], mode: str = "w") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as file:  # type: ignore[call-overload]
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return content.getvalue()


def _zip(members: Mapping[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return content.getvalue()


def _of(wnid: str) -> dict[str, bytes]:
    return {path.partition("/")[2]: data for path, data in IMAGES.items() if wnid in path}


def _in_splits(train: str, val: str) -> dict[str, bytes]:
    return {f"{val if '_0' in path else train}/{path}": data for path, data in IMAGES.items()}


def _samples() -> dict[str, bytes]:
    members = {}
    for path, data in IMAGES.items():
        wnid, _, name = path.partition("/")
        key = name.removesuffix(".JPEG")
        members[f"{key}.jpg"] = data
        members[f"{key}.json"] = json.dumps({"class_name": wnid}).encode()
    return members


def _indexed(split: str) -> dict[str, bytes]:
    """Return samples of timm's ImageNet-1k, in whose validation shards no name has a class."""
    members = {}
    for number, (path, data) in enumerate(IMAGES.items()):
        if (split == "validation") == ("_0" in path):
            wnid = path.partition("/")[0]
            key = f"ILSVRC2012_val_{number:08}" if split == "validation" else f"{wnid}_{number}"
            members[f"{key}.jpg"] = data
            members[f"{key}.cls"] = b"%d" % CLASSES.index(wnid)
    return members


def _parquet() -> bytes:
    images = [{"bytes": data, "path": path} for path, data in IMAGES.items()]
    content = io.BytesIO()
    labels = [path.partition("/")[0] for path in IMAGES]
    pq.write_table(pa.table({"image": images, "label": labels}), content)
    return content.getvalue()


def _published() -> dict[str, bytes]:
    class_tars = {f"{wnid}.tar": _tar(_of(wnid)) for wnid in CLASSES}
    val = {f"ILSVRC2012_val_{k:08d}.JPEG": b"%d" % k for k in (1, 2)}
    resized = _in_splits("imagenet21k_train", "imagenet21k_val")
    return {
        "ImageNet21K/n01440764.zip": _zip(_of("n01440764")),
        "ImageNet21K/n01443537.tar": class_tars["n01443537.tar"],
        "fall11_whole.tar": _tar(class_tars),
        "winter21_whole.tar.gz": _tar({f"w/{k}": v for k, v in class_tars.items()}, "w:gz"),
        "imagenet21k_resized.tar.gz": _tar({f"r/{k}": v for k, v in resized.items()}, "w:gz"),
        "imagenet-22k-wds/imagenet22k-train-0000.tar": _tar(_samples()),
        "imagenet-1k-wds/imagenet1k-train-0000.tar": _tar(_indexed("train")),
        "imagenet-1k-wds/imagenet1k-validation-00.tar": _tar(_indexed("validation")),
        "imagenet21k-parquet/data/train-00000-of-00001.parquet": _parquet(),
        **{f"ILSVRC2012/{path}": data for path, data in _in_splits("train", "val").items()},
        "ILSVRC2012_img_val.tar": _tar(val),
        "ILSVRC2012_validation_ground_truth.txt": b"\n".join(b"%d" % k for k in range(1, 1001)),
    }


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    for path, content in _published().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_reads_what_it_is_for(
    command: str, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(published)
    words = shlex.split(command.replace("/data/", f"{published}/"))
    is_val = "--labels" in words
    if is_val:  # these are not the published numbers
        words += ["--classes", "in1k-devkit"]

    result = CliRunner().invoke(app, [*words, "--manifests", str(tmp_path / "m")])

    assert result.exit_code == (3 if is_val else 0), result.stderr
    wnids = read_manifest(tmp_path / "m", DIGESTS)["wnid"].to_pylist()
    assert sorted(wnids) == sorted(["n02119789", "n02100735"] if is_val else CLASSES * 2)


def test_the_page_has_a_command_for_each_form() -> None:
    assert len(COMMANDS) == 9
