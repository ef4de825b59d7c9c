"""The fields of a recipe.

Rules: a field is a number or a word, never code; a unit is part of its name; nothing is computed
here, derived values belong to what uses them.  The docstring under a field is its documentation in
`vit21k recipes fields`.  A field without a default must be in every recipe.
"""

from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

# Strict: `on`, `yes` and quoted numbers are not numbers.
Integer = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Flag = Annotated[bool, Strict()]
PositiveInt = Annotated[Integer, Field(gt=0)]
NonNegativeInt = Annotated[Integer, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
DropRate = Annotated[Number, Field(ge=0, lt=1)]
Beta = Annotated[Number, Field(ge=0, lt=1)]
Interpolation = Literal["bicubic", "bilinear"]


class Section(BaseModel):
    """Base of every section: frozen, and a misspelt key is an error, not a silent default."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


_S = TypeVar("_S", bound=Section)


class ModelSection(Section):
    """Which network, and how its weights begin."""

    name: str
    """Architecture by timm's name, as `vit21k models` lists them: `vit_large_patch16_224`."""
    img_size: PositiveInt
    """Side of the square input, in pixels."""
    patch_size: PositiveInt | None = None
    """Side of a patch, in pixels; null: what the name says."""
    embed_dim: PositiveInt | None = None
    """Width of a token; null: what the name says."""
    depth: PositiveInt | None = None
    """Number of blocks; null: what the name says."""
    num_heads: PositiveInt | None = None
    """Attention heads of a block; null: what the name says."""
    global_pool: Literal["token", "avg"] = "token"
    """What the head reads: the class token, or the mean of the patch tokens."""
    class_token: Flag | None = None
    """Whether there is a class token; null: there is."""
    fc_norm: Flag | None = None
    """Normalise after the pooling, not before it; null: with `avg`, as timm, not as Google."""
    mlp_ratio: Positive | None = None
    """Width of the MLP's hidden layer, in widths of a token; null: what the name says."""
    qkv_bias: Flag | None = None
    """Whether queries, keys and values have a bias; null: they have."""
    norm_eps: Positive | None = None
    """Added to the variance in layer norms; null: 1e-6.  transformers' weights need 1e-12."""
    representation_size: PositiveInt | None = None
    """Width of a tanh layer before the head (pre-logits); null: none."""
    act_layer: Literal["gelu", "gelu_tanh"] = "gelu"
    """Exact GELU, or its tanh approximation (Google's weights)."""
    pos_drop_rate: DropRate = 0.0
    """Dropout after the position embedding is added."""
    proj_drop_rate: DropRate = 0.0
    """Dropout after the attention's output and after both layers of the MLP."""
    attn_drop_rate: DropRate = 0.0
    """Dropout on the attention weights."""
    drop_path_rate: DropRate = 0.0
    """Stochastic depth of the last block; earlier blocks scale linearly."""
    init_scheme: Literal["plsc", "google", "timm"] = "timm"
    """Whose rules the first weights follow (all but the head)."""
    head_init: Literal["zeros", "xavier"] = "zeros"
    """First weights of the classifier."""
    head_bias_init: Number = 0.0
    """First bias of the classifier.  -10 keeps the first multi-label loss near 11."""
    pos_embed_resize: Literal["bicubic", "bilinear_align_corners"] = "bicubic"
    """How `--init` fits a position embedding to another grid: PLSC's way, or Google's."""


class DataSection(Section):
    """What one step reads, and what is done to a picture."""

    global_batch_size: PositiveInt
    """Images per optimizer step, over all devices."""
    device_batch_size: PositiveInt = 64
    """The most images one device takes in one forward pass; the rest is accumulated."""
    drop_last: Flag = True
    """Leave out the images of an epoch that do not fill a global batch."""
    crop_scale: tuple[Positive, Positive] = (0.08, 1.0)
    """Area of a random crop as fractions of the picture: least and most."""
    crop_ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    """Width by height of a random crop: least and most."""
    interpolation: Interpolation = "bicubic"
    """How a training crop is resized."""
    hflip_rate: Fraction = 0.5
    """How often a training crop is mirrored."""
    eval_resize: PositiveInt | None = None
    """`center_crop` only: the short side before the crop, in pixels; null: `model.img_size`."""
    eval_mode: Literal["center_crop", "squash"] = "center_crop"
    """Resize the short side and crop the middle, or resize to a square whatever the shape."""
    eval_interpolation: Interpolation = "bicubic"
    """How a picture is resized for evaluation."""
    mean: tuple[Number, Number, Number] = (0.5, 0.5, 0.5)
    """Subtracted from red, green and blue in 0..1."""
    std: tuple[Positive, Positive, Positive] = (0.5, 0.5, 0.5)
    """Red, green and blue are divided by this afterwards."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """A picture that cannot be decoded: stop and name it, or leave it out and count it."""

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        problems = [
            f"data.{name}: the least ({low}) must not be over the most ({high})"
            for name, (low, high) in (
                ("crop_scale", self.crop_scale),
                ("crop_ratio", self.crop_ratio),
            )
            if low > high
        ]
        if self.crop_scale[1] > 1:
            problems.append(
                f"data.crop_scale: at most the whole picture, 1, got {self.crop_scale[1]}"
            )
        if self.eval_mode == "squash" and self.eval_resize is not None:
            problems.append(
                f"data.eval_resize ({self.eval_resize}) is for data.eval_mode `center_crop`; "
                "with `squash` it must be null"
            )
        return _all_well(self, problems)


class LossSection(Section):
    """What is minimised."""

    kind: Literal["sigmoid", "softmax"]
    """`sigmoid`: multi-label, summed over classes; `softmax`: one class per image."""
    smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Label smoothing e; sigmoid: targets become y (1 - e) + e, as in PLSC."""


class OptimSection(Section):
    """How weights are updated."""

    kind: Literal["adamw", "sgd", "muon"]
    """`muon`: Muon on the blocks' matrices, AdamW on everything else."""
    lr: Positive
    """Peak learning rate."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """AdamW: decay of the first and the second moment."""
    eps: Positive = 1e-8
    """AdamW: added to the root of the second moment."""
    momentum: Beta = 0.9
    """SGD and Muon: decay of the momentum."""
    weight_decay: NonNegative = 0.0
    """AdamW and Muon: decoupled, times the learning rate; SGD: added to the gradient."""
    decay_params: Literal["all", "kernels", "none"] = "kernels"
    """What decays: every parameter, matrices and convolutions only, or nothing."""
    grad_clip_norm: Positive | None = None
    """Global L2 norm the gradient is clipped to; null: not at all."""
    muon_lr: Positive | None = None
    """Muon: peak learning rate of the matrices it updates; null: `lr`."""

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        problems = []
        if self.muon_lr is not None and self.kind != "muon":
            problems.append(f"optim.muon_lr ({self.muon_lr}) is for optim.kind `muon`")
        return _all_well(self, problems)


class ScheduleSection(Section):
    """Learning rate over the run."""

    decay: Literal["linear", "cosine"] = "cosine"
    """Shape of the way down after the warm-up."""
    warmup_steps: NonNegativeInt = 0
    """Optimizer steps of linear warm-up; the first one has learning rate 0, as in PLSC."""
    end_lr: NonNegative = 0.0
    """Learning rate at which the decay ends."""


class RunSection(Section):
    """How often the rest is done.  0: after the last step only."""

    log_every_steps: NonNegativeInt = 10
    """Optimizer steps between two lines of the log."""
    eval_every_steps: NonNegativeInt = 0
    """Optimizer steps between two evaluations."""
    save_every_steps: NonNegativeInt = 1000
    """Optimizer steps between two checkpoints."""
    keep_last: PositiveInt = 2
    """How many checkpoints are kept."""


class Recipe(Section):
    """One training run."""

    stage: Literal["pretrain", "finetune"]
    """`pretrain`: weights from scratch; `finetune`: weights from another run, with a new head."""
    source: str = ""
    """Where the numbers come from."""
    epochs: Positive | None = None
    """Length of the run in passes over the training images; or give `total_steps`."""
    total_steps: PositiveInt | None = None
    """Length of the run in optimizer steps; or give `epochs`."""
    seed: NonNegativeInt = 0
    """Seeds the first weights, the order of the images, and augmentation."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: matrix products in bfloat16 (autocast); weights and optimizer stay float32."""
    model: ModelSection
    data: DataSection
    loss: LossSection
    optim: OptimSection
    schedule: ScheduleSection = ScheduleSection()
    run: RunSection = RunSection()

    @model_validator(mode="after")
    def _check_across_sections(self) -> Self:
        problems = []
        if (self.epochs is None) == (self.total_steps is None):
            problems.append(
                f"exactly one of epochs ({_shown(self.epochs)}) and "
                f"total_steps ({_shown(self.total_steps)}) must be given"
            )
        if self.total_steps is not None and self.schedule.warmup_steps >= self.total_steps:
            problems.append(
                f"schedule.warmup_steps ({self.schedule.warmup_steps}) must be less than "
                f"total_steps ({self.total_steps})"
            )
        if self.schedule.end_lr > self.optim.lr:
            problems.append(
                f"schedule.end_lr ({self.schedule.end_lr}) must not be over "
                f"optim.lr ({self.optim.lr})"
            )
        if self.data.eval_resize is not None and self.data.eval_resize < self.model.img_size:
            problems.append(
                f"data.eval_resize ({self.data.eval_resize}) must not be under "
                f"model.img_size ({self.model.img_size})"
            )
        return _all_well(self, problems)


def _all_well(section: _S, problems: list[str]) -> _S:
    if problems:
        raise ValueError("\n".join(problems))
    return section


def _shown(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"
