"""The report: numbers that add up, images, escaping, size; and rendering in a browser."""

import errno
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import needs_chromium
from photolike import encoded, photolike
from PIL import Image

from vit21k.errors import ManifestError, UsageError
from vit21k.manifest.io import open_manifest
from vit21k.manifest.schema import IMAGES
from vit21k.near.leaks import find_leaks, find_near_duplicates
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.relabel import relabel
from vit21k.prep.split import make_val, split_by_source
from vit21k.report.galleries import ThumbBudget
from vit21k.report.numbers import MergedImages, Sum, read_numbers
from vit21k.report.page import MAX_BYTES, ReportSummary, write_report

BEAGLE, DOG, BANANA = "n02088364", "n02084071", "n07753592"
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with a doubtful and a harmless merge, copies, leaks and bad files."""
    base = tmp_path_factory.mktemp("report")
    images = [encoded(photolike(seed), quality=90) for seed in range(6)]
    files = {
        f"{BEAGLE}/0.jpg": images[0],
        f"{DOG}/0.jpg": images[0],
        f"{BEAGLE}/1.jpg": images[1],
        f"{BANANA}/1.jpg": images[1],
        f"{BANANA}/2.jpg": images[2],
        f"{BANANA}/2_again.jpg": encoded(photolike(2), quality=50),
        f"{DOG}/3.jpg": images[3],
        f"{DOG}/damaged.jpg": b"\xff\xd8\xff no image",
        f"{DOG}/html.jpg": EVIL.encode(),
        f"{DOG}/empty.jpg": b"",
        f"{DOG}/<b>name.txt": b"<i>text",
        "eval/3.jpg": encoded(photolike(3), quality=40),
    }
    for name, content in files.items():
        path = base / ("tree" if name.startswith("n") else ".") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    hash_tree(base / "tree", base / "m", num_workers=1)
    relabel(base / "m")
    make_val(base / "m", per_class=1)
    find_leaks(base / "m", base / "eval", num_workers=1)
    find_near_duplicates(base / "m", num_workers=1)
    return base


@pytest.fixture(scope="module")
def written(world: Path) -> tuple[str, ReportSummary]:
    summary = write_report(world / "m", world / "report.html")
    return (world / "report.html").read_text(encoding="utf-8"), summary


class _Text(HTMLParser):
    """Gathers what is read, and every address that would be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parsed(page: str) -> _Text:
    text = _Text()
    text.feed(page)
    return text


def test_every_sum_adds_up(world: Path, written: tuple[str, ReportSummary]) -> None:
    sums = read_numbers(world / "m").sums()

    assert [one.adds_up for one in sums] == [True] * 4
    assert sums[1] == Sum(("files", 8), [("images", 6), ("copies", 2)])
    assert written[1].do_counts_add_up
    assert written[0].count(">adds up<") == 4


def test_what_was_skipped_in_images_or_in_the_split_is_counted(tmp_path: Path) -> None:
    crowd = encoded(photolike(0), quality=90)
    files = {
        **{f"train/{wnid}/0.jpg": crowd for wnid in (BEAGLE, DOG, BANANA)},
        f"train/{DOG}/1.jpg": encoded(photolike(1), quality=90),
        f"val/{DOG}/2.jpg": encoded(photolike(2), quality=90),
        f"test/{DOG}/3.jpg": encoded(photolike(3), quality=90),
    }
    for name, content in files.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(content)
    hash_tree(tmp_path / "tree", tmp_path / "m", label_from="folder")
    relabel(tmp_path / "m", max_labels=2)
    split_by_source(tmp_path / "m")

    sums = read_numbers(tmp_path / "m").sums()

    assert all(one.adds_up for one in sums)
    assert ("skipped, over-labelled", 3) in sums[1].parts
    assert sums[-1].parts == [("in train", 1), ("in val", 1), ("in neither", 1)]


def test_a_sum_that_does_not_add_up_says_so() -> None:
    assert not Sum(("files", 3), [("images", 1), ("copies", 1)]).adds_up


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs(
    written: tuple[str, ReportSummary],
) -> None:
    text = parsed(written[0])

    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in text.addresses)
    assert "script" not in text.tags
    assert "default-src 'none'" in written[0]


def test_names_and_contents_of_files_are_escaped(written: tuple[str, ReportSummary]) -> None:
    assert EVIL not in written[0]
    assert "<b>name.txt" not in written[0]
    assert "&lt;b&gt;name.txt" in written[0]


