import hashlib
import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from small_run import save_run

from vit21k.checkpoint.load import load_model
from vit21k.data.decode import decode_rgb
from vit21k.data.transforms import normalise
from vit21k.errors import DataError, UsageError
from vit21k.inference.features import FeatureOptions, extract_features, join_shards, problems_in
from vit21k.inference.files import Files
from vit21k.inference.predict import eval_transform

NUM_IMAGES = 23
PLAN = FeatureOptions(device_batch_size=3, shard_rows=5)  # shards of 6


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(save_run(tmp_path_factory.mktemp("run"), representation_size=8))


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Images, of which number 7 is no image."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(NUM_IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    (folder / "07.png").write_bytes(b"no image")
    return sorted(folder.iterdir())


def digests(folder):
    files = (path for path in folder.iterdir() if path.suffix == ".parquet")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def inputs(card, paths):
    transform = eval_transform(card.eval_settings)
    pixels = np.stack([transform(decode_rgb(path.read_bytes())) for path in paths])
    return normalise(torch.from_numpy(pixels), card.eval_settings.mean, card.eval_settings.std)


@pytest.mark.parametrize("kind", ["pooled", "tokens"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_features_are_the_models_in_the_order_of_the_images(tmp_path, loaded, paths, kind, dtype):
    model, card = loaded
    plan = FeatureOptions(kind=kind, dtype=dtype, device_batch_size=3, shard_rows=6)

    report = extract_features(model, card, Files(paths), tmp_path, plan)
    join_shards(report.shards, tmp_path / "all.parquet")

    good = [path for path in paths if path.name != "07.png"]
    with torch.no_grad():
        x = inputs(card, good)
        wanted = (model.features(x) if kind == "pooled" else model.forward_features(x)).numpy()
    table = pq.read_table(tmp_path / "all.parquet")
    found = np.array(table["features"].to_pylist(), dtype=dtype)
    assert table["path"].to_pylist() == [str(path) for path in good]
    assert found.shape == wanted.shape == ((22, 8) if kind == "pooled" else (22, 5, 16))
    assert np.allclose(found, wanted, atol=1e-4 if dtype == "float32" else 4e-3)
    assert str(table.schema.field("features").type).startswith("fixed_size_list")
    assert len(report.shards) == 4
    assert [path for path, _ in problems_in(tmp_path / "all.parquet")] == [str(paths[7])]
    assert [path for path, _ in report.problems] == [str(paths[7])]


def test_missing_shards_are_made_again_to_the_same_bytes(tmp_path, loaded, paths):
    extract_features(*loaded, Files(paths), tmp_path, PLAN)
    before = digests(tmp_path)
    (tmp_path / "features-00001.parquet").unlink()
    (tmp_path / "features-00003.parquet").unlink()
    done = []

    report = extract_features(*loaded, Files(paths), tmp_path, PLAN, advance=done.append)

    assert digests(tmp_path) == before
    assert len(before) == 4
    assert report.num_resumed == 12
    assert sum(done) == NUM_IMAGES
    assert len(report.problems) == 1


@pytest.mark.parametrize("keep", [0, 4, 0.5, 0.99])
def test_a_shard_that_is_cut_off_is_made_again_to_the_same_bytes(tmp_path, loaded, paths, keep):
    extract_features(*loaded, Files(paths), tmp_path, PLAN)
    before = digests(tmp_path)
    shard = tmp_path / "features-00001.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])

    report = extract_features(*loaded, Files(paths), tmp_path, PLAN)

    assert digests(tmp_path) == before
    assert report.num_resumed < NUM_IMAGES


def test_a_shard_with_damaged_values_is_named_when_shards_are_merged(tmp_path, loaded, paths):
    report = extract_features(*loaded, Files(paths), tmp_path, PLAN)
    content = bytearray(report.shards[1].read_bytes())
    features = pq.read_table(report.shards[1])["features"].combine_chunks().flatten()
    content[content.index(features.to_numpy().tobytes())] ^= 255
    report.shards[1].write_bytes(content)

    with pytest.raises(DataError, match=r"features-00001\.parquet"):
        join_shards(report.shards, tmp_path / "all.parquet")

    assert not (tmp_path / "all.parquet").exists()


_KILLED = """
import os, signal, sys
from pathlib import Path
from vit21k.checkpoint.load import load_model
from vit21k.inference import features
from vit21k.inference.files import Files

run, folder, *paths = sys.argv[1:]
plain, left = features.compute_features, iter(range(5))

def compute(*arguments):
    if next(left, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*arguments)

features.compute_features = compute
plan = features.FeatureOptions(device_batch_size=3, shard_rows=5)
features.extract_features(*load_model(run), Files(paths), Path(folder), plan)
"""


@pytest.mark.slow
def test_a_run_that_was_killed_resumes_to_the_same_bytes(tmp_path, loaded, paths):
    _, card = loaded
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    extract_features(*loaded, Files(paths), whole, PLAN)
    command = [sys.executable, "-c", _KILLED, str(card.path), str(killed), *map(str, paths)]

    ended = subprocess.run(command, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    shards_left = len(digests(killed))
    report = extract_features(*loaded, Files(paths), killed, PLAN)

    assert ended.returncode == -signal.SIGKILL
    assert 0 < shards_left < 4
    assert report.num_resumed == 6 * shards_left
    assert digests(killed) == digests(whole)


@pytest.mark.parametrize(
    "change",
    [
        {"plan": FeatureOptions(device_batch_size=3, shard_rows=5, dtype="float16")},
        {"plan": FeatureOptions(device_batch_size=3, shard_rows=5, kind="tokens")},
        {"plan": FeatureOptions(device_batch_size=2, shard_rows=6)},
        {"num_images": 22},
        {"other_weights": True},
    ],
)
def test_a_folder_of_other_features_is_left_alone(tmp_path, loaded, paths, change):
    model, card = loaded
    extract_features(model, card, Files(paths), tmp_path, PLAN)
    before = digests(tmp_path)
    if change.get("other_weights"):
        model, card = load_model(card.path)
        with torch.no_grad():
            model.pos_embed[0, 0, 0] += 1

    with pytest.raises(UsageError, match="holds other features"):
        extract_features(
            model,
            card,
            Files(paths[: change.get("num_images")]),
            tmp_path,
            change.get("plan", PLAN),
        )

    assert digests(tmp_path) == before


def test_a_damaged_job_file_is_named(tmp_path, loaded, paths):
    (tmp_path / "features.json").write_text("[")

    with pytest.raises(UsageError, match=r"features\.json"):
        extract_features(*loaded, Files(paths), tmp_path, PLAN)


def test_a_shard_with_images_that_could_not_be_read_is_made_again(tmp_path, loaded, paths):
    extract_features(*loaded, Files(paths), tmp_path / "straight", PLAN)
    paths[1].rename(tmp_path / "away")
    try:
        first = extract_features(*loaded, Files(paths), tmp_path / "out", PLAN)
    finally:
        (tmp_path / "away").rename(paths[1])
    again = extract_features(*loaded, Files(paths), tmp_path / "out", PLAN)

    assert [path for path, _ in first.problems] == [str(paths[1]), str(paths[7])]
    assert [path for path, _ in again.problems] == [str(paths[7])]
    assert again.num_resumed == NUM_IMAGES - 6  # the damaged one is no reason
    assert digests(tmp_path / "out") == digests(tmp_path / "straight")


def test_a_shard_without_a_good_image_is_empty(tmp_path, loaded):
    report = extract_features(*loaded, Files(["gone.png"]), tmp_path, PLAN)
    join_shards(report.shards, tmp_path / "all.parquet")

    assert pq.read_table(tmp_path / "all.parquet").num_rows == 0
    assert problems_in(tmp_path / "all.parquet") == [("gone.png", "the file is not there")]
