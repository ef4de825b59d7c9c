import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from vit21k.errors import RecipeError
from vit21k.recipe.load import (
    describe_fields,
    dump_recipe,
    header_of,
    load_recipe,
    recipe_from,
    shipped_recipes,
)
from vit21k.recipe.schema import Recipe


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_usable(name):
    recipe = load_recipe(name)

    assert recipe.source
    assert name.startswith(recipe.stage) or recipe.source.startswith("ours")


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_dumped_recipe_loads_as_itself(name, tmp_path):
    recipe = load_recipe(name)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))

    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe


@settings(max_examples=50)
@given(lr=st.floats(min_value=1e-300, max_value=1e300), text=st.text(min_size=1))
@example(lr=1.0, text="1e100")
def test_no_number_and_no_text_changes_by_being_dumped(lr, text, tmp_path_factory):
    recipe = load_recipe("tiny").model_copy(update={"source": text})
    recipe = recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"lr": lr})})
    path = tmp_path_factory.mktemp("dump") / "recipe.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")

    assert load_recipe(str(path)) == recipe


def test_the_json_form_of_a_recipe_loads_as_itself():
    recipe = load_recipe("pretrain_l16_in21k")

    assert recipe_from(recipe.model_dump(mode="json"), "state.json") == recipe


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_begins_with_a_line_that_says_what_it_is(name):
    assert len(header_of(name).summary) > 20


def test_the_pretraining_recipe_is_the_published_one():
    recipe = load_recipe("pretrain_l16_in21k")

    assert recipe.optim.model_dump(exclude_defaults=True) == {
        "kind": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.15,
        "decay_params": "all",
    }
    assert (recipe.optim.betas, recipe.optim.eps) == ((0.9, 0.999), 1e-8)
    assert (recipe.epochs, recipe.schedule.warmup_steps, recipe.schedule.end_lr) == (
        90,
        10_000,
        1e-5,
    )
    assert (recipe.loss.kind, recipe.loss.smoothing) == ("sigmoid", 1e-4)
    assert (recipe.model.head_init, recipe.model.head_bias_init) == ("xavier", -10)
    assert (recipe.data.global_batch_size, recipe.data.crop_scale) == (4096, (0.08, 1.0))


def test_the_fine_tuning_recipe_is_the_published_one():
    recipe = load_recipe("finetune_l16_384_in1k")

    assert (recipe.optim.kind, recipe.optim.lr, recipe.optim.momentum) == ("sgd", 0.015, 0.9)
    assert (recipe.optim.weight_decay, recipe.optim.grad_clip_norm) == (1e-4, 1.5)
    assert (recipe.epochs, recipe.schedule.decay, recipe.schedule.warmup_steps) == (
        8,
        "cosine",
        500,
    )
    assert (recipe.data.eval_mode, recipe.data.interpolation) == ("squash", "bilinear")
    assert (recipe.data.crop_scale, recipe.data.global_batch_size) == ((0.05, 1.0), 512)
    assert (recipe.model.pos_drop_rate, recipe.model.proj_drop_rate) == (0.1, 0.1)


def test_overrides_win_and_the_last_one_wins():
    recipe = load_recipe("tiny", ["optim.lr=1e-2", "optim.lr=3e-4", "total_steps=1_000"])

    assert recipe.optim.lr == 3e-4
    assert recipe.total_steps == 1000


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "+1.0e-3", ".1e-2", "0.001"])
def test_every_way_to_write_a_number_is_a_number(text):
    assert load_recipe("tiny", [f"optim.lr={text}"]).optim.lr == 1e-3


def test_problems_between_sections_are_reported_at_once():
    with pytest.raises(RecipeError) as caught:
        load_recipe(
            "tiny",
            ["epochs=1", "total_steps=9", "augment.mixup_alpha=1", "data.global_batch_size=7"],
        )

    assert "exactly one of epochs (1) and total_steps (9)" in caught.value.message
    assert "data.global_batch_size (7) must be even" in caught.value.message


def test_all_problems_are_reported_at_once():
    with pytest.raises(RecipeError) as caught:
        load_recipe(
            "tiny",
            [
                "optim.learning_rate=1",
                "optim.lr=-1",
                "precision=fp8",
                "model=7",
                "data.drop_last=1",
            ],
        )

    assert caught.value.message.splitlines() == [
        "recipe `tiny` is not usable:",
        "  precision: input should be 'auto', 'fp32', 'bf16' or 'fp16', got 'fp8'",
        "  model: a section with fields, got 7",
        "  data.drop_last: input should be a valid boolean, got 1",
        "  optim.lr: input should be greater than 0, got -1",
        "  optim.learning_rate: no such field; did you mean `optim.lr`?",
    ]
    assert "vit21k recipes fields" in caught.value.hint