def test_the_far_merge_comes_before_the_dog_that_is_a_beagle(
    world: Path, written: tuple[str, ReportSummary]
) -> None:
    merged = MergedImages(open_manifest(world / "m", IMAGES))

    assert merged.conflicts["relation"].to_pylist() == ["far", "ancestor"]
    assert merged.conflicts["path"].to_pylist() == [f"{BEAGLE}/1.jpg", f"{DOG}/0.jpg"]
    assert written[0].index('class="tag far">far</span>') < written[0].index(
        'class="tag ancestor">ancestor</span>'
    )


def test_the_row_of_a_merge_is_its_row_in_images(world: Path) -> None:
    images = open_manifest(world / "m", IMAGES)
    conflicts = MergedImages(images).conflicts

    paths = images.read(["path"])["path"].take(pa.array(conflicts["row"].to_pylist()))

    assert paths.to_pylist() == conflicts["path"].to_pylist()


def test_classes_that_meet_are_counted_once_for_each_image(world: Path) -> None:
    met = MergedImages(open_manifest(world / "m", IMAGES)).co_occurrence()

    assert met["num_images"].tolist() == [1, 1]
    assert met[["class_index", "other_index"]].to_numpy().tolist() == [[0, 1], [1, 2]]


def test_every_chart_has_its_table(written: tuple[str, ReportSummary]) -> None:
    assert written[0].count("<svg") == written[0].count("<summary>Table</summary>") == 3


def test_bad_files_are_shown_with_their_first_bytes(written: tuple[str, ReportSummary]) -> None:
    words = parsed(written[0]).words

    assert f"{DOG}/html.jpg" in words
    assert EVIL.encode()[:24].hex(" ") in words
    assert f"{DOG}/damaged.jpg" in words
    assert any(word.startswith("it cannot be decoded") for word in words)


def test_leaks_and_near_duplicates_are_shown_in_pairs(written: tuple[str, ReportSummary]) -> None:
    assert len(re.findall(r"near, distance \d+, similarity [01]\.\d\d", written[0])) == 2


def test_the_page_is_the_same_when_written_again(
    world: Path, written: tuple[str, ReportSummary], tmp_path: Path
) -> None:
    write_report(world / "m", tmp_path / "again.html")

    assert (tmp_path / "again.html").read_text(encoding="utf-8") == written[0]


def test_a_page_without_leaks_val_or_merges_names_the_commands(tmp_path: Path) -> None:
    path = tmp_path / "tree" / "a" / "0.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(encoded(photolike(0)))
    hash_tree(tmp_path / "tree", tmp_path / "m", num_workers=1, label_from="folder")
    relabel(tmp_path / "m")

    write_report(tmp_path / "m", tmp_path / "report.html")

    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for command in ("make-val", "leaks --against DIR", "labels near-duplicates"):
        assert f"vit21k {command}" in page


def test_the_page_is_never_written_into_the_image_tree(world: Path) -> None:
    with pytest.raises(UsageError, match="inside the image root"):
        write_report(world / "m", world / "tree" / "report.html")


def test_without_images_it_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no images manifest"):
        write_report(tmp_path, tmp_path / "report.html")


def test_thumbnails_stop_when_their_bytes_are_spent() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise))
    budget = ThumbBudget(20_000)

    addresses = [budget.thumb(lambda: content, 112) for _ in range(10)]

    assert None in addresses
    spent = sum(len(address) for address in addresses if address)
    assert 20_000 <= spent < 40_000
    assert spent + 3_300_000 < MAX_BYTES


def test_an_image_that_cannot_be_shown_costs_nothing() -> None:
    budget = ThumbBudget(100)

    def unreadable() -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    assert budget.thumb(lambda: b"no image", 50) == "cannot be decoded"
    assert budget.thumb(unreadable, 50) == "could not be read"
    assert budget.num_bytes_left == 100
    assert budget.unread == ["Input/output error"]


@pytest.mark.slow
def test_a_browser_draws_it_in_light_and_dark(
    world: Path, written: tuple[str, ReportSummary], tmp_path: Path
) -> None:
    del written
    darkness = {}
    for scheme, number in (("light", 1), ("dark", 0)):  # of blink's preferredColorScheme
        shot = tmp_path / f"{scheme}.png"
        command = [
            needs_chromium(), "--headless=new", "--no-sandbox", "--disable-gpu",
            "--hide-scrollbars",
            f"--blink-settings=preferredColorScheme={number}", "--window-size=1000,1200",
            f"--user-data-dir={tmp_path / scheme}", f"--screenshot={shot}",
            f"{(world / 'report.html').as_uri()}",
        ]  # fmt: skip
        subprocess.run(command, capture_output=True, check=True, timeout=90)
        with Image.open(shot) as image:
            pixels = np.asarray(image.convert("L"))
        darkness[scheme] = float(np.median(pixels))
        assert len(np.unique(pixels)) > 50  # text, lines and bars are there
    assert darkness["light"] > 230
    assert darkness["dark"] < 50
