"""Open mutated files of weights: each is read, or refused with one message, fast and small.

    python tools/check/mutate_weights.py [--files 2000] [--configs 2600] [--seed 0]

Every container and every kind of folder is built from one small model, as the program that it
belongs to writes it, and then damaged: bytes, lengths, numbers in configs.  A case fails if it ends
in anything but a model or one `Vit21kError`, takes 2 s, or 500 MB more than before.
"""

import argparse
import base64
import json
import pickle
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from vit21k.checkpoint.load import load_model
from vit21k.checkpoint.model_folder import EvalSettings, model_config
from vit21k.convert.google import to_google
from vit21k.convert.transformers import to_transformers, transformers_config
from vit21k.data.decode import decode_rgb
from vit21k.errors import Vit21kError, one_line
from vit21k.inference.predict import eval_transform
from vit21k.manifest.classes import ClassList
from vit21k.models.registry import get_model, model_args

MAX_SECONDS, MAX_MB = 2.0, 500
SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
HEADS = {"num_heads": 2}
_NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, -0.5, 1e308, float("nan"),
    float("inf"), "", "x", "224", "gelu_new", "\x1b[31m", [], {}, [1, 2], [[]], {"a": 1}, [2**62],
    99_999_999, 10_000_000_000, ["a"] * 50, "a" * 5_000,
)  # fmt: skip


_PNG = base64.b64decode(  # black, 24 x 20
    "iVBORw0KGgoAAAANSUhEUgAAABgAAAAUCAIAAAAY12rUAAAAFElEQVR4nGNgGAWjYBSMglEwVAAABbQA"
    "AVnBcwMAAAAASUVORK5CYII="
)


class Case(NamedTuple):
    """A file or a folder to open."""

    name: str
    path: Path
    has_heads: bool
    """Whether files next to the weights define how many heads there are."""


class Outcome(NamedTuple):
    """What opening it came to."""

    name: str
    problem: str | None
    seconds: float
    megabytes: float


def containers() -> dict[str, Callable[[Path], None]]:
    """Return what writes each container."""
    model = get_model("vit_tiny_patch16_224", num_classes=3, **SMALL)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    google: dict[str, Any] = {name: tensor.numpy() for name, tensor in to_google(state, 2).items()}
    old = {"_use_new_zipfile_serialization": False}
    small = {"embed_dim": 16, "num_heads": 2}
    args = argparse.Namespace(model="vit_tiny_patch16_224", model_kwargs=small, lr=0.1)
    return {
        "w.safetensors": lambda path: save_file(state, path),
        "w.npz": lambda path: np.savez(path, **google),
        "z.npz": lambda path: np.savez_compressed(path, **google),
        "w.pth": lambda path: torch.save({"state_dict": state, "args": args}, path),
        "old.pth": lambda path: torch.save(state, path, **old),
        "w.pdparams": lambda path: _pickle(path, arrays, 4),
        "two.pdparams": lambda path: _pickle(path, arrays, 2),
    }


def _pickle(path: Path, content: object, protocol: int) -> None:
    path.write_bytes(pickle.dumps(content, protocol=protocol))


