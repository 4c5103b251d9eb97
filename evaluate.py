# PYTHON_ARGCOMPLETE_OK
"""Measure a trained model: bits/dim of unseen images, distances of its samples from real ones, and whether they are copies.

    python evaluate.py --ckpt runs/mnist                                         # all of it, with what suits the machine
    python evaluate.py --ckpt runs/mnist --num 10000 --seeds 0                   # 10,000 samples instead of three sets
    python evaluate.py --ckpt runs/cifar10 --features inception --num 50000      # FID, KID, IS, precision and recall
    python evaluate.py --ckpt runs/mnist --num 0 --flow 50                       # bits/dim alone, and the probability flow's
    python evaluate.py --ckpt runs/mnist --sweep sampler,steps                   # a table and a plot
    python evaluate.py --ckpt runs/mnist --doctor                                # what looks wrong in a run

Prints a table and one line of JSON, and adds that to metrics.json in the run directory, or beside the file that was given. The
samples are kept there, in evaluation/: stopped and run again, it goes on.
"""

import argparse
import sys
from pathlib import Path

from runtime import flags
from runtime.arguments import Parser, names, some_numbers, whole
from runtime.signals import Stop

OF_SAMPLES = {
    "sampler",
    "steps",
    "grid",
    "eta",
    "variance",
    "guidance",
    "features",
    "inception_weights",
    "references",
    "compile",
}


