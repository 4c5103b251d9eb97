"""A finished run whose page has every section."""

import base64
import io
import json

import numpy as np
import torch
from PIL import Image
from training_runs import fit

import Inference
from evaluation import results

EVIL = "<script>document.title = 'run'</script>"


def measured() -> dict:
    """Metrics as evaluate.py writes them."""

    def one(mean):
        return {
            "mean": mean,
            "lowest": mean - 0.5,
            "highest": mean + 0.5,
            "floor": 0.25,
            "ceiling": 321.0,
        }

    names = ("frechet", "kernel", "precision", "recall")
    to = {
        "images": 60,
        "floor_images": 20,
        "manifold_images": 20,
        **{name: one(4.5 + i) for i, name in enumerate(names)},
    }
    return {
        "bits_per_dim": {"bound": {"mean": 7.125, "standard_error": 0.0625, "images": 20}},
        "distances": {
            "classifier": {
                "sampling": {"sampler": "unipc", "steps": 20, "guidance": 1.0},
                "sets": 2,
                "images": 20,
                "published_weights": False,
                "to_train": to,
                "to_test": to,
            }
        },
        "memorization": {
            "classifier": {
                "images": 20,
                "train_images": 60,
                "pixels": {"ratio": 0.98, "copies": 0.0, "duplicates": 0.0},
                "features": {"ratio": 1.01, "copies": 0.0, "duplicates": 0.0},
                "picture": "x.png",
            }
        },
    }


def make_finished_run(data, folder):
    """Train and sample in `folder`, and write invented metrics. Class names, folder and command
    contain HTML."""
    folder = folder / """<b>"a&b'<b>"""
    folder.mkdir()
    with np.load(data) as archive:
        np.savez(folder / "d.npz", **archive, classes=np.array([EVIL, 'bright & "clear"']))
    run_dir = folder / "run <i>"
    flags = "--max-steps 12 --schedule cosine --class-conditional".split()
    assert fit(folder / "d.npz", run_dir, *flags) == 0
    words = ["--ckpt", str(run_dir), "--out", str(run_dir / "images")]
    assert Inference.main([*words, "--class", "all", "--num", "4"]) == 0
    config = json.loads((run_dir / "config.json").read_text())
    config["command"] = ["train.py", "--dataset", EVIL]
    config["hardware"] = EVIL + " 2 cores"
    (run_dir / "config.json").write_text(json.dumps(config))
    about = {name: "x" for name in results.IDENTITY} | {"step": 12}
    results.write_metrics(run_dir / "metrics.json", about, measured())
    results.write_image(
        run_dir / "evaluation" / "nearest-classifier.png",
        torch.arange(3 * 10 * 40).reshape(3, 10, 40).byte(),
    )
    return run_dir


def image_of(src: str) -> np.ndarray:
    """The pixels of an image in a page."""
    encoded = src.removeprefix("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
