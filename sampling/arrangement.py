"""The number of images of a request, their labels, and their order in grids.

    layout = arrange_images(request, model)

`layout` is an `ImageLayout`.
"""

import math

from DiffusionModel import DiffusionModel
from runtime.suggestions import nearest
from sampling.generate import ImageLayout
from sampling.image_request import ImageRequest
from sampling.plan import labels_in_turn

DEFAULT_NUM = 16
DEFAULT_NUM_OF_EACH_CLASS = 8

# The largest numbers of images in grids and trajectory. samples.npz has all images.
SHOWN = 64
SHOWN_OF_EACH_CLASS = 8
SHOWN_OF_ALL_CLASSES = 1024


def is_edit(request: ImageRequest, model: DiffusionModel) -> bool:
    """Whether an image is given, so that no class is assumed."""
    return bool(request.input_image or request.interpolate or model.settings.condition)


def arrange_images(request: ImageRequest, model: DiffusionModel) -> ImageLayout:
    """The number of images, their labels and their order in a grid. Raises ValueError."""
    label, num, classes = request.label, request.num, model.unet.classes
    always_labelled = model.settings.label_dropout == 0
    if request.without_class and classes and always_labelled:
        raise ValueError("this model was trained only with labels: give another --class than none")
    if label is None and classes and not is_edit(request, model):
        return of_all_classes(model, num or DEFAULT_NUM)
    if label is None and classes and always_labelled:  # an edit with each class
        label, num = "all", num or math.ceil(DEFAULT_NUM / classes)
    labels = [] if label is None or request.without_class else find_labels(label, model)
    if len(labels) > 1 and request.interpolate:
        raise ValueError("--interpolate takes only one class: give one --class")
    if len(labels) > 1:
        return one_row_each(labels, num or DEFAULT_NUM_OF_EACH_CLASS)
    total = num or DEFAULT_NUM
    return ImageLayout(
        total=total,
        labels=(labels[0],) * total if labels else None,
        columns=0,
        order=tuple(range(min(SHOWN, total))),
    )


def of_all_classes(model: DiffusionModel, total: int) -> ImageLayout:
    """`total` images of all classes, see `labels_in_turn`."""
    return ImageLayout(
        total=total,
        labels=tuple(labels_in_turn(model, range(total)) or ()),
        columns=0,
        order=tuple(range(min(SHOWN, total))),
    )


def one_row_each(labels: list[int], num: int) -> ImageLayout:
    """`num` images of every label. Image i has label labels[i mod K]; a grid has a row for
    each label."""
    K = len(labels)
    columns = max(1, min(num, SHOWN_OF_EACH_CLASS, SHOWN_OF_ALL_CLASSES // K))
    return ImageLayout(
        total=num * K,
        labels=tuple(labels * num),
        columns=columns,
        order=tuple(column * K + row for row in range(K) for column in range(columns)),
    )


def find_labels(text: str, model: DiffusionModel) -> list[int]:
    """The labels of --class: names or numbers separated by commas, or all. Raises ValueError."""
    names = [name.lower() for name in model.settings.class_names]
    count = model.unet.classes
    if not count:
        raise ValueError(
            "this model has no classes: train one with --class-conditional on images of two "
            "or more classes, or leave out --class"
        )
    if text.lower() == "all":
        return list(range(count))
    if text.lower() in names:
        return [names.index(text.lower())]
    if text.isdecimal() and int(text) < count:
        return [int(text)]
    if "," in text:
        labels = [label for one in text.split(",") for label in find_labels(one.strip(), model)]
        return list(dict.fromkeys(labels))
    close = "" if text.isdecimal() else nearest(text, names)
    suggestion = f", did you mean {close}?" if close else "."
    raise ValueError(
        f"unknown class {text!r}{suggestion} "
        f"Give all, numbers from 0 to {count - 1}, or any of {', '.join(names[:20])}"
    )