def build_parser() -> Parser:
    parser = Parser(__doc__)
    group = parser.add_argument_group("what")
    add = group.add_argument
    flags.add_checkpoint(
        group,
        required=True,
        help="a checkpoint, a run directory for its newest, a pipeline of diffusers, "
        "a .safetensors file (required)",
    )
    flags.add_weights(group)
    add(
        "--dataset",
        metavar="NAME",
        help="the real images: a name, a folder or an .npz file (that of the training)",
    )
    flags.add_data_root(
        group, help="where datasets are kept, and features and classifiers of them (data)"
    )
    add(
        "--doctor",
        action="store_true",
        help="instead: read the run directory and name likely trouble",
    )
    add(
        "--sweep",
        type=names("sampler", "steps"),
        metavar="WHAT",
        help="instead: the distance for each of several samplers, numbers of steps, or both (none)",
    )
    group = parser.add_argument_group("bits/dim")
    add = group.add_argument
    add(
        "--bound",
        type=whole(0),
        metavar="N",
        help="unseen images for the variational bound (1000, or all)",
    )
    add(
        "--terms",
        type=whole(1),
        default=16,
        metavar="K",
        help="terms of the bound drawn for each image, besides L_0 and L_T (16)",
    )
    add(
        "--exact", action="store_true", help="all T terms of the bound for each image, instead of K"
    )
    add(
        "--flow",
        type=whole(0),
        default=0,
        metavar="N",
        help="unseen images for the probability flow's likelihood (0)",
    )
    group = parser.add_argument_group("samples")
    add = group.add_argument
    add(
        "--num",
        type=whole(0),
        metavar="N",
        help="samples in each set (50000, as Ho et al.; 1000 on a CPU; 0: none)",
    )
    add(
        "--seeds",
        type=some_numbers(0),
        default=(0, 1, 2),
        metavar="N,..",
        help="one set for each; the first is also bits/dim's (0,1,2)",
    )
    add(
        "--sampler",
        type=names(*flags.SAMPLERS),
        metavar="NAME",
        help=f"{', '.join(flags.SAMPLERS)}; Ho et al. have ddpm "
        "(unipc, as good in 20 steps; --sweep sampler: all)",
    )
    flags.add_sampling_steps(
        group,
        type=some_numbers(1),
        help="steps to t = 0 (20, heun 10, ddpm all T; --sweep steps: 5,10,20,50)",
    )
    flags.add_grid(group, default="uniform")
    flags.add_eta(group, help="noise of ddim (0)")
    flags.add_variance(group, help="of ddpm (that of the model)")
    flags.add_guidance(
        group,
        help="how strongly a class is asked for; sample i is of class i mod K (1)",
    )
    group = parser.add_argument_group("distances")
    add = group.add_argument
    add(
        "--features",
        type=names("classifier", "efficientnet-lite0", "inception"),
        metavar="NAME,..",
        help="of which network: a classifier of the dataset, trained once; efficientnet-lite0; inception, for FID and KID "
        "(classifier, or efficientnet-lite0 where there are no labels)",
    )
    add(
        "--inception-weights",
        type=Path,
        metavar="FILE",
        help="those of torch-fidelity (downloaded into --data-root)",
    )
    add(
        "--references",
        type=whole(4),
        metavar="N",
        help="real images of each split, drawn once and for all (all)",
    )
    group = parser.add_argument_group("machine")
    flags.add_batch_size(group, default=100, help="images at once, of samples 500 at most (100)")
    flags.add_precision(group, help="of sampling; auto: bf16 where it is fast, else 32 (auto)")
    flags.add_compile(
        group,
        help="mode of torch.compile, for sampling: a minute or more, once, for many samples on "
        "a GPU (off)",
    )
    flags.add_processes(
        group,
        help="processes a node, which share the sampling (those of srun or torchrun, else 1)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)  # before torch is imported: a typing error costs no seconds
    if wrong := contradiction(
        args, {name for name, value in vars(args).items() if value != parser.get_default(name)}
    ):
        parser.error(wrong)
    if args.doctor:
        from evaluation import doctor

        try:
            findings = doctor.examine(args.ckpt, args.dataset, args.data_root)
        except (OSError, ValueError) as error:
            parser.error(str(error))
        print(doctor.report(findings))
        return 0

    import torch

    from evaluation import evaluation
    from runtime import launcher

    machine = launcher.launch(
        parser.prog, args.device, args.precision, args.devices, args.num_nodes
    )
    processes = machine.processes
    args.precision = machine.precision
    if args.num is None:
        args.num = 50_000 if machine.device.type == "cuda" else 1000
    try:
        prepared = machine.prepare(
            lambda path: evaluation.prepare(args, path, processes), args.ckpt
        )
        evaluation.draw(args, prepared, processes)
        processes.leave()  # the first process measures, and none waits for it
        if machine.is_first:
            evaluation.measure(args, prepared)
    except torch.OutOfMemoryError:
        return machine.fail(f"out of memory: choose a smaller --batch-size than {args.batch_size}")
    except MemoryError:
        return machine.fail("out of memory: choose a smaller --num, or fewer --references")
    except (OSError, ValueError) as error:
        return machine.fail(str(error))
    return 0


def contradiction(args: argparse.Namespace, given: set[str]) -> str:
    """What is wrong with flags that do not go together, in one line, or nothing; `given` are those that depart from their defaults."""
    swept = args.sweep or []
    idle = (
        given - {"ckpt", "dataset", "data_root", "doctor"}
        if args.doctor
        else given & {"bound", "terms", "exact", "flow"}
        if swept
        else (given & OF_SAMPLES if args.num == 0 else set())
        | (given & {"terms", "exact"} if args.bound == 0 else set())
    )
    if idle:
        mode = "with --doctor" if args.doctor else "with --sweep" if swept else "here"
        return f"--{min(idle).replace('_', '-')} changes nothing {mode}: leave it out"
    if args.exact and "terms" in given:
        return "--exact takes all terms: leave out --terms"
    if args.ema_length is not None and args.weights == "raw":
        return "--ema-length averages the weights: leave out --weights raw"
    for flag, name, values in (
        ("--sampler", "sampler", args.sampler),
        ("--steps", "steps", args.steps),
    ):
        if values and len(values) > 1 and name not in swept:
            return f"{flag} with more than one value needs --sweep {name}"
    if not swept and not args.doctor and args.bound == 0 and args.num == 0 and not args.flow:
        return "there is nothing to measure: give --bound, --flow or --num"
    if swept and args.num == 0:
        return "--sweep measures samples: leave out --num 0"
    if 1 in (args.bound, args.flow):
        return "one image has no standard error: give 2 or more"
    if args.num in (1, 2, 3):
        return f"--num {args.num} is no set to compare: give 4 or more"
    for flag, value, name in (("--eta", args.eta, "ddim"), ("--variance", args.variance, "ddpm")):
        if value is not None and name not in (
            args.sampler or (flags.SAMPLERS if "sampler" in swept else ())
        ):
            return f"{flag} is that of {name}: add --sampler {name}"
    if args.inception_weights and "inception" not in (args.features or ()):
        return "--inception-weights are for --features inception"
    if swept and args.features and len(args.features) > 1:
        return "--sweep takes one kind of --features"
    return ""


if __name__ == "__main__":
    Stop().arm()  # a signal ends it at once; run again, it goes on
    sys.exit(main())
