"""fsspec's file system in memory as `flaky://`, with faults that a test injects."""

import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

ROOT = "/bucket/in21k"
URL = f"flaky:/{ROOT}"


class BackEndError(Exception):
    """Like those of botocore: no `OSError`."""


class FlakyFiles(MemoryFileSystem):
    """Objects with entity tags; requests are counted, and may fail."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    requests: ClassVar[list[tuple[str, str, int | None, int | None]]] = []
    faults: ClassVar[list[Callable[[str, str], bytes | None]]] = []
    """Each is called with the operation and the path of a request; may raise, or answer."""
    tags: ClassVar[dict[str, str]] = {}
    latency_s = 0.0
    lists_names_only = False
    """As a page of links does."""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.replace("flaky://", "memory://", 1))
        return stripped

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        self._request("ls", path)
        found = super().ls(path, detail=detail, **options)
        if self.lists_names_only:
            return [{**one, "size": None, "created": None} for one in found]
        return [self._tagged(info) for info in found] if detail else found

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        self._request("info", path)
        return self._tagged(super().info(path, **options))

    def cat_file(
        self, path: str, *, start: int | None = None, end: int | None = None, **options: Any
    ) -> bytes:
        answer = self._request("cat_file", path, start, end)
        content: bytes = super().cat_file(path, start, end, **options)
        return content if answer is None else answer

    def _request(
        self, operation: str, path: str, start: int | None = None, end: int | None = None
    ) -> bytes | None:
        self.requests.append((operation, path.removeprefix(f"{ROOT}/"), start, end))
        time.sleep(self.latency_s)
        return next((a for f in list(self.faults) if (a := f(operation, path)) is not None), None)

    def _tagged(self, info: dict[str, Any]) -> dict[str, Any]:
        if info["type"] == "directory":
            return info
        return {**info, "ETag": self.tags.get(info["name"], f"{info['size']}-{info['name']}")}


def start_flaky_files() -> type[FlakyFiles]:
    """Register an empty `flaky://` without faults."""
    fsspec.register_implementation("flaky", FlakyFiles, clobber=True)
    for state in (FlakyFiles.store, FlakyFiles.requests, FlakyFiles.faults, FlakyFiles.tags):
        state.clear()
    FlakyFiles.pseudo_dirs[:] = [""]
    FlakyFiles.latency_s, FlakyFiles.lists_names_only = 0.0, False
    return FlakyFiles


def put(files: Mapping[str, bytes]) -> str:
    """Put *files* below `URL`; return it."""
    system = fsspec.filesystem("flaky")
    for name, content in files.items():
        system.pipe_file(f"{ROOT}/{name}", content)
    return URL


def failing(times: int, error: Exception, path: str = "", operation: str = "") -> None:
    """Let the next *times* requests for a path that ends so fail with *error*."""
    left = [times]

    def fault(asked: str, asked_path: str) -> None:
        if left[0] and asked_path.endswith(path) and operation in asked:
            left[0] -= 1
            raise error

    FlakyFiles.faults.append(fault)


def short_answer(path: str, content: bytes) -> None:
    """Answer the next request for the bytes of *path* with *content*."""
    left = [content]

    def fault(asked: str, asked_path: str) -> bytes | None:
        if asked == "cat_file" and asked_path.endswith(path) and left:
            return left.pop()
        return None

    FlakyFiles.faults.append(fault)
