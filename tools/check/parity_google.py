"""Compare with Google's own code, both ways: its weights here, our .npz there.

python tools/check/parity_google.py VISION_TRANSFORMER --python PYTHON

VISION_TRANSFORMER is a checkout of google-research/vision_transformer, PYTHON an interpreter with
jax and flax.  Small random models of every kind (class token, mean pooling, pre-logits, R26 and R50
in front) are made there, computed in both, exported here as .npz, and computed there once more.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from vit21k.checkpoint.load import load_model
from vit21k.export.model import export_model

CASES = {
    "class token": {},
    "mean pooling": {"classifier": "gap"},
    "pre-logits": {"representation_size": 48},
    "R26": {"resnet": [2, 2, 2, 2], "patch": 1},
    "R50": {"resnet": [3, 4, 9], "patch": 1},
}
# Runs in PYTHON: `make FOLDER CASE` or `read FOLDER CASE`.
THEIRS = """
import json, sys, types
checkout, what, folder, case = sys.argv[1:]
sys.path.insert(0, checkout)
import jax, numpy as np
from flax.training.checkpoints import convert_pre_linen
from flax.traverse_util import flatten_dict, unflatten_dict
from vit_jax.models_vit import VisionTransformer
jax.config.update("jax_default_matmul_precision", "highest")

class Config(types.SimpleNamespace):
    __hash__ = object.__hash__

case = json.loads(case)
patch, layers = case.pop("patch", 16), case.pop("resnet", None)
model = VisionTransformer(
    num_classes=7, hidden_size=64, patches=Config(size=(patch, patch)),
    resnet=layers and Config(num_layers=tuple(layers), width_factor=1),
    transformer={"mlp_dim": 128, "num_heads": 4, "num_layers": 2, "dropout_rate": 0.0,
                 "attention_dropout_rate": 0.0}, **case)
images = np.random.default_rng(0).uniform(-1, 1, (2, 96, 96, 3)).astype(np.float32)
if what == "make":
    params = model.init(jax.random.PRNGKey(0), images, train=False)["params"]
    rng = np.random.default_rng(1)
    params = jax.tree_util.tree_map(
        lambda a: np.asarray(a + 0.05 * rng.normal(size=a.shape), np.float32), params)
    np.savez(f"{folder}/weights.npz", **flatten_dict(params, sep="/"))
else:
    arrays = dict(np.load(f"{folder}/ours/model.npz", allow_pickle=False))
    params = convert_pre_linen(unflatten_dict(arrays, sep="/"))
logits = model.apply({"params": params}, images, train=False)
np.savez(f"{folder}/{what}.npz", images=images, logits=np.asarray(logits))
"""


def run_theirs(python: str, *arguments: str) -> None:
    """Run Google's code."""
    subprocess.run([python, "-c", THEIRS, *arguments], check=True, capture_output=True)


def compare(python: str, checkout: str, name: str) -> str:
    """Return what differs for one kind of model, in a line."""
    case = json.dumps(CASES[name])
    with tempfile.TemporaryDirectory() as folder:
        run_theirs(python, checkout, "make", folder, case)
        made = np.load(f"{folder}/make.npz")
        model, _ = load_model(f"{folder}/weights.npz")
        with torch.no_grad():
            ours = model(torch.from_numpy(made["images"]).permute(0, 3, 1, 2)).numpy()
        export_model(f"{folder}/weights.npz", Path(folder) / "ours", to="npz")
        run_theirs(python, checkout, "read", folder, case)
        again = np.load(f"{folder}/read.npz")["logits"]
    here, there = np.abs(ours - made["logits"]).max(), np.abs(again - made["logits"]).max()
    return f"{name:<14} logits up to {np.abs(ours).max():.2f}: here {here:.1e}, our npz {there:.1e}"


def main() -> int:
    """Print a line for each kind of model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", help="google-research/vision_transformer")
    parser.add_argument("--python", default=sys.executable, help="has jax and flax")
    options = parser.parse_args()
    for name in CASES:
        print(compare(options.python, options.checkout, name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
