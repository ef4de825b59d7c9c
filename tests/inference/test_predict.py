from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vit21k.checkpoint.model_folder import EvalSettings, ModelCard
from vit21k.data.decode import decode_rgb
from vit21k.data.transforms import normalise
from vit21k.inference.predict import eval_transform, predict
from vit21k.manifest.classes import ClassList
from vit21k.models.registry import get_model, model_args

NAME = "vit_tiny_patch16_224"
SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
CLASSES = ClassList(("n1", "n2", "n3", "n4"), ("one", None, "three", None))


def model_and_card(loss_kind="sigmoid"):
    torch.manual_seed(0)
    model = get_model(NAME, num_classes=4, **SMALL).eval()
    settings = EvalSettings(
        img_size=16,
        mode="center_crop",
        resize=20,
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    card = ModelCard(
        path=Path(),
        name=NAME,
        args=model_args(NAME, **SMALL),
        classes=CLASSES,
        eval_settings=settings,
        loss_kind=loss_kind,
    )
    return model, card


def draw(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def scores_of(model, card, path):
    pixels = eval_transform(card.eval_settings)(decode_rgb(path.read_bytes()))
    with torch.no_grad():
        return model(normalise(torch.from_numpy(pixels)[None], (0.5,) * 3, (0.5,) * 3))[0]


@pytest.mark.parametrize("loss_kind", ["sigmoid", "softmax"])
def test_a_prediction_is_the_models_best_classes_with_their_names(tmp_path, loss_kind):
    model, card = model_and_card(loss_kind)
    path = draw(tmp_path / "a.png", 1)

    (prediction,) = predict(model, card, [path], top_k=3)

    logits = scores_of(model, card, path)
    wanted = logits.sigmoid() if loss_kind == "sigmoid" else logits.softmax(dim=0)
    order = wanted.argsort(descending=True)[:3].tolist()
    assert [score.class_index for score in prediction.top] == order
    assert [score.wnid for score in prediction.top] == [CLASSES.wnids[index] for index in order]
    assert [score.name for score in prediction.top] == [CLASSES.names[index] for index in order]
    assert [score.probability for score in prediction.top] == pytest.approx(
        wanted[order].tolist(), abs=1e-6
    )


def test_more_classes_than_there_are_is_all_of_them(tmp_path):
    model, card = model_and_card("softmax")

    (prediction,) = predict(model, card, [draw(tmp_path / "a.png", 1)], top_k=99)

    assert len(prediction.top) == 4
    assert sum(score.probability for score in prediction.top) == pytest.approx(1)


@pytest.mark.parametrize("device_batch_size", [1, 2, 7])
def test_predictions_come_in_the_order_of_the_images(tmp_path, device_batch_size):
    model, card = model_and_card()
    paths = [draw(tmp_path / f"{number}.png", number) for number in range(7)]

    found = list(
        predict(model, card, paths, device_batch_size=device_batch_size, num_workers=2, top_k=1)
    )

    assert [prediction.path for prediction in found] == paths
    for prediction in found:
        wanted = scores_of(model, card, prediction.path).sigmoid().max().item()
        assert prediction.top[0].probability == pytest.approx(wanted, abs=1e-6)


def test_bad_images_are_reported_in_their_place_and_the_rest_is_done(tmp_path):
    model, card = model_and_card()
    good = draw(tmp_path / "good.png", 1)
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:300])
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    (tmp_path / "empty.jpg").touch()
    paths = [cut, good, text, tmp_path / "gone.jpg", tmp_path, tmp_path / "empty.jpg", good]

    found = list(predict(model, card, paths, device_batch_size=3))

    assert [prediction.path for prediction in found] == paths
    assert [bool(prediction.top) for prediction in found] == [False, True, *[False] * 4, True]
    problems = [prediction.problem for prediction in found]
    assert [problem is None for problem in problems] == [False, True, *[False] * 4, True]
    assert problems[3] == "the file is not there"


def test_no_images_are_no_predictions():
    assert list(predict(*model_and_card(), [])) == []


def test_a_quota_of_the_cpu_limits_the_threads_that_decode(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("vit21k.inference.predict.num_threads", lambda: asked.append(1) or 1)
    path = draw(tmp_path / "a.png", 1)

    list(predict(*model_and_card(), [path]))

    assert asked == [1]


def test_a_threshold_keeps_all_classes_that_reach_it_and_no_other(tmp_path):
    model, card = model_and_card()
    paths = [draw(tmp_path / f"{number}.png", number) for number in range(6)]
    wanted = [scores_of(model, card, path).sigmoid() for path in paths]
    threshold = float(torch.stack(wanted).median()) + 1e-6

    found = list(predict(model, card, paths, top_k=None, threshold=threshold))

    counts = [len(prediction.top) for prediction in found]
    assert counts == [int((scores >= threshold).sum()) for scores in wanted]
    assert len({*counts}) > 1
    both = list(predict(model, card, paths, top_k=1, threshold=threshold))
    assert [prediction.top for prediction in both] == [prediction.top[:1] for prediction in found]


def test_a_threshold_that_nothing_reaches_leaves_no_class(tmp_path):
    model, card = model_and_card()

    (prediction,) = predict(model, card, [draw(tmp_path / "a.png", 1)], threshold=1.0)

    assert prediction == (tmp_path / "a.png", (), None)


def test_bfloat16_agrees_to_its_three_digits(tmp_path):
    model, card = model_and_card("softmax")
    path = draw(tmp_path / "a.png", 1)

    (exact,) = predict(model, card, [path], top_k=4)
    (rough,) = predict(model, card, [path], top_k=4, precision="bf16")

    exact_of = {score.wnid: score.probability for score in exact.top}
    rough_of = {score.wnid: score.probability for score in rough.top}
    assert rough_of == pytest.approx(exact_of, abs=2e-2)
    assert rough_of != exact_of
