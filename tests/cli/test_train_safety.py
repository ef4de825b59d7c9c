"""`vit21k train` is never silently wrong: first weights, forks, divergence, lost images."""

import json
import math
import shlex
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from vit21k.data.dataset import ImageDataset
from vit21k.manifest.io import open_manifest
from vit21k.manifest.schema import VAL
from vit21k.manifest.writer import write_manifest

SMALL = [
    "train",
    "--recipe=tiny",
    "--device=cpu",
    "--peak-tflops=1",
    "--num-workers=1",
    *(
        f"--set={field}"
        for field in (
            "total_steps=4",
            "model.img_size=16",
            "model.embed_dim=16",
            "model.depth=1",
            "data.eval_resize=16",
            "data.global_batch_size=4",
            "data.device_batch_size=2",
            "schedule.warmup_steps=0",
            "run.log_every_steps=1",
            "run.save_every_steps=2",
        )
    ),
]


@pytest.fixture
def run(vit21k, images, tmp_path):
    """Return what trains in `runs/tiny`, or in --run-dir, with more arguments."""

    def go(*extra, code=0):
        result = vit21k(*SMALL, *extra)
        assert result.code == code, result.stderr
        assert "Traceback" not in result.stderr
        return result

    return go


def rewind(run_dir, step):
    """Leave the run as a kill after the checkpoint of *step* would."""
    folder = run_dir / "checkpoints"
    for path in folder.glob("step-*"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    (folder / "latest").write_text(f"step-{step:08d}\n")


def tensors(run_dir, step):
    return load_file(run_dir / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def state(run_dir, step):
    return json.loads((run_dir / "checkpoints" / f"step-{step:08d}" / "state.json").read_text())


def steps_of(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").glob("*-*[0-9]"))


def log(run_dir, name):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line[name] for line in map(json.loads, lines) if name in line}


@pytest.fixture
def weights(run, tmp_path):
    """Return two runs whose weights fit the model, and differ."""
    for name in ("a", "b"):
        run(f"--set=seed={ord(name)}", "--set=total_steps=1", f"--run-dir=weights/{name}")
    return tmp_path / "weights"


def test_a_run_is_resumed_with_the_first_weights_it_began_with_and_no_others(
    run, weights, tmp_path
):
    run("--init=weights/a")
    first = tensors(tmp_path / "runs/tiny", 4)
    facts = json.loads((tmp_path / "runs/tiny/run.json").read_text())
    rewind(tmp_path / "runs/tiny", 2)

    other = run("--init=weights/b", code=3)
    head = run("--init=weights/a", "--head=from-wnids", code=3)
    assert steps_of(tmp_path / "runs/tiny") == ["step-00000002"]
    shutil.copytree(weights / "a", weights / "moved")
    run("--init=weights/moved")

    assert "began with `weights/a/" in other.stderr
    assert "not with `weights/b/" in other.stderr
    assert "--run-dir" in other.stderr
    assert "--fresh" not in other.stderr
    assert "head from-wnids" in head.stderr
    assert facts["origin"]["source"].startswith("weights/a/")
    assert all(torch.equal(first[name], tensor) for name, tensor in
               tensors(tmp_path / "runs/tiny", 4).items())  # fmt: skip
    rewind(tmp_path / "runs/tiny", 2)
    run()  # whatever it began with
    assert state(tmp_path / "runs/tiny", 4)["origin"]["weights"] == facts["origin"]["weights"]


def test_first_weights_are_known_by_their_content(run, weights, tmp_path):
    run("--init=weights/a")
    path = next((weights / "a" / "checkpoints").glob("step-*")) / "model.safetensors"
    shutil.copytree(path.parent, weights / "changed")
    (weights / "changed" / "state.json").unlink()
    changed = load_file(path)
    changed["pos_embed"][0, 0, 0] += 1e-3
    save_file(changed, weights / "changed" / "model.safetensors")

    refused = run("--init=weights/changed", code=3)
    gone = run("--init=weights/nowhere")

    assert "began with" in refused.stderr
    assert "no run or model at `weights/nowhere`" in gone.stderr
    assert "is not compared" in gone.stderr


def test_a_run_from_scratch_takes_no_first_weights_later(run, weights, tmp_path):
    run()

    refused = run("--init=weights/a", code=3)

    assert "began with weights from scratch" in refused.stderr


def test_another_val_is_another_run(run, tmp_path):
    run()
    folder = tmp_path / "data_manifests"
    val = open_manifest(folder, VAL)
    write_manifest(val.read().slice(0, 2), VAL, folder, val.header, val.classes())

    assert "another val.parquet" in run(code=3).stderr


def test_what_was_best_by_another_metric_is_forgotten(run, tmp_path):
    run("--set=run.best_metric=prec@1", "--set=run.eval_every_steps=2")
    rewind(tmp_path / "runs/tiny", 2)
    assert "best" in state(tmp_path / "runs/tiny", 2)["progress"]["best"]

    run("--set=run.best_metric=loss", "--set=run.eval_every_steps=2")

    best = state(tmp_path / "runs/tiny", 4)["progress"]["best"]["best"]
    assert best == pytest.approx(log(tmp_path / "runs/tiny", "dummy_val/loss")[4])


def test_a_fork_begins_with_weights_optimizer_and_step_of_another_run(run, tmp_path):
    run()
    before = (tmp_path / "runs/tiny/metrics.jsonl").read_bytes()

    run("--resume-from=runs/tiny:2", "--run-dir=runs/same")
    run("--resume-from=2", "--run-dir=runs/other", "--set=optim.lr=1e-4", "--set=total_steps=6")

    for name, tensor in tensors(tmp_path / "runs/tiny", 4).items():
        assert torch.equal(tensor, tensors(tmp_path / "runs/same", 4)[name])
    assert log(tmp_path / "runs/same", "loss").keys() == {3, 4}
    assert log(tmp_path / "runs/other", "loss").keys() == {3, 4, 5, 6}
    assert steps_of(tmp_path / "runs/other") == ["step-00000004", "step-00000006"]
    origin = json.loads((tmp_path / "runs/other/run.json").read_text())["origin"]
    assert (origin["kind"], origin["source"], origin["step"]) == ("fork", "runs/tiny", 2)
    assert state(tmp_path / "runs/other", 6)["origin"] == origin
    assert state(tmp_path / "runs/other", 6)["progress"]["images_seen"] == 24
    assert (tmp_path / "runs/tiny/metrics.jsonl").read_bytes() == before


def test_a_fork_is_resumed_by_the_same_command_and_no_other(run, tmp_path):
    run()
    fork = ["--run-dir=runs/b", "--set=optim.lr=1e-4"]
    run("--resume-from=runs/tiny:2", *fork)
    rewind(tmp_path / "runs/b", 2)

    run("--resume-from=runs/tiny/checkpoints/step-00000002", *fork)
    other = run("--resume-from=runs/tiny", *fork, code=3)
    shutil.rmtree(tmp_path / "runs/tiny")
    gone = run("--resume-from=runs/tiny:2", *fork)

    assert "began with step 2 of `runs/tiny`" in other.stderr
    assert "not with step 4 of `runs/tiny`" in other.stderr
    assert "is not compared" in gone.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--resume-from=runs/tiny:2"], 2, "name the new run with --run-dir"),
        (["--resume-from=runs/tiny:3", "--run-dir=b"], 3, "it has those of 2, 4"),
        (["--resume-from=runs/none", "--run-dir=b"], 3, "`runs/none` holds no run"),
        (["--resume-from=runs/tiny", "--run-dir=b"], 2, "nothing left to do"),
        (["--resume-from=2", "--run-dir=b", "--set=model.depth=2"], 2, "model.depth is 1, not 2"),
        (["--resume-from=2", "--run-dir=b", "--set=optim.kind=sgd"], 2, "optim.kind is adamw"),
        (["--resume-from=2", "--run-dir=b", "--init=x"], 2, "both say what to begin with"),
    ],
)
def test_a_fork_that_cannot_be_is_explained(run, arguments, code, message):
    run()

    assert message in run(*arguments, code=code).stderr


