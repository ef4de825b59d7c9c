"""The review page over real HTTP: what it serves, what it keeps, and what it turns away."""

import http.client
import io
import json
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import needs_chromium, needs_extra
from PIL import Image
from review_world import BANANA, BEAGLE, DOG, make_world

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from running_server import running_server
from starlette.types import ASGIApp, Receive, Scope, Send

from vit21k.review.decisions import Action, Decision, DecisionLog, read_decisions
from vit21k.review.queue import open_queue
from vit21k.review.server import IMAGE_SIDE, LIMITS, ReviewSession, review_app

TOKEN = "a-token-of-32-letters-as-of-each"


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("review"))


class Client:
    """What a browser, or somebody else, sends to a running server."""

    def __init__(self, port: int, decisions: Path) -> None:
        self.port = port
        self.address = f"http://127.0.0.1:{port}/{TOKEN}/"
        self.decisions = decisions

    def request(
        self,
        path: str,
        *,
        method: str = "GET",
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        token: str | None = None,
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        address = f"/{TOKEN if token is None else token}/{path}"
        connection.request(method, address, body=body, headers=headers or {})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content, answer.headers

    def items(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(self.address + "items/0", timeout=10) as answer:
            return list(json.load(answer)["items"])

    def decide(self, **fields: Any) -> tuple[int, dict[str, Any]]:
        body = json.dumps(fields).encode()
        headers = {"Content-Type": "application/json"}
        status, content, _ = self.request("decide", method="POST", body=body, headers=headers)
        return status, json.loads(content) if status == 200 else {}


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[int, list[ASGIApp]]]:
    """A running server: its port, and the application that answers."""
    apps: list[ASGIApp] = []

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await apps[0](scope, receive, send)

    with running_server(answer, LIMITS) as port:
        yield port, apps


@pytest.fixture
def client(server: tuple[int, list[ASGIApp]], manifests: Path, tmp_path: Path) -> Iterator[Client]:
    port, apps = server
    log = DecisionLog(tmp_path / "d.jsonl")
    apps[:] = [review_app(ReviewSession(open_queue(manifests), log), TOKEN, port)]
    yield Client(port, tmp_path / "d.jsonl")
    log.close()


def test_leaks_come_first_then_near_pairs_then_merges_by_doubt(client: Client) -> None:
    items = client.items()

    assert [(item["kind"], item["path"]) for item in items] == [
        ("leak", f"{DOG}/3.jpg"),
        ("near", f"{DOG}/2_again.jpg"),
        ("merge", f"{BEAGLE}/1.jpg"),
        ("merge", f"{DOG}/0.jpg"),
    ]
    assert items[2]["wnids"] == [BEAGLE, BANANA]
    assert items[2]["names"] == ["beagle", "banana"]
    assert items[2]["about"].startswith("far: ")
    assert items[1]["wnids"] == [DOG, BANANA]  # of both images of the near pair
    assert [item["num_images"] for item in items] == [2, 2, 1, 1]


def test_images_are_small_jpegs_named_by_their_item(client: Client) -> None:
    for index, which in ((0, 0), (0, 1), (1, 1), (3, 0)):
        status, content, headers = client.request(f"image/{index}/{which}")

        assert (status, headers["Content-Type"]) == (200, "image/jpeg")
        with Image.open(io.BytesIO(content)) as image:
            assert (image.format, max(image.size)) == ("JPEG", min(160, IMAGE_SIDE))


def test_a_decision_is_on_disk_when_the_answer_comes(client: Client) -> None:
    status, answer = client.decide(index=2, action="drop", wnid=BEAGLE)

    (kept,) = read_decisions(client.decisions)
    assert status == 200
    assert (str(kept.kind), str(kept.action), kept.wnid) == ("merge", "drop", BEAGLE)
    assert kept.path == f"{BEAGLE}/1.jpg"
    assert len(kept.digest) == 32
    assert answer["item"]["decisions"] == [{"action": "drop", "wnid": BEAGLE}]
    assert answer["decided"] == {"merge": 1}


def test_the_last_decision_on_an_item_counts(client: Client) -> None:
    client.decide(index=0, action="accept")
    _, answer = client.decide(index=0, action="reject")

    assert answer["item"]["decisions"] == [{"action": "reject", "wnid": ""}]
    assert client.items()[0]["decisions"] == [{"action": "reject", "wnid": ""}]
    _, answer = client.decide(index=0, action="undo")
    assert answer["item"]["decisions"] == [{"action": "accept", "wnid": ""}]


def test_a_label_is_dropped_once_and_the_last_one_only_if_that_is_confirmed(
    client: Client,
) -> None:
    first, last = ({"index": 2, "action": "drop", "wnid": wnid} for wnid in (BEAGLE, BANANA))
    for _ in range(2):
        _, answer = client.decide(**first)
        assert answer["item"]["decisions"] == [{"action": "drop", "wnid": BEAGLE}]
        assert not answer["must_confirm"]

    _, refused = client.decide(**last)
    assert refused["must_confirm"]
    assert len(read_decisions(client.decisions)) == 1

    _, answer = client.decide(**last, is_confirmed=True)
    assert [one["wnid"] for one in answer["item"]["decisions"]] == [BEAGLE, BANANA]
    _, answer = client.decide(index=2, action="accept")
    assert answer["item"]["decisions"] == [{"action": "accept", "wnid": ""}]
    assert not client.decide(**last)[1]["must_confirm"]


def test_a_decision_on_other_bytes_of_that_name_is_not_shown(
    manifests: Path, tmp_path: Path
) -> None:
    log = DecisionLog(tmp_path / "d.jsonl")
    session = ReviewSession(open_queue(manifests), log)
    item = session.queue.item(2)
    of_old = Decision(
        action=Action.DROP, kind=item.kind, path=item.path, digest="00" * 16, wnid=BEAGLE
    )
    log.add(of_old)

    assert session.items(0)["items"][2]["decisions"] == []
    assert not session.decide(2, "drop", BANANA)["must_confirm"]
    log.close()


def test_undo_says_which_item_it_was(client: Client) -> None:
    client.decide(index=0, action="accept")
    _, answer = client.decide(index=3, action="undo")

    assert answer["undone"]["path"] == f"{DOG}/3.jpg"
    assert answer["decided"] == {}
    assert client.items()[0]["decisions"] == []
    assert client.decide(index=3, action="undo")[1]["undone"] is None


@pytest.mark.parametrize(
    "fields",
    [
        {"index": 99, "action": "accept"},
        {"index": -1, "action": "accept"},
        {"index": True, "action": "accept"},
        {"index": "0", "action": "accept"},
        {"action": "accept"},
        {"index": 0},
        {"index": 0, "action": "split"},
        {"index": 2, "action": "split"},
        {"index": 0, "action": ["accept"]},
        {"index": 2, "action": "drop"},
        {"index": 2, "action": "drop", "wnid": DOG},
        {"index": 2, "action": "drop", "wnid": [BEAGLE]},
        {"index": 2, "action": "accept", "wnid": BEAGLE},
    ],
)
def test_what_cannot_be_decided_is_refused_and_not_kept(
    client: Client, fields: dict[str, Any]
) -> None:
    assert client.decide(**fields)[0] == 400
    assert client.decisions.read_bytes() == b""


@pytest.mark.parametrize("token", ["", "wrong", "%00", "é".encode("latin-1").decode("latin-1")])
def test_a_wrong_token_finds_nothing(client: Client, token: str) -> None:
    quoted = urllib.request.quote(token)  # type: ignore[attr-defined]

    for path in ("", "items/0", "image/0/0", "review.js"):
        assert client.request(path, token=quoted)[0] == 404


def test_another_host_name_is_turned_away(client: Client) -> None:
    for host in ("evil.example", f"evil.example:{client.port}", "127.0.0.1", ""):
        status, content, _ = client.request("items/0", headers={"Host": host})

        assert status == 421
        assert b"n0" not in content
    localhost = f"localhost:{client.port}"
    assert client.request("items/0", headers={"Host": localhost})[0] == 200


def test_two_host_headers_are_turned_away(client: Client) -> None:
    port = client.port
    request = (
        f"GET /{TOKEN}/items/0 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: evil.example\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        raw.sendall(request.encode())

        assert raw.recv(64).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "path",
    [
        "../../../etc/passwd",
        "..%2f..%2fetc/passwd",
        "review.py",
        "server.py",
        "image/0/../../../../etc/passwd",
        "image/0/2",
        "image/2/1",
        "image/99/0",
        "image/-1/0",
        "image/0",
        "image/1e1/0",
        "image/٣/0",
        "image//etc/passwd/0",
        "items/" + "9" * 40,
        "%s%n",
    ],
)
def test_no_address_leads_to_a_file(client: Client, path: str) -> None:
    status, content, _ = client.request(urllib.request.quote(path, safe="/%.."))  # type: ignore[attr-defined]

    assert status == 404
    assert b"root:" not in content


def test_a_body_that_is_too_long_is_not_read(client: Client) -> None:
    headers = {"Content-Type": "application/json", "Content-Length": str(10**12)}
    status, _, answer = client.request("decide", method="POST", headers=headers)

    assert status == 413
    assert answer["Connection"] == "close"
    assert client.decide(index=0, action="accept", pad="x" * LIMITS.max_body_bytes)[0] == 413
    assert client.decisions.read_bytes() == b""


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "text/plain"}, b'{"index": 0, "action": "accept"}', 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"index=0", 415),
        ({"Content-Type": "application/json", "Origin": "http://evil.example"}, b"{}", 403),
        ({"Content-Type": "application/json", "Origin": "null"}, b"{}", 403),
        ({"Content-Type": "application/json"}, b"not json", 400),
        ({"Content-Type": "application/json"}, b"[1]", 400),
        ({"Content-Type": "application/json"}, b"[" * 4000, 400),
        ({"Content-Type": "application/json", "Content-Length": "-5"}, b"", 400),
    ],
)
def test_other_pages_and_malformed_bodies_are_refused(
    client: Client, headers: dict[str, str], body: bytes, status: int
) -> None:
    assert client.request("decide", method="POST", body=body, headers=headers)[0] == status
    assert client.decisions.read_bytes() == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods_are_not_known(client: Client, method: str) -> None:
    assert client.request("items/0", method=method)[0] == 405
    assert client.request("items/0", method=method, token="wrong")[0] == 404


