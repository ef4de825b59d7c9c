import errno
import json
import os
import resource
import signal

import pytest
import torch

from vit21k.checkpoint import store
from vit21k.checkpoint.model_folder import EvalSettings, model_config
from vit21k.checkpoint.store import (
    find_latest,
    load_checkpoint,
    optimizers_to_tensors,
    save_checkpoint,
    tensors_to_optimizers,
)
from vit21k.errors import CheckpointError
from vit21k.manifest.classes import ClassList
from vit21k.models.registry import model_args

ARGS = model_args(
    "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=8, num_heads=2, depth=1
)
CONFIG = model_config(
    "vit_tiny_patch16_224",
    ARGS,
    ClassList(("cat", "dog")),
    EvalSettings(
        img_size=16,
        mode="center_crop",
        resize=18,
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    "sigmoid",
)
FILES = ["config.json", "model.safetensors", "optimizer.safetensors", "state.json"]


def save(run_dir, step, *, value=None, keep_last=3, **state):
    value = float(step) if value is None else value
    return save_checkpoint(
        run_dir,
        step,
        model_state={"w": torch.full((4,), value)},
        model_config=CONFIG,
        optimizer_state={"exp_avg/w": torch.full((4,), -value)},
        state={"recipe": {"betas": (0.9, 0.999)}, **state},
        keep_last=keep_last,
    )


def damage(path, offset=-1):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def steps_of(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").glob("step-*"))


def test_a_run_without_checkpoints_has_no_latest(tmp_path):
    assert find_latest(tmp_path) == (None, [])


def test_what_was_saved_comes_back(tmp_path):
    path = save(tmp_path, 7, images_seen=70)

    checkpoint, warnings = find_latest(tmp_path)

    assert warnings == []
    assert (checkpoint.path, checkpoint.step) == (path, 7)
    assert checkpoint.state["images_seen"] == 70
    assert checkpoint.state["recipe"] == {"betas": [0.9, 0.999]}
    assert torch.equal(checkpoint.model_tensors()["w"], torch.full((4,), 7.0))
    assert torch.equal(checkpoint.optimizer_tensors()["exp_avg/w"], torch.full((4,), -7.0))


def test_a_checkpoint_is_a_folder_of_four_files_and_latest_names_it(tmp_path):
    path = save(tmp_path, 100)

    assert sorted(file.name for file in path.iterdir()) == FILES
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000100\n"


def test_the_same_state_gives_the_same_bytes(tmp_path):
    one, two = save(tmp_path / "one", 5), save(tmp_path / "two", 5)

    for name in FILES:
        assert (one / name).read_bytes() == (two / name).read_bytes()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("offset", [0, 9, -1, -2])
def test_a_flipped_bit_anywhere_is_refused_by_name_and_the_one_before_is_taken(
    tmp_path, name, offset
):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    damage(newest / name, offset)

    with pytest.raises(CheckpointError, match="damaged") as caught:
        load_checkpoint(newest)
    checkpoint, warnings = find_latest(tmp_path)

    assert name in caught.value.message
    assert "step-00000001" in caught.value.hint
    assert checkpoint.step == 1
    assert len(warnings) == 1
    assert str(newest) in warnings[0]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(tmp_path, name):
    path = save(tmp_path, 1)
    (path / name).unlink()

    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_a_cut_file_is_refused(tmp_path):
    path = save(tmp_path, 1)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])

    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_checkpoint(path)


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_rather_than_started_over(tmp_path):
    for step in (1, 2):
        damage(save(tmp_path, step) / "model.safetensors")

    with pytest.raises(CheckpointError, match="no checkpoint that can be used") as caught:
        find_latest(tmp_path)

    assert "--fresh" in caught.value.hint


def test_only_the_files_that_are_asked_for_need_to_be_whole(tmp_path):
    path = save(tmp_path, 1)
    damage(path / "optimizer.safetensors")

    checkpoint, _ = find_latest(tmp_path, only=("config.json", "model.safetensors"))

    assert checkpoint.path == path


@pytest.mark.parametrize("keep_last", [1, 2, 3])
def test_the_last_few_are_kept(tmp_path, keep_last):
    for step in range(1, 6):
        save(tmp_path, step, keep_last=keep_last)

    assert steps_of(tmp_path) == [f"step-{step:08d}" for step in range(6 - keep_last, 6)]


def test_no_setting_leaves_none(tmp_path):
    save(tmp_path, 1, keep_last=0)
    save(tmp_path, 2, keep_last=-3)

    assert steps_of(tmp_path) == ["step-00000002"]


def test_an_equal_checkpoint_of_the_step_is_kept_as_it_is(tmp_path):
    path = save(tmp_path, 3)
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}

    again = save(tmp_path, 3)

    assert again == path
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before