def test_an_open_ended_run_is_cooled_down_in_a_fork(run, tmp_path):
    open_end = ["--set=schedule.decay=rsqrt", "--set=schedule.end_lr=0"]
    run(*open_end)

    run(
        *open_end,
        "--set=total_steps=6",
        "--set=schedule.cooldown_steps=2",
        "--resume-from=runs/tiny:4",
        "--run-dir=runs/end",
    )

    rates = log(tmp_path / "runs/end", "lr")
    assert rates.keys() == {5, 6}
    assert rates[6] == pytest.approx(rates[5] / 2, rel=1e-3)


def advice(result):
    """Return the arguments of the command that an error ends with."""
    command = result.stderr.strip().splitlines()[-1].split("; look")[0].strip()
    words = shlex.split(command)
    assert words[:2] == ["vit21k", "train"]
    return words[1:]


def explode_at(monkeypatch, step, scale=1e30, *, loss=math.nan):
    """Let the update of *step* ruin the weights, and the next loss be *loss*."""
    from vit21k.training import loop  # noqa: PLC0415

    plain, plain_loss, steps = loop._update, loop._check, []

    def update(optimizers, *, is_update):
        plain(optimizers, is_update=is_update)
        steps.append(1)
        if len(steps) == step:
            with torch.no_grad():
                for group in optimizers[0].param_groups:
                    for param in group["params"]:
                        param.mul_(scale)

    def check(value, at):
        plain_loss(loss if len(steps) >= step else value, at)

    monkeypatch.setattr(loop, "_update", update)
    monkeypatch.setattr(loop, "_check", check)
    return lambda: (
        monkeypatch.setattr(loop, "_update", plain),
        monkeypatch.setattr(loop, "_check", plain_loss),
    )


