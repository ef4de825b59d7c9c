"""hash of a source behind a URL against a client that reads the same ranges and drops them.

    python tools/bench/bench_hash_remote.py FOLDER [--rounds 5] [--latency 0.02]

FOLDER holds tars, or class folders.  Servers are on loopback, in processes of their own: moto's S3
(without latency), and one of ours, which waits before each answer.  The client has as many
connections as hash, and reads ranges of the size that hash reads.  Rounds are interleaved.  Needs
`pip install 'vit21k[s3]' aiohttp 'moto[server]'`.
"""

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import aiohttp
import boto3
from aiobotocore.session import get_session
from bench_remote import serving

from vit21k.prep.hash_tree import hash_tree
from vit21k.sources.remote import MERGED_BYTES, NUM_CONNECTIONS

BUCKET, RANGE_BYTES = "bench", MERGED_BYTES // 2
Ranges = list[tuple[str, int, int]]


def ranges_of(folder: Path) -> Ranges:
    """Return (path, first byte, last byte) of all files."""
    found: Ranges = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        name = str(path.relative_to(folder))
        starts = range(0, size, RANGE_BYTES)
        found += [(name, start, min(start + RANGE_BYTES, size) - 1) for start in starts]
    return found


async def drop_http(url: str, ranges: Ranges) -> None:
    """Read *ranges* over HTTP."""
    connections = aiohttp.TCPConnector(limit=NUM_CONNECTIONS)
    async with aiohttp.ClientSession(connector=connections) as session:

        async def read(name: str, first: int, last: int) -> None:
            headers = {"Range": f"bytes={first}-{last}"}
            async with session.get(f"{url}/{quote(name)}", headers=headers) as answer:
                if len(await answer.read()) != last + 1 - first:
                    sys.exit(f"{name}: status {answer.status}")

        await asyncio.gather(*(read(*one) for one in ranges))


async def drop_s3(endpoint: str, ranges: Ranges) -> None:
    """Read *ranges* of the bucket."""
    waiting = asyncio.Semaphore(NUM_CONNECTIONS)
    async with get_session().create_client("s3", endpoint_url=endpoint) as client:

        async def read(name: str, first: int, last: int) -> None:
            async with waiting:
                answer = await client.get_object(
                    Bucket=BUCKET, Key=name, Range=f"bytes={first}-{last}"
                )
                async with answer["Body"] as body:
                    if len(await body.read()) != last + 1 - first:
                        sys.exit(f"{name}: too short")

        await asyncio.gather(*(read(*one) for one in ranges))


@contextmanager
def serving_s3(folder: Path) -> Iterator[str]:
    """Serve *folder* as a bucket from another process; yield the address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "FSSPEC_S3_ENDPOINT_URL": endpoint,
    }
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            client = boto3.client("s3", endpoint_url=endpoint)
            client.create_bucket(Bucket=BUCKET)
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                client.put_object(
                    Bucket=BUCKET, Key=str(path.relative_to(folder)), Body=path.read_bytes()
                )
            yield endpoint
        finally:
            server.terminate()


def compare(title: str, hash_: Callable[[], object], drop: Callable[[], object], n: int) -> None:
    """Run both, interleaved, and print the speed of hash as a share of that of the client."""
    shares = []
    for number in range(n + 1):
        seconds = []
        for work in (hash_, drop) if number % 2 else (drop, hash_):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        hashing, dropping = seconds if number % 2 else reversed(seconds)
        if number:  # the first round opens connections
            shares.append(dropping / hashing)
            print(f"  {dropping:.2f} s, hash {hashing:.2f} s")
    print(f"{title}: {statistics.median(shares):.2f} of a client", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--latency", type=float, default=0.02)
    args = parser.parse_args()
    ranges = ranges_of(args.folder)
    with tempfile.TemporaryDirectory() as folder:

        def hash_url(url: str) -> Callable[[], object]:
            def hash_all() -> None:
                found = hash_tree(url, Path(folder, "m"), is_fresh=True, label_from="folder")
                if found.problems:
                    sys.exit(f"{url} was not read")

            return hash_all

        with serving_s3(args.folder) as endpoint:
            title, url = "moto's S3", f"s3://{BUCKET}"
            compare(
                title, hash_url(url), lambda: asyncio.run(drop_s3(endpoint, ranges)), args.rounds
            )
        with serving(args.folder, args.latency) as url:
            title = f"HTTP, {args.latency * 1000:g} ms"
            compare(title, hash_url(url), lambda: asyncio.run(drop_http(url, ranges)), args.rounds)


if __name__ == "__main__":
    main()
