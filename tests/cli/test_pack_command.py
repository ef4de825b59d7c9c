"""`vit21k pack`, `vit21k verify` of a pack, and training from one."""

import json

import pytest
from conftest import needs_extension
from packable import KINDS, NUM_PLAIN, write_manifests, write_tree

from vit21k._native import NoExtensionError

NUM_IMAGES = NUM_PLAIN + len(KINDS)
SMALL = [
    "--recipe=tiny",
    "--num-workers=1",
    "--device=cpu",
    *(
        f"--set={field}"
        for field in (
            "total_steps=6",
            "model.img_size=32",
            "model.patch_size=8",
            "model.embed_dim=16",
            "model.depth=1",
            "data.eval_resize=32",
            "data.global_batch_size=8",
            "data.device_batch_size=8",
            "schedule.warmup_steps=2",
            "run.log_every_steps=1",
            "run.eval_every_steps=3",
        )
    ),
]


@pytest.fixture
def manifests(tmp_path):
    return write_manifests(write_tree(tmp_path / "tree"), tmp_path / "m")


@needs_extension
def test_a_pack_is_made_and_verified(vit21k, manifests):
    made = vit21k("pack", "--lossless", "--manifests", manifests, "--out", "p", "--per-shard", 9)
    verified = vit21k("verify", "--manifests", "p", "--decode", "--json")

    assert made.code == 0, made.stderr
    assert f"pack: {NUM_IMAGES} images: 2 as_is, {NUM_IMAGES - 2} tiles, 0" in made.stderr
    assert "1 images are stored unchanged: progressive" in made.stderr
    assert "next: `vit21k train --recipe " in made.stderr
    assert verified.code == 0
    found = json.loads(verified.stdout)
    assert (found["is_same"], found["num_same"], found["num_decoded"]) == (
        True,
        NUM_IMAGES,
        NUM_IMAGES,
    )


def test_bad_images_end_it_with_code_3(vit21k, tmp_path):
    write_manifests(write_tree(tmp_path / "tree", bad=True), tmp_path / "m")

    made = vit21k("pack", "--raw", "--short-side", 32, "--manifests", "m", "--out", "p", "--json")

    assert made.code == 3
    assert json.loads(made.stdout)["num_skipped"] == 1
    assert "skipped.parquet" in made.stderr


@needs_extension
def test_a_damaged_pack_is_reported_with_code_4(vit21k, tmp_path, manifests):
    vit21k("pack", "--short-side", 32, "--manifests", manifests, "--out", "p", "--per-shard", 9)
    shard = tmp_path / "p" / "imagenet21k-train-00001.tar"
    shard.write_bytes(shard.read_bytes()[:5000])

    verified = vit21k("verify", "--manifests", "p", "--combined", "lines.txt")

    lines = (tmp_path / "lines.txt").read_text().splitlines()
    assert verified.code == 4
    assert len(lines) == NUM_IMAGES
    assert 0 < sum(line.startswith("- ") for line in lines) <= 9
    assert "2 of 3 shards" in verified.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "which level?"),
        (["--raw"], "which level?"),
        (["--lossless", "--short-side", 256], "cannot resize or decode"),
        (["--raw", "--short-side", 256, "--quality", 90], "`--quality` needs"),
        (["--short-side", 256, "--keep-metadata"], "`--keep-metadata` needs"),
    ],
)
def test_levels_that_contradict_each_other_are_refused(vit21k, manifests, options, message):
    refused = vit21k("pack", *options, "--manifests", manifests, "--out", "p")

    assert refused.code == 2
    assert message in refused.stderr


def test_without_the_extension_only_raw_packs_are_made(vit21k, manifests, monkeypatch):
    def refuse():
        raise NoExtensionError("it was not built", hint="install a C compiler")

    monkeypatch.setattr("vit21k.pack.tiles.extension", refuse)
    refused = vit21k("pack", "--lossless", "--manifests", manifests, "--out", "p")
    raw = vit21k("pack", "--raw", "--short-side", 64, "--manifests", manifests, "--out", "raw")

    assert refused.code == 1
    assert "it was not built" in refused.stderr
    assert "`--raw --short-side N`" in refused.stderr
    assert raw.code == 0


@needs_extension
def test_training_from_a_lossless_pack_is_training_from_the_files(vit21k, manifests, tmp_path):
    pytest.importorskip("torch")
    vit21k("pack", "--lossless", "--manifests", manifests, "--out", "p")
    weights, metrics = [], []
    for source in (manifests, "p"):
        run = tmp_path / f"run-{len(weights)}"
        done = vit21k("train", *SMALL, "--manifests", source, "--run-dir", run)
        assert done.code == 0, done.stderr
        latest = (run / "checkpoints" / "latest").read_text().strip()
        weights.append((run / "checkpoints" / latest / "model.safetensors").read_bytes())
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        metrics.append([line["loss"] for line in lines if "loss" in line])

    assert len(metrics[0]) == 6
    assert metrics[0] == metrics[1]
    assert weights[0] == weights[1]