@pytest.mark.parametrize("scale", [1e30, math.nan, 1e3])
def test_exploded_weights_are_never_the_latest_checkpoint(run, tmp_path, monkeypatch, scale):
    explode_at(monkeypatch, 4, scale)

    failed = run("--set=total_steps=8", "--run-dir=runs/a", code=1)

    assert "at step 4; the last good checkpoint is that of step 2" in failed.stderr
    assert "norm of the weights" in failed.stderr
    assert steps_of(tmp_path / "runs/a") == ["step-00000002"]


def test_a_checkpoint_whose_loss_is_no_number_is_taken_back_and_the_advice_works(
    run, vit21k, tmp_path, monkeypatch
):
    heal = explode_at(monkeypatch, 4, 1.0)

    failed = run("--set=total_steps=8", "--set=run.keep_last=1", "--run-dir=runs/a", code=1)

    assert "the loss is nan at step 5; the last good checkpoint is that of step 2" in failed.stderr
    assert steps_of(tmp_path / "runs/a") == ["diverged-00000004", "step-00000002"]
    assert (tmp_path / "runs/a/checkpoints/latest").read_text() == "step-00000002\n"
    heal()
    forked = vit21k(*advice(failed), "--peak-tflops=1", "--num-workers=1")
    assert forked.code == 0, forked.stderr
    assert log(tmp_path / "runs/a-2", "loss").keys() == set(range(3, 9))
    recipe = (tmp_path / "runs/a-2/recipe.yaml").read_text()
    assert "lr: 0.001\n" in recipe
    origin = state(tmp_path / "runs/a-2", 8)["origin"]
    assert (origin["source"], origin["step"]) == ("runs/a", 2)


