"""`vit21k train` with a teacher, and with a tree of classes, in one process."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vit21k.cli.app import app
from vit21k.errors import CheckpointError, ManifestError, UsageError
from vit21k.labels.stats import write_class_tree
from vit21k.manifest.classes import ClassList
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.relabel import relabel
from vit21k.prep.split import make_val

# Animal; below it dog; below that beagle and a hound: three levels, of which one has two classes.
WNIDS = ("n00015388", "n02084071", "n02088364", "n02088094")
TINY = (
    "model.img_size=16",
    "model.embed_dim=16",
    "model.depth=1",
    "data.eval_resize=16",
    "run.save_every_steps=1",
    "run.log_every_steps=1",
    "schedule.warmup_steps=0",
)
PIT = (
    "model.img_size=32",
    "data.eval_resize=32",
    "epochs=null",
    "schedule.lr_changes=every_step",
    "schedule.first_epoch=0",
    "schedule.warmup_epochs=null",
    "precision=fp32",
    "run.log_every_steps=1",
    "run.save_every_steps=1",
)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objective")
    generator = np.random.default_rng(0)
    for wnid in WNIDS:
        (folder / "tree" / wnid).mkdir(parents=True)
        for number in range(5):
            pixels = generator.integers(0, 255, (24, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "tree" / wnid / f"{wnid}_{number}.JPEG")
    hash_tree(folder / "tree", folder / "manifests")
    relabel(folder / "manifests")
    make_val(folder / "manifests", per_class=1)
    return folder / "manifests"


def train(manifests, run_dir, recipe, settings, *extra):
    arguments = ["train", "--recipe", recipe, "--manifests", str(manifests), "--num-workers", "1"]
    settings = ["data.global_batch_size=8", *settings]
    changes = [argument for setting in settings for argument in ("--set", setting)]
    return CliRunner().invoke(app, [*arguments, *changes, "--run-dir", str(run_dir), *extra])


def logged(run_dir, name):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [value[name] for line in lines if name in (value := json.loads(line))]


@pytest.fixture(scope="module")
def teachers(manifests, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    for seed in (1, 2):
        settings = [*TINY, f"seed={seed}", "total_steps=1", "loss.kind=softmax"]
        assert train(manifests, folder / str(seed), "tiny", settings).exit_code == 0
    return folder


def test_a_pit_learns_from_a_teacher_and_resumes_with_no_other(manifests, teachers, tmp_path):
    def go(num_steps, *extra):
        settings = [*PIT, f"total_steps={num_steps}"]
        return train(
            manifests, tmp_path / "run", "pretrain_pit_ti_distilled_in1k", settings, *extra
        )

    shutil.copytree(teachers / "1", tmp_path / "moved")
    first = go(2, "--teacher", str(teachers / "1"))
    other = go(2, "--teacher", str(teachers / "2"))
    moved = go(2, "--teacher", str(tmp_path / "moved"))
    none = go(2)

    assert first.exit_code == 0, first.exception
    assert isinstance(other.exception, CheckpointError)
    assert "another teacher" in other.exception.message
    assert moved.exit_code == 0, moved.exception
    assert isinstance(none.exception, UsageError)
    assert "--teacher" in none.exception.hint
    assert len(logged(tmp_path / "run", "loss")) == 2


def test_a_teacher_changes_what_is_learnt_by_its_share(manifests, teachers, tmp_path):
    losses = {}
    for alpha in (0, 0.5, 1):
        settings = [*TINY, "total_steps=1", "loss.kind=softmax", "distill.kind=soft",
                    f"distill.alpha={alpha}"]  # fmt: skip
        run_dir = tmp_path / str(alpha)
        result = train(manifests, run_dir, "tiny", settings, "--teacher", str(teachers / "1"))
        assert result.exit_code == 0, result.exception
        losses[alpha] = logged(run_dir, "loss")[0]

    assert losses[0] == pytest.approx(np.log(4), rel=1e-5)  # the head is new, and 0
    assert losses[0.5] == pytest.approx((losses[0] + losses[1]) / 2, rel=1e-5)
    assert 0 <= losses[1] < 0.1


def test_a_teacher_that_no_field_asks_for_is_refused(manifests, teachers, tmp_path):
    result = train(manifests, tmp_path / "run", "tiny", TINY, "--teacher", str(teachers / "1"))

    assert "is for distill.kind `hard` or `soft`" in result.exception.message


def test_semantic_softmax_trains_is_measured_and_asks_for_its_tree_again(manifests, tmp_path):
    settings = [*TINY, "loss.kind=semantic_softmax", "total_steps=1"]
    flat = ClassList(tuple(sorted(WNIDS)), (None,) * 4)
    tree = write_class_tree(flat, tmp_path / "tree.json")
    tree["class_tree_list"] = [[index] for index in range(4)]
    (tmp_path / "flat.json").write_text(json.dumps(tree))

    first = train(manifests, tmp_path / "run", "tiny", settings)
    same = train(manifests, tmp_path / "run", "tiny",
                 [*settings, f"loss.tree={tmp_path / 'tree.json'}"])  # fmt: skip
    other = train(manifests, tmp_path / "run", "tiny",
                  [*settings, f"loss.tree={tmp_path / 'flat.json'}"])  # fmt: skip
    missing = train(manifests, tmp_path / "none", "tiny", [*settings, "loss.tree=gone.json"])

    assert first.exit_code == 0, first.exception
    # One level has two classes, n of the 8 images reach it, and half of all classes are there.
    n = logged(tmp_path / "run", "loss")[0] / (2 * np.log(2) / 8)
    assert n == pytest.approx(round(n), abs=1e-5)
    assert 0 < n <= 8
    assert 0 <= logged(tmp_path / "run", "dummy_val/semantic_prec@1")[0] <= 1
    assert same.exit_code == 0, same.exception
    assert "another tree of classes" in other.exception.message
    assert isinstance(missing.exception, ManifestError)
