"""The fields of a recipe."""

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
Multiplier = NonNegative
Percent = Annotated[Number, Field(ge=0, lt=100)]
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


def all_well(section: _S, problems: list[str]) -> _S:
    """Return *section*, or refuse it with everything that is wrong with it."""
    if problems:
        raise ValueError("\n".join(problems))
    return section


def shown(value: float | None) -> str:
    """Return *value* as a recipe would have it."""
    return "null" if value is None else f"{value:g}"


# Beta(a, a) is drawn in a way that is for a <= 1, which is all that recipes use.
_Alpha = Annotated[Number, Field(ge=0, le=1)]


class AugmentSection(Section):
    """What is done to a training crop, and to pairs of them.  Without a word of it: nothing."""

    policy: Literal[
        "rand", "rand_increasing", "rand_big_vision", "rand_miil", "auto", "auto_mmpretrain",
        "auto_paddle", "three_augment", None,
    ] = None  # fmt: skip
    """`rand`: timm's and MindCV's RandAugment; `rand_increasing`: the same with `inc1`, as DeiT;
    `rand_big_vision`: AugReg's; `rand_miil`: MIIL's; `auto`: AutoAugment's 25 pairs for ImageNet;
    `auto_mmpretrain`, `auto_paddle`: the same as MMPretrain's and PaddleViT's code does it;
    `three_augment`: DeiT III."""
    cutout: Fraction = 0.0
    """Before the policy: a square of this share of the side in one random colour, as in MIIL."""
    num_ops: PositiveInt = 2
    """RandAugment: operations on an image, one after the other; `rand_miil` has 2."""
    magnitude: NonNegative = 9.0
    """RandAugment: how strong; 10 is the end of timm's scale; `rand_miil` draws it."""
    magnitude_std: NonNegative = 0.0
    """`rand` and `rand_increasing`: standard deviation of the magnitude."""
    color_jitter: Fraction = 0.0
    """`three_augment`: most change of brightness, contrast and saturation."""
    erase_rate: Fraction = 0.0
    """How often a box of 2 % to a third of the image is erased."""
    erase_fill: Literal["pixel", "zero"] = "pixel"
    """Erase by noise in every pixel, or by the mean colour."""
    mixup_alpha: _Alpha = 0.0
    """Blend pairs of images, with shares from Beta(a, a); 0: not."""
    cutmix_alpha: _Alpha = 0.0
    """Paste a box of an image into another, of an area from Beta(a, a); 0: not."""
    mix_rate: Fraction = 1.0
    """How many of the pairs are mixed."""
    switch_rate: Fraction = 0.5
    """How many of the mixed pairs by cutmix, where there is mixup too."""

    @property
    def mixes(self) -> bool:
        """Whether pairs of images are mixed."""
        return bool(self.mixup_alpha or self.cutmix_alpha)

    @model_validator(mode="after")
    def _check_policy(self) -> Self:
        problems = []
        if self.color_jitter and self.policy != "three_augment":
            problems.append(
                f"augment.color_jitter ({self.color_jitter}) is for augment.policy `three_augment`;"
                " with other policies the recipes of others switch it off without a word"
            )
        if self.magnitude_std and self.policy not in {"rand", "rand_increasing"}:
            problems.append(
                f"augment.magnitude_std ({self.magnitude_std}) is for augment.policy `rand` and "
                "`rand_increasing`"
            )
        return all_well(self, problems)


class CurriculumSection(Section):
    """Cheaper steps at first, whole images in the end.  Without a word of it: whole images."""

    patch_drop_rate: DropRate = 0.0
    """Share of each image's patches that are skipped, others each time (PatchDropout, FLIP)."""
    img_sizes: tuple[PositiveInt, ...] = ()
    """Smaller image sizes to begin with, each for an equal part of the run before `full_tail`."""
    full_tail: Fraction = 0.2
    """Last part of the run, in which images have their full size and all their patches."""

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        problems = []
        if list(self.img_sizes) != sorted(set(self.img_sizes)):
            problems.append(f"curriculum.img_sizes ({list(self.img_sizes)}) must rise")
        return all_well(self, problems)

    def problems_at(self, img_size: int) -> list[str]:
        """Return what does not fit a model for images of *img_size*."""
        if not self.img_sizes or self.img_sizes[-1] < img_size:
            return []
        problem = (
            f"curriculum.img_sizes ({list(self.img_sizes)}) must be under model.img_size "
            f"({img_size}), with which the run ends"
        )
        return [problem]