def test_without_a_good_checkpoint_the_advice_begins_anew(
    run, vit21k, weights, tmp_path, monkeypatch
):
    heal = explode_at(monkeypatch, 1)

    failed = run("--init=weights/a", "--set=optim.grad_clip_norm=null", code=1)

    assert "there is no good checkpoint" in failed.stderr
    assert steps_of(tmp_path / "runs/tiny") == []
    heal()
    again = vit21k(*advice(failed), "--peak-tflops=1", "--num-workers=1")
    assert again.code == 0, again.stderr
    assert "grad_clip_norm: 1.0" in (tmp_path / "runs/tiny-2/recipe.yaml").read_text()
    assert state(tmp_path / "runs/tiny-2", 4)["origin"]["source"].startswith("weights/a/")


def test_a_run_that_starts_over_keeps_what_was_there(run, tmp_path):
    run()
    before = {
        name: (tmp_path / "runs/tiny" / name).read_bytes()
        for name in ("metrics.jsonl", "run.json", "recipe.yaml", "checkpoints/latest")
    }

    result = run("--fresh", "--set=seed=5")
    run("--fresh")

    assert "kept in `runs/tiny/previous-1`" in result.stderr
    for name, content in before.items():
        assert (tmp_path / "runs/tiny/previous-1" / name).read_bytes() == content
    assert "seed: 5" in (tmp_path / "runs/tiny/previous-2/recipe.yaml").read_text()
    assert log(tmp_path / "runs/tiny", "loss").keys() == {1, 2, 3, 4}


def test_the_mean_loss_of_a_line_survives_a_resume(run, tmp_path):
    settings = ["--set=run.log_every_steps=3", "--set=total_steps=5", "--set=run.keep_last=9"]
    run(*settings)
    whole = log(tmp_path / "runs/tiny", "loss")

    for step in (2, 4):
        rewind(tmp_path / "runs/tiny", step)
        run(*settings)
        assert log(tmp_path / "runs/tiny", "loss") == whole


def test_a_run_is_finished_when_its_last_checkpoint_is_its_last_step(run, vit21k, tmp_path):
    run()
    states = [json.loads(vit21k("runs", "list", "--json").stdout)[0]["state"]]
    rewind(tmp_path / "runs/tiny", 2)
    states.append(json.loads(vit21k("runs", "list", "--json").stdout)[0]["state"])

    assert log(tmp_path / "runs/tiny", "loss").keys() == {1, 2, 3, 4}
    assert states == ["finished", "stopped"]


@pytest.mark.parametrize("on_bad_image", ["skip", "replace"])
def test_a_batch_without_a_good_image_leaves_the_weights_alone(
    run, tmp_path, monkeypatch, on_bad_image
):
    from vit21k.data import loader  # noqa: PLC0415

    settings = [
        f"--set=data.on_bad_image={on_bad_image}",
        "--set=data.max_bad_rate=1",
        "--set=total_steps=3",
        "--set=run.keep_last=9",
        "--set=run.save_every_steps=1",
    ]
    plain = loader.BatchDecoder._try

    def bad(self, job, *rest):
        if job.step == 1:
            rest[-1].is_any_read = True
            return "it is bad"
        return plain(self, job, *rest)

    monkeypatch.setattr(loader.BatchDecoder, "_try", bad)
    monkeypatch.setattr(loader.BatchDecoder, "_fill", _without_fill)
    result = run(*settings)

    run_dir = tmp_path / "runs/tiny"
    assert log(run_dir, "step").keys() == {1, 2, 3}
    assert log(run_dir, "loss")[2] is None
    assert math.isfinite(log(run_dir, "loss")[3])
    before, after = tensors(run_dir, 1), tensors(run_dir, 2)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert state(run_dir, 3)["progress"]["empty_updates"] == 1
    assert state(run_dir, 3)["progress"]["images_seen"] == 8
    assert "1 updates were skipped: every image of the batch was bad" in result.stderr


