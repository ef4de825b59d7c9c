"""Rewrite the tables of models (docs/models.md) and of weight formats (docs/weights.md).

python tools/docs/models_page.py            rewrite
python tools/docs/models_page.py --check    exit 1 if that is out of date
"""

import sys
from pathlib import Path
from typing import Any

from generated_block import write_or_check

from vit21k.cli.use import model_rows
from vit21k.models.registry import FORMATS

CHECKOUT = Path(__file__).parents[2]
# Parameters with a head of 1,000 classes.  ViT: vit_jax/models_test.py, MODEL_SIZES, and
# MMPretrain's table; PiT: counted in naver-ai's own modules, whose README rounds them to 0.1 M.
PUBLISHED_PARAMS = {
    "vit_tiny_patch16_224": 5_717_416,
    "vit_small_patch16_224": 22_050_664,
    "vit_small_patch32_224": 22_878_952,
    "vit_base_patch8_224": 86_576_872,
    "vit_base_patch16_224": 86_567_656,
    "vit_base_patch16_384": 86_859_496,
    "vit_base_patch32_224": 88_224_232,
    "vit_base_patch32_384": 88_297_192,
    "vit_large_patch16_224": 304_326_632,
    "vit_large_patch16_384": 304_715_752,
    "vit_large_patch32_224": 306_535_400,
    "vit_huge_patch14_224": 632_045_800,
    "vit_small_r26_s32_224": 36_431_912,
    "vit_base_r26_s32_224": 101_383_976,
    "vit_base_r50_s16_224": 98_659_112,
    "vit_large_r50_s32_224": 328_994_856,
    "pit_ti_224": 4_847_272,
    "pit_xs_224": 10_618_888,
    "pit_s_224": 23_461_912,
    "pit_b_224": 73_764_840,
    "pit_ti_distilled_224": 5_104_336,
    "pit_xs_distilled_224": 11_003_984,
    "pit_s_distilled_224": 24_039_056,
    "pit_b_distilled_224": 74_790_096,
}
# Giga, as published.  ViT: MMPretrain, backbone alone, 5 operations a value of a layer norm;
# PiT: naver-ai's README.
PUBLISHED_FLOPS = {
    "vit_base_patch16_224": "17.581972224",
    "vit_base_patch16_384": "55.538974464",
    "vit_base_patch32_384": "13.056716544",
    "vit_large_patch16_384": "191.210034176",
    "pit_ti_224": "0.71",
    "pit_xs_224": "1.4",
    "pit_s_224": "2.9",
    "pit_b_224": "12.5",
}
# Format -> (test of reading, test of writing).
VERIFIED = {
    "vit21k": ("test_model_folder", "test_model_folder"),
    "timm": ("test_timm_vit", "test_export"),
    "torchvision": ("test_torchvision_vit", "test_export"),
    "transformers": ("test_transformers_vit", "test_export"),
    "google": ("test_google", "test_export"),
    "clip": ("test_published_formats", ""),
    "mmpretrain": ("test_published_formats", ""),
    "plsc": ("test_paddle_pickle", ""),
    "paddlevit": ("test_paddle_pickle", ""),
    "naver": ("test_pit", ""),
}
EXPORTS = {
    "vit21k": "`safetensors`",
    "timm": "`timm`",
    "torchvision": "`torchvision`",
    "transformers": "`transformers`",
    "google": "`npz`",
}


def model_table() -> str:
    """Return a row for each model: our figures and published ones."""
    columns = ("model", "parameters", "published", "GMACs", "published GFLOPs", "MB kept", "source")
    head = [f"| {' | '.join((*columns, 'weights in'))} |", "|---|--:|--:|--:|--:|--:|---|---|"]
    return "\n".join([*head, *(model_line(row) for row in model_rows())])


def model_line(row: dict[str, Any]) -> str:
    """Return the row of one model."""
    name, published = row["name"], PUBLISHED_PARAMS.get(row["name"])
    if published is not None and published != row["num_params"]:
        raise ValueError(f"{name} has {row['num_params']:,} parameters; {published:,} published")
    number = row["source"].removeprefix("arXiv:")
    cells = [
        f"`{name}`",
        f"{row['num_params']:,}",
        "" if published is None else "equal",
        f"{row['macs_per_image'] / 1e9:.3f}",
        PUBLISHED_FLOPS.get(name, ""),
        f"{row['activation_bytes_per_image'] / 1e6:,.0f}",
        f"[{number}](https://arxiv.org/abs/{number})",
        ", ".join(format_ for format_ in row["formats"] if format_ != "vit21k"),
    ]
    return f"| {' | '.join(cells)} |"


def format_table() -> str:
    """Return a row for each format: what is read, what is written, and the tests of both."""
    lines = ["| format | read | `export --to` | tests |", "|---|---|---|---|"]
    for name, what in FORMATS.items():
        tests = sorted({test for test in VERIFIED[name] if test})
        paths = ", ".join(f"`{path_of(test)}`" for test in tests)
        lines.append(f"| {name} | {what} | {EXPORTS.get(name, '')} | {paths} |")
    return "\n".join(lines)


def path_of(test: str) -> str:
    """Return the path of a test file in the checkout, by its name."""
    (path,) = (CHECKOUT / "tests").rglob(f"{test}.py")
    return str(path.relative_to(CHECKOUT))


def main(arguments: list[str]) -> int:
    """Rewrite or check both pages; return the exit status."""
    is_check = "--check" in arguments
    pages = {"models.md": {"models": model_table()}, "weights.md": {"formats": format_table()}}
    return max(
        write_or_check(CHECKOUT / "docs" / name, blocks, check=is_check)
        for name, blocks in pages.items()
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
