"""The page of a run: its contents, missing and damaged files, and its behaviour in a browser."""

import base64
import html.parser
import io
import json
import re
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

import Inference
import report
import train
from checkpoints.checkpoint import load_model
from evaluation import results
from evaluation.metrics_csv import read_rows
from run_page import charts
from run_page.charts import Series
from run_page.checkpoint_summary import read_checkpoint_summary
from run_page.curves import read_losses
from run_page.pictures import noise_real_images, read_sprite

EVIL = "<script>document.title = 'run'</script>"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def measured() -> dict:
    """Metrics as evaluate.py writes them."""

    def one(mean):
        return {
            "mean": mean,
            "lowest": mean - 0.5,
            "highest": mean + 0.5,
            "floor": 0.25,
            "ceiling": 321.0,
        }

    names = ("frechet", "kernel", "precision", "recall")
    to = {
        "images": 60,
        "floor_images": 20,
        "manifold_images": 20,
        **{name: one(4.5 + i) for i, name in enumerate(names)},
    }
    return {
        "bits_per_dim": {"bound": {"mean": 7.125, "standard_error": 0.0625, "images": 20}},
        "distances": {
            "classifier": {
                "sampling": {"sampler": "unipc", "steps": 20, "guidance": 1.0},
                "sets": 2,
                "images": 20,
                "published_weights": False,
                "to_train": to,
                "to_test": to,
            }
        },
        "memorization": {
            "classifier": {
                "images": 20,
                "train_images": 60,
                "pixels": {"ratio": 0.98, "copies": 0.0, "duplicates": 0.0},
                "features": {"ratio": 1.01, "copies": 0.0, "duplicates": 0.0},
                "picture": "x.png",
            }
        },
    }


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory):
    """A finished run with every section; its class names, folder and command contain HTML."""
    folder = tmp_path_factory.mktemp("report") / """<b>"a&b'</b>""".replace("/", "")
    folder.mkdir()
    with np.load(tiny_data) as archive:
        np.savez(folder / "d.npz", **archive, classes=np.array([EVIL, 'bright & "clear"']))
    run_dir = folder / "run <i>"
    assert (
        train.main(
            [
                "--dataset",
                str(folder / "d.npz"),
                "--run-dir",
                str(run_dir),
                "--max-steps",
                "12",
                *TINY,
                "--schedule",
                "cosine",
                "--class-conditional",
            ]
        )
        == 0
    )
    assert (
        Inference.main(
            [
                "--ckpt",
                str(run_dir),
                "--class",
                "all",
                "--num",
                "4",
                "--out",
                str(run_dir / "images"),
            ]
        )
        == 0
    )
    config = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(
        json.dumps(
            config | {"command": ["train.py", "--dataset", EVIL], "hardware": EVIL + " 2 cores"}
        )
    )
    about = {name: "x" for name in results.IDENTITY} | {"step": 12}
    results.write_metrics(run_dir / "metrics.json", about, measured())
    results.write_image(
        run_dir / "evaluation" / "nearest-classifier.png",
        torch.arange(3 * 10 * 40).reshape(3, 10, 40).byte(),
    )
    return run_dir


@pytest.fixture(scope="module")
def page(run):
    assert report.main([str(run)]) == 0
    return run / "report.html"


