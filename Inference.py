"""Sample images from a checkpoint, step by step; or noise an image.

    python Inference.py --ckpt runs/cifar10 --save-steps 0,50,500,1000         # noise -> images
    python Inference.py --input-image photo.jpg --save-steps 0,50,500,1000     # image -> noise, no checkpoint needed
    python Inference.py --ckpt runs/cifar10 --input-image photo.jpg --start-step 500     # image -> half noise -> image

Writes into --out, for every saved step t: t0500.png (a grid of x_t) and x0_t0500.png (of the prediction of x_0 made from
it); trajectory.npz (`frames` uint8 (F,N,H,W,C), `times` (F,)) for make_gif.py; samples.npz (`arr_0` uint8 (N,H,W,C)).
"""

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from Signals import Stop

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

SHOWN = 64  # images in the grids and the trajectory; samples.npz has all


def whole(low: int) -> Any:
    def number(text: str) -> int:
        if not re.fullmatch(r"\d+", text) or int(text) < low:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {low}, not {text!r}")
        return int(text)
    return number


def steps(text: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"expected steps separated by commas, as in 0,50,500,1000, not {text!r}")
    return [int(part) for part in text.split(",")]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, allow_abbrev=False, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("what").add_argument
    add("--ckpt", type=Path, metavar="PATH", help="a checkpoint, or a run directory for its newest")
    add("--weights", choices=("ema", "raw"), default="ema", help="the averaged weights or those of the last step (ema)")
    add("--input-image", type=Path, metavar="FILE", help="noise this image; with --ckpt and --start-step, denoise it again")
    add("--start-step", type=whole(1), metavar="T", help="the t to which --input-image is noised before it is denoised")
    add("--num", type=whole(1), default=16, metavar="N", help="number of images (16)")
    add("--seed", type=whole(0), default=0, metavar="N", help="image i depends on (seed, i) alone (0)")
    add = parser.add_argument_group("output").add_argument
    add("--out", type=Path, default=Path("samples"), metavar="DIR", help="(samples)")
    add("--save-steps", type=steps, metavar="T,..", help="the t to save, 0 is the image (0, T/20, T/2, T: 0,50,500,1000)")
    add("--frames", type=whole(0), default=50, metavar="N", help="frames of the trajectory besides the saved steps (50)")
    add = parser.add_argument_group("machine").add_argument
    add("--batch-size", type=whole(1), default=64, metavar="N", help="images at once; changes no image (64)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(auto)")
    add("--devices", type=whole(1), metavar="N", help="processes a node; changes no image (those of srun or torchrun, else 1)")
    add("--num-nodes", type=whole(1), metavar="N", help="nodes (those of srun or torchrun, else 1)")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)  # before torch is imported: a typing error costs no seconds
    if args.ckpt is None and args.input_image is None:
        parser.error("give --ckpt (a checkpoint or a run directory) to sample, or --input-image to noise an image")
    if args.ckpt is None and args.start_step is not None:
        parser.error("--start-step denoises and needs a checkpoint: add --ckpt")
    if args.ckpt is not None and (args.input_image is None) != (args.start_step is None):
        parser.error("--input-image and --start-step go together: noise the image to that step, then denoise it")

    import torch

    import Devices
    try:
        processes = Devices.launch(Devices.pick_device(args.device), args.devices, args.num_nodes)
    except ValueError as error:
        parser.error(str(error))
    first, prepared, refusal = processes.global_rank == 0, None, ""
    try:
        prepared = prepare(args, processes.device, first)
    except OSError as error:
        refusal = f"{error.filename}: {error.strerror}; choose a place that can be used" if error.filename else str(error)
    except ValueError as error:
        refusal = str(error)
    refusal = processes.broadcast(next(filter(None, Devices.gather(processes, refusal)), ""))
    if refusal or not prepared:
        Devices.part(processes)
        parser.error(refusal) if first else sys.exit(Devices.own_status(2))
    model, image, start, saved = prepared

    frames = sorted({round(t) for t in torch.linspace(0, start, args.frames).tolist()} | set(saved)) if args.frames else sorted(saved)
    rank, world = processes.global_rank, processes.world_size
    share = range(args.num * rank // world, args.num * (rank + 1) // world)
    try:
        parts = Devices.gather(processes, reverse(model, image, start, frames, share, args.seed, args.batch_size)) if args.ckpt else []
        Devices.part(processes)
        if not first:
            return 0
        if args.ckpt:
            kept, predicted, x_0 = joined(parts)
            write(args.out / "samples.npz", arr_0=x_0)
        else:
            assert image is not None
            kept, predicted = forward(model, image, frames if image.numel() <= 3 * 512**2 else sorted(saved), args.seed), {}
            print("the image is large: the trajectory has the saved steps only" if len(kept) < len(frames) else "", end="")
        times = sorted(kept, reverse=True)
        write(args.out / "trajectory.npz", frames=[kept[t] for t in times], times=times)
        for t in saved:
            write_grid(args.out / f"t{t:04d}.png", kept[t])
            if t in predicted:
                write_grid(args.out / f"x0_t{t:04d}.png", predicted[t])
    except (torch.OutOfMemoryError, MemoryError):
        print(f"{parser.prog}: error: out of memory: choose a smaller --batch-size than {args.batch_size}", file=sys.stderr)
        return Devices.desert(processes, 2)
    except OSError as error:
        parser.error(f"cannot write to {args.out} ({error.strerror}): choose another --out")
    print(f"{args.out}: {', '.join(f't{t:04d}.png' for t in sorted(saved))}, trajectory.npz ({len(times)} frames)"
          + (f", samples.npz ({args.num} images)" if args.ckpt else "")
          + (f"; grids and trajectory show the first {SHOWN}" if args.ckpt and args.num > SHOWN else ""))
    return 0


def prepare(args: argparse.Namespace, device: Any, first: bool) -> "tuple[Any, Tensor | None, int, list[int]]":
    """The model, the image to begin with or None, the t where it starts, the t to save. Raises ValueError or OSError."""
    import Checkpoint
    from DiffusionModel import DiffusionModel
    # without a checkpoint only the schedule is used, so the network is the smallest there is
    model = (Checkpoint.load_model(args.ckpt, device, ema=args.weights == "ema") if args.ckpt
             else DiffusionModel(width=4, mults=(1,), attention=(), blocks=1))
    start = args.start_step or model.T
    saved = sorted({0, model.T // 20, model.T // 2, model.T}) if args.save_steps is None else args.save_steps
    if args.save_steps is None and args.start_step:
        saved = sorted({0, *(t for t in saved if t < start), start})
    if start > model.T:
        raise ValueError(f"--start-step {start} is past T = {model.T} of this model: choose 1 to {model.T}")
    if max(saved) > start:
        raise ValueError(f"--save-steps {max(saved)} is past t = {start}, where it starts: choose from 0 to {start}")
    image = None if args.input_image is None else read_image(args.input_image, model if args.ckpt else None)
    if first:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / ".writable").touch()  # told now, not after the sampling
        (args.out / ".writable").unlink()
    return model, image, start, saved


def reverse(model: Any, image: "Tensor | None", start: int, frames: list[int], images: range, seed: int,
            batch_size: int) -> "tuple[dict[int, np.ndarray], dict[int, np.ndarray], np.ndarray]":
    """Algorithm 2 from `start` to 0, of the `images` with these numbers. x_t and x0_hat at the `frames`, of those below
    `SHOWN`: uint8 (n,H,W,C) for each t; and all final images (N,H,W,C). They start from pure noise, or from the noised
    `image` (C,H,W)."""
    import numpy as np
    import torch
    from tqdm import tqdm

    from Sampler import Noise, ddpm
    net, wanted, nothing = model.unet, set(frames), np.zeros((0, model.unet.size, model.unet.size, model.unet.depth), np.uint8)
    samples = [nothing]
    kept: dict[int, list[Any]] = {t: [nothing] for t in frames}
    predicted: dict[int, list[Any]] = {t: [nothing] for t in frames}
    with tqdm(total=len(images) * start, desc="denoising", unit="step", bar_format="{l_bar}{bar:12}| {elapsed} so far, {remaining} left",
              mininterval=0.5 if sys.stderr.isatty() else 60, disable=images.start > 0) as bar:
        for begin in range(0, len(images), batch_size):
            indices = images[begin:begin + batch_size]
            noise = Noise(seed, indices, (net.depth, net.size, net.size), model.device)
            x = noise()
            if image is not None:
                x = model.q_sample(image.to(x.device).expand_as(x), torch.full((len(x),), start, device=x.device), x)
            shown = max(0, min(len(indices), SHOWN - indices[0]))
            for t, x_t, x0_hat in ddpm(model, x, range(start, -1, -1), noise, model.variance):
                if t in wanted and shown:
                    kept[t].append(to_uint8(x_t[:shown]))
                    predicted[t].append(to_uint8(x0_hat[:shown]))
                x = x_t
                bar.update(len(indices) if t else 0)
            samples.append(to_uint8(x))
    return ({t: np.concatenate(parts) for t, parts in kept.items()},
            {t: np.concatenate(parts) for t, parts in predicted.items()}, np.concatenate(samples))


def joined(parts: list[Any]) -> "tuple[dict[int, np.ndarray], dict[int, np.ndarray], np.ndarray]":
    """What `reverse` gave each process, as if it were one."""
    import numpy as np
    kept, predicted, samples = zip(*parts)
    return ({t: np.concatenate([part[t] for part in kept]) for t in kept[0]},
            {t: np.concatenate([part[t] for part in predicted]) for t in predicted[0]}, np.concatenate(samples))


def forward(model: Any, image: "Tensor", frames: list[int], seed: int) -> "dict[int, np.ndarray]":
    """x_t (1,H,W,C) of one image (C,H,W) for each t, Eq. 4, with the same eps throughout."""
    import torch

    from Sampler import Noise
    eps = Noise(seed, [0], tuple(image.shape))()                                 # (1,C,H,W)
    return {t: to_uint8(model.q_sample(image[None], torch.tensor([t]), eps)) for t in frames}


def read_image(path: Path, model: Any) -> "Tensor":
    """(C,H,W) in [-1,1]: resized and cropped to what the model takes, or as it is where there is no model."""
    import torch
    from PIL import Image, ImageOps

    from Dataset import open_image
    picture = open_image(path)
    if model is not None:
        picture = ImageOps.fit(picture.convert("L" if model.unet.depth == 1 else "RGB"), (model.unet.size,) * 2, Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, -1).permute(2, 0, 1).float() / 127.5 - 1


def to_uint8(x: "Tensor") -> "np.ndarray":
    """(N,C,H,W) -> uint8 (N,H,W,C); -1 is 0 and 1 is 255 at every t, and what lies beyond is cut off."""
    return (x * 127.5 + 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def write(path: Path, **arrays: Any) -> None:
    import numpy as np

    from CompleteFile import complete_file
    with complete_file(path) as temporary:
        np.savez(temporary, **{name: np.asarray(array) for name, array in arrays.items()})  # type: ignore[arg-type]


def write_grid(path: Path, images: "np.ndarray") -> None:
    """uint8 (N,H,W,C) as one PNG, about as wide as high; a single image as it is."""
    import torch
    from PIL import Image
    from torchvision.utils import make_grid

    from CompleteFile import complete_file
    tiles = torch.from_numpy(images).permute(0, 3, 1, 2)
    grid = make_grid(tiles, nrow=round(len(tiles) ** 0.5), padding=2) if len(tiles) > 1 else tiles[0]
    with complete_file(path) as temporary:
        Image.fromarray(grid.permute(1, 2, 0).numpy().squeeze()).save(temporary)


if __name__ == "__main__":
    Stop().arm()  # a signal ends it at once and leaves no half-written file; run again, it writes the same bytes
    sys.exit(main())
