"""`prep.remote` against a real S3 server: moto's, on this machine."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeTree, needs_extra

needs_extra("s3fs")
boto3 = needs_extra("boto3")
moto_server = needs_extra("moto.server")

from typer.testing import CliRunner

from vit21k.cli.app import app
from vit21k.manifest.io import read_manifest
from vit21k.manifest.schema import DIGESTS, IMAGES, PROBLEMS
from vit21k.prep.hash_tree import hash_tree

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