def test_contradictions_are_all_reported_with_both_values():
    with pytest.raises(RecipeError) as caught:
        load_recipe("tiny", ["epochs=3", "schedule.end_lr=1", "data.eval_resize=8"])

    assert caught.value.message.splitlines()[1:] == [
        "  exactly one of epochs (3) and total_steps (150) must be given",
        "  schedule.end_lr (1.0) must not exceed optim.lr (0.002)",
        "  data.eval_resize (8) must not be less than model.img_size (32)",
    ]


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("schedule.warmup_step=5", "schedule.warmup_steps"),
        ("optim.warmup_steps=5", "schedule.warmup_steps"),
        ("optimizer.lr=5", "optim"),
        ("lr=5", "optim.lr"),
    ],
)
def test_a_misspelt_field_is_refused_and_the_right_one_named(override, meant):
    with pytest.raises(RecipeError) as caught:
        load_recipe("tiny", [override])

    assert f"no such field; did you mean `{meant}`?" in caught.value.message


@pytest.mark.parametrize("value", ["on", "'1e-3'", ".nan", ".inf", "null", "[1]", "fast"])
def test_what_is_not_a_number_is_not_treated_as_one(value):
    with pytest.raises(RecipeError, match=r"optim\.lr: "):
        load_recipe("tiny", [f"optim.lr={value}"])


def test_a_field_set_twice_in_a_file_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("stage: pretrain\ntotal_steps: 10\ntotal_steps: 20\n")

    with pytest.raises(RecipeError, match="`total_steps` is set twice"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    "content", [b"a: [", b"- 1\n", b"", b"\xff\xfe\x00", b"a: &a [*a]\n", b"1: 2"]
)
def test_a_file_that_is_not_a_recipe_is_refused(tmp_path, content):
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)

    with pytest.raises(RecipeError, match="recipe"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    "override", ["optim.lr", "=3", "optim..lr=3", "seed.x=3", "optim.lr=[", ""]
)
def test_an_override_that_cannot_be_read_is_refused(override):
    with pytest.raises(RecipeError):
        load_recipe("tiny", [override])


def test_an_unknown_recipe_is_refused_and_the_closest_named():
    with pytest.raises(RecipeError, match="did you mean `tiny_finetune`") as caught:
        load_recipe("tiny_finetun")

    assert "vit21k recipes list" in caught.value.hint


def test_a_missing_recipe_file_is_refused_by_name(tmp_path):
    with pytest.raises(RecipeError, match="no such recipe file"):
        load_recipe(str(tmp_path / "gone.yaml"))


def test_every_field_is_documented_with_its_limits():
    fields = {field.name: field for field in describe_fields()}

    assert [name for name, field in fields.items() if not field.meaning] == []
    assert fields["optim.lr"].values == "number > 0"
    assert fields["optim.lr"].default == "required"
    assert fields["optim.grad_clip_norm"].values == "number > 0 or null"
    assert fields["loss.kind"].values == "sigmoid or softmax or semantic_softmax"
    assert fields["data.crop_scale"].values == "2 of: number > 0"
    assert fields["data.mean"].default == "[0.5, 0.5, 0.5]"


def test_every_field_a_shipped_recipe_sets_is_documented():
    fields = {field.name for field in describe_fields()}
    values = yaml.safe_load(dump_recipe(load_recipe("pretrain_l16_in21k")))

    spelled = {
        f"{key}.{inner}" if isinstance(value, dict) else key
        for key, value in values.items()
        for inner in (value if isinstance(value, dict) else [key])
    }
    assert spelled == fields


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("optim.learning_rate", "optim.lr"), ("data.batch_size", "data.global_batch_size")],
)
def test_what_other_trainers_call_a_field_is_understood(typed, meant):
    with pytest.raises(RecipeError, match=f"did you mean `{meant}`"):
        load_recipe("tiny", [f"{typed}=1"])


def based(tmp_path, text, base="tiny"):
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: {base}\n{text}")
    return str(path)


