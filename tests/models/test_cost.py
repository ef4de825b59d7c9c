"""Golden numbers: vit_jax/models_test.py, PLSC's model sizes, MMPretrain's model zoo."""

import pytest

from vit21k.models.cost import activation_bytes_per_image, macs_per_image, num_params, num_tokens
from vit21k.models.registry import build_model, get_model, list_models, model_args

NUM_PARAMS = [
    ("vit_tiny_patch16_224", {}, 5_717_416),
    ("vit_small_patch16_224", {}, 22_050_664),
    ("vit_small_patch32_224", {}, 22_878_952),
    ("vit_base_patch8_224", {}, 86_576_872),
    ("vit_base_patch16_224", {}, 86_567_656),
    ("vit_base_patch16_224", {"representation_size": 768}, 87_158_248),
    ("vit_base_patch16_224", {"global_pool": "avg", "class_token": False}, 86_567_656 - 2 * 768),
    ("vit_base_patch16_384", {}, 86_859_496),
    ("vit_base_patch32_224", {}, 88_224_232),
    ("vit_base_patch32_384", {}, 88_297_192),
    ("vit_large_patch16_224", {}, 304_326_632),
    ("vit_large_patch16_224", {"num_classes": 21_841}, 325_688_657),
    ("vit_large_patch16_224", {"num_classes": 21_843}, 325_690_707),
    (
        "vit_large_patch16_224",
        {"num_classes": 21_841, "representation_size": 1024},
        326_738_257,
    ),
    (
        "vit_large_patch16_224",
        {"num_classes": 21_843, "representation_size": 1024},
        326_740_307,
    ),
    ("vit_large_patch16_384", {}, 304_715_752),
    ("vit_large_patch32_224", {}, 306_535_400),
    ("vit_huge_patch14_224", {}, 632_045_800),
]


def meta_model(name, overrides):
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        return get_model(name, **overrides)


@pytest.mark.parametrize(("name", "overrides", "expected"), NUM_PARAMS)
def test_parameter_counts_are_the_published_ones(name, overrides, expected):
    model = meta_model(name, overrides)

    assert num_params(model_args(name, **overrides)) == expected
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize(
    "overrides",
    [
        {"reg_tokens": 4},
        {"reg_tokens": 4, "no_embed_class": True},
        {"distilled": True},
        {"pre_norm": True, "norm_layer": "rmsnorm"},
        {"pre_norm": True, "qk_norm": True, "init_values": 1e-5},
        {"qk_norm": True, "norm_layer": "rmsnorm"},
        {"mlp_layer": "swiglu", "mlp_ratio": 16 / 3},
        {"global_pool": "map", "class_token": False, "norm_layer": "rmsnorm"},
        {"global_pool": "token_avg"},
        {"pos_embed": "none", "rope": "dinov3", "reg_tokens": 4},
    ],
    ids=str,
)
def test_parameters_and_products_of_every_option_are_counted(overrides):
    torch = pytest.importorskip("torch")
    name, overrides = "vit_tiny_patch16_224", {"depth": 2, **overrides}
    model, args = meta_model(name, overrides).to("meta"), model_args(name, **overrides)
    counter = pytest.importorskip("torch.utils.flop_counter").FlopCounterMode(display=False)
    with counter, torch.device("meta"):
        model.forward_head(model.forward_features(torch.zeros(1, 3, 224, 224)))

    assert num_params(args) == sum(parameter.numel() for parameter in model.parameters())
    # The query of MAP pooling is projected once for a batch.
    assert 2 * macs_per_image(args) == counter.get_total_flops()


@pytest.mark.parametrize("name", list_models())
def test_parameter_counts_are_those_of_the_model(name):
    overrides = {"num_classes": 0, "mlp_ratio": 3.5, "in_chans": 4}
    if name.startswith("vit_"):
        overrides["qkv_bias"] = False
    model = meta_model(name, overrides)

    assert num_params(model_args(name, **overrides)) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_base_patch16_224", 17_581_972_224),
        ("vit_base_patch16_384", 55_538_974_464),
        ("vit_base_patch32_384", 13_056_716_544),
        ("vit_large_patch16_384", 191_210_034_176),
    ],
)
def test_macs_agree_with_mmpretrains_table_to_the_unit(name, expected):
    """MMPretrain leaves the head out and adds 5 operations for every value of a layer norm."""
    args = model_args(name, num_classes=0)
    layer_norms = 5 * (2 * args["depth"] + 1) * num_tokens(args) * args["embed_dim"]

    assert macs_per_image(args) + layer_norms == expected


