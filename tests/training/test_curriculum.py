"""Less of each image first: which steps, which patches, and that a resumed run sees the same."""

import io
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from vit21k.data.loader import Batch, TrainLoader
from vit21k.data.sampler import StepSampler
from vit21k.data.transforms import TrainTransform
from vit21k.distributed import World
from vit21k.errors import RecipeError, UsageError
from vit21k.models.pos_embed import resize_pos_embed
from vit21k.models.registry import build_model, model_args
from vit21k.optim.schedule import LrSchedule
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.relabel import relabel
from vit21k.prep.split import make_val
from vit21k.recipe.load import load_recipe
from vit21k.recipe.schema import CurriculumSection
from vit21k.training.context import RunContext, RunOptions
from vit21k.training.curriculum import (
    Curriculum,
    PatchDropper,
    check_curriculum,
    kept_patches,
)
from vit21k.training.loop import StagedLoader
from vit21k.training.reporter import Reporter
from vit21k.training.run import train_run

CPU = torch.device("cpu")
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


def small_model(*, any_size=False, **args):
    torch.manual_seed(0)
    args = model_args("vit_tiny_patch16_224", num_classes=5, **{**SMALL, **args})
    return build_model(args, any_size=any_size).eval()


def curriculum_of(img_size, total_steps, **section):
    return Curriculum(
        section=CurriculumSection(**section), img_size=img_size, total_steps=total_steps
    )


def test_stages_share_what_the_tail_leaves():
    curriculum = curriculum_of(224, 100, img_sizes=(96, 128), full_tail=0.2)

    assert curriculum.stages() == [(0, 96), (40, 128), (80, 224)]
    assert curriculum_of(224, 100, full_tail=0.2).stages() == [(0, 224)]


def test_patches_are_dropped_until_the_tail():
    curriculum = curriculum_of(32, 10, patch_drop_rate=0.5, full_tail=0.3)

    dropping = [step for step in range(10) if curriculum.drops_patches_at(step)]

    assert dropping == list(range(7))


def test_kept_patches_depend_on_seed_and_position_alone():
    positions = np.arange(40)
    options = {"num_patches": 49, "drop_rate": 0.5, "seed": 7}

    kept = kept_patches(positions, **options)

    assert kept.shape == (40, 24)
    assert (np.diff(kept, axis=1) > 0).all()
    assert (kept[10:12] == kept_patches(positions[10:12], **options)).all()
    assert (kept != kept_patches(positions, **{**options, "seed": 8})).any()
    assert (kept[0] != kept[1]).any()
    # Every patch has its turn: 1,000 images, expected 490 each, 6 standard deviations are 95.
    counts = np.bincount(kept_patches(np.arange(1000), **options).ravel(), minlength=49)
    assert counts.min() > 390
    assert counts.max() < 590
    assert kept_patches(positions, **{**options, "drop_rate": 0.99}).shape == (40, 1)


def batch(positions, size=32, step=None):
    images = torch.zeros(len(positions), 3, size, size, dtype=torch.uint8)
    none = torch.empty(0, dtype=torch.int64)
    return Batch(images, none, none, none, torch.tensor(positions), step)


def test_a_dropper_takes_the_step_of_the_batch_and_the_patches_by_the_size():
    curriculum = curriculum_of(32, 4, patch_drop_rate=0.5, full_tail=0.5)
    dropper = PatchDropper(curriculum, patch_size=8, device=CPU)

    assert dropper(batch([0, 1], step=0)).shape == (2, 8)
    assert dropper(batch([18, 19], size=16, step=1)).shape == (2, 2)
    assert dropper(batch([20, 21], step=2)) is None
    with pytest.raises(ValueError, match="no step"):
        dropper(batch([20, 21]))


@settings(max_examples=12)
@given(
    num_images=st.integers(1, 40),
    batch_size=st.integers(1, 45),
    total_steps=st.integers(1, 60),
    full_tail=st.floats(0, 0.9),
    drop_last=st.booleans(),
)
def test_patches_are_dropped_in_just_the_steps_of_the_schedule(
    num_images, batch_size, total_steps, full_tail, drop_last
):
    if drop_last:
        batch_size = min(batch_size, num_images)
    curriculum = curriculum_of(16, total_steps, patch_drop_rate=0.5, full_tail=full_tail)
    dropper = PatchDropper(curriculum, patch_size=8, device=CPU)
    sampler = StepSampler(num_images, global_batch_size=batch_size, seed=3, drop_last=drop_last)
    loader = TrainLoader(
        _Grey(num_images),
        sampler,
        TrainTransform(16),
        device_batch_size=16,
        num_workers=0,
        seed=3,
    )

    dropping, num_seen = [], 0
    for step in range(total_steps):
        for batch in loader.micro_batches(step):
            num_seen += len(batch.rows_B)
            dropping.append((step, dropper(batch) is not None))

    first_full = round((1 - full_tail) * total_steps)
    assert {step for step, _ in dropping} == set(range(total_steps))
    assert all(dropped == (step < first_full) for step, dropped in dropping)
    assert num_seen == sampler.num_before(total_steps)


class _Grey:
    """Images of one colour."""

    content = None
    num_ahead = 0

    def __init__(self, num_images):
        self.num_images = num_images
        if _Grey.content is None:
            out = io.BytesIO()
            Image.new("RGB", (2, 2)).save(out, "png")
            _Grey.content = out.getvalue()

    def __len__(self):
        return self.num_images

    def path(self, row):
        return str(row)

    def read_bytes(self, _row):
        return self.content

    def labels_of(self, rows):
        return np.arange(len(rows)), np.zeros(len(rows), dtype=np.int64)