def test_another_state_of_the_same_step_replaces_it(tmp_path):
    save(tmp_path, 3, value=1.0)
    save(tmp_path, 3, value=2.0)

    checkpoint, _ = find_latest(tmp_path)

    assert checkpoint.model_tensors()["w"][0] == 2.0
    assert len(steps_of(tmp_path)) == 1


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path):
    damage(save(tmp_path, 3) / "model.safetensors")
    save(tmp_path, 3)

    checkpoint, warnings = find_latest(tmp_path)

    assert checkpoint.step == 3
    assert warnings == []
    assert len(steps_of(tmp_path)) == 1


def test_a_run_that_starts_over_is_not_confused_with_the_older_longer_one(tmp_path):
    save(tmp_path, 500)
    save(tmp_path, 100, value=1.0)

    assert find_latest(tmp_path).checkpoint.step == 100
    assert "step-00000500" in steps_of(tmp_path)


@pytest.mark.parametrize("content", [b"", b"step-00000009\n", b"../../etc\n", b"\xff\n"])
def test_a_latest_file_that_names_nothing_does_not_matter(tmp_path, content):
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "checkpoints" / "latest").write_bytes(content)

    assert find_latest(tmp_path).checkpoint.step == 2


def test_a_later_version_is_refused_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("vit21k.checkpoint.store.VERSION", 9)
    path = save(tmp_path, 1)
    monkeypatch.undo()

    with pytest.raises(CheckpointError, match="later vit21k"):
        load_checkpoint(path)


def test_what_a_killed_process_left_is_swept_away(tmp_path):
    for name in (".step-00000001.other-1.partial", ".step-00000002.deleted"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "file").touch()

    save(tmp_path, 3)

    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "latest",
        "step-00000003",
    ]


_MOMENTS = ["write_model_folder", "write_tensors", "write_state", "write_atomic", "prune"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("moment", _MOMENTS)
def test_a_kill_at_any_moment_leaves_the_old_checkpoint_or_the_new_one(
    tmp_path, monkeypatch, moment, when
):
    save(tmp_path, 1, keep_last=1)
    real = getattr(store, moment)

    def killed(*args, **kwargs):
        if when == "after":
            real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(store, moment, killed)
    child = os.fork()
    if child == 0:
        save(tmp_path, 2, keep_last=1)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    monkeypatch.undo()

    checkpoint, warnings = find_latest(tmp_path)
    assert warnings == []
    assert checkpoint.model_tensors()["w"][0] == checkpoint.step
    save(tmp_path, 3, keep_last=1)
    assert steps_of(tmp_path) == ["step-00000003"]


def test_a_full_disk_is_an_os_error_and_leaves_the_old_checkpoint(tmp_path):
    save(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)

    assert caught.value.errno == errno.EFBIG
    assert find_latest(tmp_path).checkpoint.step == 1
    assert steps_of(tmp_path) == ["step-00000001"]


def test_no_file_of_a_checkpoint_can_run_code(tmp_path):
    path = save(tmp_path, 1)

    assert json.loads((path / "state.json").read_bytes())["step"] == 1
    for name in FILES:
        assert not (path / name).read_bytes().startswith((b"PK", b"\x80"))


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.GELU(), torch.nn.Linear(8, 8), torch.nn.LayerNorm(8)
    )


def adamw(model):
    return [torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)]


def sgd(model):
    return [torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, weight_decay=1e-3)]


def muon_and_adamw(model):
    matrices = [param for param in model.parameters() if param.ndim == 2]
    rest = [param for param in model.parameters() if param.ndim != 2]
    return [
        torch.optim.Muon(matrices, lr=1e-2, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [
                {"params": rest[:2], "weight_decay": 0.1, "peak_lr": 1e-2},
                {"params": rest[2:], "weight_decay": 0.0, "peak_lr": 1e-2},
            ]
        ),
    ]


def take_steps(model, optimizers, first, last):
    for step in range(first, last):
        inputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
        model(inputs).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("make", [adamw, sgd, muon_and_adamw])
def test_a_resumed_optimizer_is_bit_identical(tmp_path, make):
    straight = network()
    take_steps(straight, make(straight), 0, 9)
    first = network()
    optimizers = make(first)
    take_steps(first, optimizers, 0, 4)
    path = save_checkpoint(
        tmp_path,
        4,
        model_state=first.state_dict(),
        model_config=CONFIG,
        optimizer_state=optimizers_to_tensors(first, optimizers),
        state={},
        keep_last=1,
    )

    checkpoint = load_checkpoint(path)
    resumed = network()
    resumed.load_state_dict(checkpoint.model_tensors())
    optimizers = make(resumed)
    tensors_to_optimizers(checkpoint.optimizer_tensors(), resumed, optimizers)
    take_steps(resumed, optimizers, 4, 9)

    for name, param in straight.named_parameters():
        assert torch.equal(param, resumed.get_parameter(name)), name


