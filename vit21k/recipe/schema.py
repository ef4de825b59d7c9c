"""The fields of a recipe."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

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
    """Base of every section: frozen; an unknown field is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


# The sampler of Beta(a, a) is for a <= 1; no recipe uses more.
_Alpha = Annotated[Number, Field(ge=0, le=1)]


class AugmentSection(Section):
    """Augmentation of training crops, and mixing of pairs of them; by default there is none."""

    policy: Literal[
        "rand", "rand_increasing", "rand_big_vision", "rand_miil", "auto", "auto_mmpretrain",
        "auto_paddle", "three_augment", None,
    ] = None  # fmt: skip
    """`rand`: timm's and MindCV's RandAugment; `rand_increasing`: the same with `inc1`, as DeiT;
    `rand_big_vision`: AugReg's; `rand_miil`: MIIL's; `auto`: AutoAugment's 25 pairs for ImageNet;
    `auto_mmpretrain`, `auto_paddle`: the same as in MMPretrain's and PaddleViT's code;
    `three_augment`: DeiT III."""
    cutout: Fraction = 0.0
    """Before the policy: a square of this share of the side in one random colour, as in MIIL."""
    num_ops: PositiveInt = 2
    """RandAugment: operations per image; `rand_miil` has 2."""
    magnitude: NonNegative = 9.0
    """RandAugment: strength; 10 is the end of timm's scale; random in `rand_miil`."""
    magnitude_std: NonNegative = 0.0
    """`rand` and `rand_increasing`: standard deviation of the magnitude."""
    color_jitter: Fraction = 0.0
    """`three_augment`: maximum change of brightness, contrast and saturation."""
    erase_rate: Fraction = 0.0
    """Rate of images of which a box of 2 % to a third of the area is erased."""
    erase_fill: Literal["pixel", "zero"] = "pixel"
    """Fill the box with noise per pixel, or with the mean colour."""
    mixup_alpha: _Alpha = 0.0
    """Blend pairs of images, with weights from Beta(a, a); 0: no mixup."""
    cutmix_alpha: _Alpha = 0.0
    """Paste a box of an image into another, with an area from Beta(a, a); 0: no cutmix."""
    mix_rate: Fraction = 1.0
    """Rate of pairs that are mixed."""
    switch_rate: Fraction = 0.5
    """Rate of mixed pairs that use cutmix, if there is mixup too."""

    @property
    def mixes(self) -> bool:
        """Whether pairs of images are mixed."""
        return bool(self.mixup_alpha or self.cutmix_alpha)


class CurriculumSection(Section):
    """Cheaper steps first, complete images at the end; by default always complete images."""

    patch_drop_rate: DropRate = 0.0
    """Share of the patches of an image that are dropped at random (PatchDropout, FLIP)."""
    img_sizes: tuple[PositiveInt, ...] = ()
    """Smaller image sizes, ascending, each for an equal part of the run before `full_tail`."""
    full_tail: Fraction = 0.2
    """Last part of the run, with images of full size and all patches."""