def test_the_head_and_the_representation_layer_count():
    plain = macs_per_image(model_args("vit_large_patch16_224", num_classes=0))

    full = macs_per_image(
        model_args("vit_large_patch16_224", num_classes=21_841, representation_size=1024)
    )

    assert full - plain == 1024 * 1024 + 1024 * 21_841


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("vit_tiny_patch16_224", {"depth": 4}),
        ("vit_tiny_patch16_224", {"depth": 4, "embed_dim": 64, "num_heads": 2}),
        ("vit_tiny_patch16_224", {"depth": 4, "mlp_ratio": 2.0}),
        ("vit_small_r26_s32_224", {"depth": 2}),
        ("pit_ti_224", {}),
        ("pit_s_distilled_224", {"depth": [1, 2, 1]}),
    ],
)
def test_the_memory_estimate_is_near_what_autograd_saves(name, overrides):
    torch = pytest.importorskip("torch")
    args = {"img_size": 96, **overrides}
    model = get_model(name, **args)
    parameters = {parameter.data_ptr() for parameter in model.parameters()}

    def num_bytes(num_images):
        saved = {}

        def remember(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                saved[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        images = torch.randn(num_images, 3, 96, 96)
        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            kept = model.forward_head(model.forward_features(images))
        assert len(kept) == num_images
        return sum(size for size, _ in saved.values())

    # A difference: the standardised kernels of a ResNet do not grow with the batch.
    found = num_bytes(3) - num_bytes(2)
    estimate = activation_bytes_per_image(model_args(name, **args), 4)
    assert found == pytest.approx(estimate, rel=0.05)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("vit_tiny_patch16_224", {"depth": 4}),
        ("vit_tiny_patch16_224", {"depth": 4, "mlp_ratio": 2.0, "proj_drop_rate": 0.1}),
        ("pit_ti_224", {}),
    ],
)
def test_the_estimate_with_cheap_operations_computed_again_is_near_what_is_kept(
    name, overrides, monkeypatch
):
    torch = pytest.importorskip("torch")
    from torch.utils.checkpoint import CheckpointPolicy  # noqa: PLC0415

    from vit21k.models import layers  # noqa: PLC0415

    args = {"img_size": 96, **overrides}
    model = build_model(model_args(name, **args), recompute=True)
    blocks = [module for module in model.modules() if isinstance(module, layers.Block)]
    policy, kept = layers._policy, []

    def listening(context, operation, *inputs, **options):
        chosen = policy(context, operation, *inputs, **options)
        if chosen == CheckpointPolicy.MUST_SAVE and not context.is_recompute:
            is_product = "mm" in str(operation)
            rows, columns = inputs[-2].shape[0], inputs[-1].shape[-1]
            kept.append(4 * rows * columns if is_product else inputs[0].nbytes)
        return chosen

    monkeypatch.setattr(layers, "_policy", listening)
    inputs = []
    hooks = [
        block.register_forward_pre_hook(lambda _module, inside: inputs.append(inside[0].nbytes))
        for block in blocks
    ]
    model.forward_head(model.forward_features(torch.randn(2, 3, 96, 96))).sum().backward()
    for hook in hooks:
        hook.remove()

    full = model_args(name, **args)
    empty = {**full, "depth": [0, 0, 0] if name.startswith("pit") else 0}
    estimate, outside = (
        activation_bytes_per_image(values, 4, recompute=True) for values in (full, empty)
    )
    assert (sum(kept) + sum(inputs)) / 2 == pytest.approx(estimate - outside, rel=0.05)
    assert estimate < 0.7 * activation_bytes_per_image(full, 4)
