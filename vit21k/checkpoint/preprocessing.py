"""How images are prepared for weights of other programs: as the caller, or files, or publishers do.

Every field that changes a pixel is read, or refused by name.  Where no file has it, the values that
publishers of the format use are assumed, and the card has a warning with them.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from vit21k.checkpoint.model_folder import EvalSettings, ModelCard, read_json
from vit21k.data.augment import Interpolation
from vit21k.errors import CheckpointError, UsageError, one_line

Triple = tuple[float, float, float]
CropMode = Literal["center", "squash"]

_HINT = (
    "set how images are prepared with --mean, --std, --crop-pct or --crop-mode, and "
    "--interpolation; then the file is not read"
)
_HALVES: Triple = (0.5, 0.5, 0.5)
_IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
_IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
_IMAGENET = (_IMAGENET_MEAN, _IMAGENET_STD)
_CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
# Pillow's numbers, in which transformers writes them.
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_PREPROCESSOR, _PROCESSOR = "preprocessor_config.json", "processor_config.json"


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How the caller wants images to be prepared; None: as the files next to the weights have it.

    Attributes:
        mean: Subtracted from red, green, blue in 0..1.
        std: Red, green, blue are divided by it afterwards.
        crop_pct: The side of the crop as a fraction of the resized short side.
        crop_mode: "center": the short side is resized; "squash": both sides are.
        interpolation: Of the resizing.
    """

    mean: Triple | None = None
    std: Triple | None = None
    crop_pct: float | None = None
    crop_mode: CropMode | None = None
    interpolation: Interpolation | None = None

    @property
    def is_complete(self) -> bool:
        """Whether nothing is taken from files."""
        how = self.crop_pct is not None or self.crop_mode == "squash"
        return how and None not in (self.mean, self.std, self.interpolation)

    def applied_to(self, settings: EvalSettings) -> EvalSettings:
        """Return *settings* with those that are set here.

        Raises:
            UsageError: The middle is to be cropped, and the size before the crop is unknown.
        """
        if self.crop_mode == "center" and self.crop_pct is None and settings.mode == "squash":
            raise UsageError(
                "`--crop-mode center` needs to know how large the image is before the crop",
                hint="add --crop-pct: the side of the crop as a fraction of the short side",
            )
        if self.crop_pct is not None or self.crop_mode == "squash":
            settings = replace(
                settings,
                mode="squash" if self.crop_mode == "squash" else "center_crop",
                resize=_resize(settings.img_size, self.crop_pct or 1.0),
            )
        return replace(
            settings,
            interpolation=self.interpolation or settings.interpolation,
            mean=self.mean or settings.mean,
            std=self.std or settings.std,
        )


AS_FILES_SAY = Preprocessing()

NOT_NEEDED = Preprocessing(mean=_HALVES, std=_HALVES, crop_mode="squash", interpolation="bicubic")
"""For callers that do not use the settings."""


class FoundPreprocessing(NamedTuple):
    """How images are prepared, and a warning if that is assumed."""

    settings: EvalSettings
    warning: str | None = None


def find_preprocessing(
    format_: str,
    args: Mapping[str, Any],
    config: Mapping[str, Any],
    file: Path,
    wanted: Preprocessing,
) -> FoundPreprocessing:
    """Return how images are prepared for the weights in *file*.

    Args:
        format_: A key of `models.registry.FORMATS`.
        args: Every argument of the model.
        config: Content of the ``config.json`` next to *file*; empty if there is none.
        file: The weights.
        wanted: The caller's settings, which override all others.

    Raises:
        CheckpointError: A file next to the weights has an option that is not implemented.
        UsageError: See `Preprocessing.applied_to`.
    """
    size: int = args["img_size"]
    stated = None if wanted.is_complete else _stated(format_, size, config, file)
    if stated is not None:
        return FoundPreprocessing(wanted.applied_to(stated))
    custom = _CUSTOM_OF.get(str(config.get("model_type")), format_)
    if str(config.get("architecture")).startswith(_OF_DEIT):
        custom = "deit"
    found = wanted.applied_to(_assumed(custom, args))
    return FoundPreprocessing(found, None if wanted.is_complete else _warning(found, wanted))


