"""Runs on disk: progress, comparison, curves."""

import json
import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vit21k.charts import nice_ticks, short
from vit21k.errors import UsageError
from vit21k.lock import locked
from vit21k.runs.curves import html_of, plot_of, write_plot
from vit21k.runs.history import (
    find_runs,
    metric_table,
    read_run,
    recipe_differences,
    run_names,
    write_facts,
)

FULL = range(1, 11)


def make_run(path, *, lr=0.1, steps=FULL, total=10, kind="adamw"):
    path.mkdir(parents=True)
    write_facts(path, {"recipe": "tiny", "total_steps": total})
    (path / "recipe.yaml").write_text(f"seed: 0\noptim:\n  kind: {kind}\n  lr: {lr}\n")
    lines = []
    for step in steps:
        fields = {"images_seen": 8 * step, "loss": 4 / step, "lr": lr, "seconds": 90.0 * step}
        lines.append({"step": step, **fields})
        if step % 5 == 0:
            lines.append({"step": step, "val/loss": 5 - lr, "val/prec@1": lr + (step == 5)})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "metrics.jsonl").write_text(text + '{"step": 11, "lo')  # still being written
    return path


def test_a_run_has_its_progress_and_best_value(tmp_path):
    path = make_run(tmp_path / "a")
    (path / "checkpoints" / "step-00000010").mkdir(parents=True)
    (path / "checkpoints" / "latest").write_text("step-00000010\n")
    run = read_run(path)

    assert (run.name, run.step, run.total_steps, run.state) == ("a", 10, 10, "finished")
    assert run.last("loss") == (10, 0.4)
    assert run.best("val/prec@1") == (5, 1.1)
    assert run.best("val/loss").value == 4.9
    assert run.main_metric() == "val/prec@1"
    assert run.seconds == 900
    assert run.recipe["optim.lr"] == 0.1


def test_the_lock_distinguishes_a_live_run_from_a_stopped_one(tmp_path):
    path = make_run(tmp_path / "a", steps=range(1, 4))

    with locked(path, command="train"):
        running = read_run(path).state

    assert (running, read_run(path).state) == ("running", "stopped")


def test_runs_are_found_at_any_depth_and_once(tmp_path):
    wanted = [make_run(tmp_path / name) for name in ("a", "b/c", "d")]
    (tmp_path / "a" / "checkpoints").mkdir()
    (tmp_path / "empty").mkdir()
    make_run(tmp_path / ".hidden")

    assert list(find_runs(tmp_path)) == wanted
    assert list(find_runs(tmp_path / "a")) == [tmp_path / "a"]
    with pytest.raises(UsageError):
        list(find_runs(tmp_path / "nowhere"))


def test_a_run_that_has_just_begun_is_one_too(tmp_path):
    (tmp_path / "new").mkdir()
    write_facts(tmp_path / "new", {"total_steps": 5})

    run = read_run(tmp_path / "new")

    assert (run.step, run.total_steps, run.state, run.recipe) == (0, 5, "stopped", {})


def test_only_the_fields_that_differ_are_named(tmp_path):
    runs = [read_run(make_run(tmp_path / "a")), read_run(make_run(tmp_path / "b", lr=0.2))]

    assert recipe_differences(runs) == {"optim.lr": [0.1, 0.2]}
    table = metric_table(runs)
    assert table["val/prec@1"] == [
        {"last": 0.1, "best": 1.1, "best_step": 5},
        {"last": 0.2, "best": 1.2, "best_step": 5},
    ]
    assert table["lr"] == [{"last": 0.1}, {"last": 0.2}]


def test_runs_of_the_same_name_are_distinguished_by_their_paths(tmp_path):
    runs = [read_run(make_run(tmp_path / name)) for name in ("x/a", "y/a", "b")]

    assert run_names(runs) == [str(tmp_path / "x/a"), str(tmp_path / "y/a"), "b"]


