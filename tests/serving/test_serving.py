"""A real server on loopback and real clients; the model is small."""

import asyncio
import http.client
import io
import json
import resource
import select
import socket
import struct
import threading
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from running_server import running_server
from small_run import save_run

from vit21k.checkpoint.load import load_model
from vit21k.errors import CheckpointError, UsageError
from vit21k.inference.files import Files
from vit21k.inference.predict import predict
from vit21k.serving.app import Service
from vit21k.serving.batcher import Batcher
from vit21k.serving.graph import find_graph, open_graph, score_with
from vit21k.serving.server import (
    Arrivals,
    Limits,
    address_of,
    bind,
    connections_that_fit,
    is_loopback,
)

LIMITS = Limits(max_body_bytes=20_000, max_pixels=10_000, max_in_flight=4, body_seconds=0.5)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(save_run(tmp_path_factory.mktemp("run")))


@contextmanager
def running(card, score, limits=LIMITS, host="127.0.0.1"):
    batcher = Batcher(score, max_batch_size=8, max_wait_seconds=0.005)
    service = Service(card, batcher, limits)
    with running_server(service.app(), limits, host) as port:
        yield service, port


@pytest.fixture(scope="module")
def port(loaded):
    with running(loaded[1], score_with(*loaded, "fp32")) as (_, port):
        yield port


