"""`vit21k explain`."""

import json

import numpy as np
from PIL import Image


def test_an_image_is_drawn_and_its_rollout_printed(vit21k, images, run_dir, tmp_path):
    arguments = ["explain", run_dir, "tree/ant/0.png", "--out", "out/seen.png", "--json"]

    result = vit21k(*arguments)

    told = json.loads(result.stdout)
    assert result.code == 0
    assert np.array(told["rollout"]).shape == (2, 2)
    assert 0 < np.sum(told["rollout"]) < 1
    assert told["top"]["wnid"] in ("ant", "bee", "cat")
    with Image.open(tmp_path / "out" / "seen.png") as page:
        assert (page.format, page.size) == ("PNG", (1216, 428))
    assert "0.png: " in result.stderr.splitlines()[-1]


def test_what_cannot_be_explained_says_why(vit21k, images, run_dir, tmp_path):
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff")

    results = {
        name: vit21k("explain", run_dir, name, "--out", out)
        for name, out in (("cut.jpg", "a.png"), ("gone.jpg", "a.png"), ("tree/ant/0.png", "a.jpg"))
    }

    assert [result.code for result in results.values()] == [3, 3, 2]
    for name in ("cut.jpg", "gone.jpg"):
        assert f"error: `{name}`: " in results[name].stderr
    assert not (tmp_path / "a.png").exists()
