"""`vit21k.manifest.class_lists`: the lists that "ImageNet-21K" stands for."""

from pathlib import Path

import pytest
from build_class_lists import table, timm_file, timm_folder

from vit21k.errors import UsageError
from vit21k.manifest.class_lists import (
    DEVKIT,
    KNOWN_LISTS,
    OTHER_LISTS,
    UNSAFE_PERSONS,
    class_folders,
    known_list,
    lists_with,
    map_ids,
    read_classes,
)

TEDDY = "n04399382"


LISTS = {**KNOWN_LISTS, **OTHER_LISTS}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_has_the_length_and_the_fingerprint_it_is_known_by(name: str) -> None:
    assert len(known_list(name)) == LISTS[name].num_classes
    assert known_list(name).fingerprint == LISTS[name].fingerprint


def test_lists_are_those_of_timms_files() -> None:
    folder = timm_folder()
    if folder is None:
        pytest.skip("timm is not installed")
    rows = table(folder, None)

    assert rows.num_rows == 21_844  # of all lists together
    for name, known in LISTS.items():
        listed = rows.filter(rows[name].is_valid()).sort_by(name)["wnid"].to_pylist()
        assert tuple(listed) == known_list(name).wnids
        assert rows.schema.metadata[name.encode()].decode() == known.source
        if file := timm_file(known):
            assert (folder / file).read_text().split() == listed


def test_google_has_two_classes_more_than_fall11() -> None:
    fall11, google = (set(known_list(name).wnids) for name in ("fall11", "google"))

    assert google - fall11 == {"n03931044", "n09859684"}  # image; bleacher
    assert fall11 < google


def test_microsoft_has_the_classes_of_imagenet_1k_first_and_the_teddy_with_them() -> None:
    microsoft = known_list("microsoft").wnids

    assert microsoft[:1000] == known_list("in1k").wnids
    assert microsoft[850] == TEDDY
    assert set(microsoft) - set(known_list("fall11").wnids) == {TEDDY}
    assert list(microsoft[1000:]) == sorted(microsoft[1000:])


@pytest.mark.parametrize("name", [name for name in LISTS if name not in ("microsoft", DEVKIT)])
def test_every_other_list_is_in_ascending_order(name: str) -> None:
    assert list(known_list(name).wnids) == sorted(known_list(name).wnids)


def test_999_of_the_1000_classes_of_imagenet_1k_are_in_fall11() -> None:
    ids = map_ids(known_list("in1k"), known_list("fall11"))

    assert (ids >= 0).sum() == 999
    assert ids[850] == -1
    assert known_list("in1k").wnids[850] == TEDDY


@pytest.mark.parametrize(("name", "num_missing"), [("in21k-p", 9), ("in21k-p-winter21", 9)])
def test_imagenet_21k_p_lacks_the_teddy_and_eight_dogs(name: str, num_missing: int) -> None:
    missing = set(known_list("in1k").wnids) - set(known_list(name).wnids)

    assert len(missing) == num_missing
    assert missing - {TEDDY} == {
        *("n02085782", "n02089078", "n02089867", "n02089973"),
        *("n02091635", "n02108000", "n02112706", "n02113978"),
    }


def test_imagenet_12k_lacks_seven_classes_of_imagenet_1k() -> None:
    assert len(set(known_list("in1k").wnids) - set(known_list("in12k").wnids)) == 7


def test_winter21_is_fall11_without_2674_classes_the_unsafe_people_among_them() -> None:
    fall11, winter21 = (set(known_list(name).wnids) for name in ("fall11", "winter21"))
    removed = fall11 - winter21

    assert winter21 < fall11
    assert len(removed) == 2_674
    assert set(known_list(UNSAFE_PERSONS).wnids) < removed
    assert set(known_list("in21k-p-winter21").wnids) < winter21
    assert set(known_list("in1k").wnids) - winter21 == {TEDDY}


def test_the_devkit_numbers_the_classes_of_imagenet_1k_in_another_order() -> None:
    devkit = known_list(DEVKIT).wnids

    assert set(devkit) == set(known_list("in1k").wnids)
    assert devkit[0] == "n02119789"  # kit fox: ILSVRC2012_ID 1
    assert devkit[489] == "n01751748"  # sea snake: ILSVRC2012_val_00000001 is 490


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        read_classes("fall12")

    assert "fall11" in (caught.value.hint or "")


def test_class_folders_are_found_at_any_depth_and_in_archives(tmp_path: Path) -> None:
    (tmp_path / "train" / "n01440764" / "deep").mkdir(parents=True)
    (tmp_path / ".cache" / "n09999999").mkdir(parents=True)
    (tmp_path / "n02084071.tar").touch()
    (tmp_path / "README.txt").touch()

    assert class_folders(tmp_path) == ["n01440764", "n02084071"]


def test_folders_that_are_not_called_like_wnids_are_classes_if_they_hold_files(
    tmp_path: Path,
) -> None:
    (tmp_path / "data" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "dog").mkdir()
    (tmp_path / "data" / "cat" / "1.jpg").touch()
    (tmp_path / "data" / "dog" / "1.jpg").touch()

    assert class_folders(tmp_path) == ["cat", "dog"]
    assert read_classes(str(tmp_path)).wnids == ("cat", "dog")
    with pytest.raises(UsageError, match="no class folders"):
        class_folders(tmp_path / "data" / "cat")


def test_a_file_is_read_as_a_list(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("n02084071\nn01440764\n")

    assert read_classes(str(tmp_path / "mine.txt")).wnids == ("n02084071", "n01440764")


def test_a_class_is_found_in_every_list_that_has_it() -> None:
    assert lists_with(TEDDY) == {"microsoft": 850, "in1k": 850}
    assert lists_with("n02084071")["fall11"] == known_list("fall11").wnids.index("n02084071")
    assert lists_with("airplane") == {}
