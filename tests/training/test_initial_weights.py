"""A new run that begins with the weights of another model."""

from dataclasses import replace

import pytest
import torch
from conftest import TINY
from training_runs import contents, fit, same

import train
from checkpoints.checkpoint import load_model
from diffusion.settings import ModelSettings
from training.initial_weights import describe_changes, model_from, new_model


def test_what_fits_is_kept_and_what_does_not_is_new(conditional_run):
    theirs = load_model(conditional_run).model
    settings = ModelSettings.from_dict({**theirs.hparams, "class_names": ("a", "b", "c")})
    settings = ModelSettings.from_dict({**vars(settings), "classes": 3, "seed": 5})
    model, line = model_from(settings, conditional_run)
    fresh = new_model(settings).unet.state_dict()
    for name, value in model.unet.state_dict().items():
        expected = fresh if name == "label.weight" else theirs.unet.state_dict()
        assert torch.equal(value, expected[name]), name
    count = len(fresh)
    assert line.endswith(
        f": kept {count - 1} of {count} weight tensors; "
        "new: the label embedding for 3 instead of 2 classes (label.weight)"
    )


def test_other_channels_and_no_classes_are_said_in_words(conditional_run):
    theirs = load_model(conditional_run).model
    changes = {"depth": 1, "classes": 0, "class_names": (), "augment": 0.1}
    _, line = model_from(ModelSettings.from_dict({**theirs.hparams, **changes}), conditional_run)
    said = line[line.index("; new: ") :]
    assert said == (
        "; new: the first convolution for 1 instead of 3 channels, the last convolution for 1 "
        "instead of 3 channels, the augmentation embedding (augmentation.weight, conv_in.weight, "
        "conv_out.weight, ..); left out: the label embedding (label.weight)"
    )


@pytest.mark.parametrize(
    ("change", "attention"), [({"width": 16}, 4), ({"attention": ()}, 4), ({"size": 16}, 8)]
)
def test_another_network_is_refused_with_the_flags_to_give(conditional_run, change, attention):
    """Also one with fewer layers. The resolutions of attention are scaled with the image size."""
    theirs = load_model(conditional_run).model
    other = ModelSettings.from_dict({**theirs.hparams, **change})
    flags = f"--width 8 --mults 1,2 --attention {attention} --blocks 1"
    with pytest.raises(ValueError, match=flags):
        model_from(other, conditional_run)


def test_what_the_weights_were_trained_for_is_named(conditional_run):
    theirs = load_model(conditional_run).model
    other = ModelSettings.from_dict({**theirs.hparams, "parameterization": "x0"})
    _, line = model_from(other, conditional_run)
    assert f": kept all {len(theirs.unet.state_dict())} weight tensors; the weights were" in line
    assert line.endswith("; the weights were trained with parameterization eps, not x0")


def test_network_and_objective_are_those_of_the_weights(tiny_data, tmp_path, capsys):
    """Those of the preset do not apply, and a flag that is given overrides those of the weights."""
    v = ["--parameterization", "v", "--weighting", "min-snr", "--T", 30]
    fit(tiny_data, tmp_path / "v", "--max-steps", 1, *v)
    words = ["--dataset", tiny_data, "--image-size", 8, "--device", "cpu", "--max-steps", 1]
    words += ["--preset", "laptop", "--init-from", tmp_path / "v", "--batch-size", 8]
    for name, flags in (("as-given", []), ("x0", ["--parameterization", "x0"])):
        run_dir = tmp_path / name
        assert train.main([*map(str, words), "--run-dir", str(run_dir), *flags]) == 0
        settings = load_model(run_dir).model.settings
        assert (settings.width, settings.mults, settings.attention) == (8, (1, 2), (4,))
        assert (settings.T, settings.schedule, settings.weighting) == (30, "linear", "min-snr")
        assert settings.parameterization == ("x0" if flags else "v")
        assert settings.optimizer == "muon"
        assert ("trained with parameterization v, not x0" in capsys.readouterr().out) == bool(flags)
        again = [*words[:-4], "--init-from", tmp_path / "v", "--batch-size", 8, "--max-steps", 2]
        assert train.main([*map(str, again), "--run-dir", str(run_dir), *flags]) == 0
        assert "the weights of --init-from are not used again" in capsys.readouterr().out


def test_a_file_of_betas_determines_the_number_of_steps(tiny_data, tmp_path):
    fit(tiny_data, tmp_path / "before", "--max-steps", 1, "--T", 30)
    (tmp_path / "betas.txt").write_text("0.1\n" * 12)
    words = ["--dataset", tiny_data, "--run-dir", tmp_path / "run", "--image-size", 8]
    words += ["--preset", "laptop", "--device", "cpu", "--max-steps", 1, "--batch-size", 8]
    words += ["--init-from", tmp_path / "before", "--schedule", tmp_path / "betas.txt"]
    assert train.main([*map(str, words)]) == 0
    assert load_model(tmp_path / "run").model.T == 12


def test_a_table_of_betas_must_be_given_again(conditional_run):
    theirs = load_model(conditional_run).model.settings
    line = describe_changes(replace(theirs, betas=(0.1,) * theirs.T), theirs, [], [])
    trained = "; the weights were trained with schedule a table of betas, not linear"
    assert line == f"{trained}; give the table with --schedule FILE"
    assert describe_changes(theirs, theirs, [], []) == ""


def test_weights_of_the_run_itself_are_refused(refused, tiny_data, tiny_run):
    flags = ["--max-steps", "1", "--init-from", tiny_run]
    words = ["--dataset", tiny_data, "--run-dir", tiny_run, *TINY, *flags]
    assert "is in the run directory" in refused(train.main, *words)


def test_a_run_begins_with_them_and_its_resumption_does_not(
    tiny_data, tmp_path, conditional_run, capsys
):
    options = ["--init-from", conditional_run, "--class-conditional", "--lr", 0]
    fit(tiny_data, tmp_path / "run", "--max-steps", 2, *options)
    assert f"begins with the averaged weights of {conditional_run}" in capsys.readouterr().out
    expected = contents(conditional_run)["ema"]["weights"]
    assert same(contents(tmp_path / "run")["ema"]["weights"], expected)
    fit(tiny_data, tmp_path / "run", "--max-steps", 3, *options)
    out = capsys.readouterr().out
    assert "begins with" not in out
    assert "resumed: the weights of --init-from are not used again" in out


def test_a_missing_file_gives_a_one_line_error(refused, tiny_data, tmp_path):
    words = ["--dataset", tiny_data, "--run-dir", tmp_path / "run", *TINY, "--init-from", "no.ckpt"]
    assert "no checkpoint at no.ckpt" in refused(train.main, *words)
    assert not (tmp_path / "run").exists()