def _without_fill(self, job, images, chunk):
    from vit21k.data.loader import _Chunk  # noqa: PLC0415

    done = _Chunk()
    for index in chunk:
        if (why := self._try(job, images, index, None, done)) is not None:
            done.bad.append((int(job.rows_B[index]), why))
            done.skipped.append(index)
    return done


def lose_tree(monkeypatch, after):
    """Let every file be gone once so many were read."""
    plain, reads = ImageDataset.read_bytes, []

    def read_bytes(self, row):
        reads.append(row)
        if len(reads) > after:
            raise OSError(5, "Input/output error")
        return plain(self, row)

    monkeypatch.setattr(ImageDataset, "read_bytes", read_bytes)
    return lambda: monkeypatch.setattr(ImageDataset, "read_bytes", plain)


@pytest.mark.parametrize("on_bad_image", ["fail", "skip", "replace"])
def test_a_tree_that_goes_away_ends_the_run_and_the_state_is_saved(
    run, tmp_path, monkeypatch, on_bad_image
):
    settings = [
        f"--set=data.on_bad_image={on_bad_image}",
        "--set=data.max_bad_rate=1",
        "--set=total_steps=90",
        "--set=run.save_every_steps=0",
    ]
    mount = lose_tree(monkeypatch, 12)

    failed = run(*settings, code=3)

    lost = "in a row could not be read" if on_bad_image != "fail" else "cannot be read"
    assert lost in failed.stderr
    assert "Input/output error" in failed.stderr
    assert "the state of the run is saved in `runs/tiny`" in failed.stderr
    (saved,) = steps_of(tmp_path / "runs/tiny")
    assert int(saved[5:]) == len(log(tmp_path / "runs/tiny", "loss")) >= 2
    mount()
    resumed = run(*settings)
    assert f"resuming from step {int(saved[5:])}" in resumed.stderr


def test_an_evaluation_that_an_error_ended_is_made_up_for(run, tmp_path, monkeypatch):
    settings = ["--set=run.eval_every_steps=4", "--set=total_steps=4"]
    whole = run(*settings, "--run-dir=runs/whole")
    mount = lose_tree(monkeypatch, 16)

    failed = run(*settings, code=3)

    assert "state of the run is saved" in failed.stderr
    assert log(tmp_path / "runs/tiny", "loss").keys() == {1, 2, 3, 4}
    assert "dummy_val/loss" not in (tmp_path / "runs/tiny/metrics.jsonl").read_text()
    mount()
    run(*settings)
    name = "dummy_val/loss"
    assert log(tmp_path / "runs/tiny", name) == log(tmp_path / "runs/whole", name)
    assert "dummy_val/loss" in whole.stderr


def test_a_bad_image_is_replaced_by_default_and_counted_over_a_resume(run, images, tmp_path):
    (tmp_path / "tree" / images[5]["path"]).write_bytes(b"no image")
    settings = ["--set=total_steps=8", "--set=run.keep_last=9"]

    result = run(*settings)
    counts = log(tmp_path / "runs/tiny", "num_replaced")
    rewind(tmp_path / "runs/tiny", 4)
    run(*settings)

    assert counts[8] > 0
    assert list(counts.values()) == sorted(counts.values())
    assert log(tmp_path / "runs/tiny", "num_replaced") == counts
    assert set(log(tmp_path / "runs/tiny", "num_skipped").values()) == {0}
    assert state(tmp_path / "runs/tiny", 8)["progress"]["images_seen"] == 32
    assert f"{counts[8]} images could not be decoded and were replaced" in result.stderr
    assert f"{counts[8]} replaced" in result.stderr


@pytest.mark.parametrize("option", ["--rate=nan", "--rate=inf", "--peak-tflops=nan"])
def test_an_option_that_is_no_finite_number_is_refused(run, option):
    more = ["--dry-run"] if option.startswith("--rate") else []

    run(option, *more, code=2)
