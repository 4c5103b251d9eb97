"""Which sampler gives the best images in so many evaluations of the network: Frechet distance of one trained model.

    python benchmarks/samplers.py --ckpt runs/fashionmnist                                        # half an hour on two cores
    python benchmarks/samplers.py --ckpt runs/fashionmnist --evaluations 10,20 --num 1000

Every sampler starts from the same noise. The distance is `Classifier.FrechetDistance` to 20,000 training images; as a floor,
that of as many unseen images. One line a measurement, then the table.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

import Checkpoint
import Classifier
import Devices
from Dataset import DiffSet
from Guidance import Guided
from Sampler import GRIDS, SAMPLERS, Noise, sample, time_grid

ROWS = {"ddpm-large": ("ddpm", "large"), "ddpm-small": ("ddpm", "small"), **{name: (name, "") for name in SAMPLERS[1:]}}


def images(model: Guided, sampler: str, variance: str, times: list[int], count: int, shape: tuple[int, ...], precision: str) -> Tensor:
    """uint8 (N,C,H,W), image i from the noise of (0, i)."""
    parts, device = [], model.model.device
    for first in range(0, count, 100):
        noise = Noise(0, range(first, min(first + 100, count)), shape, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision != "32-true"):
            *_, (_, x, _) = sample(sampler, model, noise(), times, noise, variance)
        parts.append((x * 127.5 + 127.5).round().clamp(0, 255).byte().cpu())
    return torch.cat(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, help="a checkpoint or a run directory")
    parser.add_argument("--data-root", default="data", help="(data)")
    parser.add_argument("--evaluations", default="5,10,20,50,100,1000", help="of the network (5,10,20,50,100,1000)")
    parser.add_argument("--samplers", default=",".join(ROWS), help=f"({','.join(ROWS)})")
    parser.add_argument("--most", default="ddpm-small", help="those of them that are also measured with 1000 evaluations (ddpm-small)")
    parser.add_argument("--grid", choices=GRIDS, default="uniform", help="(uniform)")
    parser.add_argument("--num", type=int, default=300, help="images (300)")
    args = parser.parse_args()
    if unknown := set(args.samplers.split(",")) - ROWS.keys():
        parser.error(f"unknown sampler {min(unknown)}: choose from {', '.join(ROWS)}")
    device = Devices.pick_device("auto")
    precision = Devices.pick_precision(device, "auto")
    try:
        model = Checkpoint.load_model(args.ckpt, device)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    name, net = model.hparams["dataset"], model.unet
    data, unseen = (DiffSet(train, name, args.data_root, net.size) for train in (True, False))
    judge = Classifier.of(name, args.data_root)
    distance_of = Classifier.FrechetDistance(judge, data.images[:20_000])
    print(f"{name}: {args.num} images, {device}, {precision}; {args.num} unseen images {distance_of(unseen.images[:args.num]):.2f}; "
          f"classifier {100 * float(judge.accuracy):.1f}%", flush=True)
    counts, rows = [int(n) for n in args.evaluations.split(",")], []
    for title in args.samplers.split(","):
        (sampler, variance), cells = ROWS[title], []
        for count in counts:
            if count >= 1000 and title not in args.most.split(","):
                cells.append("")
                continue
            began = time.monotonic()
            times = time_grid(model, (count + 1) // 2 if sampler == "heun" else count, model.T, args.grid)
            shape = (net.depth, net.size, net.size)
            distance = distance_of(images(Guided(model), sampler, variance, times, args.num, shape, precision))
            print(f"{title}, {count} evaluations: {distance:.2f} ({time.monotonic() - began:.0f} s)", flush=True)
            cells.append(f"{distance:.2f}")
        rows.append(f"| {title} | {' | '.join(cells)} |")
    print(f"\n| evaluations | {' | '.join(map(str, counts))} |\n|---|{'---|' * len(counts)}")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
