"""Record what seeded runs compute, and compare another version of the code with the record, bit
for bit.

    python tests/golden.py record golden.json       # before a refactoring
    python tests/golden.py compare golden.json      # after it: exit status 1 if anything differs
    python tests/golden.py compare golden.json eps  # cases with "eps" in their names, and "editing"

It only runs the scripts, so it does not depend on how the code is laid out: 20 training steps for
{eps, x0, v} x {large, small, learned} x {plain, classes, augmentation, accumulation, two
processes}, and the laptop preset. For each case it records every training loss, both validation
losses, hashes of the weights, of their average and of the samples of every sampler, and the
bits/dim. About 10 minutes on two cores. The numbers hold for one machine and one version of torch:
record and compare on the same one.
"""

import contextlib
import csv
import hashlib
import importlib
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

TINY = (
    "--width 8 --mults 1,2 --attention 4 --blocks 1 --image-size 8 --T 20 --batch-size 8 --lr 1e-3"
    " --warmup 2 --val-every 10 --val-images 16 --log-every 1 --save-every 20 --max-steps 20"
    " --device cpu --precision 32 --preset paper --dropout 0.1"
).split()
LAPTOP = (
    "--preset laptop --val-every 10 --val-images 64 --log-every 1 --save-every 20 --max-steps 20"
    " --device cpu"
).split()
VARIANTS = {
    "plain": [],
    "classes": ["--class-conditional"],
    "augmentation": ["--augment", "0.5"],
    "accumulation": ["--accumulate", "2"],
    "processes": ["--devices", "2"],
}
SAMPLERS = ("ddpm", "ddim", "heun", "dpm++", "unipc")


def run(script: str, *words: object) -> str:
    """Call a script's main with these arguments and return what it prints. With --devices, start
    the script as a process."""
    argv = [str(word) for word in words]
    if "--devices" in argv:
        command = [sys.executable, f"{script}.py", *argv]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        assert importlib.import_module(script).main(argv) in (0, None), f"{script} {' '.join(argv)}"
    return printed.getvalue()


def digest(*arrays: np.ndarray) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def hash_weights(weights: dict[str, torch.Tensor]) -> str:
    return digest(*(weights[name].cpu().numpy() for name in sorted(weights)))


def training_results(run_dir: Path) -> dict[str, object]:
    """The losses in metrics.csv and hashes of the checkpoint's weights."""
    with open(run_dir / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    checkpoint = torch.load(
        next(run_dir.glob("checkpoints/step_*20.ckpt")), map_location="cpu", weights_only=True
    )
    validation = [name for name in rows[0] if name.startswith("val_loss")]
    return {
        "losses": [row["train_loss"] for row in rows if row["train_loss"]],
        "validation": [[row[name] for name in validation] for row in rows if row["val_loss"]],
        "weights": hash_weights(checkpoint["state_dict"]),
        "average": hash_weights(checkpoint["ema"]["weights"]),
    }


def hash_samples(run_dir: Path, *flags: str) -> str:
    """A hash of the samples, of the trajectory and of the predictions."""
    out = run_dir / "sampled"
    run(
        "Inference",
        "--ckpt",
        run_dir,
        "--out",
        out,
        "--precision",
        "32",
        "--device",
        "cpu",
        "--no-preview",
        *flags,
    )
    with np.load(out / "samples.npz") as samples, np.load(out / "trajectory.npz") as trajectory:
        return digest(
            samples["arr_0"], trajectory["frames"], trajectory["predicted"], trajectory["times"]
        )


def bits_per_dim(run_dir: Path, count: int) -> float:
    """Bits/dim of `count` unseen images."""
    words = ["--num", 0, "--bound", count, "--terms", 4, "--device", "cpu", "--json"]
    return json.loads(run("evaluate", "--ckpt", run_dir, *words).splitlines()[-1])["bits_per_dim"][
        "bound"
    ]["mean"]


def case(run_dir: Path, data: str, *flags: str) -> dict[str, object]:
    """Train, sample with every sampler, and measure."""
    run("train", "--dataset", data, "--run-dir", run_dir, *flags)
    asked = (
        ["--class", "all", "--guidance", "2", "--num", "3"]
        if "--class-conditional" in flags
        else ["--num", "5"]
    )
    steps = ["--steps", "6", "--batch-size", "4"]
    found = training_results(run_dir)
    found["samples"] = {
        name: hash_samples(run_dir, "--sampler", name, *steps, *asked) for name in SAMPLERS
    }
    found["bits/dim"] = bits_per_dim(run_dir, 16)
    return found


def editing(run_dir: Path, folder: Path) -> dict[str, object]:
    """Hashes for SDEdit, inpainting, interpolation, two processes, raw weights and the forward
    process; and the distances of two sets of samples."""
    from PIL import Image

    random = np.random.default_rng(1)
    for name in ("a", "b"):
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
            folder / f"{name}.png"
        )
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 2:6] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    a, b = str(folder / "a.png"), str(folder / "b.png")
    found = {
        "image to image": hash_samples(
            run_dir, "--input-image", a, "--start-step", "10", "--num", "3"
        ),
        "painting": hash_samples(
            run_dir,
            "--input-image",
            a,
            "--mask",
            str(folder / "mask.png"),
            "--steps",
            "12",
            "--num",
            "3",
        ),
        "interpolation": hash_samples(run_dir, "--interpolate", a, b, "--steps", "8", "--num", "3"),
        "two processes": hash_samples(run_dir, "--devices", "2", "--num", "5"),
        "raw weights": hash_samples(
            run_dir, "--weights", "raw", "--num", "3", "--eta", "0.5", "--sampler", "ddim"
        ),
    }
    run(
        "Inference",
        "--input-image",
        a,
        "--out",
        folder / "forward",
        "--no-preview",
        "--save-steps",
        "0,500,1000",
    )
    with np.load(folder / "forward" / "trajectory.npz") as trajectory:
        found["forward"] = digest(trajectory["frames"], trajectory["times"])
    words = [
        "--num",
        8,
        "--bound",
        0,
        "--seeds",
        "0,1",
        "--features",
        "classifier",
        "--data-root",
        folder,
    ]
    measured = json.loads(
        run("evaluate", "--ckpt", run_dir, *words, "--device", "cpu", "--json").splitlines()[-1]
    )
    distances = measured["distances"]["classifier"]
    distances.pop("sampling")
    return found | {"distances": distances}


