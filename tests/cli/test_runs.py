"""`vit21k runs list | compare | plot`."""

import json

import pytest

from vit21k.runs.history import write_facts


@pytest.fixture
def two_runs(tmp_path):
    for name, lr in (("one", 0.1), ("two", 0.2)):
        path = tmp_path / "runs" / name
        path.mkdir(parents=True)
        write_facts(path, {"recipe": "tiny", "total_steps": 1})
        (path / "recipe.yaml").write_text(f"optim:\n  lr: {lr}\n")
        lines = [
            {"step": 1, "loss": lr, "lr": lr, "seconds": 65.0},
            {"step": 1, "val/prec@1": 0.5 + lr, "seconds": 66.0},
        ]
        (path / "checkpoints" / "step-00000001").mkdir(parents=True)
        (path / "checkpoints" / "latest").write_text("step-00000001\n")
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_list_has_a_line_for_each_run(vit21k, two_runs):
    result = vit21k("runs", "list")

    assert result.code == 0
    row = next(line for line in result.stdout.splitlines() if "runs/one" in line).split()
    assert row[:6] == ["runs/one", "tiny", "finished", "1/1", "0.1000", "0.6000"]
    assert "1 min 06 s" in result.stdout
    assert "runs list: 2 runs: 2 finished" in result.stderr


def test_the_list_as_json(vit21k, two_runs):
    (first, _) = json.loads(vit21k("runs", "list", "--json").stdout)

    assert first == {
        "path": "runs/one",
        "name": "one",
        "recipe": "tiny",
        "state": "finished",
        "step": 1,
        "total_steps": 1,
        "loss": 0.1,
        "metric": "val/prec@1",
        "best": 0.6,
        "best_step": 1,
        "seconds": 66.0,
    }


def test_two_runs_are_compared(vit21k, two_runs):
    table = vit21k("runs", "compare", "runs/one", "runs/two")
    as_json = json.loads(vit21k("runs", "compare", "--json").stdout)

    assert [line.split() for line in table.stdout.splitlines()[:2]] == [
        ["recipe", "one", "two"],
        ["optim.lr", "0.1", "0.2"],
    ]
    assert "2 runs, 1 fields of the recipe differ, 3 metrics" in table.stderr
    assert as_json["recipe"] == {"optim.lr": [0.1, 0.2]}
    assert as_json["metrics"]["loss"][1] == {"last": 0.2, "best": 0.2, "best_step": 1}


def test_one_run_cannot_be_compared(vit21k, two_runs):
    result = vit21k("runs", "compare", "runs/one")

    assert result.code == 2
    assert "name two runs" in result.stderr


def test_the_page_is_written_to_the_given_path(vit21k, two_runs, tmp_path):
    result = vit21k("runs", "plot", "--out", "here.html", "--json")

    assert result.code == 0, result.stderr
    assert json.loads(result.stdout) == {
        "path": "here.html",
        "runs": ["one", "two"],
        "metrics": ["loss", "val/prec@1", "lr"],
    }
    assert "<svg" in (tmp_path / "here.html").read_text()
    assert "2 runs, 3 charts in `here.html`" in result.stderr


def test_where_there_is_no_run_it_says_so(vit21k, tmp_path):
    (tmp_path / "runs").mkdir()

    result = vit21k("runs", "list")

    assert result.code == 2
    assert "no run below `runs`" in result.stderr