def folders(root: Path) -> dict[str, tuple[str, ...]]:
    """Write a folder of each kind; return its files of JSON."""
    args = model_args("vit_tiny_patch16_224", num_classes=3, **SMALL)
    state = get_model("vit_tiny_patch16_224", num_classes=3, **SMALL).state_dict()
    settings = EvalSettings(
        img_size=16, mode="center_crop", resize=18, interpolation="bicubic", mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )  # fmt: skip
    own = model_config(
        "vit_tiny_patch16_224", args, ClassList(("a", "b", "c")), settings, "softmax"
    )
    timm = {key: value for key, value in own.items() if key != "vit21k"}
    theirs = {**transformers_config(args), "id2label": {"0": "a", "1": "b", "2": "c"}}
    processor = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "do_normalize": True,
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2,
        "size": {"height": 16, "width": 16},
    }  # fmt: skip
    index = {
        "metadata": {},
        "weight_map": dict.fromkeys(to_transformers(state), "part.safetensors"),
    }
    content = {
        "own": (state, "model.safetensors", {"config.json": own}),
        "timm": (state, "model.safetensors", {"config.json": timm}),
        "transformers": (
            to_transformers(state), "model.safetensors",
            {"config.json": theirs, "preprocessor_config.json": processor},
        ),
        "sharded": (
            to_transformers(state), "part.safetensors",
            {"config.json": theirs, "model.safetensors.index.json": index},
        ),
    }  # fmt: skip
    for name, (tensors, weights, texts) in content.items():
        (root / name).mkdir()
        save_file(
            {key: value.contiguous() for key, value in tensors.items()}, root / name / weights
        )
        for file, text in texts.items():
            (root / name / file).write_text(json.dumps(text))
    return {name: tuple(texts) for name, (_, _, texts) in content.items()}


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Return *content* with a few bytes, a length or an end that is wrong."""
    data = bytearray(content)
    # Half of the time near the start or the end, where headers and directories are.
    near = min(len(data), 600)
    for _ in range(chance.randint(1, 4)):
        place = chance.choice((chance.randrange(len(data)), chance.randrange(near),
                               len(data) - 1 - chance.randrange(near)))  # fmt: skip
        _spoil(data, place, chance)
        if not data:
            return b"\x80"
    return bytes(data)


def _spoil(data: bytearray, place: int, chance: random.Random) -> None:
    width = chance.choice((2, 4, 8))
    most = 2 ** (8 * width) - 1
    piece = bytes(data[place : place + chance.randint(1, 200)])
    match chance.randrange(6):
        case 0:
            data[place] ^= 1 << chance.randrange(8)
        case 1:
            data[place] = chance.randrange(256)
        case 2:
            value = chance.choice((0, 1, most, most // 2, 2**15))
            data[place : place + width] = value.to_bytes(width, "little")
        case 3:
            del data[place : place + chance.randint(1, 40)]
        case 4:
            data[place:place] = piece * chance.randint(1, 9)
        case _:
            data[place:place] = bytes(chance.choices(b"\x80.(}]q\x94jRb0l2N)", k=4))


def mutated(value: Any, chance: random.Random) -> Any:
    """Return JSON with one value, key or depth that is wrong."""
    copy = json.loads(json.dumps(value))
    table, key = chance.choice(list(_slots(copy)))
    match chance.randrange(8):
        case 0:
            del table[key]
        case 1 if isinstance(table, dict):
            table[str(chance.choice(_NASTY))[:40]] = table.pop(key)
        case 2:
            deep: Any = 0
            for _ in range(chance.choice((20, 900))):
                deep = [deep] if chance.random() < 0.5 else {"a": deep}
            table[key] = deep
        case _:
            table[key] = chance.choice(_NASTY)
    return copy


def _slots(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _slots(inner)


def file_cases(root: Path, count: int, chance: random.Random) -> Iterator[Case]:
    """Yield *count* damaged files of every container."""
    for name, write in containers().items():
        write(root / name)
        content = (root / name).read_bytes()
        for number in range(count):
            (root / name).write_bytes(damaged(content, chance))
            yield Case(
                f"{name} {number}", root / name, has_heads=name in ("w.npz", "z.npz", "w.pth")
            )


def config_cases(root: Path, count: int, chance: random.Random) -> Iterator[Case]:
    """Yield *count* folders with one file of JSON that is wrong."""
    kinds = [(name, file) for name, files in folders(root).items() for file in files]
    for number in range(count):
        name, file = kinds[number % len(kinds)]
        path = root / name / file
        before = path.read_text()
        if number % 97 == 0:  # deeper than any recursion
            path.write_text('{"a":' + "[" * 100_000)
        elif number % 101 == 0:
            path.write_bytes(damaged(before.encode(), chance))
        else:
            path.write_text(json.dumps(mutated(json.loads(before), chance)))
        yield Case(f"{name}/{file} {number}", root / name, has_heads=True)
        path.write_text(before)


def outcome_of(case: Case) -> Outcome:
    """Open the weights of *case* and prepare an image for them; return what that came to."""
    _forget_peak()
    before, start, problem = _memory("VmRSS"), time.perf_counter(), None
    try:
        model, card = load_model(case.path, model_args={} if case.has_heads else HEADS)
        image = eval_transform(card.eval_settings)(decode_rgb(_PNG))
        with torch.inference_mode():
            model(torch.from_numpy(image)[None].float())
    except Vit21kError as error:
        text = f"{error.message} {error.hint or ''}"
        if one_line(text) != text or len(text) > 1_000:
            problem = f"a message that is no line: {text[:200]!r}"
    except Exception as error:
        problem = f"{type(error).__name__}: {str(error)[:200]}"
    seconds, megabytes = time.perf_counter() - start, _memory("VmHWM") - before
    if seconds > MAX_SECONDS:
        problem = problem or f"took {seconds:.1f} s"
    if megabytes > MAX_MB:
        problem = problem or f"took {megabytes:,.0f} MB"
    return Outcome(case.name, problem, seconds, megabytes)


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _memory(what: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) / 1000
    return 0.0


def main() -> int:
    """Run all cases; print those that fail."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000, help="of each container")
    parser.add_argument("--configs", type=int, default=2600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        outcomes = []
        containers()["w.pth"](root / "w.pth")
        outcome_of(Case("imports, once", root / "w.pth", has_heads=True))
        for cases in (
            config_cases(root, options.configs, chance),
            file_cases(root, options.files, chance),
        ):
            for case in cases:
                outcomes.append(outcome_of(case))
                if outcomes[-1].problem:
                    print(f"{case.name}: {outcomes[-1].problem}", flush=True)
    failed = sum(outcome.problem is not None for outcome in outcomes)
    print(
        f"{len(outcomes):,} cases, {failed:,} failed; the slowest took "
        f"{max(outcome.seconds for outcome in outcomes):.2f} s, the largest "
        f"{max(outcome.megabytes for outcome in outcomes):,.0f} MB"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