def test_the_optimizers_state_is_named_by_parameter(tmp_path):
    model = network()
    optimizers = muon_and_adamw(model)
    take_steps(model, optimizers, 0, 1)

    names = optimizers_to_tensors(model, optimizers).keys()

    assert {"momentum_buffer/0.weight", "exp_avg/0.bias", "step/3.weight"} <= names
    assert "exp_avg/0.weight" not in names


def test_settings_come_from_the_recipe_and_not_from_the_file():
    model = network()
    optimizers = adamw(model)
    take_steps(model, optimizers, 0, 1)
    tensors = optimizers_to_tensors(model, optimizers)
    other = [torch.optim.AdamW(model.parameters(), lr=5.0, weight_decay=0.7)]

    tensors_to_optimizers(tensors, model, other)

    assert other[0].param_groups[0]["lr"] == 5.0
    assert other[0].param_groups[0]["weight_decay"] == 0.7


def test_an_optimizer_that_took_no_step_has_no_state_to_restore():
    model = network()
    optimizers = adamw(model)
    tensors = optimizers_to_tensors(model, optimizers)

    tensors_to_optimizers(tensors, model, optimizers)

    assert tensors == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("exp_avg/0.weight"), "not of one kind"),
        (lambda tensors: tensors.update({"exp_avg/other": torch.zeros(1)}), "not updated here"),
        (lambda tensors: tensors.update({"exp_avg/0.weight": torch.zeros(3)}), "has shape"),
        (
            lambda tensors: [
                tensors.pop(f"{slot}/0.weight") for slot in ("exp_avg", "exp_avg_sq", "step")
            ],
            "lacks 1 of 6",
        ),
    ],
)
def test_the_state_of_other_parameters_is_refused(change, message):
    model = network()
    optimizers = adamw(model)
    take_steps(model, optimizers, 0, 1)
    tensors = optimizers_to_tensors(model, optimizers)
    change(tensors)

    with pytest.raises(CheckpointError, match=message):
        tensors_to_optimizers(tensors, model, adamw(model))


def test_averaged_weights_travel_with_the_checkpoint_and_are_verified(tmp_path):
    path = save_with_ema(tmp_path, 1, value=0.5)

    assert torch.equal(load_checkpoint(path).ema_tensors()["w"], torch.full((4,), 0.5))
    damage(path / "ema.safetensors")
    with pytest.raises(CheckpointError, match=r"ema\.safetensors"):
        load_checkpoint(path)


def test_without_averaged_weights_there_are_none(tmp_path):
    assert load_checkpoint(save(tmp_path, 1)).ema_tensors() is None


def test_another_average_of_the_same_step_replaces_the_checkpoint(tmp_path):
    save_with_ema(tmp_path, 1, value=0.5)
    save_with_ema(tmp_path, 1, value=0.25)

    assert find_latest(tmp_path).checkpoint.ema_tensors()["w"][0] == 0.25


def test_the_best_checkpoints_stay_until_others_are_better(tmp_path):
    save_with_ema(tmp_path, 1, best=["best"])
    save_with_ema(tmp_path, 2, best=["best-ema"])
    for step in (3, 4, 5):
        save_with_ema(tmp_path, step)
    folder = tmp_path / "checkpoints"

    assert steps_of(tmp_path) == [f"step-0000000{step}" for step in (1, 2, 4, 5)]
    assert (folder / "best").read_text() == "step-00000001\n"
    assert (folder / "best-ema").read_text() == "step-00000002/ema.safetensors\n"

    save_with_ema(tmp_path, 6, best=["best", "best-ema"])
    save_with_ema(tmp_path, 7)

    assert steps_of(tmp_path) == ["step-00000006", "step-00000007"]


def test_a_damaged_best_checkpoint_does_not_prevent_a_resume(tmp_path):
    damage(save_with_ema(tmp_path, 1, best=["best"]) / "model.safetensors")
    save_with_ema(tmp_path, 2)

    checkpoint, warnings = find_latest(tmp_path)

    assert (checkpoint.step, warnings) == (2, [])


def save_with_ema(run_dir, step, *, value=0.0, best=()):
    return save_checkpoint(
        run_dir,
        step,
        model_state={"w": torch.full((4,), float(step))},
        model_config=CONFIG,
        optimizer_state={},
        state={},
        keep_last=2,
        ema_state={"w": torch.full((4,), value)},
        best=best,
    )
