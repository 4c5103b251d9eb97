"""The page of a run in a real browser."""

import shutil

import numpy as np
import pytest
from finished_run import EVIL, image_of

import report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(scope="module")
def browser():
    if not BROWSER:
        pytest.skip("there is no chromium on this machine: apt-get install chromium")
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: see requirements-dev.txt"
    )
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, page):
    """A function that opens the page. At the end, no window may have reported an error, or have
    requested anything but the page."""
    windows, wrong, asked = [], [], []

    def open_page(width=1000, file=page, **how):
        window = browser.new_page(viewport={"width": width, "height": 800}, **how)
        window.on("console", lambda message: wrong.append(message.text))
        window.on("pageerror", lambda error: wrong.append(str(error)))
        window.on("request", lambda request: asked.append(request.url))
        window.goto(file.as_uri())
        if how.get("java_script_enabled", True):
            window.wait_for_selector("#player:not([hidden])")
        windows.append(window)
        return window

    yield open_page
    for window in windows:
        window.close()
    assert wrong == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert sum(url.startswith("file:") for url in asked) == len(windows)


def pixels(window, which: int) -> str:
    return window.evaluate(f"document.querySelectorAll('canvas')[{which}].toDataURL()")


@pytest.mark.slow
def test_the_slider_moves_both_pictures(visit, finished_run):
    window = visit()
    assert not window.get_by_text("The slider needs JavaScript").is_visible()
    slider = window.get_by_role("slider")
    times = np.load(finished_run / "images" / "trajectory.npz")["times"].tolist()
    seen = []
    for key, index in (
        ("Home", 0),
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("End", len(times) - 1),
    ):
        slider.press(key)
        seen.append((pixels(window, 0), pixels(window, 1)))
        assert window.locator("label[for=frame]").inner_text() == f"t = {times[index]}"
        assert slider.get_attribute("aria-valuetext") == f"t = {times[index]}"
        assert (
            window.get_by_role(
                "img", name=f"x_t, the images with noise, at t = {times[index]}"
            ).count()
            == 1
        )
    assert len({x for x, _ in seen}) == len({x0_hat for _, x0_hat in seen}) == 4
    assert seen[1] == seen[3]
    assert seen[-1][0] == seen[-1][1]  # at t = 0 the prediction is the image


@pytest.mark.slow
def test_a_canvas_shows_the_frame_to_the_pixel(visit, finished_run):
    window = visit()
    window.get_by_role("slider").press("Home")
    # (F,8,8,8,3), of which four images are shown
    frames = np.load(finished_run / "images" / "trajectory.npz")["frames"]
    drawn = image_of(pixels(window, 0))
    for i, image in enumerate(np.linspace(0, 7, 4).round().astype(int)):
        top, left = i // 2 * 9, i % 2 * 9
        assert np.array_equal(drawn[top : top + 8, left : left + 8, :3], frames[0, image])


