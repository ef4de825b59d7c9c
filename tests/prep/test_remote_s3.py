"""`prep.remote` against a real S3 server: moto's, on this machine."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeTree, needs_extra
from tar_files import tar_of, tar_of_tars

s3fs = needs_extra("s3fs")
boto3 = needs_extra("boto3")
moto_server = needs_extra("moto.server")

from typer.testing import CliRunner

from vit21k.cli.app import app
from vit21k.manifest.io import read_manifest
from vit21k.manifest.schema import DIGESTS, IMAGES, LOCATOR_COLUMNS, PROBLEMS
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.verify import verify
from vit21k.sources import remote
from vit21k.sources.read import ImageReader, Locator
from vit21k.sources.remote import ObjectEndsError, RemoteTree

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket `in21k` on a server of this process."""
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    client.create_bucket(Bucket="in21k")
    s3fs.S3FileSystem.clear_instance_cache()  # each test has a server of its own
    monkeypatch.setattr(remote, "FIRST_DELAY_S", 0.01)
    yield client
    server.stop()


def test_a_bucket_gives_the_rows_of_the_same_tree_on_a_disk(
    bucket: Any, make_tree: MakeTree, tmp_path: Path
) -> None:
    files = {f"images/n{number % 7}/{number}.JPEG": b"%d" % (number % 50) for number in range(300)}
    files |= {"images/n1/a b+c%.jpg": b"odd", "images/n1/\u00e9.jpg": b"accent"}
    files |= {"images/n3/empty.jpg": b"", "images/README": b"read me"}
    for name, content in files.items():
        bucket.put_object(Bucket="in21k", Key=f"v1/{name}", Body=content)
    bucket.put_object(Bucket="in21k", Key="v1/images/n5/", Body=b"")  # as consoles make folders
    hash_tree(make_tree(files), tmp_path / "disk")
    remote = ["--manifests", str(tmp_path / "s3")]

    hashed = CliRunner().invoke(app, ["hash", "s3://in21k/v1", *remote])
    relabelled = CliRunner().invoke(app, ["relabel", *remote])

    assert hashed.exit_code == 3, hashed.output  # the empty file
    assert "304 files scanned, 302 images" in hashed.output
    assert relabelled.exit_code == 0, relabelled.output
    for kind in (DIGESTS, PROBLEMS):
        on_s3, on_disk = (
            [{**row, "mtime_ns": None} for row in read_manifest(folder, kind).to_pylist()]
            for folder in (tmp_path / "s3", tmp_path / "disk")
        )
        assert on_s3 == on_disk
    assert read_manifest(tmp_path / "s3", IMAGES).num_rows == 52
    assert min(read_manifest(tmp_path / "s3", DIGESTS)["mtime_ns"].to_pylist()) > 1e18


def _put(bucket: Any, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        bucket.put_object(Bucket="in21k", Key=f"v2/{name}", Body=content)
    return "s3://in21k/v2"


def test_containers_resume_shards_and_verify(
    bucket: Any, make_tree: MakeTree, tmp_path: Path
) -> None:
    inner = {f"{n}.JPEG": b"\xff\xd8\xff" + bytes([n]) * 40_000 for n in range(30)}
    files = {
        "n1.tar": tar_of(inner),
        "whole.tar": tar_of_tars({"n2": inner, "n3": {"a.jpg": b"abc"}}),
        "packed.tar.gz": tar_of(
            {f"n4/{name}": content for name, content in inner.items()}, compressed=True
        ),
        "n5/x.jpg": b"plain",
    }
    hash_tree(make_tree(files), tmp_path / "disk", label_from="folder")

    url = _put(bucket, files)
    hash_tree(url, tmp_path / "s3", label_from="folder")

    for kind in (DIGESTS, PROBLEMS):
        on_s3, on_disk = (
            [{**row, "mtime_ns": None} for row in read_manifest(folder, kind).to_pylist()]
            for folder in (tmp_path / "s3", tmp_path / "disk")
        )
        assert on_s3 == on_disk
    assert verify(tmp_path / "s3").is_same
    rows = read_manifest(tmp_path / "s3", DIGESTS, LOCATOR_COLUMNS).to_pylist()
    locators = [Locator(**row) for row in rows]
    near = ImageReader(make_tree(files))
    assert ImageReader(url).read_many(locators) == [near.read(*locator) for locator in locators]


def test_answers_of_s3_about_ends_and_missing_keys(bucket: Any) -> None:
    tree = RemoteTree(_put(bucket, {"a.tar": bytes(1000), "b+c %.tar": b"x"}))

    assert tree.facts("a.tar").is_version
    assert tree.facts_of(["a.tar", "no.tar"])["no.tar"] is None
    assert tree.read("b+c %.tar") == b"x"
    with pytest.raises(FileNotFoundError):
        tree.read("no.tar")
    for start, end in ((900, 1100), (1000, 1100)):
        with pytest.raises(ObjectEndsError):
            tree.read_range("a.tar", start, end)


def test_a_bucket_that_is_forbidden_is_an_error_of_the_system(bucket: Any) -> None:
    del bucket

    assert not RemoteTree("s3://no-such-bucket/x").is_folder()