def record(pattern: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        random = np.random.default_rng(0)
        labels = random.integers(0, 2, 80)
        images = (random.random((80, 8, 8, 3)) * 60 + 150 * labels[:, None, None, None]).astype(
            np.uint8
        )
        data = folder / "tiny.npz"
        splits = {"train_images": images[:60], "train_labels": labels[:60]}
        np.savez(data, **splits, test_images=images[60:], test_labels=labels[60:])
        settings = itertools.product(("eps", "x0", "v"), ("large", "small", "learned"), VARIANTS)
        for parameterization, variance, variant in settings:
            name = f"{parameterization} {variance} {variant}"
            if pattern not in name:
                continue
            flags = [
                "--parameterization",
                parameterization,
                "--variance",
                variance,
                *VARIANTS[variant],
            ]
            found[name] = case(folder / name.replace(" ", "-"), str(data), *TINY, *flags)
            print(name, flush=True)
        for precision in ("32", "bf16"):
            name = f"laptop {precision}"
            if pattern not in name:
                continue
            run_dir = folder / name.replace(" ", "-")
            found[name] = case(run_dir, "shapes", *LAPTOP, "--precision", precision)
            print(name, flush=True)
        if pattern in "eps large classes":
            found["editing"] = editing(folder / "eps-large-classes", folder)
    return found


def differences(old: object, new: object, at: str = "") -> list[str]:
    """A line for each value that is not the same."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        return [
            line
            for name in names
            for line in differences(old.get(name), new.get(name), f"{at} / {name}")
        ]
    return [] if old == new else [f"{at}: {old} is now {new}"]


def main() -> int:
    if len(sys.argv) not in (3, 4) or sys.argv[1] not in ("record", "compare"):
        print("usage: python tests/golden.py record|compare FILE [CASE]", file=sys.stderr)
        return 2
    file = Path(sys.argv[2])
    pattern = "".join(sys.argv[3:])
    found = json.loads(json.dumps(record(pattern)))
    if not found:
        print(f"no case has a name that contains {pattern!r}", file=sys.stderr)
        return 2
    if sys.argv[1] == "record":
        file.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    recorded = json.loads(file.read_text())
    if missing := found.keys() - recorded.keys():
        print(f"{file} has no case {min(missing)!r}: give another CASE", file=sys.stderr)
        return 2
    lines = differences({name: recorded[name] for name in found}, found)
    print("\n".join(lines) or f"all of {len(found)} cases are the same, to the last bit")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