@pytest.fixture
def runs(tmp_path):
    return [read_run(make_run(tmp_path / "a")), read_run(make_run(tmp_path / "b", lr=0.2))]


def test_the_loss_comes_first_then_what_was_evaluated(runs):
    plot = plot_of(runs)

    assert [panel.metric for panel in plot.panels] == ["loss", "val/loss", "val/prec@1", "lr"]
    assert plot.panels[0].lines[1].y[:2] == [4.0, 2.0]


@pytest.mark.parametrize(
    ("x", "name", "first"),
    [("step", "step", 5.0), ("images", "images seen", 40.0)],
)
def test_an_evaluation_is_drawn_at_its_step(runs, x, name, first):
    plot = plot_of(runs, metrics=["val/prec@1"], x=x)

    assert plot.x_name == name
    assert plot.panels[0].lines[0].x[0] == first


def test_time_is_in_the_unit_that_fits(runs):
    plot = plot_of(runs, metrics=["loss"], x="time")

    assert plot.x_name == "minutes of training"
    assert plot.panels[0].lines[0].x[-1] == 15


def test_what_nobody_measured_cannot_be_drawn(runs):
    with pytest.raises(UsageError, match="no run has measured `los`") as failure:
        plot_of(runs, metrics=["los"])

    assert "loss" in failure.value.hint


def test_a_loss_over_orders_of_magnitude_is_drawn_logarithmically(tmp_path):
    path = make_run(tmp_path / "a", steps=range(1, 100), total=100)

    panels = {panel.metric: panel.is_log for panel in plot_of([read_run(path)]).panels}

    assert panels["loss"]
    assert not panels["lr"]


def test_the_page_is_whole_and_asks_nothing_of_the_network(runs):
    page = html_of(plot_of(runs), title="<two> runs")

    svgs = re.findall(r"<svg viewBox=\"0 0 480.*?</svg>", page, re.DOTALL)
    assert len(svgs) == 4
    assert "&lt;two&gt; runs" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page
    lines = [line for svg in svgs for line in ET.fromstring(svg).iter("polyline")]
    assert len(lines) == 8
    assert {line.find("title").text for line in lines} == {"a", "b"}
    for line in lines:
        for point in line.get("points").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= 480
            assert 0 <= y <= 270


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_png_is_an_image_with_the_colours_of_the_lines(runs, tmp_path, theme):
    write_plot(plot_of(runs, metrics=["loss", "lr"]), tmp_path / "c.png", title="t", theme=theme)

    pixels = np.asarray(Image.open(tmp_path / "c.png").convert("RGB")).reshape(-1, 3)
    second = {"light": (0xB0, 0x53, 0x0B), "dark": (0xF0, 0xA3, 0x5E)}[theme]
    assert (pixels[0] < 50).all() == (theme == "dark")
    assert (np.abs(pixels.astype(int) - second).sum(axis=1) < 8).sum() > 100


def test_names_of_runs_cannot_break_a_png(tmp_path):
    run = read_run(make_run(tmp_path / "<a>\x1b&"))

    write_plot(plot_of([run]), tmp_path / "c.png", title="<t>\x00")

    with Image.open(tmp_path / "c.png") as image:
        assert image.size == (1440, 87 + 2 * 405)


def test_another_suffix_is_refused(runs, tmp_path):
    with pytest.raises(UsageError, match=r"c\.pdf"):
        write_plot(plot_of(runs), tmp_path / "c.pdf", title="t")


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e9))
def test_ticks_are_few_round_and_within(low, size):
    ticks = nice_ticks(low, low + size)

    assert len(ticks) <= 7
    assert all(low - 1e-6 * size <= tick <= low + size * (1 + 1e-6) for tick in ticks)
    assert ticks == sorted(ticks)


def test_numbers_are_short():
    assert [short(value) for value in (0, 0.25, 1e-5, 1200, 12_000_000)] == [
        "0",
        "0.25",
        "1e-05",
        "1.2k",
        "12M",
    ]
