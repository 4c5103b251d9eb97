"""Line charts as inline SVG."""

import re

import pytest

from run_page import charts
from run_page.charts import Series


def test_a_chart_is_to_scale():
    drawn = charts.chart(
        "a <b>",
        "x",
        "y",
        [Series("one", [0, 5, 10], [1, 10, 100]), Series("two", [0, 10], [float("nan"), 1])],
        log=True,
    )
    (x0, y0), (x1, y1), (x2, y2) = (
        map(float, pair.split(",")) for pair in re.search(r'points="([^"]+)"', drawn)[1].split()
    )
    assert (x0 + x2) / 2 == pytest.approx(x1)
    assert (y0 + y2) / 2 == pytest.approx(y1)
    assert y0 > y1 > y2
    assert drawn.count("<circle") == 4
    assert "a &lt;b&gt;" in drawn
    assert not charts.chart("a", "x", "y", [Series("one", [1], [float("inf")])])
    assert charts.ticks(0, 1000) == [0, 200, 400, 600, 800, 1000]
    assert charts.ticks(0.05, 0.9, log=True) == pytest.approx([0.05, 0.1, 0.2, 0.5])
    assert charts.ticks(3, 3) == [3]
