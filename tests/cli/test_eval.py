"""`vit21k eval`."""

import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small_run import CLASSES, save_run, write_manifests

from vit21k.manifest.classes import ClassList


def test_eval_measures_every_image_of_a_dummy_split_under_its_name(vit21k, images, run_dir):
    result = vit21k("eval", run_dir, "--json", "--device", "cpu", "--device-batch-size", 4)

    metrics = json.loads(result.stdout)
    assert result.code == 0
    assert metrics["dummy_val/num_images"] == len(images)
    assert metrics["dummy_val/top5"] == 1.0
    assert 0 < metrics["dummy_val/loss"] < 10
    assert metrics["model"].endswith("step-00000005")
    assert "6 images" in result.stderr


def test_eval_agrees_with_predict(vit21k, images, run_dir):
    metrics = json.loads(vit21k("eval", run_dir, "--json").stdout)
    found = json.loads(vit21k("predict", run_dir, "tree", "--top-k", 1, "--json").stdout)

    labels = {f"tree/{row['path']}": row["label_ids"] for row in images}
    hits = [row["top"][0]["class_index"] in labels[row["path"]] for row in found]
    assert len(hits) == len(images)
    assert metrics["dummy_val/prec@1"] == pytest.approx(np.mean(hits))


@pytest.mark.parametrize(
    ("arguments", "prefix"),
    [
        (["--split", "train"], "train"),
        (["--split", "images"], "images"),
        (["--manifest", "data_manifests/images.parquet"], "images"),
    ],
)
def test_eval_takes_other_manifests_and_names_them(vit21k, images, run_dir, arguments, prefix):
    metrics = json.loads(vit21k("eval", run_dir, *arguments, "--json").stdout)

    assert metrics[f"{prefix}/num_images"] == len(images)


def test_a_held_out_split_is_called_val(vit21k, images, run_dir, tmp_path):
    write_manifests(tmp_path / "held_out", images, CLASSES, options={"split": "holdout"})

    result = vit21k("eval", run_dir, "--manifests", "held_out")

    assert "val/prec@1" in result.stdout
    assert "dummy" not in result.stdout


def test_eval_refuses_labels_of_another_class_list(vit21k, images, run_dir, tmp_path):
    other = ClassList(("ant", "bee", "dog"))
    write_manifests(tmp_path / "other", images, other)

    result = vit21k("eval", run_dir, "--manifests", "other")

    assert result.code == 3
    assert result.stdout == ""
    assert CLASSES.fingerprint[:16] in result.stderr
    assert other.fingerprint[:16] in result.stderr
    assert "hint: " in result.stderr


def test_eval_finds_a_tree_that_has_moved(vit21k, images, run_dir, tmp_path):
    (tmp_path / "tree").rename(tmp_path / "moved")

    lost = vit21k("eval", run_dir)
    found = vit21k("eval", run_dir, "--root", "moved")

    assert lost.code == 3
    assert "--root" in lost.stderr
    assert found.code == 0


def test_eval_stops_at_an_image_that_cannot_be_decoded(vit21k, images, run_dir, tmp_path):
    (tmp_path / "tree" / images[3]["path"]).write_bytes(b"no image")

    result = vit21k("eval", run_dir)

    assert result.code == 3
    assert images[3]["path"] in result.stderr


def test_eval_leaves_bad_images_out_and_counts_them_if_asked(vit21k, images, run_dir, tmp_path):
    (tmp_path / "tree" / images[3]["path"]).write_bytes(b"no image")

    result = vit21k("eval", run_dir, "--on-bad-image", "skip", "--json")

    metrics = json.loads(result.stdout)
    assert result.code == 3
    assert metrics["dummy_val/num_skipped"] == 1
    assert metrics["dummy_val/num_images"] == len(images) - 1
    assert f"warning: `{images[3]['path']}`" in result.stderr
    assert "; 1 images could not be decoded\n" in result.stderr


def test_eval_of_bad_images_alone_is_refused(vit21k, images, run_dir, tmp_path):
    for row in images:
        (tmp_path / "tree" / row["path"]).write_bytes(b"no image")

    result = vit21k("eval", run_dir, "--on-bad-image", "skip")

    assert result.code == 3
    assert "error: no image could be decoded" in result.stderr


def test_eval_writes_a_row_for_each_class(vit21k, images, run_dir, tmp_path):
    results = [
        vit21k("eval", run_dir, "--json", "--per-class", name)
        for name in ("c.parquet", "tables/c.csv")
    ]

    metrics = json.loads(results[0].stdout)
    parquet = pd.read_parquet(tmp_path / "c.parquet")
    csv = pd.read_csv(tmp_path / "tables" / "c.csv")
    for table in (parquet, csv):
        table["name"] = table["name"].fillna("")  # None in one, NaN in the other
    pd.testing.assert_frame_equal(parquet, csv, check_dtype=False)
    assert parquet["wnid"].tolist() == ["ant", "bee", "cat"]
    assert parquet["num_images"].tolist() == [2, 2, 3]  # one image has two labels
    assert parquet["average_precision"].mean() == pytest.approx(metrics["dummy_val/mAP"])
    assert metrics["dummy_val/num_empty_classes"] == 0
    assert [result.code for result in results] == [0, 0]