def test_every_answer_has_a_strict_content_policy(client: Client) -> None:
    for path in ("", "review.js", "review.css", "items/0", "image/0/0", "nothing"):
        _, _, headers = client.request(path)

        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "Access-Control-Allow-Origin" not in headers


def test_an_image_that_is_gone_differs_from_one_that_is_damaged(
    client: Client, manifests: Path
) -> None:
    path = manifests.parent / "eval" / "3.jpg"
    content = path.read_bytes()
    path.unlink()
    try:
        status, reason, _ = client.request("image/0/1")
        assert (status, reason) == (503, b"could not be read: the file is not there")
        path.write_bytes(b"\xff\xd8 no JPEG")
        status, reason, _ = client.request("image/0/1")
        assert status == 422
        assert reason.startswith(b"cannot be decoded: ")
    finally:
        path.write_bytes(content)


@pytest.mark.slow
def test_a_browser_goes_through_it_by_keyboard(client: Client, tmp_path: Path) -> None:
    api = needs_extra("playwright.sync_api")
    program, complaints = needs_chromium(), list[str]()
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(client.address)

        def press(keys: str, *, then: str) -> None:
            page.wait_for_selector("body.ready")
            for key in keys:
                page.keyboard.press(key)
            page.get_by_text(then, exact=True).wait_for()

        press("aa", then="2 of 4")  # the leak is one; a second press decides nothing
        press("r", then="3 of 4")  # the near pair is none
        press("11", then="1 of its labels dropped")  # the first label of the merge goes, once
        answers = [lambda dialog: dialog.dismiss(), lambda dialog: dialog.accept()]
        for answer in answers:  # the last label goes only if that is confirmed
            page.wait_for_selector("body.ready")
            page.get_by_text("1 of its labels dropped", exact=True).wait_for()
            page.once("dialog", answer)
            with page.expect_event("dialog"):
                page.keyboard.press("2")
        press("", then="all labels dropped: the image is removed")
        press("j", then="4 of 4")
        press("a", then="labels are right")
        press("1", then="1 of its labels dropped")
        press("u", then="labels are right")
        press("u", then="not decided")
        page.wait_for_load_state("networkidle")
        loaded = page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        page.screenshot(path=str(tmp_path / "review.png"))
        browser.close()

    actions = [(str(one.kind), str(one.action)) for one in read_decisions(client.decisions)]
    assert actions == [
        ("leak", "accept"), ("near", "reject"), ("merge", "drop"), ("merge", "drop"),
        ("merge", "accept"), ("merge", "drop"), ("None", "undo"), ("None", "undo"),
    ]  # fmt: skip
    assert loaded
    assert not complaints