def test_a_model_that_keeps_all_patches_computes_what_it_computes_without():
    for args in ({}, {"global_pool": "avg"}, {"global_pool": "avg", "class_token": False}):
        model = small_model(**args)
        images = torch.randn(2, 3, 32, 32)

        everything = model(images, torch.arange(16).expand(2, -1))

        torch.testing.assert_close(everything, model(images))


def test_a_patch_that_is_dropped_has_no_influence():
    model = small_model()
    torch.nn.init.normal_(model.head.weight)
    images = torch.randn(1, 3, 32, 32)
    other = images.clone()
    other[:, :, :8, :8] += 1  # the first patch
    kept = torch.arange(1, 16)[None]

    assert torch.equal(model(images, kept), model(other, kept))
    assert not torch.allclose(model(images), model(other), atol=1e-4)


def test_smaller_images_are_seen_with_resized_positions_where_that_is_asked_for():
    images = torch.randn(2, 3, 16, 16)
    with pytest.raises(ValueError, match="32 pixels"):
        small_model()(images)

    model = small_model(any_size=True)
    logits = model(images)
    twin = small_model(img_size=16)
    state = model.state_dict()
    state["pos_embed"] = resize_pos_embed(state["pos_embed"], (2, 2))
    twin.load_state_dict(state)

    torch.testing.assert_close(logits, twin(images))
    logits.logsumexp(1).sum().backward()
    assert model.pos_embed.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["pit_ti_224", "vit_small_r26_s32_224"])
def test_models_that_do_more_than_cut_patches_have_no_curriculum(name):
    curriculum = curriculum_of(224, 1, patch_drop_rate=0.5, full_tail=0.0)

    with pytest.raises(UsageError, match="plain Vision Transformers"):
        check_curriculum(curriculum, model_args(name))
    check_curriculum(
        curriculum_of(224, 1, full_tail=0.0),
        model_args(name),
    )


def test_an_image_is_not_smaller_than_a_patch():
    curriculum = curriculum_of(224, 1, img_sizes=(8,), full_tail=0.0)

    with pytest.raises(UsageError, match="less than a patch"):
        check_curriculum(curriculum, model_args("vit_tiny_patch16_224"))


def test_a_recipe_says_what_is_wrong_with_its_sizes():
    with pytest.raises(RecipeError, match="must be ascending"):
        load_recipe("tiny", ["curriculum.img_sizes=[24, 16]"])
    with pytest.raises(RecipeError, match="must be less than"):
        load_recipe("tiny", ["curriculum.img_sizes=[16, 32]"])


def test_each_stage_has_a_loader_of_its_size_and_closes_the_one_before():
    recipe = load_recipe(
        "tiny",
        [
            "total_steps=4",
            "schedule.warmup_steps=0",
            "data.global_batch_size=4",
            "curriculum.img_sizes=[16]",
            "curriculum.full_tail=0.5",
        ],
    )
    run = RunContext(
        recipe=recipe,
        options=SimpleNamespace(num_workers=1),
        reporter=Reporter(),
        world=World(),
        data=SimpleNamespace(train=_Grey(8)),
        args={},
        objective=SimpleNamespace(device=CPU),
        sampler=StepSampler(8, global_batch_size=4, seed=0),
        schedule=LrSchedule(total_steps=4),
    )
    loader = StagedLoader(run, device_batch_size=4)

    threads = threading.active_count()
    sides = [next(iter(loader.micro_batches(step))).images_BCHW.shape[-1] for step in range(4)]
    loader.close()
    loader.close()

    assert sides == [16, 16, 32, 32]
    assert threading.active_count() == threads


@pytest.fixture
def manifests(tmp_path):
    generator = np.random.default_rng(0)
    for wnid in ("n01440764", "n02084071"):
        (tmp_path / "tree" / wnid).mkdir(parents=True)
        for number in range(8):
            pixels = generator.integers(0, 255, (24, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "tree" / wnid / f"{wnid}_{number}.JPEG")
    hash_tree(tmp_path / "tree", tmp_path / "manifests")
    relabel(tmp_path / "manifests")
    make_val(tmp_path / "manifests", per_class=2)
    return tmp_path / "manifests"


def test_a_resumed_run_sees_the_same_sizes_and_patches(manifests, tmp_path):
    recipe = load_recipe(
        "tiny",
        [
            "total_steps=10",
            "model.embed_dim=16",
            "model.depth=2",
            "data.global_batch_size=8",
            "schedule.warmup_steps=2",
            "run.save_every_steps=3",
            "run.keep_last=9",
            "curriculum.img_sizes=[16, 24]",
            "curriculum.patch_drop_rate=0.5",
        ],
    )

    notes = []

    class Notes(Reporter):
        def note(self, text):
            notes.append(text)

    def train(run_dir):
        options = RunOptions(
            manifests=manifests,
            root=None,
            run_dir=run_dir,
            device="cpu",
            num_workers=1,
            device_batch_size=3,
        )
        train_run(recipe, options, Notes(), init=None)
        return load_file(run_dir / "checkpoints" / "step-00000010" / "model.safetensors")

    whole = train(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for step in (6, 9, 10):
        shutil.rmtree(tmp_path / "part" / "checkpoints" / f"step-{step:08}")
    (tmp_path / "part" / "checkpoints" / "latest").write_text("step-00000003\n")
    resumed = train(tmp_path / "part")

    assert any(note.startswith("resuming from step 3 of ") for note in notes)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
