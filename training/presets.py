"""The presets: groups of settings that `train.py --preset` selects.

The defaults of train.py are those of the paper (Ho et al. 2020, appendix B, CIFAR-10). A preset
replaces some of them, and a flag replaces a setting of the preset. benchmarks/RESULTS.md has the
measurements.
"""

from typing import Any

# For two CPU cores. On two threads of an AMD EPYC with bf16, 3,000 steps take six to seven minutes;
# the Frechet distances are 0.24 for MNIST, 0.75 for FashionMNIST and 6.79 for CIFAR-10.
LAPTOP: dict[str, Any] = dict(
    width=32,
    mults=(1, 2, 2),
    attention=(8,),
    blocks=1,
    patch=2,
    film=True,
    schedule="cosine",
    parameterization="x0",
    weighting="min-snr+1",
    variance="small",
    optimizer="muon",
    lr=2e-3,
    warmup=100,
    lr_schedule="linear",
    class_conditional=True,
    guidance=1.5,
    batch_size=32,
    max_steps=3000,
    max_time=600.0,
    val_every=750,
    val_images=500,
    save_every=750,
)

# CIFAR-10 with labels needs more guidance than digits and garments do.
CIFAR10_GUIDANCE = 4.0

# For a first look with the built-in shapes: the changes to `LAPTOP`. On the same machine, `bash
# run.sh` takes 85 s after the set-up, and all five kinds are recognizable.
QUICK: dict[str, Any] = dict(
    guidance=2.0,
    batch_size=16,
    warmup=20,
    max_steps=800,
    max_time=120.0,
    val_every=400,
    val_images=200,
    save_every=400,
    compile="off",
)

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "laptop": LAPTOP,
    "quick": LAPTOP | QUICK,
    # For CIFAR-10 on one H200, where an earlier version took 125 s.
    "speedrun": dict(
        width=64,
        dropout=0.0,
        schedule="cosine",
        parameterization="v",
        variance="small",
        t_sampling="stratified",
        class_conditional=True,
        batch_size=512,
        optimizer="muon",
        lr=1e-3,
        warmup=300,
        lr_schedule="linear",
        ema_decay=0.998,
        max_steps=1700,
        val_every=850,
        val_images=2000,
        save_every=850,
    ),
}


def choose_preset(name: str, device: str) -> str:
    """Return the preset that "auto" stands for on this kind of device."""
    if name != "auto":
        return name
    return "paper" if device == "cuda" else "laptop"