class DataSection(Section):
    """Batches, crops and normalisation of images."""

    global_batch_size: PositiveInt
    """Images per optimizer step, over all devices."""
    device_batch_size: PositiveInt = 64
    """Maximum images in one forward pass of a device; gradients are accumulated."""
    drop_last: Flag = True
    """Skip the images of an epoch that do not fill a global batch."""
    crop: Literal["random_resized", "simple"] = "random_resized"
    """Of training: a random part of the image, resized; or the image with its short side resized to
    the model's, edges reflected by 4 pixels, and cropped at random (DeiT III on ImageNet-21K)."""
    crop_scale: tuple[Positive, Positive] = (0.08, 1.0)
    """Area of a random crop as a fraction of the image: minimum and maximum."""
    crop_ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    """Aspect ratio of a random crop, width by height: minimum and maximum."""
    interpolation: Interpolation = "bicubic"
    """Interpolation of training crops."""
    hflip_rate: Fraction = 0.5
    """Rate of training crops that are mirrored."""
    eval_resize: PositiveInt | None = None
    """`center_crop` only: the short side before the crop, in pixels; null: `model.img_size`."""
    eval_mode: Literal["center_crop", "squash"] = "center_crop"
    """Resize the short side and crop the centre, or resize to a square without a crop."""
    eval_interpolation: Interpolation = "bicubic"
    """Interpolation of images in evaluation."""
    mean: tuple[Number, Number, Number] = (0.5, 0.5, 0.5)
    """Subtracted from red, green and blue in 0..1."""
    std: tuple[Positive, Positive, Positive] = (0.5, 0.5, 0.5)
    """Red, green and blue are divided by this afterwards."""
    repeats: PositiveInt = 1
    """Repeated augmentation: occurrences of an image in an epoch, whose length stays the same."""
    sampling: Literal["shuffle", "class_balanced"] = "shuffle"
    """`class_balanced`: every class has the same rate; its images take turns."""
    on_bad_image: Literal["fail", "skip", "replace"] = "replace"
    """An image that cannot be read or decoded: `fail` stops the run; `skip` skips and counts it;
    `replace` uses another image, chosen by the seed, and counts it, so that batches keep their
    size."""
    max_bad_rate: Fraction = 0.01
    """`skip` and `replace`: stop if more of the images are bad, counted over 1,000 or more."""


class DistillSection(Section):
    """Distillation: learning from the logits of a trained model."""

    kind: Literal["hard", "soft"] | None = None
    """Target: the teacher's best class, or its probabilities; null: no distillation."""
    teacher: str | None = None
    """A run, a file of weights or an address, as for `--init`; or give `--teacher`."""
    alpha: Fraction = 0.5
    """Share of the teacher in the loss; the labels have the rest."""
    tau: Positive = 1.0
    """`soft`: temperature, by which the logits of both models are divided."""


class EmaSection(Section):
    """An exponential moving average of the weights, which is also evaluated and saved."""

    decay: Annotated[Number, Field(gt=0, lt=1)] | None = None
    """Weight of the old average in each update; null: no average."""
    warmup_steps: NonNegativeInt = 0
    """Update t has the decay times 1 - exp(-t / this), as in MindCV (2000); 0: the decay alone."""


