"""The page of `bash run.sh demo`: the samples of each pretrained model, with the names of their
classes.

    lines = write_demo_page(Path("runs/demo"), {"cifar10": "48", "mnist": "7"})

Expects NAME.gif with rows of `COLUMNS` images and NAME/samples.npz in the folder.
"""

from html import escape
from pathlib import Path

from checkpoints.checkpoint import load_model
from image_data.npz_files import read_npz
from run_page.pictures import class_name
from runtime.atomic_file import complete_file
from runtime.pretrained import model_path

COLUMNS = 10
STYLE = """
body { font-family: sans-serif; margin: 2em }
figure { margin: 0; width: max-content }
img { display: block; image-rendering: pixelated }
figcaption { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; padding: 4px 1px 0;
  font-size: 11px; text-align: center; box-sizing: border-box; width: 0; min-width: 100% }
"""


def write_demo_page(folder: Path, seconds: dict[str, str]) -> list[str]:
    """Write folder/index.html. Returns a line about each model: its columns and its seconds.

    seconds: how long each model took, by its name.
    """
    lines, sections = [], []
    for name, duration in seconds.items():
        arrays = read_npz(folder / name / "samples.npz", ("arr_0",), ("arr_1",))
        labels = arrays["arr_1"].tolist() if "arr_1" in arrays else []
        class_names = load_model(model_path(name)).model.settings.class_names
        columns = [class_name(label, class_names) for label in column_labels(labels)]
        line = f"{len(arrays['arr_0'])} images in {duration} s"
        lines.append(f"{name}: {line}" + (f", columns {', '.join(columns)}" if columns else ""))
        sections.append(section(name, line, columns))
    page = '<!doctype html><meta charset="utf-8"><title>DDPM: pretrained models</title>\n'
    with complete_file(folder / "index.html") as temporary:
        temporary.write_text(f"{page}<style>{STYLE}</style>\n" + "".join(sections))
    return lines


def column_labels(labels: list[int]) -> list[int]:
    """The label of each column in rows of `COLUMNS`; empty if the images of a column differ."""
    columns = labels[:COLUMNS]
    if any(label != columns[i % COLUMNS] for i, label in enumerate(labels)):
        return []
    return columns


def section(name: str, line: str, columns: list[str]) -> str:
    """The animation of one model, with the names of its columns below."""
    captions = "".join(f"<span>{escape(column)}</span>" for column in columns)
    return (
        f"<h2>{escape(name)}</h2>\n"
        f'<figure><img src="{escape(name)}.gif" alt="from noise to images">'
        f"<figcaption>{captions}</figcaption></figure>\n<p>{line}</p>\n"
    )
