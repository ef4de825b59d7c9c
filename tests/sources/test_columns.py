"""Which columns hold images and labels, and where the names of classes are found."""

import json

import pyarrow as pa
import pytest
from table_files import IMAGE

from vit21k.errors import LayoutError
from vit21k.sources.columns import NO_FEATURES, columns_of, holds_images, read_card
from vit21k.sources.container import LabelOptions

NO_OPTIONS = LabelOptions()
INT, TEXT = pa.int64(), pa.string()


def schema(features=None, **columns):
    metadata = None
    if features is not None:
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema(columns.items(), metadata=metadata)


def class_label(*names):
    return {"names": list(names), "_type": "ClassLabel"}


def test_features_decide_which_columns_are_images_and_labels():
    features = {
        "photo": {"_type": "Image"},
        "kind": class_label("cat", "dog"),
        "label": {"dtype": "int64", "_type": "Value"},
    }
    found = columns_of(
        schema(features, mask=IMAGE, photo=IMAGE, kind=INT, label=INT), NO_OPTIONS, "a.parquet"
    )

    assert (found.image, found.label, found.class_names) == ("photo", "kind", ("cat", "dog"))


@pytest.mark.parametrize(
    "feature",
    [
        {"feature": class_label("cat", "dog"), "_type": "List"},
        {"feature": class_label("cat", "dog"), "_type": "Sequence"},
        {"feature": class_label("cat", "dog"), "length": -1, "_type": "LargeList"},
        [class_label("cat", "dog")],
    ],
)
def test_lists_of_labels_have_names(feature):
    found = columns_of(schema({"tags": feature}, image=IMAGE, tags=pa.list_(INT)), NO_OPTIONS, "a")

    assert (found.label, found.class_names) == ("tags", ("cat", "dog"))


@pytest.mark.parametrize(
    ("columns", "message", "hint"),
    [
        ({"a": IMAGE, "b": IMAGE, "label": INT}, "several columns that may", "--image-column a"),
        ({"a": pa.binary(), "b": pa.binary(), "label": INT}, "several columns", "--image-column a"),
        ({"text": TEXT, "label": INT}, "no column with the bytes of images", "`text`, `label`"),
        ({"image": TEXT, "label": INT}, "no column with the bytes of images", "binary"),
        ({"image": pa.list_(IMAGE), "label": INT}, "no column with the bytes", "binary"),
        (
            {"image": IMAGE, "label": INT, "class": TEXT},
            "several columns of labels",
            "--label-from column:label",
        ),
        ({"image": IMAGE, "source": TEXT}, "no column of labels", "--label-from column:source"),
        ({"image": IMAGE}, "no column of labels", "--label-from folder"),
    ],
)
def test_what_is_ambiguous_is_refused_with_the_option_that_settles_it(columns, message, hint):
    with pytest.raises(LayoutError, match=message) as refused:
        columns_of(schema(**columns), NO_OPTIONS, "a.parquet")
    assert hint in refused.value.hint


def test_two_columns_of_class_labels_are_refused():
    features = {"fine_label": class_label("maple"), "coarse_label": class_label("tree")}
    both = schema(features, img=IMAGE, fine_label=INT, coarse_label=INT)

    with pytest.raises(LayoutError, match="`fine_label`, `coarse_label`"):
        columns_of(both, NO_OPTIONS, "a.parquet")
    chosen = columns_of(both, LabelOptions(label_from="column:coarse_label"), "a.parquet")
    assert chosen.class_names == ("tree",)


@pytest.mark.parametrize("label_from", ["column:score", "column:there", "cls"])
def test_a_column_that_cannot_be_labels_is_refused(label_from):
    with pytest.raises(LayoutError):
        columns_of(
            schema(image=IMAGE, score=pa.binary(), label=INT),
            LabelOptions(label_from=label_from, image_column="image"),
            "a.parquet",
        )


def test_an_image_column_is_named_or_refused():
    two = schema(small=IMAGE, large=IMAGE, label=INT)

    assert columns_of(two, LabelOptions(image_column="large"), "a").image == "large"
    with pytest.raises(LayoutError, match="no column `label` of images"):
        columns_of(two, LabelOptions(image_column="label"), "a")


def test_two_classes_of_one_name_are_distinguished_by_their_indices():
    cranes = schema({"label": class_label("crane", "owl", "crane")}, image=IMAGE, label=INT)
    wnids = ("n02012849", "n01621127", "n03126707")

    def names(options):
        return columns_of(cranes, options, "a.parquet").class_names

    assert names(NO_OPTIONS) == ("crane (0)", "owl", "crane (2)")
    assert names(LabelOptions(class_names=wnids)) == wnids


def test_names_of_a_column_of_strings_are_its_values():
    texts = schema({"label": class_label("cat")}, image=IMAGE, label=TEXT)

    assert columns_of(texts, NO_OPTIONS, "a.parquet").class_names is None


@pytest.mark.parametrize(
    "metadata", ["{", "[]", '{"info": 3}', '{"info": {"features": {"label": {"names": 3}}}}']
)
def test_malformed_metadata_say_nothing(metadata):
    found = columns_of(
        pa.schema([("image", IMAGE), ("label", INT)], {"huggingface": metadata}), NO_OPTIONS, "a"
    )

    assert (found.label, found.class_names) == ("label", None)


def test_manifests_and_texts_hold_no_images():
    assert holds_images(schema(image=IMAGE))
    assert not holds_images(schema(file_name=TEXT, label=INT))
    assert not holds_images(pa.schema([("digest", pa.binary())], {"vit21k": "{}"}))


def _card(name, names):
    info = f"{{features: [{{name: {name}, dtype: {{class_label: {{{names}}}}}}}]}}"
    return f"---\ndataset_info: {info}\n---"


README = """---
license: mit
dataset_info:
- config_name: default
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': tench
          '1': goldfish
- config_name: coarse
  features:
  - name: label
    dtype:
      class_label:
        names:
          '0': fish
---
# A card
"""


def test_the_card_of_the_hub_names_the_classes_of_a_configuration():
    read = {"README.md": README}.get

    fine = read_card("default/train/0000.parquet", read)
    coarse = read_card("coarse/train/0000.parquet", read)
    found = columns_of(schema(photo=IMAGE, label=INT), NO_OPTIONS, "a", fine)

    assert fine.images == {"image"}
    assert found.class_names == ("tench", "goldfish")
    assert coarse.classes == {"label": ("fish",)}
    assert read_card("data/train-0.parquet", read) == NO_FEATURES  # which configuration?


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dataset_info.json", {"features": {"label": class_label("cat", "dog")}}),
        ("dataset_infos.json", {"default": {"features": {"label": class_label("cat", "dog")}}}),
        ("README.md", _card("label", "names: {'1': dog, '0': cat}")),
    ],
)
def test_cards_are_found_in_the_folders_above(name, text):
    text = text if isinstance(text, str) else json.dumps(text)

    found = read_card("data/train/0.parquet", {name: text}.get)

    assert found.classes == {"label": ("cat", "dog")}


@pytest.mark.parametrize(
    "text",
    [
        "# no card",
        "---\n: [\n---",
        "---\ndataset_info: 3\n---",
        _card("label", "names: [3, 4]"),
        _card("&a [x, x]", "names: [*a, *a]"),
    ],
)
def test_a_malformed_card_says_nothing(text):
    assert read_card("0.parquet", {"README.md": text}.get) == NO_FEATURES
