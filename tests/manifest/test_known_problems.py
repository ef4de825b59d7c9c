"""`vit21k.manifest.problems`: files of fall11 that are known to be unreadable."""

from vit21k.manifest.class_lists import known_list
from vit21k.manifest.problems import UNREADABLE_IN_FALL11, describe_known, num_known


def test_27_files_of_fall11_are_known_20_of_them_in_classes_of_winter21() -> None:
    wnids = [name.partition("_")[0] for name in UNREADABLE_IN_FALL11]

    assert len(wnids) == 27
    assert set(wnids) < set(known_list("fall11").wnids)
    assert sum(wnid in known_list("winter21").wnids for wnid in wnids) == 20


def test_known_files_are_found_by_name_in_any_folder() -> None:
    paths = ["n01678043/n01678043_6448.JPEG", "shard-0001.tar/n01896844_997.jpg", "n1/n1_1.JPEG"]

    assert num_known(paths) == 2
    assert describe_known(2) == "2 of 27 known unreadable files of fall11 are among them"
    assert describe_known(0) == ""