class DataSection(Section):
    """What one step reads, and what is done to an image."""

    global_batch_size: PositiveInt
    """Images per optimizer step, over all devices."""
    device_batch_size: PositiveInt = 64
    """The most images one device takes in one forward pass; the rest is accumulated."""
    drop_last: Flag = True
    """Skip the images of an epoch that do not fill a global batch."""
    crop_scale: tuple[Positive, Positive] = (0.08, 1.0)
    """Area of a random crop as fractions of the image: least and most."""
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
    """How an image is resized for evaluation."""
    mean: tuple[Number, Number, Number] = (0.5, 0.5, 0.5)
    """Subtracted from red, green and blue in 0..1."""
    std: tuple[Positive, Positive, Positive] = (0.5, 0.5, 0.5)
    """Red, green and blue are divided by this afterwards."""
    repeats: PositiveInt = 1
    """How often an image comes in an epoch, augmented anew each time; an epoch is as long."""
    sampling: Literal["shuffle", "class_balanced"] = "shuffle"
    """`class_balanced`: every class equally often, each one's images in turn."""
    on_bad_image: Literal["fail", "skip", "replace"] = "replace"
    """An image that cannot be read or decoded: stop and name it; skip it and count it; or take
    another one, drawn from the seed, and count it, so that every batch keeps its size."""
    max_bad_rate: Fraction = 0.01
    """`skip` and `replace`: stop if more of the images are bad, counted over 1,000 or more."""

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
                f"data.crop_scale: at most the whole image, 1, got {self.crop_scale[1]}"
            )
        if self.eval_mode == "squash" and self.eval_resize is not None:
            problems.append(
                f"data.eval_resize ({self.eval_resize}) is for data.eval_mode `center_crop`; "
                "with `squash` it must be null"
            )
        return all_well(self, problems)


class DistillSection(Section):
    """Learning from the outputs of a trained model (the teacher), in addition to the labels."""

    kind: Literal["hard", "soft"] | None = None
    """What is learnt from: the teacher's best class, or all its scores; null: no teacher."""
    teacher: str | None = None
    """A run, a file of weights or an address, as for `--init`; or give `--teacher`."""
    alpha: Fraction = 0.5
    """Share of the teacher in the loss; the labels have the rest."""
    tau: Positive = 1.0
    """`soft`: what both models' scores are divided by; above 1 the small ones count more."""

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        problems = []
        if self.teacher is not None and self.kind is None:
            problems.append(
                f"distill.teacher ({self.teacher}) is not asked without distill.kind "
                "(`hard` or `soft`)"
            )
        return all_well(self, problems)


class EmaSection(Section):
    """An exponential moving average of the weights, evaluated and saved in addition to them."""

    decay: Annotated[Number, Field(gt=0, lt=1)] | None = None
    """Share of the old average that stays at each update; null: no average."""
    warmup_steps: NonNegativeInt = 0
    """Update t has the decay times 1 - exp(-t / this), as in MindCV (2000); 0: the decay alone."""

    @model_validator(mode="after")
    def _check_decay(self) -> Self:
        problems = []
        if self.warmup_steps and self.decay is None:
            problems.append(f"ema.warmup_steps ({self.warmup_steps}) needs ema.decay")
        return all_well(self, problems)


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
    init_values: Positive | None = None
    """First value of learnt factors on both branches of a block (LayerScale); null: none."""
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
    """Stochastic depth of the last block."""
    drop_path_shape: Literal["linear", "linear_exclusive", "constant"] = "linear"
    """Stochastic depth of block i of n: `linear`, from 0 to the rate, as timm; `linear_exclusive`,
    the rate times i / n, as PiT's authors; `constant`, the rate, as DeiT III."""
    head_drop_rate: DropRate = 0.0
    """Dropout of what the head reads."""
    init_scheme: Literal[
        "plsc", "google", "big_vision", "timm", "deit", "mmpretrain", "mmpretrain_mae", "mindcv",
        "mindcv_v02", "paddle",
    ] = "timm"  # fmt: skip
    """Whose rules the first weights follow (all but the head).  A PiT starts as its authors' or,
    with `paddle`, from Paddle's defaults."""
    head_init: Literal["zeros", "xavier", "normal", "torch"] = "zeros"
    """First weights of the classifier; `torch`: torch's default, for its bias too."""
    head_init_std: Positive = 0.02
    """`normal`: standard deviation of the first weights of the classifier."""
    head_bias_init: Number = 0.0
    """First bias of the classifier; with `head_init: torch`, 0 leaves torch's.  -10 keeps the first
    multi-label loss near 11."""
    freeze: Literal["backbone"] | None = None
    """`backbone`: train the head alone (a linear probe); null: train everything."""
    pos_embed_resize: Literal["bicubic", "bilinear_align_corners"] = "bicubic"
    """How `--init` fits a position embedding to another grid: PLSC's way, or Google's."""


