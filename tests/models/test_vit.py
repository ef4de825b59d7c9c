"""Oracle: timm's VisionTransformer with the same weights."""

import pytest
import torch

timm = pytest.importorskip("timm")

from torch.nn import functional as F

from vit21k.models.registry import get_model

SMALL = {"img_size": 48, "patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 4}


def randomised(model):
    """Give every parameter random values, so that no zero hides a mistake."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def timm_twin(model, **args):
    if args.get("mlp_layer") == "swiglu":
        args = {**args, "mlp_layer": timm.layers.SwiGLUPacked, "act_layer": "silu"}
    twin = timm.models.VisionTransformer(num_classes=7, **{**SMALL, **args})
    twin.load_state_dict(model.state_dict(), strict=True)
    return twin.eval()


def small_model(**args):
    args = {"num_classes": 7, **SMALL, **args}
    return randomised(get_model("vit_tiny_patch16_224", **args)).eval()


def images(num_images=2, size=48):
    return torch.randn(num_images, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"global_pool": "avg"},
        {"qkv_bias": False},
        {"act_layer": "gelu_tanh"},
        {"mlp_ratio": 3.0, "patch_size": 8},
        {"global_pool": "avg", "class_token": False},
        {"global_pool": "avg", "fc_norm": False},
        {"fc_norm": True},
        {"init_values": 1e-4},
        {"img_size": 50},
        {"reg_tokens": 3},
        {"reg_tokens": 3, "no_embed_class": True},
        {"no_embed_class": True, "init_values": 1e-4},
        {"reg_tokens": 2, "class_token": False, "global_pool": "avg"},
        {"pre_norm": True, "act_layer": "quick_gelu"},
        {"qk_norm": True},
        {"norm_layer": "rmsnorm", "qk_norm": True, "global_pool": "avg"},
        {"global_pool": "map", "class_token": False},
        {"global_pool": "map", "reg_tokens": 1, "act_layer": "gelu_tanh"},
        {"mlp_layer": "swiglu", "mlp_ratio": 5.25},
    ],
    ids=str,
)
def test_logits_and_tokens_equal_timms_with_the_same_weights(args):
    model = small_model(**args)
    twin = timm_twin(model, **args)
    x = images(size=args.get("img_size", 48))

    with torch.no_grad():
        torch.testing.assert_close(model(x), twin(x), atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(
            model.forward_features(x), twin.forward_features(x), atol=2e-5, rtol=1e-5
        )
        torch.testing.assert_close(
            model.features(x),
            twin.forward_head(twin.forward_features(x), pre_logits=True),
            atol=2e-5,
            rtol=1e-5,
        )


def test_a_real_size_equals_timms():
    twin = timm.create_model("vit_tiny_patch16_224", pretrained=False).eval()
    model = get_model("vit_tiny_patch16_224").eval()
    model.load_state_dict(twin.state_dict(), strict=True)
    x = images(1, 224)

    with torch.no_grad():
        torch.testing.assert_close(model(x), twin(x), atol=1e-5, rtol=1e-5)


def loss_and_gradients(model, forward):
    torch.manual_seed(5)
    model.zero_grad()
    loss = F.cross_entropy(forward(images()), torch.tensor([1, 4]))
    loss.backward()
    return loss, {name: parameter.grad for name, parameter in model.named_parameters()}


def test_a_distilled_model_has_timms_logits_and_features():
    model = small_model(distilled=True)
    twin = timm.models.deit.VisionTransformerDistilled(num_classes=7, **SMALL).eval()
    twin.load_state_dict(model.state_dict(), strict=True)

    with torch.no_grad():
        torch.testing.assert_close(model(images()), twin(images()), atol=2e-5, rtol=1e-5)
        features = twin.forward_head(twin.forward_features(images()), pre_logits=True)
        torch.testing.assert_close(model.features(images()), features, atol=2e-5, rtol=1e-5)


ROPES = {
    "axial": {"rope_grid_indexing": "xy", "rope_type": "cat"},
    "dinov3": {"rope_type": "dinov3", "rope_rotate_half": True},
}


@pytest.mark.parametrize("ape", [False, True], ids=["rotary", "rotary and learnt"])
@pytest.mark.parametrize("rope", ROPES)
def test_rotary_positions_are_timms(rope, ape):
    args = {"rope": rope, "pos_embed": "learn" if ape else "none", "init_values": 0.1}
    model = small_model(**args)
    twin = timm.models.eva.Eva(
        **{**SMALL, **ROPES[rope]}, num_classes=7, attn_type="rope", use_rot_pos_emb=True,
        use_abs_pos_emb=ape, rope_temperature=100.0, init_values=0.1, use_fc_norm=False,
        global_pool="token",
    ).eval()  # fmt: skip
    state = {
        name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): tensor
        for name, tensor in model.state_dict().items()
    }
    twin.load_state_dict(state, strict=True)

    with torch.no_grad():
        torch.testing.assert_close(model(images()), twin(images()), atol=2e-5, rtol=1e-5)
        every = torch.arange(9).expand(2, -1)
        torch.testing.assert_close(model(images(), every), model(images()))
        moved = every.flip(1)  # a patch keeps its position wherever it is in the sequence
        torch.testing.assert_close(model(images(), moved), model(images()), atol=2e-5, rtol=1e-5)


def test_token_and_mean_are_pooled_side_by_side_as_in_dinov2s_linear_classifier():
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(hidden_size=32, num_attention_heads=2, num_labels=7)
    classifier = transformers.Dinov2ForImageClassification(config).classifier
    model = small_model(global_pool="token_avg", reg_tokens=2)
    model.head.load_state_dict(classifier.state_dict())

    with torch.no_grad():
        tokens = model.forward_features(images())
        expected = classifier(torch.cat([tokens[:, 0], tokens[:, 3:].mean(dim=1)], dim=1))
        torch.testing.assert_close(model(images()), expected)


ROOTS = [
    {},
    {"qkv_bias": False},
    {"representation_size": 24},
    {"distilled": True},
    {"rope": "axial", "pos_embed": "none"},
    {"reg_tokens": 2, "qk_norm": True, "mlp_layer": "swiglu", "norm_layer": "rmsnorm"},
]


@pytest.mark.parametrize("args", ROOTS, ids=str)
def test_a_last_block_for_the_class_token_alone_changes_neither_loss_nor_gradients(args):
    model = small_model(**args).double().train()
    short_loss, short_grads = loss_and_gradients(model, lambda x: model(x.double()))

    loss, grads = loss_and_gradients(
        model, lambda x: model.forward_head(model.forward_features(x.double()))
    )

    torch.testing.assert_close(short_loss, loss, atol=1e-12, rtol=1e-12)
    for name, grad in grads.items():
        torch.testing.assert_close(short_grads[name], grad, atol=1e-11, rtol=1e-10, msg=name)


def test_the_last_block_runs_its_mlp_on_one_token_of_each_image():
    model = small_model()
    seen = []
    model.blocks[-1].mlp.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))

    model(images())
    model.forward_features(images())

    assert seen == [(2, 1, 32), (2, 10, 32)]


def test_the_representation_layer_is_a_linear_layer_and_tanh():
    model = small_model(representation_size=24)
    plain = small_model(num_classes=0)
    plain.load_state_dict(
        {k: v for k, v in model.state_dict().items() if not k.startswith(("pre_logits", "head"))}
    )
    layer = model.pre_logits.fc

    with torch.no_grad():
        expected = torch.tanh(F.linear(plain(images()), layer.weight, layer.bias))
        torch.testing.assert_close(model.features(images()), expected)

    assert {"pre_logits.fc.weight", "pre_logits.fc.bias"} <= set(model.state_dict())
    assert model.features(images()).shape == (2, 24)


def test_dropout_acts_while_training_only():
    rates = ("pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")
    for rate in rates:
        model = small_model(**{rate: 0.5})
        plain = small_model()

        torch.testing.assert_close(model(images()), plain(images()))
        model.train()
        torch.manual_seed(0)
        assert not torch.allclose(model(images()), plain(images()), atol=1e-3), rate


def test_stochastic_depth_rises_to_the_last_block_and_keeps_the_expectation():
    model = get_model("vit_tiny_patch16_224", **SMALL, drop_path_rate=0.4)
    drop_path = model.blocks[-1].drop_path
    torch.manual_seed(0)

    branch = drop_path(torch.ones(20_000, 1, 1))

    assert [block.drop_path.drop_rate for block in model.blocks] == [0.0, 0.2, 0.4]
    assert branch.unique().tolist() == pytest.approx([0.0, 1 / 0.6])
    assert branch.mean().item() == pytest.approx(1.0, abs=0.03)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="48 pixels"):
        small_model()(images(size=64))


def test_attributes_say_what_the_model_is():
    model = small_model(representation_size=24)

    assert (model.num_classes, model.img_size, model.patch_size) == (7, 48, 16)
    assert (model.embed_dim, model.num_features, model.grid_size) == (32, 24, (3, 3))
