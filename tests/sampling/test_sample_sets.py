"""Sets of samples in files: the same for any batch size and process, and resumable."""

import numpy as np
import pytest
import torch
from models import conditional

from checkpoints.checkpoint import load_model
from sampling import plan as sampling_plan
from sampling import sample_sets
from sampling.plan import plan_sampling


@pytest.fixture
def model(conditional_run):
    return load_model(conditional_run).model


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(sample_sets, "IMAGES_PER_FILE", 8)


def test_image_i_is_the_same_in_any_batch_and_process(model, tmp_path):
    plan = plan_sampling(model, steps=4)
    sample_sets.write_samples(model, plan, tmp_path / "one", 21, seed=3)
    for rank in range(2):
        sample_sets.write_samples(
            model, plan, tmp_path / "two", 21, seed=3, batch_size=5, rank=rank, world_size=2
        )
    (one, _), (two, _) = (
        sample_sets.read_samples(model, tmp_path / folder, 21, 3) for folder in ("one", "two")
    )
    assert one.shape == (21, 3, 8, 8)
    assert one.dtype == torch.uint8
    assert torch.equal(one, two)
    assert torch.equal(one[17:19], sample_sets.sample_batch(model, plan, range(17, 19), 3))
    assert not torch.equal(one, sample_sets.sample_batch(model, plan, range(21), 4))
    assert sorted(file.name for file in (tmp_path / "one").iterdir()) == [
        "seed3-00000000.npz",
        "seed3-00000008.npz",
        "seed3-00000016.npz",
    ]


def test_only_missing_and_damaged_files_are_sampled_again(model, tmp_path, monkeypatch):
    plan, sample_batch = plan_sampling(model, steps=3), sample_sets.sample_batch
    sample_sets.write_samples(model, plan, tmp_path, 24, seed=0)
    whole, _ = sample_sets.read_samples(model, tmp_path, 24, 0)
    (tmp_path / "seed0-00000000.npz").unlink()
    damaged = tmp_path / "seed0-00000016.npz"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    with pytest.raises(OSError, match="run the same command again"):
        sample_sets.read_samples(model, tmp_path, 24, 0)
    asked = []
    monkeypatch.setattr(
        sample_sets,
        "sample_batch",
        lambda m, p, indices, seed: (
            (p is plan and asked.append(indices)) or sample_batch(m, p, indices, seed)
        ),
    )
    sample_sets.write_samples(model, plan, tmp_path, 24, seed=0)  # (the warm-up has another plan)
    assert asked == [range(8), range(16, 24)]
    assert torch.equal(sample_sets.read_samples(model, tmp_path, 24, 0)[0], whole)
    sample_sets.write_samples(model, plan, tmp_path, 20, seed=0)  # fewer images are all there
    assert len(asked) == 2
    assert torch.equal(sample_sets.read_samples(model, tmp_path, 20, 0)[0], whole[:20])
    sample_sets.write_samples(model, plan, tmp_path, 30, seed=0)  # more images are added
    assert asked[2:] == [range(24, 30)]


@pytest.mark.parametrize(
    ("settings", "evaluations"),
    [
        ({"sampler": "unipc", "steps": 5}, 5),
        ({"sampler": "ddpm"}, 20),
        ({"sampler": "ddim", "steps": 4, "guidance": 2.0}, 8),
    ],
)
def test_what_an_image_costs_is_counted(model, tmp_path, settings, evaluations):
    plan = plan_sampling(model, **settings)
    sample_sets.write_samples(model, plan, tmp_path, 10, seed=0)
    _, cost = sample_sets.read_samples(model, tmp_path, 10, 0)
    assert cost.evaluations == evaluations
    assert cost.seconds > 0


def test_image_i_is_of_class_i_mod_k_and_guidance_pulls_it_there(model):
    """The model was trained on dark (0) and bright (1) images."""

    def gap(guidance: float) -> float:
        plan = plan_sampling(model, guidance=guidance)
        brightness = sample_sets.sample_batch(model, plan, range(40), 0).float().mean(dim=(1, 2, 3))
        return float((brightness[1::2] - brightness[::2]).mean())

    assert gap(4.0) > max(3, gap(1.0))


def test_every_model_and_plan_has_its_own_folder(model):
    names = {
        sample_sets.folder_name(plan_sampling(model, **settings), of)
        for settings in (
            {},
            {"steps": 7},
            {"sampler": "ddim", "eta": 0.5},
            {"sampler": "ddim"},
            {"precision": "bf16"},
            {"guidance": 2.0},
            {"grid": "edm"},
        )
        for of in ("a", "b")
    }
    assert len(names) == 14
    assert sample_sets.folder_name(
        plan_sampling(model, variance="small"), "a"
    ) == sample_sets.folder_name(plan_sampling(model), "a")  # unipc has none


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "unipc-20-41434c35"),
        ({"steps": 7}, "unipc-7-bc7b8086"),
        (
            {
                "sampler": "ddim",
                "steps": 20,
                "eta": 0.5,
                "guidance": 2.0,
                "grid": "edm",
                "precision": "bf16",
            },
            "ddim-20-539f8c12",
        ),
        ({"sampler": "ddpm", "compile_mode": "default"}, "ddpm-20-fd0970b2"),
        ({"sampler": "ddpm", "variance": "small"}, "ddpm-20-5cd016e5"),
    ],
)
def test_the_folders_of_earlier_versions_are_found_again(settings, name):
    plan = plan_sampling(conditional(T=20), **settings)
    assert sample_sets.folder_name(plan, "0" * 64, "ema", "cpu") == name


def test_values_are_rounded_and_not_truncated(model, monkeypatch):
    """-1 .. 1 to 0 .. 255: all 256 levels come back, and values beyond are clipped."""
    levels = torch.arange(256) / 127.5 - 1
    below = (torch.arange(1, 127) - 0.4) / 127.5 - 1
    x = torch.cat([levels, torch.tensor([-1.3, 1.2]), below]).view(2, 3, 8, 8)
    monkeypatch.setattr(sampling_plan, "sample", lambda *_: iter([(0, x, x)]))
    found = sample_sets.sample_batch(model, plan_sampling(model), range(2), 0).flatten()
    assert found[:256].tolist() == list(range(256))
    assert found[256:258].tolist() == [0, 255]
    assert found[258:].tolist() == list(range(1, 127))
    assert np.dtype(found.numpy().dtype) == np.uint8
