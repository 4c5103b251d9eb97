"""Fixtures: tiny data, tiny trained runs, and the real datasets if they exist."""

import os
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# No test depends on a GPU that the machine happens to have. DDPM_TEST_DEVICE=cuda also runs the
# tests marked `gpu`.
TEST_DEVICE = os.environ.get("DDPM_TEST_DEVICE", "cpu")
if TEST_DEVICE == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Rooms are the folders of modules and the modules at the top level. They come in layers, the lowest
# first: a room imports only from rooms of earlier lines.
ROOMS = (
    ("runtime",),
    ("image_data", "diffusion", "Unet"),
    ("Dataset", "DiffusionModel"),
    ("checkpoints",),
    ("sampling",),
    ("evaluation",),
    ("training", "run_page"),
    ("train", "Inference", "make_gif", "evaluate", "convert", "report"),
)
FOLDERS = [room for layer in ROOMS for room in layer if (ROOT / room).is_dir()]
SOURCES = sorted(
    [*ROOT.glob("*.py"), *(file for room in FOLDERS for file in (ROOT / room).glob("*.py"))]
)


def copy_project(folder: Path) -> None:
    """Copy what a user needs of this project into `folder`: the scripts, the folders and run.sh."""
    for file in [*ROOT.glob("*.py"), ROOT / "run.sh"]:
        shutil.copy(file, folder)
    for name in [*FOLDERS, "pretrained"]:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", dest="all_tests", help="run slow tests, too")
    parser.addoption("--kills", type=int, default=12, help="kills in test_strain.py (12)")
    parser.addoption("--seed", type=int, help="seed of test_strain.py (a random one, printed)")


def slow_are_left_out(config) -> bool:
    """Whether neither --all nor -m nor a test's own name (file.py::test) asks for slow tests."""
    named = any("::" in argument for argument in config.args)
    return not (config.option.all_tests or config.option.markexpr or named)


def pytest_collection_modifyitems(config, items):
    """Leave out the slow tests; or, if they are run, begin with the files that contain some.

    Then only short tests are left at the end, which keep all workers busy. The SLURM tests come
    first, so that one worker gets them all: two workers would have to wait for each other.
    """
    if TEST_DEVICE != "cuda":
        needs_gpu = pytest.mark.skip(reason="needs an NVIDIA GPU, and DDPM_TEST_DEVICE=cuda")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(needs_gpu)
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow_are_left_out(config):
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]
        return
    files = {item.path for item in slow}
    items.sort(key=lambda item: (item.path.name != "test_slurm.py", item.path not in files))


def pytest_terminal_summary(terminalreporter, config):
    if slow_are_left_out(config):
        terminalreporter.write_line("slow tests are left out; --all runs them, too")


TINY = (
    "--width 8 --mults 1,2 --attention 4 --blocks 1 --image-size 8 --T 20 --batch-size 8 --lr 1e-3"
    " --warmup 2 --val-every 6 --val-images 16 --log-every 1 --save-every 100 --device cpu"
    " --precision 32 --preset paper"
).split()


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """60 colour images 8x8 with two labels and 20 unseen ones, as an .npz."""
    random = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("data") / "tiny.npz"
    labels = random.integers(0, 2, 60)
    bright = 150 * labels[:, None, None, None]
    images = (random.random((60, 8, 8, 3)) * 60 + bright).astype(np.uint8)
    unseen = (random.random((20, 8, 8, 3)) * 60 + bright[:20]).astype(np.uint8)
    of_training = {"train_images": images, "train_labels": labels}
    np.savez(file, **of_training, test_images=unseen, test_labels=labels[:20])
    return file


@pytest.fixture(scope="session")
def tiny_run(tiny_data, tmp_path_factory) -> Path:
    """The run directory of 12 steps on `tiny_data`: T = 20, 8x8, three channels."""
    from training_runs import fit

    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    assert fit(tiny_data, run_dir, "--max-steps", 12) == 0
    return run_dir


@pytest.fixture(scope="session")
def conditional_run(tiny_data, tmp_path_factory):
    """12 steps on `tiny_data` with its two classes, dark and bright; averages every 4 steps."""
    from training_runs import fit

    run_dir = tmp_path_factory.mktemp("runs") / "conditional"
    flags = "--max-steps 12 --save-every 4 --class-conditional --posthoc-ema --lr 1e-2".split()
    assert fit(tiny_data, run_dir, *flags) == 0
    return run_dir