def test_eval_says_how_many_classes_have_no_images(vit21k, images, run_dir, tmp_path):
    some = [row for row in images if 1 not in row["label_ids"]]
    write_manifests(tmp_path / "some", some, CLASSES)

    result = vit21k("eval", run_dir, "--manifests", "some", "--per-class", "c.csv")

    assert "3 classes, 1 of them without images here" in result.stderr
    assert pd.read_csv(tmp_path / "c.csv")["average_precision"].isna().tolist() == [0, 1, 0]


def test_eval_shows_the_classes_that_are_confused(vit21k, images, run_dir):
    found = json.loads(vit21k("predict", run_dir, "tree", "--top-k", 1, "--json").stdout)
    labels = {f"tree/{row['path']}": row["label_ids"] for row in images}
    tops = [(labels[row["path"]], row["top"][0]["class_index"]) for row in found]
    wrong = Counter((label, top) for ids, top in tops if top not in ids for label in ids)

    metrics = json.loads(vit21k("eval", run_dir, "--json", "--confusion", 9).stdout)
    table = vit21k("eval", run_dir, "--confusion", 1).stdout

    shown = {(row["label"], row["predicted"]): row["num_images"] for row in metrics["confused"]}
    wnids = CLASSES.wnids
    assert shown == {(wnids[label], wnids[top]): count for (label, top), count in wrong.items()}
    assert table.splitlines()[-2].split() == ["label", "predicted", "images"]


def test_eval_with_a_flip_is_the_mean_of_both_views(vit21k, images, run_dir, tmp_path):
    plain = json.loads(vit21k("eval", run_dir, "--json").stdout)
    flipped = json.loads(vit21k("eval", run_dir, "--json", "--tta", "hflip").stdout)
    for path in (tmp_path / "tree").rglob("*.png"):
        mirrored = Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        mirrored.save(path)
    mirrored = json.loads(vit21k("eval", run_dir, "--json", "--tta", "hflip").stdout)

    assert mirrored["dummy_val/loss"] == pytest.approx(flipped["dummy_val/loss"], rel=1e-5)
    assert plain["dummy_val/loss"] != pytest.approx(flipped["dummy_val/loss"], rel=1e-5)


def test_eval_measures_on_real_labels_as_well(vit21k, images, tmp_path):
    classes = ClassList(tuple(f"n{number:08d}" for number in range(1000)))
    run = save_run(tmp_path / "runs" / "in1k", classes=classes, loss_kind="softmax")
    rows = []
    for number, row in enumerate(images, start=1):
        name = f"ant/ILSVRC2012_val_{number:08d}.png"
        (tmp_path / "tree" / row["path"]).rename(tmp_path / "tree" / name)
        rows.append({**row, "path": name, "label_ids": [number]})
    write_manifests(tmp_path / "in1k", rows, classes)
    found = json.loads(vit21k("predict", run, "tree", "--top-k", 1, "--json").stdout)
    tops = [row["top"][0]["class_index"] for row in found]
    real = [[tops[0], 5], [999 - tops[1]], [], [tops[3]]] + [[]] * 49_996
    (tmp_path / "real.json").write_text(json.dumps(real))

    result = vit21k("eval", run, "--manifests", "in1k", "--json", "--real", "real.json")

    metrics = json.loads(result.stdout)
    assert metrics["real/prec@1"] == pytest.approx(2 / 3)
    assert (metrics["real/num_images"], metrics["real/num_without_labels"]) == (3, 3)
    assert metrics["dummy_val/num_images"] == 6


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--per-class", "table.txt"], 2, "`table.txt` must end in .parquet or .csv"),
        (["--real", "tree/ant/0.png"], 3, "not a list of lists"),
        (["--real", "none.json"], 2, "No such file"),
        (["--threshold", "2"], 2, "--threshold"),
    ],
)
def test_eval_refuses_what_it_cannot_do(vit21k, images, run_dir, arguments, code, message):
    result = vit21k("eval", run_dir, *arguments)

    assert (result.code, result.stdout) == (code, "")
    assert message in result.stderr


def test_real_labels_are_refused_for_other_classes(vit21k, images, run_dir, tmp_path):
    (tmp_path / "real.json").write_text(json.dumps([[0]] * 50_000))

    result = vit21k("eval", run_dir, "--real", "real.json")

    assert result.code == 3
    assert "ImageNet-1k" in result.stderr


@pytest.mark.slow
def test_two_processes_give_what_one_gives(vit21k, images, run_dir, tmp_path):
    alone = json.loads(vit21k("eval", run_dir, "--json", "--confusion", 9).stdout)
    arguments = ["eval", str(run_dir), "--json", "--confusion", "9", "--per-class", "c.csv"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]

    result = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", "-m", "vit21k", *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )

    together = json.loads(result.stdout)
    assert together.pop("dummy_val/loss") == pytest.approx(alone.pop("dummy_val/loss"))
    assert together == alone
    assert (tmp_path / "c.csv").is_file()