class ModelSection(Section):
    """Architecture and first weights."""

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
    global_pool: Literal["token", "avg", "map", "token_avg"] = "token"
    """What the head reads: `token`, the class token; `avg`, the mean of the patch tokens; `map`,
    attention of a learnt query to them (arXiv:2106.04560); `token_avg`, the first two side by side
    (DINOv2's linear classifier)."""
    class_token: Flag | None = None
    """Whether there is a class token; null: there is."""
    reg_tokens: NonNegativeInt | None = None
    """Number of register tokens (arXiv:2309.16588); null: none."""
    no_embed_class: Flag | None = None
    """Whether only patches have a position, as in DeiT III (arXiv:2204.07118); null: all tokens."""
    distilled: Flag | None = None
    """Whether there is a distillation token with a head of its own (arXiv:2012.12877); null: what
    the name says."""
    pre_norm: Flag | None = None
    """Normalise the tokens before the first block, as CLIP (arXiv:2103.00020); null: no."""
    fc_norm: Flag | None = None
    """Norm after the pooling, not before it; null: with `avg`, as in timm (not in Google's)."""
    mlp_ratio: Positive | None = None
    """Width of the MLP's hidden layer, in widths of a token; null: what the name says."""
    qkv_bias: Flag | None = None
    """Whether queries, keys and values have a bias; null: they have."""
    norm_eps: Positive | None = None
    """Added to the variance in layer norms; null: 1e-6.  transformers' weights need 1e-12."""
    init_values: Positive | None = None
    """LayerScale: first value of the factors on both branches of a block; null: none."""
    representation_size: PositiveInt | None = None
    """Width of a tanh layer before the head (pre-logits); null: none."""
    pos_embed: Literal["learn", "none"] | None = None
    """`none`: no positions are added to the tokens, as with rotary ones; null: `learn`."""
    rope: Literal["none", "axial", "dinov3"] | None = None
    """Rotary positions of the patches over rows and columns: `axial` (arXiv:2403.13298), `dinov3`
    (arXiv:2508.10104); null: `none`."""
    rope_temperature: Positive | None = None
    """The longest period of the rotations, roughly; null: 100, as in both papers."""
    qk_norm: Flag | None = None
    """Normalise queries and keys, each head by itself (ViT-22B, arXiv:2302.05442); null: no."""
    mlp_layer: Literal["mlp", "swiglu"] | None = None
    """`swiglu`: an MLP with a gate, which is half of `mlp_ratio` (arXiv:2002.05202); null: `mlp`,
    without a gate."""
    norm_layer: Literal["layernorm", "rmsnorm"] | None = None
    """`rmsnorm`: without mean and bias (arXiv:1910.07467); null: `layernorm`."""
    act_layer: Literal["gelu", "gelu_tanh", "quick_gelu"] = "gelu"
    """Exact GELU, its tanh approximation (Google's weights), or OpenAI CLIP's."""
    pos_drop_rate: DropRate = 0.0
    """Dropout after the position embedding is added."""
    proj_drop_rate: DropRate = 0.0
    """Dropout after the output of attention and after both layers of the MLP."""
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
    """Initialisation of all weights but the head.  For a PiT: its authors' or, with `paddle`,
    Paddle's defaults."""
    head_init: Literal["zeros", "xavier", "normal", "torch"] = "zeros"
    """First weights of the classifier; `torch`: torch's default, for its bias too."""
    head_init_std: Positive = 0.02
    """`normal`: standard deviation of the first weights of the classifier."""
    head_bias_init: Number = 0.0
    """First bias of the classifier; with `head_init: torch`, 0 means torch's default.  With -10 the
    first multi-label loss is about 11."""
    freeze: Literal["backbone"] | None = None
    """`backbone`: train only the head (a linear probe); null: train everything."""
    pos_embed_resize: Literal["bicubic", "bilinear_align_corners"] = "bicubic"
    """How `--init` resizes the position embedding: as in PLSC, or as in Google's code."""


