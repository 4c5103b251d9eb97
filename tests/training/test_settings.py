"""The settings of a training run."""

from dataclasses import fields

import train
from training.settings import TrainingSettings

OF_THE_MACHINE = {"device", "devices", "num_nodes", "precision"}
OF_THE_COMMAND = {"dry_run", "prepare_data"}


def test_flags_of_train_are_settings_unless_of_the_machine_or_the_command():
    flags = vars(train.build_parser().parse_args(["--width", "64", "--max-steps", "7"]))
    settings = TrainingSettings.from_flags(flags, "laptop")
    kept = {field.name for field in [*fields(settings), *fields(settings.model)]}
    assert flags.keys() - kept == OF_THE_MACHINE | OF_THE_COMMAND
    assert (settings.preset, settings.max_steps, settings.model.width) == ("laptop", 7, 64)