def test_a_recipe_is_its_base_but_for_what_it_sets_itself(tmp_path):
    path = based(tmp_path, "total_steps: 77\noptim:\n  lr: 1e-2\n")

    assert load_recipe(path) == load_recipe("tiny", ["total_steps=77", "optim.lr=1e-2"])
    assert load_recipe(path, ["optim.lr=3"]).optim.lr == 3


def test_a_base_may_be_a_file_next_to_the_recipe(tmp_path):
    (tmp_path / "first.yaml").write_text(dump_recipe(load_recipe("tiny", ["seed=5"])))

    assert load_recipe(based(tmp_path, "epochs: null\n", base="first.yaml")).seed == 5


def test_a_base_may_have_a_base(tmp_path):
    (tmp_path / "first.yaml").write_text("base: tiny\nseed: 5\noptim:\n  lr: 1e-2\n")
    path = based(tmp_path, "optim:\n  weight_decay: 0.5\n", base="first.yaml")

    changes = ["seed=5", "optim.lr=1e-2", "optim.weight_decay=0.5"]
    assert load_recipe(path) == load_recipe("tiny", changes)


@pytest.mark.parametrize("base", ["mine.yaml", "first.yaml", "../{}/mine.yaml"])
def test_a_recipe_that_is_based_on_itself_is_refused(tmp_path, base):
    (tmp_path / "first.yaml").write_text("base: mine.yaml\n")

    with pytest.raises(RecipeError, match="based on itself"):
        load_recipe(based(tmp_path, "seed: 1\n", base=base.format(tmp_path.name)))


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_can_be_a_base(tmp_path, name):
    assert load_recipe(based(tmp_path, "seed: 77\n", base=name)) == load_recipe(name, ["seed=77"])


@pytest.mark.parametrize(
    ("base", "message"), [("[tiny]", "not a recipe"), ("tiyn", "did you mean")]
)
def test_what_is_no_base_is_refused(tmp_path, base, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(based(tmp_path, "seed: 1\n", base=base))


def test_base_is_no_field_that_can_be_overridden():
    with pytest.raises(RecipeError, match="base: no such field"):
        load_recipe("tiny", ["base=cifar10_cpu"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.betas=[0.9]", r"optim\.betas: too few values, 1, got \[0\.9\]"),
        ("optim.betas=[0.9, 0.99, 0.999]", r"optim\.betas: 2 values, got \[0\.9, 0\.99, 0\.999\]"),
        ("optim.betas=0.9", r"optim\.betas: a list such as \[0\.1, 0\.2\], got 0\.9"),
        ("optim.betas=[0.9, .nan]", r"optim\.betas\.1: a finite number, got nan"),
        ("data.mean=[0, 0]", r"data\.mean: too few values, 2"),
        ("optim.lr=nan", r"optim\.lr: a finite number, got nan"),
        ("optim.lr=-Inf", r"optim\.lr: a finite number, got -Inf"),
        ("optim.lr=1e400", r"optim\.lr: a finite number, got inf"),
        ("epochs=nan", r"epochs: a finite number, got nan"),
        ("model.img_size=nan", r"model\.img_size: a finite number, got nan"),
        ("optim.lr_multipliers={head: .nan}", r"optim\.lr_multipliers\.head: a finite number"),
        ("seed=99999999999999999999", r"seed: input should be less than 9223372036854775808"),
    ],
)
def test_numbers_that_are_none_and_lists_of_another_length_are_explained(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("tiny", [override])


def numeric_fields(section, prefix=""):
    """Yield the dotted name of every field that takes a number, and that of every pair."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from numeric_fields(field.annotation, f"{prefix}{name}.")
        elif "float" in str(field.annotation) or "int" in str(field.annotation):
            yield f"{prefix}{name}"


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "[.nan, .nan]", "{head: .inf}"])
def test_no_field_of_a_recipe_takes_what_is_no_finite_number(value):
    names = list(numeric_fields(Recipe))

    assert len(names) > 40
    for name in names:
        with pytest.raises(RecipeError):
            load_recipe("tiny", [f"{name}={value}"])


@pytest.mark.parametrize("field", ["crop_scale=[0.5,1]", "crop_ratio=[1,1]"])
def test_settings_of_random_resized_crops_are_refused_for_simple_ones(field):
    with pytest.raises(RecipeError, match=r"is for data\.crop `random_resized`"):
        load_recipe("tiny", ["data.crop=simple", f"data.{field}"])
