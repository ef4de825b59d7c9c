"""`vit21k.demo_tree`: what is said to be planted is there, and the rest can be learnt."""

import hashlib
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit21k.demo_tree import LOOKS, DemoTree, draw, make_demo_tree
from vit21k.manifest.wordnet import load_synsets


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> DemoTree:
    return make_demo_tree(tmp_path_factory.mktemp("demo") / "tree", images_per_class=12)


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def test_the_counts_are_those_of_the_files(tree: DemoTree) -> None:
    classes_of = defaultdict(list)
    for path in _files(tree.root):
        if path.stat().st_size:
            classes_of[hashlib.sha256(path.read_bytes()).digest()].append(path.parent.name)

    assert len(classes_of) == tree.num_images == 12 * 12 + 2
    assert sum(map(len, classes_of.values())) == tree.num_files
    assert sum(len(set(names)) > 1 for names in classes_of.values()) == tree.num_multi_label
    assert sum(len(names) > len(set(names)) for names in classes_of.values()) == 5
    assert tree.num_copies == tree.num_files - tree.num_images == 13


def test_only_the_named_files_are_faulty(tree: DemoTree) -> None:
    empty, not_decodable, not_jpeg = [], [], []
    for path in _files(tree.root):
        try:
            with Image.open(path) as image:
                if image.format != "JPEG":
                    not_jpeg.append(path.relative_to(tree.root))
                image.load()
        except OSError:
            faulty = not_decodable if path.stat().st_size else empty
            faulty.append(path.relative_to(tree.root))

    assert empty == [tree.empty]
    assert not_decodable == [tree.cut_off]
    assert not_jpeg == [tree.png]


def test_the_cut_off_file_comes_too_late_in_its_folder_to_be_chosen_for_validation(
    tmp_path: Path,
) -> None:
    # `make-val --per-class 10` takes the first 10 of a class in path order.
    tree = make_demo_tree(tmp_path)
    folder = sorted(path.name for path in (tree.root / tree.cut_off).parent.iterdir())

    assert folder.index(tree.cut_off.name) > 20


def test_the_same_seed_gives_the_same_files_and_another_seed_others(
    tree: DemoTree, tmp_path: Path
) -> None:
    again = make_demo_tree(tmp_path / "again", images_per_class=12)
    other = make_demo_tree(tmp_path / "other", images_per_class=12, seed=1)

    pairs = zip(_files(tree.root), _files(again.root), strict=True)
    assert all(one.read_bytes() == two.read_bytes() for one, two in pairs)
    first = Path("images/n02165456/n02165456_1.JPEG")
    assert (tree.root / first).read_bytes() != (other.root / first).read_bytes()
    assert other.num_copies == tree.num_copies


def test_every_class_is_a_noun_and_one_of_imagenet_21k() -> None:
    wnids = {look.wnid for look in LOOKS}
    spec = find_spec("timm")
    if spec is None or spec.origin is None:
        pytest.skip("timm is not installed")
    lists = Path(spec.origin).parent / "data" / "_info"

    assert len(wnids) == len(LOOKS)
    assert all(wnid in load_synsets() for wnid in wnids)
    assert wnids <= set((lists / "imagenet22k_synsets.txt").read_text().split())


def test_the_classes_can_be_distinguished_by_pixels() -> None:
    # The nearest of the 12 mean images, at 8x8 pixels: a far weaker learner than a ViT.
    def thumbnails(numbers: range) -> np.ndarray:
        images = [
            [draw(look, np.random.default_rng([7, index, number])) for number in numbers]
            for index, look in enumerate(LOOKS)
        ]
        return np.array(
            [[np.asarray(Image.fromarray(p).resize((8, 8)), float) for p in row] for row in images]
        )

    means = thumbnails(range(20)).mean(axis=1)
    probes = thumbnails(range(20, 25))
    distances = ((probes[:, :, None] - means) ** 2).sum(axis=(-3, -2, -1))
    accuracy = (distances.argmin(axis=2) == np.arange(12)[:, None]).mean()

    assert accuracy > 3 / 12
