"""Curves as inline SVG, in the colours of the page that they stand in, whose CSS knows .chart, .grid, .first and .second.

chart("loss", "steps", "mean squared error", [("training", steps, losses), ("validation", some, others)], log=True)
"""

import math
from collections.abc import Sequence

from markupsafe import Markup

WIDTH, HEIGHT = 360, 230  # about a phone's width, so that the words stay readable there
LEFT, RIGHT, TOP, BOTTOM = 54, 20, 26, 44  # margins
HUGE = 1e30
FEW = 40  # points that are drawn as points, too

Series = tuple[str, Sequence[float], Sequence[float]]  # its name, x and y of its points


def chart(
    title: str, x_label: str, y_label: str, series: Sequence[Series], log: bool = False
) -> Markup:
    """One or two `Series` as a <figure>, the second one dashed; `log`: of y. Points that are not finite, or `HUGE`, are left out, and
    with `log` those that are not above 0. Empty where there is no point. Its label says in words from where to where each goes."""
    kept = [
        (
            name,
            [
                (x, y)
                for x, y in zip(xs, ys)
                if abs(x) < HUGE and abs(y) < HUGE and (y > 0 or not log)
            ],
        )
        for name, xs, ys in series
    ]
    kept = [(name, points) for name, points in kept if points]
    if not kept:
        return Markup()
    xs, ys = zip(*(point for _, points in kept for point in points))
    across, up = (
        scale(min(xs), max(xs), LEFT, WIDTH - RIGHT),
        scale(min(ys), max(ys), HEIGHT - BOTTOM, TOP, log),
    )
    parts = [
        Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
            (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label
        ),
        Markup(
            '<text transform="translate(12 {}) rotate(-90)" text-anchor="middle">{}</text>'
        ).format((TOP + HEIGHT - BOTTOM) / 2, y_label),
    ]
    for x in ticks(min(xs), max(xs)):
        parts.append(
            Markup(
                '<path class="grid" d="M{0:.1f} {1}V{2}"/><text x="{0:.1f}" y="{3}" text-anchor="middle">{4}</text>'
            ).format(across(x), TOP, HEIGHT - BOTTOM, HEIGHT - BOTTOM + 15, number(x))
        )
    for y in ticks(min(ys), max(ys), log):
        parts.append(
            Markup(
                '<path class="grid" d="M{1} {0:.1f}H{2}"/><text x="{3}" y="{4:.1f}" text-anchor="end">{5}</text>'
            ).format(up(y), LEFT, WIDTH - RIGHT, LEFT - 5, up(y) + 4, number(y))
        )
    for i, (kind, (name, points)) in enumerate(zip(("first", "second"), kept)):
        way = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
        parts.append(Markup('<polyline class="{}" points="{}"/>').format(kind, way))
        if len(points) <= FEW:
            parts += [
                Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="2.5"/>').format(
                    kind, across(x), up(y)
                )
                for x, y in points
            ]
        if len(kept) > 1:
            at = LEFT + i * (WIDTH - LEFT - RIGHT) / 2
            parts.append(
                Markup('<path class="{0}" d="M{1} 12h22"/><text x="{2}" y="16">{3}</text>').format(
                    kind, at, at + 28, name
                )
            )
    words = "; ".join(
        f"{name}: from {number(points[0][1])} at {number(points[0][0])} to {number(points[-1][1])} at {number(points[-1][0])}"
        for name, points in kept
    )
    return Markup(
        '<figure><figcaption>{0}</figcaption><svg class="chart" role="img" viewBox="0 0 {1} {2}" aria-label="{0}: {3} against '
        '{4}. {5}">{6}</svg></figure>'
    ).format(title, WIDTH, HEIGHT, y_label, x_label, words, Markup().join(parts))


def scale(low: float, high: float, start: float, end: float, log: bool = False):
    """The function that takes `low` to `start` and `high` to `end`, on paper; where both are one, to the middle."""
    by = math.log if log else float
    low, width = by(low), by(high) - by(low)
    return lambda value: start + (end - start) * ((by(value) - low) / width if width else 0.5)


def ticks(low: float, high: float, log: bool = False) -> list[float]:
    """Round numbers from `low` to `high`, two to six or so."""
    if low == high:
        return [low]
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for digits in ((1,), (1, 3), (1, 2, 5)):
            found = [
                value
                for power in powers
                for digit in digits
                if low <= (value := digit * 10.0**power) <= high
            ]
            if len(found) >= 3:
                return found[:: math.ceil(len(found) / 6)]
    step = next(
        s
        for power in range(-300, 40)
        for digit in (1, 2, 5)
        if (high - low) / (s := digit * 10.0**power) <= 6
    )
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def number(value: float) -> str:
    """Four digits, thousands apart: 0.1525, 800,000, inf."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