class Parsed(html.parser.HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.words, self.within = [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.within = tag

    def handle_data(self, data):
        self.words += "" if self.within in ("style", "script") else " ".join(data.split()) + " "


def image_of(src: str) -> np.ndarray:
    return np.asarray(
        Image.open(io.BytesIO(base64.b64decode(src.removeprefix("data:image/png;base64,"))))
    )


# ---- contents ----


def test_all_of_the_run_is_on_the_page(page, run, capsys):
    parsed = Parsed(page.read_text())
    for said in (
        "12 steps in 0 min",
        "7.125 ± 0.0625",
        "4.5 4 to 5 0.25 321",
        "Frechet distance to 60 training images",
        "8 of the 8 samples",
        "samples against 60 training images",
        "after step 6",
        "t = 10 ",
        "settings in the checkpoint",
        "parameterization",
        "python train.py --dataset",
        "2 cores",
        torch.__version__,
    ):
        assert said in parsed.words, said
    assert "makes what is missing" not in parsed.words  # nothing is missing
    model = load_model(run).model
    assert f"{sum(p.numel() for p in model.unet.parameters()):,} parameters" in parsed.words
    assert sum(tag == "svg" for tag, _ in parsed.tags) == 4
    assert sum(tag == "canvas" for tag, _ in parsed.tags) == 2


def test_it_is_one_file_in_good_order_and_harmless(page):
    text = page.read_text()
    parsed = Parsed(text)
    assert [tag for tag, _ in parsed.tags].count("script") == 1
    assert EVIL not in text
    assert EVIL in parsed.words  # escaped, it is shown as it is
    assert not re.search(r"(src|href|url\()\s*=?\s*[\"']?\s*(https?:)?//", text)
    assert all(
        values["src"].startswith("data:image/png;base64,")
        for tag, values in parsed.tags
        if tag == "img"
    )
    assert all("alt" in values for tag, values in parsed.tags if tag == "img")
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [values["id"] for _, values in parsed.tags if "id" in values]
    assert len(ids) == len(set(ids))
    assert {values["href"][1:] for tag, values in parsed.tags if tag == "a"} <= set(ids)
    assert ("html", {"lang": "en"}) in parsed.tags


@pytest.mark.parametrize(
    ("N", "H", "C", "F"), [(16, 32, 1, 51), (5, 8, 3, 4), (64, 32, 3, 51), (1, 250, 3, 51)]
)
def test_the_sprite_has_every_frame_of_some_images_and_fits(tmp_path, N, H, C, F):
    random = np.random.default_rng(0)
    frames, predicted = (random.integers(0, 256, (F, N, H, H, C), np.uint8) for _ in "ab")
    np.savez(tmp_path / "x.npz", frames=frames, predicted=predicted, times=np.arange(F)[::-1])
    found = read_sprite(tmp_path / "x.npz")
    n, times, skip = found.script["n"], found.script["times"], found.skip
    assert (n, len(times), skip) == {16: (16, 51, 1), 5: (4, 4, 1), 64: (4, 51, 1), 1: (1, 19, 2)}[
        N
    ]
    assert len(found.sprite.src) < 2_600_000
    chosen = np.linspace(0, N - 1, n).round().astype(int)
    sprite = image_of(found.sprite.src).reshape(len(times), H // skip, 2, n, H // skip, C)
    for row, t in ((0, times[0]), (2, times[2]), (-1, 0)):
        for kind, images in enumerate((frames, predicted)):
            assert np.array_equal(
                sprite[row, :, kind].transpose(1, 0, 2, 3),
                images[F - 1 - t, chosen, ::skip, ::skip],
            )


def test_real_images_are_noised_by_the_models_schedule(run):
    """At t = 0 it is the image itself; at two other t the noise is the same."""
    process = read_checkpoint_summary(run).process
    found = noise_real_images(run / "samples" / "real.png", process, 8, 3)
    real = np.asarray(Image.open(run / "samples" / "real.png"))
    x = {step.t: image_of(step.picture.src).astype(float) / 127.5 - 1 for step in found.steps}
    assert found.count == 3
    assert list(x) == [0, 1, 2, 4, 7, 10, 15, 20]
    for i in range(3):
        assert np.allclose(
            x[0][8 * i : 8 * i + 8] * 127.5 + 127.5, real[2:10, 2 + 10 * i : 10 + 10 * i]
        )
    model, eps = load_model(run).model, {}
    for t in (15, 20):
        inside = abs(x[t]) < 0.999  # values outside are clipped
        eps[t] = np.where(
            inside,
            (x[t] - model.alpha_bar(t) ** 0.5 * x[0]) / (1 - model.alpha_bar(t)) ** 0.5,
            np.nan,
        )
    both = np.isfinite(eps[15] + eps[20])
    assert both.sum() > 100
    assert np.allclose(eps[15][both], eps[20][both], atol=0.03)


def test_losses_are_those_of_metrics_csv(run):
    found = read_losses(run)
    rows = [row for row in read_rows(run) if "val_loss" in row]
    assert found.rows == [(f"{row['step']:.0f}", charts.number(row["val_loss"])) for row in rows]
    assert found.bins[0] == ("1 to 2", charts.number(rows[-1]["val_loss_t1-2"]))
    assert "validation: from" in found.charts[0]
    assert "step 12: from" in found.charts[1]
    assert "step 6: from" in found.charts[1]


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


# ---- missing and damaged files ----


def test_what_is_not_there_is_said_with_the_command_that_makes_it(run, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copy(run / "config.json", tmp_path / "run")
    assert report.main([str(tmp_path / "run")]) == 0
    words = Parsed((tmp_path / "run" / "report.html").read_text()).words
    for command in ("Inference.py --ckpt", "evaluate.py --ckpt"):
        assert words.count(f"python {command} {tmp_path / 'run'}") == 2
    for what in (
        "samples",
        "trajectory",
        "forward process",
        "losses",
        "schedule",
        "metrics",
        "neighbours",
        "checkpoint",
    ):
        assert f"No {what} here: " in words
    assert words.count("python train.py --dataset") == 5


def test_an_older_trajectory_has_no_predictions(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    with np.load(run / "images" / "trajectory.npz") as archive:
        np.savez(
            tmp_path / "run" / "images" / "trajectory.npz",
            frames=archive["frames"],
            times=archive["times"],
        )
    assert report.main([str(tmp_path / "run"), "--out", str(tmp_path / "x.html")]) == 0
    parsed = Parsed((tmp_path / "x.html").read_text())
    assert sum(tag == "canvas" for tag, _ in parsed.tags) == 1
    assert "The predictions of x 0 are not in trajectory.npz" in parsed.words


DAMAGED = (
    "config.json",
    "metrics.json",
    "metrics.csv",
    "images/samples.npz",
    "images/trajectory.npz",
    "samples/real.png",
    "samples/step_00000006.png",
    "evaluation/nearest-classifier.png",
)


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"[1, 2]",
        b'{"distances": {"a": {"sampling": 3}}, "bits_per_dim": 5, "memorization": []}',
        b"PK\x03\x04 and no archive",
        b"\x89PNG\r\n\x1a\n and no image",
        b"step,val_loss\n\xff\x00,nan\n1,1e400\n",
    ],
)
def test_damaged_files_cost_their_part_of_the_page_alone(run, tmp_path, contents):
    shutil.copytree(run, tmp_path / "run")
    for name in DAMAGED:
        (tmp_path / "run" / name).write_bytes(contents)
    (tmp_path / "run" / "checkpoints" / "step_00000012.ckpt").write_bytes(contents)
    assert report.main([str(tmp_path / "run")]) == 0
    words = Parsed((tmp_path / "run" / "report.html").read_text()).words
    assert words.count("makes what is missing") >= 7


def test_labels_that_are_too_few_cost_the_samples_alone(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    images = np.load(run / "images" / "samples.npz")["arr_0"]
    np.savez(
        tmp_path / "run" / "images" / "samples.npz",
        arr_0=images,
        arr_1=np.zeros(len(images) - 1, int),
    )
    assert report.main([str(tmp_path / "run")]) == 0
    words = Parsed((tmp_path / "run" / "report.html").read_text()).words
    assert f"has {len(images) - 1} labels for {len(images)} images" in words
    assert words.count("makes what is missing") == 1


def test_a_run_that_cannot_be_read_is_not_said_to_be_unwritable(refused, run, monkeypatch):
    def locked(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("run_page.page.gather", locked)
    assert f"cannot read {run} (Permission denied)" in refused(report.main, run)


def test_no_run_is_refused_in_one_line(refused, run, tmp_path):
    assert "is no run directory" in refused(report.main, tmp_path)
    assert "is no run directory" in refused(report.main, tmp_path / "none")
    assert "is no run directory" in refused(report.main, run / "config.json")
    assert "must end in .html" in refused(report.main, run, "--out", tmp_path / "x.pdf")
    (tmp_path / "file").touch()
    assert "cannot write" in refused(report.main, run, "--out", tmp_path / "file" / "x.html")
    assert {p.name for p in tmp_path.iterdir()} == {"file"}


def test_a_copy_without_the_template_says_what_is_missing(refused, run, tmp_path, monkeypatch):
    monkeypatch.setattr("run_page.page.TEMPLATE", tmp_path / "page.html")
    assert "no page.html beside report.py" in refused(report.main, run)


# ---- in a browser ----


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
    """A function that opens the page; at the end, no window may have errors or other requests."""
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
def test_the_slider_moves_both_pictures(visit, run):
    window = visit()
    assert not window.get_by_text("The slider needs JavaScript").is_visible()
    slider = window.get_by_role("slider")
    times = np.load(run / "images" / "trajectory.npz")["times"].tolist()
    seen = []
    for key, place in (
        ("Home", 0),
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("End", len(times) - 1),
    ):
        slider.press(key)
        seen.append((pixels(window, 0), pixels(window, 1)))
        assert window.locator("label[for=frame]").inner_text() == f"t = {times[place]}"
        assert slider.get_attribute("aria-valuetext") == f"t = {times[place]}"
        assert (
            window.get_by_role(
                "img", name=f"x_t, the images with noise, at t = {times[place]}"
            ).count()
            == 1
        )
    assert len({x for x, _ in seen}) == len({x0_hat for _, x0_hat in seen}) == 4
    assert seen[1] == seen[3]
    assert seen[-1][0] == seen[-1][1]  # at t = 0 the prediction is the image


@pytest.mark.slow
def test_a_canvas_shows_the_frame_to_the_pixel(visit, run):
    window = visit()
    window.get_by_role("slider").press("Home")
    # (F,8,8,8,3), of which four images are shown
    frames = np.load(run / "images" / "trajectory.npz")["frames"]
    drawn = image_of(pixels(window, 0))
    for i, image in enumerate(np.linspace(0, 7, 4).round().astype(int)):
        top, left = i // 2 * 9, i % 2 * 9
        assert np.array_equal(drawn[top : top + 8, left : left + 8, :3], frames[0, image])


@pytest.mark.slow
def test_a_single_frame_stays_when_it_is_played(visit, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    with np.load(run / "images" / "trajectory.npz") as found:
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
def test_hostile_names_run_nothing_and_are_shown(visit, run):
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
