"""What ``ccr fit`` would train, built by the command itself up to its trainer."""

import sys
from pathlib import Path

import pytest
import torch

from ccr_lightning.cli import training
from ccr_lightning.cli.main import main

ROOT = Path(__file__).parents[1]


def configured(*arguments, device="cpu"):
    """Settings, model and data module of ``ccr fit`` with these arguments, in the repository's folder."""
    built = []
    with pytest.MonkeyPatch.context() as patch, torch.device(device):
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", ["ccr"])
        patch.setattr(training, "_prepare_data", lambda *_: None)
        patch.setattr(training.TrainingCLI, "instantiate_trainer", lambda self: None)
        patch.setattr(
            training.TrainingCLI,
            "_run_subcommand",
            lambda self, _: built.append((self.config.fit, self.model, self.datamodule)),
        )
        assert main(["fit", *map(str, arguments)]) == 0
    return built[0]