def override(card: ModelCard, wanted: Preprocessing) -> ModelCard:
    """Return *card* with images prepared as *wanted*."""
    return replace(card, eval_settings=wanted.applied_to(card.eval_settings))


def _resize(size: int, fraction: float) -> int | None:
    """Return the side before the crop, as timm computes it; None if nothing is cropped."""
    resize = math.floor(size / fraction)
    return None if resize == size else resize


def _warning(settings: EvalSettings, wanted: Preprocessing) -> str:
    """Return what was assumed, as options."""
    words = []
    if wanted.mean is None:
        words.append(f"--mean {' '.join(map(str, settings.mean))}")
    if wanted.std is None:
        words.append(f"--std {' '.join(map(str, settings.std))}")
    if wanted.crop_pct is None and wanted.crop_mode is None:
        squash = settings.mode == "squash"
        words.append("--crop-mode squash" if squash else f"--crop-pct {_short_crop_pct(settings)}")
    if wanted.interpolation is None:
        words.append(f"--interpolation {settings.interpolation}")
    return (
        "nothing says how images are prepared for these weights; assumed: "
        f"{' '.join(words)} (give these options with the right values to settle it)"
    )


def _short_crop_pct(settings: EvalSettings) -> str:
    """Return the shortest number that gives the size before the crop."""
    for digits in range(1, 6):
        text = f"{settings.crop_pct:.{digits}f}"
        if math.floor(settings.img_size / float(text)) == (settings.resize or settings.img_size):
            return text
    return str(settings.crop_pct)


class _Custom(NamedTuple):
    """How the publishers of a format prepare images."""

    resize: float | None
    """Short side before the crop, in sides of the crop; None: squashed."""
    interpolation: Interpolation
    mean_and_std: tuple[Triple, Triple] = (_HALVES, _HALVES)


_CUSTOMS = {
    "google": _Custom(None, "bilinear"),
    "timm": _Custom(1 / 0.9, "bicubic"),
    "torchvision": _Custom(256 / 224, "bilinear", _IMAGENET),
    "plsc": _Custom(256 / 224, "bicubic"),
    "paddlevit": _Custom(256 / 224, "bicubic"),
    "pit": _Custom(1 / 0.9, "bicubic", _IMAGENET),
    "mmpretrain": _Custom(256 / 224, "bicubic", _IMAGENET),
    "deit": _Custom(256 / 224, "bicubic", _IMAGENET),
    "clip": _Custom(1.0, "bicubic", (_CLIP_MEAN, _CLIP_STD)),
}
_CUSTOM_OF = {"deit": "deit", "dinov2": "deit", "dinov2_with_registers": "deit", "clip": "clip",
              "clip_vision_model": "clip"}  # fmt: skip
"""By transformers' `model_type`, where it is not `transformers`'."""
_OF_DEIT = ("deit", "mae_vit")  # architectures of Facebook's, in timm's names
_FINE_TUNED_FROM = 384  # pixels; PLSC and PaddleViT then squash, as Google


def _assumed(format_: str, args: Mapping[str, Any]) -> EvalSettings:
    custom, size = "pit" if "base_dims" in args else format_, args["img_size"]
    if custom in ("plsc", "paddlevit") and size >= _FINE_TUNED_FROM:
        custom = "google"
    how = _CUSTOMS.get(custom, _CUSTOMS["google"])
    mean, std = how.mean_and_std
    return EvalSettings(
        img_size=size,
        mode="squash" if how.resize is None else "center_crop",
        resize=None if how.resize is None else int(size * how.resize),
        interpolation=how.interpolation,
        mean=mean,
        std=std,
    )


def _stated(format_: str, size: int, config: Mapping[str, Any], file: Path) -> EvalSettings | None:
    """Return the settings in files; None if there are none."""
    timm = _timm_config(config)
    if timm is not None:
        return _timm(timm, size)
    if (processor := _processor(file.parent)) is not None:
        return _transformers(processor, config, size)
    return _torchvision(file, size) if format_ == "torchvision" else None


def _refused(where: str, field: str, value: object, because: str = "") -> CheckpointError:
    shown = json.dumps(value, default=str)[:80]
    return CheckpointError(
        f"{where}: `{one_line(field):.60}` is {shown}, {because or 'which is not implemented'}",
        hint=_HINT,
    )


