# PYTHON_ARGCOMPLETE_OK
"""Evaluate a model: bits/dim of unseen images, distances between its samples and real images, and
memorization. Or score images made by any program.

    # everything, with defaults for this machine
    python evaluate.py --ckpt runs/mnist
    # one set of 10,000 samples instead of three sets
    python evaluate.py --ckpt runs/mnist --num 10000 --seeds 0
    # FID, KID, IS, precision and recall
    python evaluate.py --ckpt runs/cifar10 --features inception --num 50000
    # only bits/dim, also from the probability flow
    python evaluate.py --ckpt runs/mnist --num 0 --flow 50
    # compare samplers and steps: a table and a plot
    python evaluate.py --ckpt runs/mnist --sweep sampler,steps
    # look for problems in a run
    python evaluate.py --ckpt runs/mnist --doctor
    # images in a folder or a file, against a dataset
    python evaluate.py --samples generated/ --dataset cifar10
    # or against other images
    python evaluate.py --samples generated.npz photos/ --features inception

Prints a table, and adds the results to metrics.json: in the run directory; beside the checkpoint if
--ckpt is a single file; in runs/pretrained-NAME for a pretrained model. Samples are kept there in
evaluation/, so that a stopped evaluation resumes when it is run again. The results of
--samples NAME are in NAME-evaluation/.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from evaluation.plan import EvaluationPlan, ScoringPlan
from runtime import flags
from runtime.arguments import Parser, names, some_numbers, whole
from runtime.output import protect_output
from runtime.signals import Stop

# flags that have no effect if nothing is sampled
SAMPLING_FLAGS = {
    "sampler",
    "steps",
    "evaluations",
    "grid",
    "eta",
    "variance",
    "guidance",
    "guide_with",
    "features",
    "inception_weights",
    "references",
    "compile",
}

# flags that may be given with --samples, and those that may be added if --ckpt is given as well
SCORING_FLAGS = {
    "samples",
    "dataset",
    "data_root",
    "out",
    "features",
    "inception_weights",
    "references",
    "batch_size",
    "device",
    "json",
}
MODEL_FLAGS = {"ckpt", "weights", "ema_length", "bound", "terms", "exact", "flow", "seeds"}


def build_parser() -> Parser:
    parser = Parser(__doc__, main_flag="--ckpt")
    group = parser.add_argument_group("what")
    add = group.add_argument
    flags.add_checkpoint(
        group,
        help="a checkpoint, a run directory (its newest checkpoint), a pretrained model's name "
        "(cifar10, ..), a diffusers pipeline or a .safetensors file (required without --samples)",
    )
    flags.add_weights(group)
    add(
        "--samples",
        type=Path,
        nargs="+",
        action="extend",
        metavar="PATH",
        help="instead of sampling: score the images in a folder or an .npz file, against --dataset "
        "or a second PATH (none: draw samples from --ckpt)",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="output folder for --samples (NAME-evaluation beside them)",
    )
    add(
        "--dataset",
        metavar="NAME",
        help="real images to compare with: a name, a folder or an .npz file (that of the training)",
    )
    flags.add_data_root(
        group, help="folder of datasets, their classifiers and cached features (data)"
    )
    add(
        "--doctor",
        action="store_true",
        help="look for problems in a run and suggest remedies, instead of evaluating",
    )
    add(
        "--sweep",
        type=names("sampler", "steps"),
        metavar="WHAT",
        help="compare samplers, numbers of steps, or both (sampler,steps), instead of evaluating "
        "(none)",
    )
    add(
        "--json",
        action="store_true",
        help="also print the results as one line of JSON, after the table",
    )
    group = parser.add_argument_group("bits/dim")
    add = group.add_argument
    add(
        "--bound",
        type=whole(0),
        metavar="N",
        help="number of test images for the variational bound (1000, or all if fewer)",
    )
    add(
        "--terms",
        type=whole(1),
        default=16,
        metavar="K",
        help="number of terms of the bound to draw for each image, besides L_0 and L_T (16)",
    )
    add(
        "--exact",
        action="store_true",
        help="compute all T terms of the bound instead of drawing some",
    )
    add(
        "--flow",
        type=whole(0),
        default=0,
        metavar="N",
        help="number of test images for the likelihood of the probability flow (0)",
    )
    group = parser.add_argument_group("samples")
    add = group.add_argument
    add(
        "--num",
        type=whole(0),
        metavar="N",
        help="number of samples in each set (50000 on CUDA, as Ho et al., else 1000; 0 for none)",
    )
    add(
        "--seeds",
        type=some_numbers(0),
        default=(0, 1, 2),
        metavar="N,..",
        help="seeds, one for each set of samples (0,1,2)",
    )
    add(
        "--sampler",
        type=names(*flags.SAMPLERS),
        metavar="NAME",
        help=f"{', '.join(flags.SAMPLERS)}; Ho et al. use ddpm (unipc; --sweep sampler: all)",
    )
    flags.add_sampling_steps(
        group,
        type=some_numbers(1),
        help="number of sampling steps (20; 10 for heun or autoguidance; T for ddpm; "
        "--sweep steps: 5,10,20,50)",
    )
    flags.add_evaluations(group)
    flags.add_grid(group, default="uniform")
    flags.add_eta(group, help="amount of noise in ddim (0)")
    flags.add_variance(group, help="variance of ddpm (that of the model)")
    flags.add_guidance(
        group,
        help="strength of guidance; samples have the classes in turn (that of the model; 1 for "
        "ddpm)",
    )
    flags.add_guide(group)
    group = parser.add_argument_group("distances")
    add = group.add_argument
    add(
        "--features",
        type=names("classifier", "efficientnet-lite0", "inception"),
        metavar="NAME,..",
        help="feature extractors: classifier, trained once on the dataset; efficientnet-lite0; "
        "inception, for FID and KID (classifier, or efficientnet-lite0 where there are no labels)",
    )
    add(
        "--inception-weights",
        type=Path,
        metavar="FILE",
        help="Inception weights in torch-fidelity's format (downloaded into --data-root)",
    )
    add(
        "--references",
        type=whole(4),
        metavar="N",
        help="number of real images of each split, always the same ones (all)",
    )
    group = parser.add_argument_group("machine")
    flags.add_batch_size(group, default=100, help="images in a batch (100)")
    flags.add_precision(
        group, help="precision of sampling; auto: bf16 where it is fast, else 32 (auto)"
    )
    flags.add_compile(
        group,
        help="mode of torch.compile for sampling; takes a minute or more, which pays off for "
        "many samples on a GPU (off)",
    )
    flags.add_processes(
        group,
        help="processes on each node, which share the sampling (those of srun or torchrun, else 1)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)  # before importing torch, so that typos fail at once
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    if conflict := find_conflict(args, given):
        parser.error(conflict)

    import torch

    from evaluation import doctor
    from evaluation.evaluation import evaluate
    from evaluation.scoring import score
    from runtime.devices import set_tf32
    from runtime.launcher import launch, memory_errors

    if args.doctor:
        try:
            findings = doctor.examine(args.ckpt, args.dataset, args.data_root)
        except (OSError, ValueError) as error:
            parser.error(str(error))
        print(doctor.report(findings))
        return 0
    machine = launch(parser.prog, args.device, args.precision, args.devices, args.num_nodes)
    set_tf32(False)  # --precision is that of sampling
    try:
        with memory_errors():
            if args.samples:
                plan = make_scoring_plan(args, machine.device.type, machine.precision)
                results = score(plan, machine)
            else:
                plan = make_plan(args, machine.device.type, machine.precision)
                results = evaluate(plan, machine)
    except torch.OutOfMemoryError:
        return machine.fail(f"out of memory: choose a smaller --batch-size than {args.batch_size}")
    except MemoryError:
        return machine.fail("out of memory: choose a smaller --num, or fewer --references")
    except (OSError, ValueError) as error:
        return machine.fail(str(error))
    if args.json and results:
        print(json.dumps(results))
    return 0


def make_plan(args: argparse.Namespace, device_type: str, precision: str) -> EvaluationPlan:
    """Make the settings from the flags, with defaults for this kind of device."""
    default_num = 50_000 if device_type == "cuda" else 1000
    return EvaluationPlan(
        checkpoint=args.ckpt,
        weights=args.weights,
        ema_length=args.ema_length,
        dataset=args.dataset,
        data_root=args.data_root,
        sweep=tuple(args.sweep or ()),
        bound=args.bound,
        terms=None if args.exact else args.terms,
        flow=args.flow,
        num=default_num if args.num is None else args.num,
        seeds=args.seeds,
        samplers=tuple(args.sampler or ()),
        steps=args.steps or (),
        evaluations=args.evaluations,
        grid=args.grid,
        eta=args.eta or 0.0,
        variance=args.variance,
        guidance=args.guidance,
        guide_with=args.guide_with,
        features=tuple(args.features or ()),
        inception_weights=args.inception_weights,
        references=args.references,
        batch_size=args.batch_size,
        precision=precision,
        compile_mode=args.compile,
    )


def make_scoring_plan(args: argparse.Namespace, device_type: str, precision: str) -> ScoringPlan:
    """Make the settings for --samples from the flags."""
    plan = make_plan(args, device_type, precision)
    return ScoringPlan(
        samples=tuple(args.samples),
        dataset=plan.dataset,
        data_root=plan.data_root,
        features=plan.features,
        inception_weights=plan.inception_weights,
        references=plan.references,
        batch_size=plan.batch_size,
        out=args.out,
        model=replace(plan, num=0) if args.ckpt else None,
    )


# ---- flags that do not go together ---------------------------------------------------------------


def find_conflict(args: argparse.Namespace, given: set[str]) -> str:
    """Return what is wrong with the flags, in one line, or an empty string.

    given: the flags whose values are not the defaults.
    """
    conflicts = (
        missing_input(args),
        unused_flag(args, given),
        conflicting_samples(args),
        conflicting_weights(args, given),
        conflicting_counts(args),
        conflicting_samplers(args),
        conflicting_features(args),
    )
    return next(filter(None, conflicts), "")


def missing_input(args: argparse.Namespace) -> str:
    """Report that no model or images are given, or nothing to compare them with."""
    if not args.ckpt and (args.doctor or args.sweep or not args.samples):
        needs_model = args.doctor or args.sweep or args.samples
        return "give a model with --ckpt" + ("" if needs_model else ", or images with --samples")
    if args.samples and len(args.samples) == 1 and not args.dataset and not args.ckpt:
        return "--samples needs something to compare with: give --dataset, or a second --samples"
    return ""


def unused_flag(args: argparse.Namespace, given: set[str]) -> str:
    """Report a flag that has no effect with the others."""
    unused, mode = set(), "here"
    if args.doctor:
        unused, mode = given - {"ckpt", "dataset", "data_root", "doctor"}, "with --doctor"
    elif args.sweep:
        unused, mode = given & {"bound", "terms", "exact", "flow"}, "with --sweep"
        unused |= given & {"samples", "out"}
    elif args.samples:
        used = SCORING_FLAGS | (MODEL_FLAGS if args.ckpt else set())
        unused, mode = given - used, "with --samples"
        if args.bound == 0:
            unused |= given & {"terms", "exact"}
    else:
        unused |= given & {"out"}
        if args.num == 0:
            unused |= given & SAMPLING_FLAGS
        if args.bound == 0:
            unused |= given & {"terms", "exact"}
    if not unused:
        return ""
    return f"--{min(unused).replace('_', '-')} changes nothing {mode}: leave it out"


def conflicting_samples(args: argparse.Namespace) -> str:
    """Report a conflict between --samples and other flags."""
    count = len(args.samples or ())
    if count > 2:
        return f"--samples takes one or two folders or .npz files, not {count}"
    if count < 2:
        return ""
    features = args.features or ()
    if args.ckpt:
        return "two --samples are compared with each other: leave out --ckpt"
    if args.references:
        return "all images of two --samples are compared: leave out --references"
    if "classifier" in features and not args.dataset:
        return "--features classifier needs a --dataset on which to train the classifier"
    if args.dataset and features and "classifier" not in features:
        return "with two --samples, --dataset selects the classifier: add --features classifier"
    return ""


def conflicting_weights(args: argparse.Namespace, given: set[str]) -> str:
    """Report a conflict among the flags of bits/dim and of the weights."""
    if args.exact and "terms" in given:
        return "--exact takes all terms: leave out --terms"
    if args.ema_length is not None and args.weights == "raw":
        return "--ema-length averages the weights: leave out --weights raw"
    return ""


def conflicting_counts(args: argparse.Namespace) -> str:
    """Report a conflict among the numbers of images, samplers and steps."""
    sweep = args.sweep or []
    for name, values in (("sampler", args.sampler), ("steps", args.steps)):
        if values and len(values) > 1 and name not in sweep:
            return f"--{name} with more than one value needs --sweep {name}"
    measures_nothing = args.bound == 0 and args.num == 0 and not args.flow and not args.samples
    if measures_nothing and not sweep and not args.doctor:
        return "there is nothing to measure: give --bound, --flow or --num"
    if sweep and args.num == 0:
        return "--sweep measures samples: leave out --num 0"
    if 1 in (args.bound, args.flow):
        return "--bound or --flow with one image has no standard error: give 2 or more"
    if args.num in (1, 2, 3):
        return f"--num {args.num} is too few to compare: give 4 or more"
    return ""


def conflicting_samplers(args: argparse.Namespace) -> str:
    """Report a flag of a sampler that is not used, or a guide without guidance."""
    if args.guidance == 1 and args.guide_with:
        return "--guidance 1 is no guidance: choose another strength, or leave out --guide-with"
    if args.evaluations and (args.steps or "steps" in (args.sweep or ())):
        return "--evaluations does not go with --steps or --sweep steps: leave one of them out"
    samplers = args.sampler or ()
    if not samplers and "sampler" in (args.sweep or ()):
        samplers = flags.SAMPLERS
    if args.eta is not None and "ddim" not in samplers:
        return "--eta is the noise of ddim: add --sampler ddim"
    if args.variance is not None and "ddpm" not in samplers:
        return "--variance is a setting of ddpm: add --sampler ddpm"
    return ""


def conflicting_features(args: argparse.Namespace) -> str:
    """Report a conflict among the flags of feature extractors."""
    features = args.features or ()
    if args.inception_weights and "inception" not in features:
        return "--inception-weights are for --features inception"
    if args.sweep and len(features) > 1:
        return "--sweep takes one kind of --features"
    return ""


if __name__ == "__main__":
    protect_output()
    Stop().arm()  # a signal ends the program at once; running it again resumes
    sys.exit(main())