def image(seed=0, size=(20, 30), kind="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def bomb(width=50_000, height=50_000):
    """A PNG of 200 bytes that says it has 2.5 gigapixels."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(bytes(99)))
        + chunk(b"IEND", b"")
    )


def request(port, method="POST", path="/predict", body=None, headers=None, host="127.0.0.1"):
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    finally:
        connection.close()


def told(answer):
    status, content, _ = answer
    return status, json.loads(content)


def test_an_image_gets_the_classes_of_predict(port, loaded):
    content = image()
    (wanted,) = predict(*loaded, Files(["-"], {0: content}), top_k=2)

    status, answer = told(request(port, path="/predict?top_k=2", body=content))

    assert status == 200
    for found, score in zip(answer["top"], wanted.top, strict=True):
        assert found.pop("probability") == pytest.approx(score.probability, abs=1e-6)
        assert found == {
            name: value for name, value in score._asdict().items() if name != "probability"
        }


def test_a_threshold_is_kept(port):
    _, everything = told(request(port, body=image()))
    _, some = told(request(port, path="/predict?threshold=0.5", body=image()))
    _, none = told(request(port, path="/predict?threshold=1", body=image()))

    assert some["top"] == [row for row in everything["top"] if row["probability"] >= 0.5]
    assert none["top"] == []


@pytest.mark.parametrize(
    ("body", "status", "kind", "message"),
    [
        (b"", 400, "empty", "the body is empty"),
        (b"no image", 422, "bad_image", "not an image of a known format"),
        (image()[:200], 422, "bad_image", "cannot be decoded"),
        (image(size=(101, 100)), 413, "too_large", "larger than 0.02 MB"),
        (image(size=(1, 10_001), kind="GIF"), 422, "bad_image", "10001 x 1 pixels"),
        (bomb(8000, 8000), 422, "bad_image", "8000 x 8000 pixels are more than 10,000"),
        (bomb(), 422, "bad_image", "pixels are more than"),
    ],
)
def test_a_bad_image_is_refused_with_its_reason(port, body, status, kind, message):
    found, answer = told(request(port, body=body))

    assert (found, answer["error"]["kind"]) == (status, kind)
    assert message in answer["error"]["message"]
    assert request(port, body=image())[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/predict", 405, "wrong_method"),
        ("PUT", "/", 405, "wrong_method"),
        ("GET", "/../etc/passwd", 404, "not_found"),
        ("POST", "/predict?top_k=0", 400, "bad_parameter"),
        ("POST", "/predict?top_k=many", 400, "bad_parameter"),
        ("POST", "/predict?threshold=nan", 400, "bad_parameter"),
        ("POST", "/predict?threshold=2", 400, "bad_parameter"),
    ],
)
def test_other_requests_are_refused_as_json(port, method, path, status, kind):
    found, answer = told(request(port, method, path, body=image()))

    assert (found, answer["error"]["kind"]) == (status, kind)


def test_a_form_is_answered_with_how_to_send_the_file(port):
    headers = {"Content-Type": "multipart/form-data; boundary=x"}

    status, answer = told(request(port, body=b"--x", headers=headers))

    assert status == 415
    assert "--data-binary" in answer["error"]["message"]


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(port):
    status, answer = told(request(port, body=iter([b"x" * 5_000] * 5)))

    assert (status, answer["error"]["kind"]) == (413, "too_large")


def test_a_client_that_sends_too_slowly_is_not_waited_for(port):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nslow")
        answer = b""
        while part := client.recv(4096):
            answer += part

    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"kind":"too_slow"' in answer


def test_clients_that_go_away_or_talk_nonsense_harm_nobody(port):
    for sent in (
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab",
        b"\0\xff\n\n",
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(sent)

    assert request(port, body=image())[0] == 200


def test_health_and_the_page(port, loaded):
    status, health = told(request(port, "GET", "/health"))
    page_status, page, headers = request(port, "GET", "/")

    assert (status, health["status"], health["num_classes"]) == (200, "ok", 3)
    assert health["model"] == loaded[1].name
    assert page_status == 200
    assert b"Drop an image here" in page
    assert headers["content-type"].startswith("text/html")
    assert "http" not in page.decode()  # it needs nothing from elsewhere


def test_more_requests_than_fit_are_asked_to_retry(loaded):
    model_may_go = threading.Event()
    plain = score_with(*loaded, "fp32")

    def slow(images):
        assert model_may_go.wait(10)
        return plain(images)

    with running(loaded[1], slow) as (service, port):
        answers = []
        clients = [
            threading.Thread(target=lambda: answers.append(request(port, body=image())))
            for _ in range(4)
        ]
        for client in clients:
            client.start()
        while service.counts.num_in_flight < 4:
            threading.Event().wait(0.005)
        status, answer = told(turned_away := request(port, body=image()))
        model_may_go.set()
        for client in clients:
            client.join(10)

    assert (status, answer["error"]["kind"]) == (503, "busy")
    assert turned_away[2]["Retry-After"] == "1"
    assert [status for status, _, _ in answers] == [200] * 4
    assert (service.counts.num_predicted, service.counts.num_refused) == (4, 1)


def test_a_model_that_fails_is_an_internal_error(loaded, caplog):
    def broken(_images):
        raise RuntimeError("out of memory")

    with running(loaded[1], broken) as (_, port):
        status, answer = told(request(port, body=image()))
        alive = request(port, "GET", "/health")[0]

    assert (status, answer["error"]["kind"], alive) == (500, "internal", 200)
    assert "memory" not in answer["error"]["message"]


# Strangers


def connected(port, sent=b""):
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    client.sendall(sent)
    return client


def is_closed(client):
    """Whether the server closes the connection, within the time-out of the socket."""
    try:
        while client.recv(4096):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def num_open_of(clients):
    """Return how many connections the server has not closed."""
    still_open = set(clients)
    while closed := select.select([*still_open], [], [], 0.5)[0]:
        still_open -= {client for client in closed if is_closed(client)}
    return len(still_open)


HALF_A_BODY = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nslow"
FEW = Limits(max_body_bytes=20_000, max_in_flight=2, max_connections=6, body_seconds=60)


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", HALF_A_BODY, b"\0\xff"])
def test_connections_that_keep_the_server_waiting_keep_nobody_out(loaded, sent):
    with running(loaded[1], score_with(*loaded, "fp32"), FEW) as (_, port):
        clients = [connected(port, sent) for _ in range(20)]
        try:
            assert request(port, body=image())[0] == 200
            assert num_open_of(clients) <= FEW.max_connections
        finally:
            for client in clients:
                client.close()


@pytest.mark.parametrize("sent", [b"", b"GET /health HT"])
def test_the_head_of_a_request_has_a_time_limit(loaded, sent):
    limits = Limits(header_seconds=0.05)
    with (
        running(loaded[1], score_with(*loaded, "fp32"), limits) as (_, port),
        connected(port, sent) as client,
    ):
        assert is_closed(client)
        assert request(port, body=image())[0] == 200


def test_connections_that_are_all_at_work_are_kept_and_a_new_one_is_asked_to_retry(loaded):
    model_may_go = threading.Event()
    plain = score_with(*loaded, "fp32")

    def slow(images):
        assert model_may_go.wait(10)
        return plain(images)

    limits = Limits(max_connections=2, max_in_flight=2)
    with running(loaded[1], slow, limits) as (service, port):
        answers = []
        clients = [
            threading.Thread(target=lambda: answers.append(request(port, body=image())))
            for _ in range(2)
        ]
        for client in clients:
            client.start()
        while service.counts.num_in_flight < 2:
            threading.Event().wait(0.005)
        status, _, headers = request(port, "GET", "/health")
        model_may_go.set()
        for client in clients:
            client.join(10)

    assert (status, headers["Retry-After"]) == (503, "1")
    assert [status for status, _, _ in answers] == [200, 200]


def test_bodies_on_their_way_share_a_budget_and_the_oldest_gives_way():
    async def main():
        arrivals, ended = Arrivals(100), []

        async def body(name, num_bytes):
            try:
                async with asyncio.timeout(60) as timeout:
                    with arrivals.arriving(timeout):
                        arrivals.add(timeout, num_bytes)
                        await asyncio.Event().wait()
            except TimeoutError:
                ended.append(name)

        bodies = []
        for name, num_bytes in (("first", 50), ("second", 40), ("third", 30)):
            bodies.append(asyncio.create_task(body(name, num_bytes)))
            await asyncio.sleep(0)
        await bodies[0]
        for task in bodies:
            task.cancel()
        return ended

    assert asyncio.run(main()) == ["first"]


@pytest.mark.parametrize(
    ("limit", "wanted"),
    [(10, 4), (4, 4), (100_000, 4096), (resource.RLIM_INFINITY, 4096)],
)
def test_connections_leave_files_for_the_rest(monkeypatch, limit, wanted):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))

    assert connections_that_fit() == wanted


def test_a_limit_of_256_files_leaves_more_than_half_of_them_to_connections(monkeypatch):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as held:
        num_open = held.fileno() + 1
        monkeypatch.setattr(resource, "getrlimit", lambda _: (num_open + 248, before[1]))

        assert 200 <= connections_that_fit() + 48 <= num_open + 248


def many_scans(num_scans):
    """A progressive JPEG of Pillow's whose last scan comes again and again."""
    content = io.BytesIO()
    Image.new("RGB", (90, 90), "red").save(content, "JPEG", progressive=True)
    start = content.getvalue().rindex(b"\xff\xda")
    scan = content.getvalue()[start:-2]
    return content.getvalue()[:-2] + scan * num_scans + b"\xff\xd9"


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded(loaded):
    limits = Limits(max_decode_seconds=0.005)
    with running(loaded[1], score_with(*loaded, "fp32"), limits) as (_, port):
        few = request(port, body=many_scans(3))[0]
        status, answer = told(request(port, body=many_scans(2_000)))

    assert few == 200
    assert (status, answer["error"]["kind"]) == (422, "bad_image")
    assert "would take about" in answer["error"]["message"]


def test_what_a_client_that_hung_up_had_asked_for_is_dropped(loaded, monkeypatch):
    monkeypatch.setattr("vit21k.serving.app.num_threads", lambda: 1)
    may_go, decoded = threading.Event(), []
    with running(loaded[1], score_with(*loaded, "fp32")) as (service, port):
        decode = service._decode

        def slow(content):
            decoded.append(content)
            assert may_go.wait(10)
            return decode(content)

        service._decode = slow
        kept = threading.Thread(target=lambda: request(port, body=image(0)))
        kept.start()
        while not decoded:
            threading.Event().wait(0.005)
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        gone = image(1)
        client = connected(port, head % len(gone) + gone)
        while service.counts.num_in_flight < 2:
            threading.Event().wait(0.005)
        client.close()
        while service.counts.num_in_flight > 1:
            threading.Event().wait(0.005)
        may_go.set()
        kept.join(10)
        assert request(port, body=image(2))[0] == 200

    assert decoded == [image(0), image(2)]


# The loop that computes


def test_images_that_cannot_be_stacked_end_nothing():
    def score(images):
        return torch.zeros(len(images), 2)

    async def main():
        batcher = Batcher(score, max_batch_size=2, max_wait_seconds=10)
        running = asyncio.create_task(batcher.run())
        sizes = [(3, 4, 4), (3, 5, 5)]
        odd = await asyncio.gather(
            *(batcher.score(np.zeros(size, np.uint8)) for size in sizes), return_exceptions=True
        )
        plain = await asyncio.gather(
            *(batcher.score(np.zeros((3, 4, 4), np.uint8)) for _ in range(2))
        )
        alive = not running.done()
        running.cancel()
        return odd, plain, alive

    odd, plain, alive = asyncio.run(main())

    assert [type(error) for error in odd] == [ValueError, ValueError]
    assert [len(row) for row in plain] == [2, 2]
    assert alive


def test_health_is_bad_when_the_loop_has_ended(loaded):
    class EndedError(BaseException):
        pass

    def ends(_images):
        raise EndedError

    with running(loaded[1], ends) as (_, port):
        before = request(port, "GET", "/health")[0]
        first, answer = told(request(port, body=image()))
        second = request(port, body=image())[0]
        status, health = told(request(port, "GET", "/health"))

    assert (before, first, second, status) == (200, 503, 503, 503)
    assert (answer["error"]["kind"], health["status"]) == ("stopped", "stopped")


def test_health_is_bad_while_every_batch_fails(loaded):
    plain, broken = score_with(*loaded, "fp32"), threading.Event()

    def score(images):
        if broken.is_set():
            raise RuntimeError("the device is gone")
        return plain(images)

    with running(loaded[1], score) as (_, port):
        broken.set()
        answers = [request(port, body=image())[0] for _ in range(3)]
        failing = told(request(port, "GET", "/health"))
        broken.clear()
        answers.append(request(port, body=image())[0])
        again = request(port, "GET", "/health")[0]

    assert answers == [500, 500, 500, 200]
    assert (failing[0], failing[1]["status"], again) == (503, "failing", 200)


# Addresses


def test_loopback_of_ipv6_is_served_and_its_address_has_brackets(loaded):
    try:
        bind("::1", 0).close()
    except UsageError:
        pytest.skip("no IPv6 here")
    with running(loaded[1], score_with(*loaded, "fp32"), host="::1") as (_, port):
        assert request(port, body=image(), host="::1")[0] == 200
    with bind("[::1]", 0) as listening:
        assert address_of(listening) == f"http://[::1]:{listening.getsockname()[1]}"


@pytest.mark.parametrize(
    ("host", "wanted"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("[::1]", True),
     ("localhost", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False)],
)  # fmt: skip
def test_only_loopback_is_private(host, wanted):
    assert is_loopback(host) is wanted


def test_a_host_of_elsewhere_is_named():
    with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.1") as caught:
        bind("192.0.2.1", 0)

    assert "--host" in caught.value.hint


def test_a_port_that_is_taken_is_named():
    with bind("127.0.0.1", 0) as taken, pytest.raises(UsageError, match="cannot listen"):
        bind("127.0.0.1", taken.getsockname()[1])


def test_an_onnx_export_gives_what_its_model_gives(loaded, tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    from vit21k.export.model import export_model  # noqa: PLC0415 (extras)

    model, card = loaded
    export_model(card.path, tmp_path / "onnx", to="onnx")
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)

    score, exported_card = open_graph(find_graph(tmp_path / "onnx"))

    wanted = score_with(model, card, "fp32")(images)
    assert torch.allclose(score(images), wanted, atol=1e-6)
    assert exported_card.classes.fingerprint == card.classes.fingerprint


def test_a_damaged_export_is_named(loaded, tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "config.json").write_bytes((loaded[1].path / "config.json").read_bytes())
    (tmp_path / "model.onnx").write_bytes(b"no graph")

    with pytest.raises(CheckpointError, match=r"model\.onnx` is damaged"):
        open_graph(find_graph(tmp_path))
    assert find_graph(loaded[1].path) is None