class LossSection(Section):
    """What is minimised."""

    kind: Literal["sigmoid", "softmax", "semantic_softmax"]
    """`sigmoid`: multi-label, every class for itself; `softmax`: one class per image;
    `semantic_softmax`: one class at each level of the classes' tree (ImageNet-21K-P)."""
    tree: str | None = None
    """`semantic_softmax`: file of `vit21k labels tree`; null: WordNet's tree of the class list."""
    smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Label smoothing e: a target y becomes y (1 - e) + `smoothing_floor`."""
    smoothing_floor: Literal["e", "e/K"] | None = None
    """What all targets are raised by: `e`, as in PLSC, or `e/K` for K classes, as in timm,
    MindCV and torch; null: `e` with `sigmoid`, `e/K` with `softmax`."""
    class_reduction: Literal["sum", "mean"] = "sum"
    """`sigmoid`: the sum over classes (PLSC, Google), or their mean (DeiT, torch's default)."""
    mixed_labels: Literal["weighted", "whole"] = "weighted"
    """Labels of mixed images count by their share, or wholly, as in DeiT III (`gt(0)`)."""

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        problems = []
        if self.tree is not None and self.kind != "semantic_softmax":
            problems.append(f"loss.tree ({self.tree}) is for loss.kind `semantic_softmax`")
        if self.kind != "sigmoid":
            if self.smoothing_floor == "e":
                problems.append("loss.smoothing_floor `e` is for loss.kind `sigmoid`")
            if self.class_reduction == "mean":
                problems.append("loss.class_reduction `mean` is for loss.kind `sigmoid`")
            if self.mixed_labels == "whole":
                problems.append("loss.mixed_labels `whole` is for loss.kind `sigmoid`")
        return all_well(self, problems)


class OptimSection(Section):
    """How weights are updated."""

    kind: Literal["adamw", "sgd", "lamb", "muon"]
    """`muon`: Muon on the blocks' matrices, AdamW on everything else."""
    lr: Positive
    """Peak learning rate."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """AdamW and LAMB: decay of the first and the second moment."""
    eps: Positive = 1e-8
    """AdamW and LAMB: added to the root of the second moment."""
    momentum: Beta = 0.9
    """SGD and Muon: decay of the momentum."""
    momentum_dtype: Literal["fp32", "bf16"] = "fp32"
    """AdamW and SGD: what the first moment is kept in; Google keeps it in bfloat16."""
    weight_decay: NonNegative = 0.0
    """AdamW, LAMB and Muon: decoupled, times the learning rate; SGD: added to the gradient."""
    decay_params: Literal["all", "not_1d", "kernels", "none"] = "kernels"
    """What decays: every parameter; all but those of one dimension (norms, biases), so position
    embedding and class token do, as in MIIL and MindCV; matrices and convolutions only; nothing."""
    decay_multipliers: dict[str, Multiplier] = Field(default={})
    """Factors on the decay of parameters, by name or pattern: `{cls_token: 0, pos_embed: 0}`.
    The first that matches counts."""
    lr_multipliers: dict[str, Multiplier] = Field(default={})
    """Factors on the learning rate of parameters, by name or pattern: `{head.*: 10}`.
    The first that matches counts."""
    layer_decay: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """Factor on the learning rate from one block to the one below it, as BEiT and MMPretrain have
    it: the head's is 1, the last block's this, the embeddings' is the least."""
    grad_clip_norm: Positive | None = None
    """Global L2 norm the gradient is clipped to; null: not at all."""
    muon_lr: Positive | None = None
    """Muon: peak learning rate of the matrices it updates; null: `lr`."""

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        problems = []
        if self.muon_lr is not None and self.kind != "muon":
            problems.append(f"optim.muon_lr ({self.muon_lr}) is for optim.kind `muon`")
        if self.momentum_dtype == "bf16" and self.kind not in ("adamw", "sgd"):
            problems.append("optim.momentum_dtype `bf16` is for optim.kind `adamw` or `sgd`")
        return all_well(self, problems)


class ScheduleSection(Section):
    """Learning rate over the run: up to the peak in the warm-up, then down."""

    decay: Literal["linear", "cosine", "rsqrt", "step"] = "cosine"
    """Shape of the way down after the warm-up."""
    end_lr: NonNegative = 0.0
    """`linear`, `cosine`: learning rate at which the decay ends."""
    decay_epochs: Positive | None = None
    """`linear`, `cosine`: the decay ends after so many epochs of the run, and `end_lr` stays;
    null: with the run."""
    decay_from: Literal["warmup", "start"] = "warmup"
    """`linear`, `cosine`: the decay is counted from the end of the warm-up, or from the start of
    the run, as DeiT and timm do, so that the peak is never quite reached."""
    rsqrt_timescale_steps: PositiveInt = 10_000
    """`rsqrt`: after so many steps of decay the learning rate is the peak by the root of 2."""
    step_percents: tuple[Percent, ...] = ()
    """`step`: where the learning rate drops, in percent of the run, ascending."""
    step_factor: Multiplier = 0.1
    """`step`: the factor of each drop."""
    warmup_steps: NonNegativeInt = 0
    """Length of the warm-up in optimizer steps; or give one of the next three."""
    warmup_epochs: Positive | None = None
    """Length of the warm-up in passes over the training images."""
    warmup_images: PositiveInt | None = None
    """Length of the warm-up in training images."""
    warmup_percent: Percent | None = None
    """Length of the warm-up in percent of the run."""
    warmup_start_lr: NonNegative = 0.0
    """Learning rate of the first step; 0, as in PLSC and Google: it changes nothing."""
    warmup_shape: Literal["linear", "cosine"] = "linear"
    """Shape of the way up; `cosine` as in torch's OneCycleLR."""
    cooldown_steps: NonNegativeInt = 0
    """The learning rate goes to 0 along a line in so many last steps; or give the next one."""
    cooldown_percent: Percent | None = None
    """The same, in percent of the run."""
    lr_changes: Literal["every_step", "every_epoch", "every_epoch_after_warmup"] = "every_step"
    """When the learning rate changes: DeiT and timm set it once an epoch, some recipes of
    MMPretrain once an epoch after a warm-up by the step."""
    first_epoch: Annotated[Integer, Field(ge=-1)] = 0
    """`every_epoch`: the number of the first epoch in the schedule; PaddleViT counts from 1, and
    with -1 the first two epochs share the first value, as in DeiT's loop, which sets the learning
    rate after each epoch."""

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        return all_well(self, [*self._wrong_lengths(), *self._wrong_decay()])

    def _wrong_lengths(self) -> list[str]:
        problems = []
        lengths = {
            "warmup_steps": self.warmup_steps or None,
            "warmup_epochs": self.warmup_epochs,
            "warmup_images": self.warmup_images,
            "warmup_percent": self.warmup_percent,
        }
        if len(given := [name for name, value in lengths.items() if value is not None]) > 1:
            problems.append(f"give one of schedule.{' and schedule.'.join(given)}")
        if self.cooldown_steps and self.cooldown_percent is not None:
            problems.append("give one of schedule.cooldown_steps and schedule.cooldown_percent")
        if self.first_epoch and self.lr_changes != "every_epoch":
            problems.append("schedule.first_epoch is for schedule.lr_changes `every_epoch`")
        return problems

    def _wrong_decay(self) -> list[str]:
        problems = []
        has_end = self.end_lr or self.decay_epochs is not None or self.decay_from != "warmup"
        if has_end and self.decay not in ("linear", "cosine"):
            problems.append(
                f"schedule.end_lr ({shown(self.end_lr)}), schedule.decay_epochs and "
                f"schedule.decay_from are for schedule.decay `linear` or `cosine`"
            )
        if bool(self.step_percents) != (self.decay == "step"):
            problems.append("schedule.step_percents is for schedule.decay `step`, which needs it")
        if list(self.step_percents) != sorted(self.step_percents):
            problems.append("schedule.step_percents must be ascending")
        return problems


class ParallelSection(Section):
    """What each of several processes holds."""

    kind: Literal["ddp", "fsdp"] = "ddp"
    """`ddp`: all weights; `fsdp`: a part of weights, gradients and moments (FSDP2)."""


class RunSection(Section):
    """How often the rest is done.  0: after the last step only."""

    log_every_steps: NonNegativeInt = 10
    """Optimizer steps between two lines of the log."""
    eval_every_steps: NonNegativeInt = 0
    """Optimizer steps between two evaluations."""
    save_every_steps: NonNegativeInt = 1000
    """Optimizer steps between two checkpoints."""
    keep_last: PositiveInt = 2
    """Checkpoints kept in addition to the best ones; two at least before the last step."""
    best_metric: Literal["prec@1", "top5", "loss"] | None = None
    """Keep the best checkpoint by this metric, and the best average (EMA); null: neither."""


class StepSection(Section):
    """How a step is computed.  Nothing here changes what is learnt, but for rounding."""

    compile: Literal["auto", "none", "blocks"] = "auto"
    """`blocks`: torch.compile each block; `auto`: on a GPU, if that is measured to be faster."""
    attention: Literal["auto", "flash", "cudnn", "efficient", "math"] = "auto"
    """Which implementation; `auto`: the fastest in a short trial, where attention takes long."""
    recompute: Literal["none", "cheap"] = "none"
    """`cheap`: save memory by computing norms, GELU and dropout again in the backward pass."""
    float8: Literal["none", "mlp"] = "none"
    """`mlp`: matrix products of the MLPs in 8-bit floats; GPUs since Ada and Hopper, torchao."""


class Recipe(Section):
    """One training run."""

    stage: Literal["pretrain", "finetune"]
    """`pretrain`: weights from scratch; `finetune`: weights from another run, with a new head."""
    source: str = ""
    """Where the numbers come from."""
    commit: str = ""
    """Repositories and commits that the numbers were read at, or why there are none."""
    epochs: Positive | None = None
    """Length of the run in passes over the training images; or give `total_steps`."""
    total_steps: PositiveInt | None = None
    """Length of the run in optimizer steps; or give `epochs`."""
    seed: Annotated[NonNegativeInt, Field(lt=2**63)] = 0
    """Seeds the first weights, the order of the images, and augmentation."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """`bf16`: matrix products in bfloat16 (autocast), weights and optimizer stay float32; `fp16`:
    in float16, with a scaled loss, for GPUs without bfloat16; `auto`: `bf16` if the device has
    instructions for it, else `fp32`; a resumed run keeps what it began with."""
    model: ModelSection
    data: DataSection
    augment: AugmentSection = AugmentSection()
    curriculum: CurriculumSection = CurriculumSection()
    loss: LossSection
    distill: DistillSection = DistillSection()
    optim: OptimSection
    schedule: ScheduleSection = ScheduleSection()
    ema: EmaSection = EmaSection()
    parallel: ParallelSection = ParallelSection()
    step: StepSection = StepSection()
    run: RunSection = RunSection()

    @property
    def products_in(self) -> Literal["fp32", "bf16", "fp16"]:
        """The precision, once it is known what `auto` means on the device."""
        if self.precision == "auto":
            raise ValueError("precision: auto is not resolved")
        return self.precision

    @model_validator(mode="after")
    def _check_across_sections(self) -> Self:
        return all_well(self, [*self._wrong_schedule(), *self._wrong_parts()])

    def _wrong_schedule(self) -> list[str]:
        problems = []
        if (self.epochs is None) == (self.total_steps is None):
            problems.append(
                f"exactly one of epochs ({shown(self.epochs)}) and "
                f"total_steps ({shown(self.total_steps)}) must be given"
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
        if self.schedule.warmup_start_lr > self.optim.lr:
            problems.append(
                f"schedule.warmup_start_lr ({self.schedule.warmup_start_lr}) must not be over "
                f"optim.lr ({self.optim.lr})"
            )
        return problems

    def _wrong_parts(self) -> list[str]:
        problems = self.curriculum.problems_at(self.model.img_size)
        if self.parallel.kind == "fsdp" and self.optim.kind in ("muon", "lamb"):
            problems.append(
                f"parallel.kind fsdp is not for optim.kind `{self.optim.kind}`, which needs whole "
                f"matrices; use ddp"
            )
        if self.distill.kind is not None and self.loss.kind != "softmax":
            problems.append(
                f"distill.kind ({self.distill.kind}) is for loss.kind `softmax`, not "
                f"`{self.loss.kind}`"
            )
        if self.data.eval_resize is not None and self.data.eval_resize < self.model.img_size:
            problems.append(
                f"data.eval_resize ({self.data.eval_resize}) must not be under "
                f"model.img_size ({self.model.img_size})"
            )
        if self.augment.mixes and self.data.global_batch_size % 2:
            problems.append(
                f"data.global_batch_size ({self.data.global_batch_size}) must be even: "
                "augment.mixup_alpha and augment.cutmix_alpha mix pairs of images"
            )
        return problems