# Any of them at the top of config.json: timm 0.4 to 0.6 kept its configuration there.
_TIMM_FIELDS = ("input_size", "crop_pct", "interpolation", "mean", "std")


def _timm_config(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    inner: Mapping[str, Any] | None = config.get("pretrained_cfg")
    if inner is not None:
        if not isinstance(inner, Mapping):
            raise _refused("config.json", "pretrained_cfg", inner, "not an object")
        return inner
    if "architecture" in config and any(key in config for key in _TIMM_FIELDS):
        return config
    return None


def _timm(config: Mapping[str, Any], size: int) -> EvalSettings:
    """Read the fields that timm's `resolve_data_config` reads, with timm's defaults."""
    where = "config.json"
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise _refused(where, "crop_mode", mode)
    field = "test_crop_pct" if _is_test_size(config, size) else "crop_pct"
    fraction = config.get(field) or config.get("crop_pct") or 0.875
    if not _is_number(fraction) or not 0 < fraction <= 1:
        raise _refused(where, field, fraction)
    return EvalSettings(
        img_size=size,
        mode="squash" if mode == "squash" else "center_crop",
        resize=_resize(size, fraction),
        interpolation=_interpolation(
            where, "interpolation", config.get("interpolation") or "bicubic"
        ),
        mean=_triple(where, "mean", config.get("mean") or _IMAGENET_MEAN),
        std=_triple(where, "std", config.get("std") or _IMAGENET_STD),
    )


def _is_test_size(config: Mapping[str, Any], size: int) -> bool:
    """Return whether *size* is the configuration's for tests, and not that of training."""
    train: list[int] = config.get("input_size") or []
    test: list[int] = config.get("test_input_size") or []
    for name, sizes in (("input_size", train), ("test_input_size", test)):
        if sizes and (len(sizes) != 3 or sizes[1] != sizes[2]):  # noqa: PLR2004 (C, H, W)
            raise _refused("config.json", name, sizes)
    return bool(test) and test[-1] == size and (not train or train[-1] != size)


class _Processor(NamedTuple):
    """Defaults of an image processor of transformers."""

    size: Mapping[str, int]
    square: bool = False
    """Whether a single number is both sides, or the short one."""
    crops: bool = False
    resample: int = 3
    mean: Triple = _HALVES
    std: Triple = _HALVES


_SQUARE = {"height": 224, "width": 224}
_SHORT = {"shortest_edge": 224}
_PROCESSORS = {
    "ViT": _Processor(_SQUARE, square=True, resample=2),
    "DeiT": _Processor({"height": 256, "width": 256}, square=True, crops=True),
    "Beit": _Processor(_SQUARE, square=True),
    "Siglip": _Processor(_SQUARE),
    "CLIP": _Processor(_SHORT, crops=True, mean=_CLIP_MEAN, std=_CLIP_STD),
    "Bit": _Processor(_SHORT, crops=True, mean=_CLIP_MEAN, std=_CLIP_STD),
    "ConvNext": _Processor({"shortest_edge": 384}),
}
_SUFFIXES = ("Pil", "Fast", "ImageProcessor", "FeatureExtractor")
_PROCESSOR_OF = {
    **dict.fromkeys(("vit", "vit_mae", "vit_msn"), "ViT"),
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), "Bit"),
    **dict.fromkeys(("clip", "clip_vision_model"), "CLIP"),
    **dict.fromkeys(("siglip", "siglip_vision_model"), "Siglip"),
    "deit": "DeiT",
    "beit": "Beit",
}
"""By `model_type`, for a file that does not name its class."""
_READ = frozenset(
    {"image_processor_type", "feature_extractor_type", "size", "default_to_square", "resample",
     "do_resize", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
     "image_mean", "image_std", "crop_pct"}
)  # fmt: skip
_WITHOUT_EFFECT = frozenset(
    {"do_convert_rgb", "processor_class", "data_format", "input_data_format", "return_tensors",
     "device", "disable_grouping", "do_reduce_labels", "reduce_labels", "num_channels",
     "image_seq_length", "do_pad", "pad_size", "segmentation_maps"}
)  # fmt: skip
_CONVNEXT_SQUASHES_FROM = 384  # pixels


