"""`vit21k recipes ...`."""

import json
from pathlib import Path

import pytest
import yaml
from run_processes import run_command

from vit21k.recipe.load import load_recipe, shipped_recipes, source_name


def recipes(*arguments, cwd=None):
    return run_command("recipes", *arguments, cwd=cwd or Path.cwd())


def test_list_names_every_shipped_recipe_whose_it_is_and_what_was_reached():
    result = recipes("list", "--json")
    found = json.loads(result.stdout)

    assert result.returncode == 0
    assert sorted(found) == shipped_recipes()
    assert all(len(recipe["summary"]) > 20 for recipe in found.values())
    assert found["pretrain_l16_in21k"]["from"] == "PLSC"
    assert "85.03 % top-1" in found["finetune_l16_384_in1k"]["reached_there"]


def test_list_groups_recipes_by_their_source_and_can_be_narrowed():
    result = recipes("list", "google")
    lines = result.stdout.splitlines()

    assert lines[0].split()[:2] == ["from", "recipe"]
    assert lines[1].startswith("Google")
    assert all(line.startswith(" ") for line in lines[2:])
    assert {source_name(line.split()[0]) for line in lines[2:]} == {"Google"}
    assert f"{len(lines) - 1} recipes" in result.stderr


def test_a_word_that_no_recipe_has_is_refused():
    result = recipes("list", "resnet")

    assert result.returncode == 2
    assert "no recipe has `resnet` in its name" in result.stderr


def test_what_show_prints_is_a_recipe_file_of_its_own(tmp_path):
    result = recipes("show", "tiny", "--set", "optim.lr=1e-3")
    (tmp_path / "mine.yaml").write_text(result.stdout)
    checked = recipes("check", "mine.yaml", cwd=tmp_path)

    assert load_recipe(str(tmp_path / "mine.yaml")) == load_recipe("tiny", ["optim.lr=1e-3"])
    assert result.stdout.startswith("# A very small ViT")
    assert "# Changed: optim.lr=1e-3" in result.stdout
    assert checked.returncode == 0
    assert checked.stdout == ""
    assert "`mine.yaml` is valid" in checked.stderr


def test_show_as_json_holds_the_same_values():
    as_json, as_yaml = recipes("show", "cifar10_cpu", "--json"), recipes("show", "cifar10_cpu")

    assert json.loads(as_json.stdout) == yaml.safe_load(as_yaml.stdout)


def test_everything_wrong_with_a_recipe_is_one_message_and_exit_code_2():
    result = recipes("check", "tiny", "--set", "optim.warmup_step=5", "--set", "optim.lr=-1")

    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "error: recipe `tiny` is not usable:",
        "  optim.lr: input should be greater than 0, got -1",
        "  optim.warmup_step: no such field; did you mean `schedule.warmup_steps`?",
        "",
        "hint: `vit21k recipes fields` lists every field with its meaning and limits",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.name=vit_tiny_patch16_225", "did you mean `vit_tiny_patch16_224`?"),
        ("model.num_heads=7", "not a multiple of `num_heads` 7"),
    ],
)
def test_check_looks_at_the_model_as_well(override, message):
    result = recipes("check", "tiny", "--set", override)

    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_check_knows_what_a_pit_has_not_and_how_a_shipped_recipe_is_run():
    refused = recipes("check", "pretrain_pit_s_in1k", "--set", "model.embed_dim=64")
    usable = recipes("check", "finetune_google_folder_500")

    assert refused.returncode == 2
    assert "no argument `embed_dim`" in refused.stderr
    assert "--recipe finetune_google_folder_500 --init ViT-B_16" in usable.stderr


def test_fields_documents_every_field():
    rows = json.loads(recipes("fields", "--json").stdout)
    text = recipes("fields").stdout

    assert len(text.splitlines()) == 2 * len(rows)
    assert "optim.lr: number > 0; default required" in text
    assert all(row["meaning"] in text for row in rows)


def test_fields_can_be_narrowed_to_a_section():
    names = [row["name"] for row in json.loads(recipes("fields", "schedule", "--json").stdout)]

    assert "schedule.decay" in names
    assert all(name.startswith("schedule.") for name in names)
    assert recipes("fields", "scheduler").returncode == 2