@pytest.fixture(scope="session")
def undisturbed(tiny_data, tmp_path_factory):
    """Losses and hash of the weights of an uninterrupted run with the settings `RUN`."""
    from training_runs import fit_run, losses, weights_hash

    run_dir = tmp_path_factory.mktemp("undisturbed")
    assert fit_run(tiny_data, run_dir) == 0
    return losses(run_dir), weights_hash(run_dir)


@pytest.fixture(scope="session")
def start(tiny_data):
    """A function that starts training on `tiny_data` in a process, with the settings `RUN`."""
    from training_runs import RUN, Process

    def begin(run_dir, *extra, **environment):
        words = ["--dataset", tiny_data, "--run-dir", run_dir, *RUN, *extra]
        return Process(run_dir.parent, *words, **environment)

    return begin


@pytest.fixture(scope="session")
def sampled(tiny_run, tmp_path_factory) -> Path:
    """The output folder of Inference.py: five images of `tiny_run`, sampled in batches of two."""
    import Inference

    folder = tmp_path_factory.mktemp("sampled")
    words = ["--ckpt", str(tiny_run), "--out", str(folder)]
    flags = "--num 5 --save-steps 0,1,10,20 --frames 6 --batch-size 2".split()
    assert Inference.main([*words, *flags]) == 0
    return folder


@pytest.fixture
def fresh_run(tiny_run) -> Path:
    """`tiny_run` without metrics.json. What earlier tests left in evaluation/ stays."""
    (tiny_run / "metrics.json").unlink(missing_ok=True)
    return tiny_run


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """4000 training and 1000 test images, and their classifier, which is saved in `root`."""
    from Dataset import DiffSet
    from evaluation import classifier, features

    train_set, test_set = DiffSet(True, "shapes"), DiffSet(False, "shapes")
    train_set.images, train_set.labels = train_set.images[:4000], train_set.labels[:4000]
    test_set.images, test_set.labels = test_set.images[:1000], test_set.labels[:1000]
    root = tmp_path_factory.mktemp("shapes")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(classifier, "NARROW_WIDTH", 16)
        patched.setattr(classifier, "MIN_STEPS", 60)
        extractor = features.load_feature_extractor("classifier", train_set, test_set, root)
    return Namespace(train_set=train_set, test_set=test_set, root=root, classifier=extractor)


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory) -> Path:
    """Random weights of Inception in torch-fidelity's format."""
    import torch
    from torch_fidelity import feature_extractor_inceptionv3 as inceptionv3

    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(inceptionv3, "load_state_dict_from_url", lambda *_, **__: {})
        patched.setattr(inceptionv3.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        net = inceptionv3.FeatureExtractorInceptionV3("inception", ["2048"])
    torch.save(net.state_dict(), file)
    return file


@pytest.fixture(scope="session")
def finished_run(tiny_data, tmp_path_factory) -> Path:
    """A run whose page has every section, and whose names contain HTML."""
    from finished_run import make_finished_run

    return make_finished_run(tiny_data, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="session")
def page(finished_run) -> Path:
    """The page of `finished_run`."""
    import report

    assert report.main([str(finished_run)]) == 0
    return finished_run / "report.html"


QUICK = {"MIN_STEPS": 20, "WIDE_WIDTH": 16, "NARROW_WIDTH": 16}


@pytest.fixture
def quick_classifier(monkeypatch):
    """Make the classifier of evaluate.py small, so that it is trained in two seconds."""
    from evaluation import classifier

    for name, value in QUICK.items():
        monkeypatch.setattr(classifier, name, value)


@pytest.fixture
def real_root():
    """A function that returns the data folder with the real dataset of this name.

    The test is skipped if there is none.
    """

    def find(name: str) -> str:
        folder = {"mnist": "MNIST", "fashionmnist": "FashionMNIST", "cifar10": "none"}[name]
        root = ROOT / "data"
        if not (root / f"{name}.npz").is_file() and not (root / folder / "raw").is_dir():
            pytest.skip(f"the real {name} is not in {root}")
        return str(root)

    return find


@pytest.fixture
def refused(capsys):
    """A function that runs a script's main with bad arguments and returns the error message.

    The message must be one line on standard error, and the exit status 2.
    """

    def check(main, *argv) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in argv])
        out, err = capsys.readouterr()
        assert stop.value.code == 2
        assert err.count("\n") == 1, err
        assert ": error: " in err
        assert out == ""
        return err

    return check


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a small file system with these options. The test is skipped if that is
    not possible."""
    mounted = []

    def mount(options):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)
