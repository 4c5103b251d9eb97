"""An evaluation: prepare, sample in all processes, measure in the first one.

    evaluate(plan, machine)

Results are printed as soon as they are known and added to metrics.json.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from evaluation import metrics
from evaluation.bits_per_dim import flow_likelihood, variational_bound
from evaluation.conditional_samples import SAMPLES_EACH, measure_conditional
from evaluation.features import ClassifierFeatures
from evaluation.plan import EvaluationPlan
from evaluation.preparation import Prepared, prepare
from evaluation.results import finite, write_image, write_metrics, write_plot
from evaluation.tables import table
from runtime import compiling
from runtime.launcher import Machine
from runtime.processes import Processes
from sampling import sample_sets
from sampling.plan import compile_for_sampling

MOST_CONDITIONS = 1000  # all samples for them are kept in memory
AUDITED = 1000  # samples that are compared with every training image


def evaluate(plan: EvaluationPlan, machine: Machine) -> dict[str, Any] | None:
    """Measure what the plan asks for, print a table and return the numbers, in the first process.

    Exits with status 2 if preparing fails; after that, errors are ValueError or OSError.
    """
    processes = machine.processes
    prepared = machine.prepare_shared(lambda path: prepare(plan, path, processes), plan.checkpoint)
    if not prepared.model.settings.condition:
        prepared = write_samples(prepared, processes)
    processes.leave()  # only the first process measures, and the others do not wait
    return measure(prepared) if machine.is_first else None


# ---- sampling ------------------------------------------------------------------------------------


def write_samples(prepared: Prepared, processes: Processes) -> Prepared:
    """Write all samples that are missing. Raises OSError.

    Returns `prepared` with the sampling plans that were used: `compile_sampler` may change them.
    """
    plan, model = prepared.plan, prepared.model
    if plan.num and plan.compile_mode != "off":
        prepared = compile_sampler(prepared, processes)
    for sampling_plan in prepared.sampling_plans if plan.num else ():
        for seed in plan.seeds:
            sample_sets.write_samples(
                model,
                sampling_plan,
                prepared.sample_folder(sampling_plan),
                plan.num,
                seed,
                plan.batch_size,
                processes.global_rank,
                processes.world_size,
                f"{sampling_plan.sampler}, {sampling_plan.steps} steps, seed {seed}",
            )
    compiling.run_eagerly()  # the likelihood needs gradients, in another precision
    return prepared


def compile_sampler(prepared: Prepared, processes: Processes) -> Prepared:
    """Compile the network for sampling, if any samples are missing.

    If that fails in one process, no process runs compiled code, and the sampling plans record it.
    """
    plan, model, compiled = prepared.plan, prepared.model, True
    if any_missing(prepared):
        batch_size = min(plan.batch_size, plan.num, sample_sets.IMAGES_PER_FILE)
        compiled = compile_for_sampling(
            model, prepared.sampling_plans[0], plan.compile_mode, batch_size, processes.print
        )
    if processes.broadcast(all(processes.gather(compiled))):
        return prepared
    compiling.run_eagerly()
    plans = tuple(replace(one, compile_mode="off") for one in prepared.sampling_plans)
    return replace(prepared, sampling_plans=plans)


def any_missing(prepared: Prepared) -> bool:
    """Whether any samples are still to be written."""
    for sampling_plan in prepared.sampling_plans:
        folder = prepared.sample_folder(sampling_plan)
        for seed in prepared.plan.seeds:
            if sample_sets.missing_files(prepared.model, folder, prepared.plan.num, seed):
                return True
    return False


# ---- measuring -----------------------------------------------------------------------------------


def measure(prepared: Prepared) -> dict[str, Any]:
    """Print the model and its results, and return them. Raises OSError or ValueError with a
    one-line message."""
    identity = identify(prepared)
    print_model(prepared, identity)
    return publish(prepared.directory / "metrics.json", identity, measurements(prepared))


def print_model(prepared: Prepared, identity: dict[str, Any]) -> None:
    """Print which model is measured, and whether it was trained on these images."""
    step = identity["step"] or "unknown"
    print(
        f"{identity['checkpoint']}, {step} steps, {prepared.weights} weights; "
        f"{identity['dataset']}",
        flush=True,
    )
    if not identity["trained_on"]:
        print("  it is not known whether the model was trained on these images", flush=True)
    elif identity["trained_on"] != identity["train_digest"]:
        print("  these are not the images that it was trained on", flush=True)


def publish(
    file: Path, identity: dict[str, Any], parts: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    """Print each part as it is measured and add it to `file`. Returns all parts, as in the file but
    without the terms of the bound, which may be a thousand."""
    measured: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            measured[name] = {**measured.get(name, {}), **value}
        print("\n".join(table(part)), flush=True)
        write_metrics(file, identity, part)
    print(f"  written to {file}")
    measured.get("bits_per_dim", {}).get("bound", {}).pop("terms", None)
    return finite(identity | measured)


def identify(prepared: Prepared) -> dict[str, Any]:
    """Return what identifies the model and the real images in metrics.json."""
    assert prepared.real_images
    train_set, loaded = prepared.real_images.train_set, prepared.loaded
    return {
        "checkpoint": str(loaded.path),
        "checkpoint_sha256": loaded.sha256,
        "step": loaded.step,
        "trained_on": loaded.trained_on,
        "weights": prepared.weights,
        "dataset": train_set.name,
        "size": train_set.size,
        "train_digest": train_set.digest(),
        "test_digest": prepared.real_images.test_set.digest(),
    }


def measurements(prepared: Prepared) -> Iterator[dict[str, Any]]:
    """Yield the results part by part, as dictionaries for metrics.json."""
    if prepared.model.settings.condition:
        yield {"conditional": conditional(prepared)}
        return
    if prepared.plan.sweep:
        yield {"sweep": sweep(prepared)}
        return
    yield from measure_bound(prepared)
    if prepared.plan.num:
        yield from measure_samples(prepared)
    yield from measure_flow(prepared)  # last, because only this can fail


def measure_bound(prepared: Prepared) -> Iterator[dict[str, Any]]:
    """Yield the variational bound, if the plan asks for it."""
    assert prepared.real_images
    plan, model, test_set = prepared.plan, prepared.model, prepared.real_images.test_set
    if plan.bound:
        seed, batch_size = plan.seeds[0], plan.batch_size
        bound = variational_bound(model, test_set, plan.bound, plan.terms, seed, batch_size)
        yield {"bits_per_dim": {"bound": bound | {"seed": seed, "device": model.device.type}}}


def measure_flow(prepared: Prepared) -> Iterator[dict[str, Any]]:
    """Yield the likelihood of the probability flow, if the plan asks for it."""
    assert prepared.real_images
    plan, model, test_set = prepared.plan, prepared.model, prepared.real_images.test_set
    if plan.flow:
        seed = plan.seeds[0]
        flow = flow_likelihood(model, test_set, plan.flow, seed, plan.batch_size)
        yield {"bits_per_dim": {"flow": flow | {"seed": seed, "device": model.device.type}}}


def measure_samples(prepared: Prepared) -> Iterator[dict[str, Any]]:
    """Yield distances and memorization, for each feature extractor."""
    assert prepared.real_images
    plan, model, real = prepared.plan, prepared.model, prepared.real_images
    sampling_plan = prepared.sampling_plans[0]
    sets = prepared.read_sets(sampling_plan)
    images, cost = [samples for samples, _ in sets], sets[0][1]
    uses_labels = model.settings.uses_labels
    labels = torch.arange(plan.num) % model.unet.classes if uses_labels else None
    sampling = sample_sets.plan_settings(sampling_plan) | {
        "seeds": plan.seeds,
        "device": model.device.type,
        "evaluations_each": cost.evaluations,
        "seconds_each": sum(one.seconds for _, one in sets) / len(sets),
        "batch_size": cost.batch_size,
    }
    for extractor in prepared.extractors:
        distances = metrics.distances(extractor, images, real, labels)
        yield {"distances": {extractor.name: {"sampling": sampling} | distances}}
        audit, picture = metrics.memorization(extractor, images[0][:AUDITED], real)
        file = prepared.directory / "evaluation" / f"nearest-{extractor.name}.png"
        write_image(file, picture)
        yield {"memorization": {extractor.name: audit | {"picture": str(file)}}}


def conditional(prepared: Prepared) -> dict[str, Any]:
    """The distances of samples from the originals, for an image-conditional model; also writes the
    picture."""
    assert prepared.real_images
    plan, sampling_plan = prepared.plan, prepared.sampling_plans[0]
    networks = [extractor.network for extractor in prepared.extractors]
    classifiers = [one.net for one in networks if isinstance(one, ClassifierFeatures)]
    measured, picture = measure_conditional(
        prepared.model,
        sampling_plan,
        prepared.real_images.test_set,
        classifiers[0] if classifiers else None,
        min(max(1, plan.num // SAMPLES_EACH), MOST_CONDITIONS),
        plan.seeds[0],
        plan.batch_size,
    )
    file = prepared.directory / "evaluation" / "conditional.png"
    write_image(file, picture)
    sampling = sample_sets.plan_settings(sampling_plan) | {"seed": plan.seeds[0]}
    return measured | {"sampling": sampling, "picture": str(file)}


def sweep(prepared: Prepared) -> dict[str, Any]:
    """Distance and cost of each sampling plan; also writes the plot."""
    assert prepared.real_images
    plan, extractor = prepared.plan, prepared.extractors[0]
    file = prepared.directory / "evaluation" / "sweep.png"
    sets_of_plans = ((one, prepared.read_sets(one)) for one in prepared.sampling_plans)
    measured = {
        "features": extractor.name,
        "images": plan.num,
        "seeds": plan.seeds,
        "device": prepared.model.device.type,
        "plot": str(file),
    }
    measured |= metrics.sweep(extractor, sets_of_plans, prepared.real_images)
    write_plot(file, measured)
    return measured