class LossSection(Section):
    """The loss."""

    kind: Literal["sigmoid", "softmax", "semantic_softmax"]
    """`sigmoid`: multi-label; `softmax`: one class per image; `semantic_softmax`: one class at each
    level of the class hierarchy (ImageNet-21K-P)."""
    tree: str | None = None
    """`semantic_softmax`: file of `vit21k labels tree`; null: WordNet's tree of the class list."""
    smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Label smoothing e: a target y becomes y (1 - e) + `smoothing_floor`."""
    smoothing_floor: Literal["e", "e/K"] | None = None
    """Added to all targets: `e`, as in PLSC, or `e/K` for K classes, as in timm, MindCV and torch;
    null: `e` with `sigmoid`, `e/K` with `softmax`."""
    class_reduction: Literal["sum", "mean"] = "sum"
    """`sigmoid`: sum over classes (PLSC, Google), or mean (DeiT, torch's default)."""
    mixed_labels: Literal["weighted", "whole"] = "weighted"
    """Targets of mixed images: weighted by their share, or 1, as in DeiT III (`gt(0)`)."""


class OptimSection(Section):
    """The optimizer."""

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
    """AdamW and SGD: type of the stored first moment; bfloat16 in Google's code."""
    weight_decay: NonNegative = 0.0
    """AdamW, LAMB and Muon: decoupled, times the learning rate; SGD: added to the gradient."""
    decay_params: Literal["all", "not_1d", "kernels", "none"] = "kernels"
    """Parameters that decay: all; all but those of one dimension (norms, biases), as in MIIL and
    MindCV: position embedding and class token decay; matrices and convolutions; none."""
    decay_multipliers: dict[str, Multiplier] = Field(default={})
    """Factors on the decay of parameters, by name or pattern: `{cls_token: 0, pos_embed: 0}`.
    The first match counts."""
    lr_multipliers: dict[str, Multiplier] = Field(default={})
    """Factors on the learning rate of parameters, by name or pattern: `{head.*: 10}`.
    The first match counts."""
    layer_decay: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """Factor on the learning rate from one layer to the one before it, as in BEiT and MMPretrain:
    the head has factor 1, the last block this one, the embeddings the smallest."""
    grad_clip_norm: Positive | None = None
    """Maximum global L2 norm of the gradient; null: no clipping."""
    muon_lr: Positive | None = None
    """Muon: peak learning rate of the matrices it updates; null: `lr`."""


class ScheduleSection(Section):
    """Learning-rate schedule: a warm-up to the peak, then decay."""

    decay: Literal["linear", "cosine", "rsqrt", "step"] = "cosine"
    """Shape of the decay."""
    end_lr: NonNegative = 0.0
    """`linear`, `cosine`: learning rate at which the decay ends."""
    decay_epochs: Positive | None = None
    """`linear`, `cosine`: epoch at which the decay ends; then the learning rate is `end_lr`;
    null: the end of the run."""
    decay_from: Literal["warmup", "start"] = "warmup"
    """`linear`, `cosine`: the decay starts at the end of the warm-up, or at the start of the run,
    as in DeiT and timm, where the peak is not quite reached."""
    rsqrt_timescale_steps: PositiveInt = 10_000
    """`rsqrt`: steps of decay until the learning rate is the peak divided by the root of 2."""
    step_percents: tuple[Percent, ...] = ()
    """`step`: points at which the learning rate drops, in percent of the run, ascending."""
    step_factor: Multiplier = 0.1
    """`step`: the factor of each drop."""
    warmup_steps: NonNegativeInt = 0
    """Length of the warm-up in optimizer steps; alternative to the next three."""
    warmup_epochs: Positive | None = None
    """Length of the warm-up in passes over the training images."""
    warmup_images: PositiveInt | None = None
    """Length of the warm-up in training images."""
    warmup_percent: Percent | None = None
    """Length of the warm-up in percent of the run."""
    warmup_start_lr: NonNegative = 0.0
    """Learning rate of the first step; with 0, as in PLSC and Google, it changes nothing."""
    warmup_shape: Literal["linear", "cosine"] = "linear"
    """Shape of the warm-up; `cosine` as in torch's OneCycleLR."""
    cooldown_steps: NonNegativeInt = 0
    """Number of last steps, in which the learning rate decreases linearly to 0."""
    cooldown_percent: Percent | None = None
    """The same in percent of the run."""
    lr_changes: Literal["every_step", "every_epoch", "every_epoch_after_warmup"] = "every_step"
    """When the learning rate changes: once per epoch in DeiT and timm, once per epoch after the
    warm-up in some recipes of MMPretrain."""
    first_epoch: Annotated[Integer, Field(ge=-1)] = 0
    """`every_epoch`: number of the first epoch in the schedule: 1 in PaddleViT; with -1 the first
    two epochs have the same value, as in DeiT, which sets the learning rate after each epoch."""


class ParallelSection(Section):
    """Distribution over several processes."""

    kind: Literal["ddp", "fsdp"] = "ddp"
    """`ddp`: each process has all weights; `fsdp`: a shard of weights, gradients and moments."""


class RunSection(Section):
    """Periods of logs, evaluations and checkpoints; 0: after the last step only."""

    log_every_steps: NonNegativeInt = 10
    """Optimizer steps between two lines of the log."""
    eval_every_steps: NonNegativeInt = 0
    """Optimizer steps between two evaluations."""
    save_every_steps: NonNegativeInt = 1000
    """Optimizer steps between two checkpoints."""
    keep_last: PositiveInt = 2
    """Number of checkpoints to keep besides the best ones; two or more before the last step."""
    best_metric: Literal["prec@1", "top5", "loss"] | None = None
    """Keep the best checkpoint by this metric, and the best one of the average; null: neither."""


class StepSection(Section):
    """Speed and memory of a step; the result changes only by rounding."""

    compile: Literal["auto", "none", "blocks"] = "auto"
    """`blocks`: torch.compile each block; `auto`: on a GPU, if a trial is faster."""
    attention: Literal["auto", "flash", "cudnn", "efficient", "math"] = "auto"
    """Implementation of attention; `auto`: if attention takes long, the fastest in a trial."""
    recompute: Literal["none", "cheap"] = "none"
    """`cheap`: save memory by recomputing norms, GELU and dropout in the backward pass."""
    float8: Literal["none", "mlp"] = "none"
    """`mlp`: matrix products of the MLPs in 8-bit floats; GPUs since Ada and Hopper, torchao."""


class Recipe(Section):
    """One training run."""

    stage: Literal["pretrain", "finetune"]
    """`pretrain`: weights from scratch; `finetune`: weights from another run, with a new head."""
    source: str = ""
    """Source of the values."""
    commit: str = ""
    """Repositories and commits of the source, or why there are none."""
    epochs: Positive | None = None
    """Length of the run in passes over the training images; alternative to `total_steps`."""
    total_steps: PositiveInt | None = None
    """Length of the run in optimizer steps; alternative to `epochs`."""
    seed: Annotated[NonNegativeInt, Field(lt=2**63)] = 0
    """Seed of the first weights, the order of the images, and augmentation."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """`bf16`: matrix products in bfloat16 (autocast), weights and optimizer in float32; `fp16`: in
    float16, with a scaled loss, for GPUs without bfloat16; `auto`: `bf16` if the device has
    instructions for it, else `fp32`; a resumed run keeps its precision."""
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
        """The precision after `auto` is resolved."""
        if self.precision == "auto":
            raise ValueError("precision: auto is not resolved")
        return self.precision

    @model_validator(mode="after")
    def _check(self) -> Self:
        checks = (
            self._wrong_lengths, self._wrong_optimization, self._wrong_images, self._wrong_switches
        )  # fmt: skip
        if problems := [problem for check in checks for problem in check()]:
            raise ValueError("\n".join(problems))
        return self

    def _wrong_switches(self) -> Iterator[str]:
        for name, (switch, values) in _ONLY_FOR.items():
            value, default = self._get(name)
            if value != default and self._get(switch)[0] not in values:
                wanted = " or ".join(f"`{each}`" for each in values)
                yield f"{name} ({_shown(value)}) is for {switch} {wanted}"
        if self.loss.smoothing_floor == "e" and self.loss.kind != "sigmoid":
            yield "loss.smoothing_floor (e) is for loss.kind `sigmoid`"

    def _get(self, name: str) -> tuple[Any, Any]:
        """Return the value of a dotted field, and its default."""
        section_name, field = name.split(".")
        section = getattr(self, section_name)
        return getattr(section, field), type(section).model_fields[field].default

    def _wrong_lengths(self) -> Iterator[str]:
        schedule, epochs, total_steps = self.schedule, self.epochs, self.total_steps
        if (epochs is None) == (total_steps is None):
            given = f"epochs ({_shown(epochs)}) and total_steps ({_shown(total_steps)})"
            yield f"exactly one of {given} must be given"
        for names in (_WARMUPS, _COOLDOWNS):
            values = {name: self._get(name) for name in names}
            set_ones = [name for name, (value, default) in values.items() if value != default]
            if len(set_ones) > 1:
                yield f"give one of {' and '.join(set_ones)}"
        if total_steps is not None and schedule.warmup_steps >= total_steps:
            warmup = f"schedule.warmup_steps ({schedule.warmup_steps})"
            fitting = f"--set schedule.warmup_steps={total_steps // 10}"
            yield f"{warmup} must be less than total_steps ({total_steps}): `{fitting}`"
        if schedule.decay == "step" and not schedule.step_percents:
            yield "schedule.decay `step` needs schedule.step_percents"
        if list(schedule.step_percents) != sorted(schedule.step_percents):
            yield "schedule.step_percents must be ascending"

    def _wrong_optimization(self) -> Iterator[str]:
        for name in ("schedule.end_lr", "schedule.warmup_start_lr"):
            if (lr := self._get(name)[0]) > self.optim.lr:
                yield f"{name} ({lr}) must not exceed optim.lr ({self.optim.lr})"
        if self.parallel.kind == "fsdp" and self.optim.kind in ("muon", "lamb"):
            kind = f"optim.kind `{self.optim.kind}`"
            yield f"parallel.kind fsdp is not for {kind}, which needs complete matrices; use ddp"
        if self.ema.warmup_steps and self.ema.decay is None:
            yield f"ema.warmup_steps ({self.ema.warmup_steps}) needs ema.decay"

    def _wrong_images(self) -> Iterator[str]:
        data, sizes = self.data, list(self.curriculum.img_sizes)
        img_size = f"model.img_size ({self.model.img_size})"
        for name in ("data.crop_scale", "data.crop_ratio"):
            low, high = self._get(name)[0]
            if low > high:
                yield f"{name}: the minimum ({low}) exceeds the maximum ({high})"
        if data.crop_scale[1] > 1:
            yield f"data.crop_scale: at most 1, got {data.crop_scale[1]}"
        if data.eval_resize is not None and data.eval_resize < self.model.img_size:
            yield f"data.eval_resize ({data.eval_resize}) must not be less than {img_size}"
        if self.augment.mixes and data.global_batch_size % 2:
            size = f"data.global_batch_size ({data.global_batch_size})"
            yield f"{size} must be even: mixup and cutmix mix pairs of images"
        if sizes != sorted(set(sizes)):
            yield f"curriculum.img_sizes ({sizes}) must be ascending"
        if any(size >= self.model.img_size for size in sizes):
            yield f"curriculum.img_sizes ({sizes}) must be less than {img_size}"


_WARMUPS = tuple(f"schedule.warmup_{unit}" for unit in ("steps", "epochs", "images", "percent"))
_COOLDOWNS = ("schedule.cooldown_steps", "schedule.cooldown_percent")
_LINE = ("schedule.decay", ("linear", "cosine"))
_SIGMOID = ("loss.kind", ("sigmoid",))
_ONLY_FOR: dict[str, tuple[str, tuple[str, ...]]] = {
    "augment.color_jitter": ("augment.policy", ("three_augment",)),
    "augment.magnitude_std": ("augment.policy", ("rand", "rand_increasing")),
    "data.crop_ratio": ("data.crop", ("random_resized",)),
    "data.crop_scale": ("data.crop", ("random_resized",)),
    "data.eval_resize": ("data.eval_mode", ("center_crop",)),
    "distill.kind": ("loss.kind", ("softmax",)),
    "distill.teacher": ("distill.kind", ("hard", "soft")),
    "loss.class_reduction": _SIGMOID,
    "loss.mixed_labels": _SIGMOID,
    "loss.tree": ("loss.kind", ("semantic_softmax",)),
    "optim.momentum_dtype": ("optim.kind", ("adamw", "sgd")),
    "optim.muon_lr": ("optim.kind", ("muon",)),
    "schedule.decay_epochs": _LINE,
    "schedule.decay_from": _LINE,
    "schedule.end_lr": _LINE,
    "schedule.first_epoch": ("schedule.lr_changes", ("every_epoch",)),
    "schedule.step_percents": ("schedule.decay", ("step",)),
}
"""Field -> the field and its values for which it may be set; otherwise it has its default."""


def _shown(value: object) -> str:
    """Return *value* as in a recipe."""
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
