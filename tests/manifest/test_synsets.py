"""`vit21k.manifest.wordnet`: WordNet's nouns."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from vit21k.manifest.wordnet import load_synsets, names_of

ROOT = "n00001740"  # entity


def test_the_table_holds_all_nouns_of_wordnet() -> None:
    # `grep -c '^[0-9]' data.noun` of WordNet 3.0 prints 82115.
    assert len(load_synsets()) == 82_115


def test_a_class_is_named_as_imagenet_names_it() -> None:
    assert names_of(["n01440764", "n04399382"]) == {
        "n01440764": "tench, Tinca tinca",
        "n04399382": "teddy, teddy bear",
    }


def test_folders_that_are_no_wnids_have_no_name() -> None:
    assert names_of(["airplane", "n01440764"]) == {"n01440764": "tench, Tinca tinca"}
    assert names_of([]) == {}
    assert "airplane" not in load_synsets()


def test_two_classes_may_share_a_name() -> None:
    # ImageNet-1k has the bird and the machine, both "crane".
    assert load_synsets().name("n02012849") == load_synsets().name("n03126707") == "crane"
    assert load_synsets().gloss("n02012849") != load_synsets().gloss("n03126707")


def test_names_are_those_of_timms_list_of_imagenet_classes() -> None:
    spec = find_spec("timm")  # without importing it: that takes seconds
    if spec is None or spec.origin is None:
        pytest.skip("timm is not installed")
    lemmas = Path(spec.origin).parent / "data" / "_info" / "imagenet_synset_to_lemma.txt"
    oracle = dict(line.split("\t") for line in lemmas.read_text().splitlines())

    assert len(oracle) == 21_844  # the union of its lists of ImageNet-21K and -1k
    assert names_of(oracle) == oracle


def test_the_ancestors_of_a_dog_come_nearest_first_and_each_once() -> None:
    dog = load_synsets().ancestors("n02084071")

    assert dog[:2] == ("n02083346", "n01317541")  # canine; domestic animal
    assert dog[-1] == ROOT
    assert len(set(dog)) == len(dog)
    assert load_synsets().parents("n02084071") == dog[:2]


def test_an_instance_has_its_class_as_parent() -> None:
    # Lassie and the like are instances ("@i" in WordNet), e.g. Einstein of "physicist".
    assert load_synsets().parents("n10954498") == ("n10428004",)


def test_every_parent_is_in_the_table_and_the_root_alone_has_none() -> None:
    synsets = load_synsets()
    orphans = [wnid for wnid in synsets if not synsets.parents(wnid)]
    strangers = {up for wnid in synsets for up in synsets.parents(wnid) if up not in synsets}

    assert orphans == [ROOT]
    assert not strangers


def test_an_unknown_wnid_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        load_synsets().gloss("n99999999")