def _processor(folder: Path) -> Mapping[str, Any] | None:
    """Return the configuration of the image processor in *folder*; None if there is none."""
    for name in (_PREPROCESSOR, _PROCESSOR):
        try:
            content = read_json(folder / name)
        except FileNotFoundError:
            continue
        if not isinstance(content, dict):
            raise _refused(name, "its content", content, "not an object")
        found = content if name == _PREPROCESSOR else content.get("image_processor")
        if found is not None and not isinstance(found, dict):
            raise _refused(name, "image_processor", found, "not an object")
        if found is not None:
            return found
    return None


def _transformers(found: Mapping[str, Any], config: Mapping[str, Any], size: int) -> EvalSettings:
    fields = {key: value for key, value in found.items() if value is not None}
    kind, usual = _kind_of(fields, config)
    for key, value in fields.items():
        if key == "do_pad" and value:
            raise _refused(_PREPROCESSOR, key, value)
        if key not in _READ | _WITHOUT_EFFECT and not key.startswith("_") and value:
            raise _refused(_PREPROCESSOR, key, value)
    if not fields.get("do_resize", True):
        raise _refused(_PREPROCESSOR, "do_resize", found["do_resize"])
    shape = _convnext_shape if kind == "ConvNext" else _plain_shape
    mode, resize, cropped = shape(fields, usual)
    if cropped != size:
        raise CheckpointError(
            f"{_PREPROCESSOR} prepares images of {cropped} pixels, the model takes {size}",
            hint=_HINT,
        )
    resample = fields.get("resample", usual.resample)
    mean, std = _normalisation(fields, usual)
    return EvalSettings(
        img_size=size,
        mode=mode,
        resize=None if resize == size else resize,
        interpolation=_interpolation(_PREPROCESSOR, "resample", _RESAMPLE.get(resample, resample)),
        mean=mean,
        std=std,
        margin="floor",
    )


def _kind_of(fields: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, _Processor]:
    named = fields.get("image_processor_type") or fields.get("feature_extractor_type")
    kind = str(named) if named else _PROCESSOR_OF.get(str(config.get("model_type", "vit")), "")
    for suffix in _SUFFIXES if named else ():
        kind = kind.removesuffix(suffix)
    if kind not in _PROCESSORS:
        raise _refused(_PREPROCESSOR, "image_processor_type", named)
    return kind, _PROCESSORS[kind]


_Shape = tuple[Literal["center_crop", "squash"], int, int]
"""Mode, the side before the crop, the side of the result."""


def _plain_shape(fields: Mapping[str, Any], usual: _Processor) -> _Shape:
    square = bool(fields.get("default_to_square", usual.square))
    side, is_short = _side(fields.get("size", usual.size), "size", square=square)
    if not fields.get("do_center_crop", usual.crops):
        if is_short:
            raise _refused(_PREPROCESSOR, "size", fields.get("size"), "but nothing is cropped")
        return "squash", side, side
    crop, is_short_crop = _side(fields.get("crop_size", _SQUARE), "crop_size", square=True)
    if is_short_crop or crop > side:
        raise _refused(_PREPROCESSOR, "crop_size", fields.get("crop_size"))
    return ("center_crop" if is_short else "squash"), side, crop


def _convnext_shape(fields: Mapping[str, Any], usual: _Processor) -> _Shape:
    """Read the resizing of ConvNeXT, which also crops if the image is small."""
    side, is_short = _side(fields.get("size", usual.size), "size", square=False)
    fraction = fields.get("crop_pct", 224 / 256)
    if not is_short:
        raise _refused(_PREPROCESSOR, "size", fields.get("size"))
    if fields.get("do_center_crop"):
        raise _refused(_PREPROCESSOR, "do_center_crop", fields["do_center_crop"])
    if not _is_number(fraction) or not 0 < fraction <= 1:
        raise _refused(_PREPROCESSOR, "crop_pct", fraction)
    if side >= _CONVNEXT_SQUASHES_FROM:
        return "squash", side, side
    return "center_crop", int(side / fraction), side


