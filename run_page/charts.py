"""Line charts as inline SVG.

    chart("Loss", "steps", "loss", [Series("training", steps, losses)], log=True)

The page's CSS gives the classes .chart, .grid, .first and .second their colours.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup

WIDTH, HEIGHT = 360, 230  # about the width of a phone, where the text stays readable
LEFT, RIGHT, TOP, BOTTOM = 54, 20, 26, 44  # margins
STYLES = ("first", "second")  # CSS classes of the curves
MAX_VALUE = 1e30  # larger values are left out
MAX_MARKERS = 40  # a curve with more points is drawn without markers


class Series(NamedTuple):
    """The points of a curve."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]


class Axes(NamedTuple):
    """The ranges of a chart, and the functions from values to SVG coordinates."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    to_x: Callable[[float], float]
    to_y: Callable[[float], float]


def chart(
    title: str, x_label: str, y_label: str, series: Sequence[Series], log: bool = False
) -> Markup:
    """Draw one or two curves as a <figure>, the second one dashed.

    log: scale y logarithmically. Points that are not finite or above `MAX_VALUE` are left out, and
    with `log` those that are not positive. Returns an empty string if no point remains. The label
    for screen readers gives the first and last point of every curve.
    """
    curves = [drawable(curve, log) for curve in series]
    curves = [curve for curve in curves if curve.xs]
    if not curves:
        return Markup()
    axes = axes_around(curves, log)
    elements = [*axis_labels(x_label, y_label), *grid(axes, log)]
    for index, curve in enumerate(curves[: len(STYLES)]):
        style = STYLES[index]
        elements += polyline(curve, axes, style)
        if len(curves) > 1:
            left = LEFT + index * (WIDTH - LEFT - RIGHT) / 2
            elements.append(legend(curve.name, left, style))
    summary = "; ".join(description(curve) for curve in curves)
    figure = Markup(
        "<figure><figcaption>{0}</figcaption>"
        '<svg class="chart" role="img" viewBox="0 0 {1} {2}" '
        'aria-label="{0}: {3} against {4}. {5}">{6}</svg></figure>'
    )
    content = Markup().join(elements)
    return figure.format(title, WIDTH, HEIGHT, y_label, x_label, summary, content)


def drawable(curve: Series, log: bool) -> Series:
    """The curve without the points that cannot be drawn."""
    xs, ys = [], []
    for x, y in zip(curve.xs, curve.ys):
        if abs(x) < MAX_VALUE and abs(y) < MAX_VALUE and (y > 0 or not log):
            xs.append(x)
            ys.append(y)
    return Series(curve.name, xs, ys)


def axes_around(curves: Sequence[Series], log: bool) -> Axes:
    """Axes that contain all points."""
    xs = [x for curve in curves for x in curve.xs]
    ys = [y for curve in curves for y in curve.ys]
    x_range, y_range = (min(xs), max(xs)), (min(ys), max(ys))
    to_x = scale(*x_range, LEFT, WIDTH - RIGHT)
    to_y = scale(*y_range, HEIGHT - BOTTOM, TOP, log)
    return Axes(x_range, y_range, to_x, to_y)


def scale(
    low: float, high: float, start: float, end: float, log: bool = False
) -> Callable[[float], float]:
    """A function that maps [low, high] to [start, end]; everything to the middle if low == high."""
    transform = math.log if log else float
    offset = transform(low)
    width = transform(high) - offset

    def apply(value: float) -> float:
        share = (transform(value) - offset) / width if width else 0.5
        return start + (end - start) * share

    return apply


def axis_labels(x_label: str, y_label: str) -> list[Markup]:
    below = Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>')
    beside = Markup('<text transform="translate(12 {}) rotate(-90)" text-anchor="middle">{}</text>')
    return [
        below.format((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label),
        beside.format((TOP + HEIGHT - BOTTOM) / 2, y_label),
    ]


def grid(axes: Axes, log: bool) -> list[Markup]:
    """Grid lines with their numbers."""
    vertical = Markup(
        '<path class="grid" d="M{0:.1f} {1}V{2}"/>'
        '<text x="{0:.1f}" y="{3}" text-anchor="middle">{4}</text>'
    )
    horizontal = Markup(
        '<path class="grid" d="M{1} {0:.1f}H{2}"/>'
        '<text x="{3}" y="{4:.1f}" text-anchor="end">{5}</text>'
    )
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    lines = []
    for value in ticks(*axes.x_range):
        x = axes.to_x(value)
        lines.append(vertical.format(x, TOP, bottom, bottom + 15, format_number(value)))
    for value in ticks(*axes.y_range, log):
        y = axes.to_y(value)
        lines.append(horizontal.format(y, LEFT, right, LEFT - 5, y + 4, format_number(value)))
    return lines


def polyline(curve: Series, axes: Axes, style: str) -> list[Markup]:
    """A curve, with markers at its points if they are few."""
    points = [(axes.to_x(x), axes.to_y(y)) for x, y in zip(curve.xs, curve.ys)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    elements = [Markup('<polyline class="{}" points="{}"/>').format(style, path)]
    if len(points) <= MAX_MARKERS:
        marker = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="2.5"/>')
        elements += [marker.format(style, x, y) for x, y in points]
    return elements


def legend(name: str, left: float, style: str) -> Markup:
    element = Markup('<path class="{0}" d="M{1} 12h22"/><text x="{2}" y="16">{3}</text>')
    return element.format(style, left, left + 28, name)


def description(curve: Series) -> str:
    """The first and last point of a curve in words."""
    first = f"{format_number(curve.ys[0])} at {format_number(curve.xs[0])}"
    last = f"{format_number(curve.ys[-1])} at {format_number(curve.xs[-1])}"
    return f"{curve.name}: from {first} to {last}"


def ticks(low: float, high: float, log: bool = False) -> list[float]:
    """Round numbers from `low` to `high`, about two to six of them."""
    if low == high:
        return [low]
    if log:
        for digits in ((1,), (1, 3), (1, 2, 5)):
            values = [value for value in powers_of_ten(low, high, digits) if low <= value <= high]
            if len(values) >= 3:
                return values[:: math.ceil(len(values) / 6)]
    step = tick_step(high - low)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def powers_of_ten(low: float, high: float, digits: Sequence[int]) -> list[float]:
    """Every digit times every power of ten from about `low` to about `high`, ascending."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [digit * 10.0**power for power in powers for digit in digits]


def tick_step(width: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that splits `width` into at most 6 parts."""
    steps = (digit * 10.0**power for power in range(-300, 40) for digit in (1, 2, 5))
    return next(step for step in steps if width / step <= 6)


def format_number(value: float) -> str:
    """Format with four digits, and commas between thousands: 0.1525, 800,000, inf."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
