"""`vit21k serve` as a process: 1,000 requests of which 100 are hostile, and a browser."""

import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch  # noqa: F401 (see conftest.py)
from conftest import needs_chromium, needs_extra
from PIL import Image

pytest.importorskip("uvicorn")

from small_run import save_run

from vit21k.checkpoint.load import load_model
from vit21k.inference.files import Files
from vit21k.inference.predict import predict

pytestmark = pytest.mark.slow

NUM_REQUESTS, NUM_HOSTILE, NUM_IMAGES = 1000, 100, 20

DROPPED = """() => {
  const transfer = new DataTransfer();
  transfer.items.add(new File(["no image"], "bad.jpg", { type: "image/jpeg" }));
  return transfer;
}"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("runs") / "small")


def image(seed):
    rng = np.random.default_rng(seed)
    pixels = np.kron(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8), np.ones((40, 40, 1)))
    content = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(content, "JPEG" if seed % 2 else "PNG")
    return content.getvalue()


@contextlib.contextmanager
def serving(run, *arguments):
    """Yield the process and its port."""
    command = [sys.executable, "-m", "vit21k", "serve", str(run), "--port", "0", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            line = process.stderr.readline()
            yield process, int(re.search(r"http://127\.0\.0\.1:(\d+)", line)[1])
        finally:
            process.kill()


def ask(port, body, path="/predict", method="POST", headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def talk(port, sent):
    """Send bytes that are no whole request, and go away."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(sent)


def hostile(port, number):
    """Do one bad thing; return the status, or None where there is no answer."""
    rng = np.random.default_rng(number)
    whole = image(number % NUM_IMAGES)
    start = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: "
    attempts = [
        lambda: ask(port, b"")[0],
        lambda: ask(port, rng.bytes(5000))[0],
        lambda: ask(port, whole[: len(whole) // 3])[0],
        lambda: ask(port, b"GIF89a" + b"\xff\xff" * 2 + rng.bytes(40))[0],
        lambda: ask(port, whole, path="/predict?top_k=-1")[0],
        lambda: ask(port, whole, path="/" + "a" * 5000)[0],
        lambda: ask(port, None, method="DELETE")[0],
        lambda: ask(port, None, headers={"Content-Length": "99999999999"})[0],
        lambda: talk(port, start + b"4000\r\n\r\n" + whole[:100]),
        lambda: talk(port, rng.bytes(300)),
    ]
    return attempts[number % len(attempts)]()


def test_1000_requests_of_which_100_are_hostile(run):
    images = [image(seed) for seed in range(NUM_IMAGES)]
    files = Files(map(str, range(NUM_IMAGES)), dict(enumerate(images)))
    wanted = [
        {score.wnid: pytest.approx(score.probability, abs=1e-5) for score in prediction.top}
        for prediction in predict(*load_model(run), files)
    ]

    def one(number):
        if number % (NUM_REQUESTS // NUM_HOSTILE) == 0:
            return hostile(port, number // (NUM_REQUESTS // NUM_HOSTILE))
        status, content = ask(port, images[number % NUM_IMAGES])
        top = {row["wnid"]: row["probability"] for row in json.loads(content)["top"]}
        assert top == wanted[number % NUM_IMAGES]
        return status

    with serving(run) as (process, port), ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(one, range(NUM_REQUESTS)))
        health = json.loads(ask(port, None, "/health", "GET")[1])
        process.send_signal(signal.SIGTERM)
        last_line = process.stderr.read().splitlines()[-1]
        code = process.wait(20)

    assert statuses.count(200) == NUM_REQUESTS - NUM_HOSTILE
    assert statuses.count(None) == 20
    assert {*statuses} == {200, 400, 404, 405, 413, 422, None}
    assert health["num_predicted"] == NUM_REQUESTS - NUM_HOSTILE
    assert health["num_batches"] < NUM_REQUESTS - NUM_HOSTILE
    assert code == 0
    assert re.fullmatch(r"serve: \d+ requests: 900 predicted, \d+ refused", last_line)


def test_images_are_chosen_and_dropped_in_a_browser(run, tmp_path):
    sync_api = needs_extra("playwright.sync_api")
    program = needs_chromium()
    (tmp_path / "good.jpg").write_bytes(image(1))
    problems = []

    with serving(run) as (_, port), sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("pageerror", lambda error: problems.append(error))  # noqa: PLW0108 (it marks its handlers)
        page.goto(f"http://127.0.0.1:{port}/")
        page.set_input_files("#file", tmp_path / "good.jpg")
        page.wait_for_selector("#top tr")
        rows = [row.inner_text().split("\t") for row in page.query_selector_all("#top tr")]
        dropped = page.evaluate_handle(DROPPED)
        page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
        page.wait_for_selector("#problem:not(:empty)")
        problem = page.inner_text("#problem")
        rows_left = page.query_selector_all("#top tr")
        browser.close()

    assert {row[1] for row in rows} == {"ant", "", "cat"}  # where there is no name, once is enough
    assert {row[0] for row in rows} == {"an ant", "bee", "a cat"}
    assert sum(0 <= float(row[-1]) <= 1 for row in rows) == 3
    assert "not an image" in problem
    assert not rows_left
    assert not problems