def _side(size: Any, name: str, *, square: bool) -> tuple[int, bool]:
    """Return the side in *size*, in any of its forms, and whether it is the short one."""
    if _is_number(size):
        size = {"height": size, "width": size} if square else {"shortest_edge": size}
    elif isinstance(size, list) and len(size) == 2:  # noqa: PLR2004 (height, width)
        size = {"height": size[0], "width": size[1]}
    if isinstance(size, Mapping):
        sides = {key: value for key, value in size.items() if value is not None}
        values = set(sides.values())
        if sides.keys() in ({"shortest_edge"}, {"height", "width"}) and len(values) == 1:
            (side,) = values
            if isinstance(side, int) and side > 0:
                return side, "shortest_edge" in sides
    raise _refused(_PREPROCESSOR, name, size)


def _normalisation(fields: Mapping[str, Any], usual: _Processor) -> tuple[Triple, Triple]:
    """Return mean and standard deviation of values in 0..1, whatever the scale of the file."""
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)
    if fields.get("do_normalize", True):
        mean = _triple(_PREPROCESSOR, "image_mean", fields.get("image_mean", usual.mean))
        std = _triple(_PREPROCESSOR, "image_std", fields.get("image_std", usual.std))
    factor = fields.get("rescale_factor", 1 / 255) if fields.get("do_rescale", True) else 1
    if not _is_number(factor) or not factor > 0:
        raise _refused(_PREPROCESSOR, "rescale_factor", factor)
    scale = 255 * factor
    if math.isclose(scale, 1, rel_tol=1e-6):
        return mean, std
    red, green, blue = (value / scale for value in mean)
    return (red, green, blue), (std[0] / scale, std[1] / scale, std[2] / scale)


class _Published(NamedTuple):
    """A file of torchvision, which has no settings inside."""

    checksum: str
    """The first digits of the SHA-256 of the file, as in its name."""
    resize: int
    interpolation: Interpolation


_TORCHVISION = {
    "vit_b_16": _Published("c867db91", 256, "bilinear"),
    "vit_b_16_swag": _Published("9ac1b537", 384, "bicubic"),
    "vit_b_16_lc_swag": _Published("4e70ced5", 224, "bicubic"),
    "vit_b_32": _Published("d86f8d99", 256, "bilinear"),
    "vit_l_16": _Published("852ce7e3", 242, "bilinear"),
    "vit_l_16_swag": _Published("4f3808c9", 512, "bicubic"),
    "vit_l_16_lc_swag": _Published("4d563306", 224, "bicubic"),
    "vit_l_32": _Published("c7638314", 256, "bilinear"),
    "vit_h_14_swag": _Published("80465313", 518, "bicubic"),
    "vit_h_14_lc_swag": _Published("c1eb923e", 224, "bicubic"),
}
"""torchvision's `ViT_*_Weights`: file name -> the settings of their `transforms`."""


def _torchvision(file: Path, size: int) -> EvalSettings | None:
    """Return the settings that torchvision publishes for *file*, if its checksum is right."""
    published = _TORCHVISION.get(file.stem.rpartition("-")[0])
    if published is None or file.stem.rpartition("-")[2] != published.checksum:
        return None
    with file.open("rb") as stream:
        checksum = hashlib.file_digest(stream, "sha256").hexdigest()
    if not checksum.startswith(published.checksum) or published.resize < size:
        return None
    return EvalSettings(
        img_size=size,
        mode="center_crop",
        resize=published.resize,
        interpolation=published.interpolation,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _interpolation(where: str, field: str, value: Any) -> Interpolation:
    if value not in get_args(Interpolation):
        raise _refused(where, field, value)
    found: Interpolation = value
    return found


def _triple(where: str, field: str, values: Any) -> Triple:
    """Return three numbers; one number counts for every colour."""
    if _is_number(values):
        values = (values,) * 3
    if not isinstance(values, list | tuple) or not all(map(_is_number, values)):
        raise _refused(where, field, values)
    if len(values) != 3 or (field.endswith("std") and min(values) <= 0):  # noqa: PLR2004
        raise _refused(where, field, values)
    red, green, blue = map(float, values)
    return red, green, blue