@pytest.mark.slow
def test_a_single_frame_stays_when_it_is_played(visit, finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    with np.load(finished_run / "images" / "trajectory.npz") as found:
        np.savez(
            tmp_path / "run" / "images" / "trajectory.npz",
            frames=found["frames"][-1:],
            times=found["times"][-1:],
        )
    assert report.main([str(tmp_path / "run")]) == 0
    window = visit(file=tmp_path / "run" / "report.html")
    window.clock.install(time=0)
    before = pixels(window, 0)
    window.get_by_role("button").click()
    window.clock.run_for(3000)
    assert pixels(window, 0) == before
    assert window.locator("#t").inner_text() == "0"


@pytest.mark.slow
@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_play_goes_to_the_end_and_can_be_paused(visit, motion):
    window = visit(reduced_motion=motion)
    window.clock.install(time=0)
    window.clock.pause_at(1)  # time passes only in run_for
    button, slider, said = (
        window.get_by_role("button"),
        window.get_by_role("slider"),
        window.get_by_role("status"),
    )
    pause = {"no-preference": 120, "reduce": 1000}[motion]
    before = slider.input_value()
    window.clock.run_for(5000)
    assert slider.input_value() == before  # nothing moves without a click
    button.click()
    assert (button.inner_text(), said.inner_text(), slider.input_value()) == (
        "Pause",
        "Playing",
        "0",
    )
    window.clock.run_for(pause * 3)
    assert slider.input_value() == "3"
    window.keyboard.press("Space")  # the button has the focus
    assert button.inner_text() == "Play"
    assert said.inner_text().startswith("Paused at t = ")
    window.clock.run_for(pause * 3)
    assert slider.input_value() == "3"
    window.keyboard.press("ArrowLeft")
    assert slider.input_value() == "2"
    button.click()
    window.clock.run_for(pause * 100)
    assert (slider.input_value(), button.inner_text(), said.inner_text()) == (
        slider.get_attribute("max"),
        "Play",
        "The end, t = 0",
    )
    button.click()
    assert slider.input_value() == "0"


@pytest.mark.slow
def test_a_phone_does_not_scroll_sideways(visit):
    window = visit(width=360)
    window.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    assert window.evaluate("document.documentElement.scrollWidth") == 360
    outside = """[...document.querySelectorAll('main *, header *')]
        .filter(e => !e.closest('.wide, .hidden, svg'))
        .filter(e => e.getBoundingClientRect().right > 360 || e.getBoundingClientRect().left < 0)
        .map(e => e.outerHTML.slice(0, 80))"""
    assert window.evaluate(outside) == []
    heights = """[...document.querySelectorAll('svg text')]
        .map(e => e.getBoundingClientRect().height)"""
    assert min(window.evaluate(heights)) >= 10
    for control in (window.get_by_role("button"), window.get_by_role("slider")):
        assert control.bounding_box()["height"] >= 44  # large enough for a thumb


CONTRASTS = """() => {
  const parts = color => color.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = color => parts(color).slice(0, 3).map(v => linear(v / 255))
      .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const paint = e => getComputedStyle(e).backgroundColor;
  const behind = e => parts(paint(e))[3] === 0 ? behind(e.parentElement) : paint(e);
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, style = getComputedStyle(e);
    if (!walk.currentNode.data.trim() || ['SCRIPT', 'STYLE'].includes(e.tagName)) continue;
    const ink = e.closest('svg') ? style.fill : style.color;
    const [a, b] = [ink, behind(e)].map(light).sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), e.outerHTML.slice(0, 80)]);
  }
  for (const e of document.querySelectorAll('svg .first, svg .second')) {
    const [a, b] = [getComputedStyle(e).stroke, behind(e)].map(light).sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05) * 1.5, e.outerHTML.slice(0, 80)]);
  }
  return [found, light(getComputedStyle(document.body).backgroundColor)];
}"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_and_curves_stand_out(visit, scheme):
    """WCAG 2.1 AA: 4.5 for text, 3 for lines, with the colours computed by the browser."""
    found, paper = visit(color_scheme=scheme).evaluate(CONTRASTS)
    assert (paper > 0.5) == (scheme == "light")
    assert len(found) > 100
    assert [(ratio, what) for ratio, what in found if ratio < 4.5] == []


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"color_scheme": "dark"}, {"width": 360}])
def test_axe_finds_nothing(visit, how):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright",
        reason="axe is not installed: see requirements-dev.txt",
    )
    window = visit(**how)
    window.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    found = axe.Axe().run(window).response["violations"]
    assert [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found] == []


@pytest.mark.slow
def test_hostile_names_run_nothing_and_are_shown(visit, finished_run):
    window = visit()
    assert window.title() == "run <i>: a DDPM"
    assert window.evaluate("document.querySelector('h1').textContent") == "run <i>"
    assert window.evaluate("document.querySelectorAll('script').length") == 1
    assert EVIL in window.evaluate("document.querySelector('.tiles').textContent")


@pytest.mark.slow
def test_without_scripts_and_on_paper(visit):
    window = visit(java_script_enabled=False)
    assert window.get_by_text("The slider needs JavaScript").is_visible()
    assert window.locator(".tiles img").first.is_visible()
    assert not window.locator("#player").is_visible()
    paper = visit(color_scheme="dark")
    assert paper.pdf()[:4] == b"%PDF"
    assert paper.evaluate("[...document.querySelectorAll('details')].every(part => part.open)")
    paper.emulate_media(media="print")
    assert not paper.locator("nav").is_visible()
    assert paper.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
