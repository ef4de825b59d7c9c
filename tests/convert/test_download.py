"""Downloads from a server on loopback: broken off, changed, damaged, repeated, redirected."""

import base64
import hashlib
import multiprocessing

import numpy as np
import pytest
from file_server import serving

from vit21k.convert.download import MissingFileError, cache_dir, download
from vit21k.errors import CheckpointError, UsageError

CONTENT = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("VIT21K_CACHE", str(tmp_path / "cache"))
    with serving() as server:
        server.files["/models/w.npz"] = CONTENT
        yield server


def test_a_file_is_downloaded_completely_and_once(server):
    path = download(f"{server.url}/models/w.npz")
    again = download(f"{server.url}/models/w.npz")

    assert path == again
    assert path.name == "w.npz"
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_progress_is_reported(server):
    reports = []

    download(f"{server.url}/models/w.npz", on_progress=lambda *numbers: reports.append(numbers))

    assert reports[-1] == (len(CONTENT), len(CONTENT))
    assert reports == sorted(reports)


def test_a_broken_download_resumes_where_it_broke(server):
    server.break_after = [1_000_000, 500_000]

    path = download(f"{server.url}/models/w.npz")

    assert path.read_bytes() == CONTENT
    ranges = [asked for _, asked in server.requests]
    assert ranges[0] is None
    assert len(ranges) == 3
    assert 0 < int(ranges[1].removeprefix("bytes=").rstrip("-")) <= 1_000_000
    assert int(ranges[2].removeprefix("bytes=").rstrip("-")) <= 1_500_000


def test_a_killed_download_resumes_in_the_next_process(server):
    server.break_after = [1_000_000] + [0] * 10
    with pytest.raises(OSError, match="broke off"):
        download(f"{server.url}/models/w.npz")
    server.break_after = []
    server.requests.clear()

    path = download(f"{server.url}/models/w.npz")

    assert path.read_bytes() == CONTENT
    assert server.requests[0][1] == "bytes=1000000-"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_that_has_changed_is_downloaded_from_its_start(server, ranges):
    server.break_after = [1_000_000] + [0] * 10
    with pytest.raises(OSError, match="broke off"):
        download(f"{server.url}/models/w.npz")
    server.break_after, server.ranges = [], ranges
    server.files["/models/w.npz"] = CONTENT[::-1]

    assert download(f"{server.url}/models/w.npz").read_bytes() == CONTENT[::-1]


def test_a_download_that_was_killed_after_its_last_byte_is_completed(server):
    server.break_after = [1_000_000] + [0] * 10
    with pytest.raises(OSError, match="broke off"):
        download(f"{server.url}/models/w.npz")
    server.break_after = []
    (partial,) = cache_dir().glob("*/*.part")
    partial.write_bytes(CONTENT)

    path = download(f"{server.url}/models/w.npz")

    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "headers",
    [
        {"x-goog-hash": f"crc32c=AAAAAA==,md5={base64.b64encode(bytes(16)).decode()}"},
        {"X-Linked-Etag": f'"{"0" * 64}"'},
        {"X-Linked-Size": "3000001"},
    ],
)
def test_a_digest_that_the_server_announces_is_compared(server, headers):
    server.headers["/models/w.npz"] = headers

    with pytest.raises((CheckpointError, OSError), match=r"damaged|broke off"):
        download(f"{server.url}/models/w.npz")

    assert not list(cache_dir().rglob("w.npz"))


def test_a_right_digest_is_accepted(server):
    md5 = base64.b64encode(hashlib.md5(CONTENT).digest()).decode()
    server.headers["/models/w.npz"] = {"x-goog-hash": f"md5={md5}"}

    assert download(f"{server.url}/models/w.npz").stat().st_size == len(CONTENT)


def test_a_digest_in_the_address_is_compared(server):
    url = f"{server.url}/models/w.npz"
    right = hashlib.sha256(CONTENT).hexdigest()

    assert download(f"{url}#sha256={right}").read_bytes() == CONTENT
    with pytest.raises(CheckpointError, match="its sha256 is"):
        download(f"{url}#sha256={'0' * 64}")


@pytest.mark.parametrize("spelling", ["sha-256=", "SHA256=", "sha256:", "sha256="])
def test_every_spelling_of_a_sha256_is_compared(server, spelling):
    url = f"{server.url}/models/w.npz"
    right = hashlib.sha256(CONTENT).hexdigest()

    assert download(f"{url}#{spelling}{right.upper()}").read_bytes() == CONTENT
    with pytest.raises(CheckpointError, match="its sha256 is"):
        download(f"{url}#{spelling}{'0' * 64}")


@pytest.mark.parametrize(
    "end", ["#", "#sha256=abc", "#md5=" + "0" * 32, "#sha512=00", "#sha256-AAAA", "#readme",
            "#sha256=" + "0" * 64 + "&egg=x", "?sha256=" + "0" * 64, "?checksum=md5:0"]
)  # fmt: skip
def test_a_checksum_that_would_not_be_compared_is_refused(server, end):
    url = f"{server.url}/models/w.npz"

    with pytest.raises(UsageError, match=r"checksum|SHA-256"):
        download(url + end)


def test_a_damaged_copy_is_downloaded_again(server):
    path = download(f"{server.url}/models/w.npz")
    path.write_bytes(CONTENT[:-1] + b"?")

    assert download(f"{server.url}/models/w.npz").read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_headers_of_a_redirect_count(server):
    server.redirects["/hub/w.npz"] = f"{server.url}/models/w.npz"
    server.headers["/hub/w.npz"] = {"X-Linked-Etag": f'"{hashlib.sha256(CONTENT).hexdigest()}"'}
    assert download(f"{server.url}/hub/w.npz").read_bytes() == CONTENT

    server.redirects["/wrong/w.npz"] = f"{server.url}/models/w.npz"
    server.headers["/wrong/w.npz"] = {"X-Linked-Etag": f'"{"0" * 64}"'}
    with pytest.raises(CheckpointError, match="sha256"):
        download(f"{server.url}/wrong/w.npz")


def test_a_missing_file_is_reported(server):
    with pytest.raises(MissingFileError, match="404") as caught:
        download(f"{server.url}/models/gone.npz")

    assert caught.value.hint


def test_an_unreachable_server_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("VIT21K_CACHE", str(tmp_path))
    with serving() as server:
        url = server.url

    with pytest.raises(OSError, match="cannot be reached"):
        download(f"{url}/w.npz")


def _download(url):
    return str(download(url))


def test_two_processes_fetch_a_file_once(server):
    url = f"{server.url}/models/w.npz"
    with multiprocessing.get_context("fork").Pool(2) as pool:
        paths = pool.map(_download, [url, url], chunksize=1)

    assert paths[0] == paths[1]
    assert len(server.requests) == 1
