"""Processes that are killed in mid-epoch and go on train on the samples of a run that nobody killed."""

import json
import signal
import subprocess
import sys
import time

import pytest

RUN = """
import json, sys, time
import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from ccr_lightning.data.datamodule import CaptionDataModule
from ccr_lightning.data.sources.jsonl import JsonLines
from ccr_lightning.data.tokenizer import CaptionTokenizer
from ccr_lightning.data.transforms import ImageTransform
from ccr_lightning.training.checkpointing import AtomicCheckpointIO

settings = json.loads(sys.argv[1])

class Writer(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        pixels = batch.images.double().sum(dim=(1, 2, 3)).tolist()
        seen = [self.global_step, batch.image_ids.tolist(), batch.input_ids.tolist(), batch.languages, pixels]
        with open(settings["log"], "a") as log:
            log.write(json.dumps(seen) + "\\n")
        time.sleep(settings["pause"])
        return self.layer(torch.ones(1, 1)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

data = CaptionDataModule(
    JsonLines(**settings["source"]), CaptionTokenizer(vocab_size=200), ImageTransform(16), batch_size=4,
    languages_per_step=2, length_window=3, num_workers=settings["workers"], cache_dir=settings["cache"],
)
checkpoint = ModelCheckpoint(settings["run"], filename="last", every_n_train_steps=3, enable_version_counter=False)
trainer = lightning.Trainer(
    max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
    limit_val_batches=0, callbacks=[checkpoint], plugins=[AtomicCheckpointIO()],
)
trainer.fit(Writer(), datamodule=data, ckpt_path=settings["resume"], weights_only=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def start(folder, write_tiny_jsonl):
    source = write_tiny_jsonl(folder / "tiny", train=46)

    def run(name, workers, pause=0.0, resume=None):
        settings = {
            "source": source,
            "cache": str(folder / "cache"),
            "log": str(folder / f"{name}.log"),
            "run": str(folder / f"run-{name}"),
            "workers": workers,
            "pause": pause,
            "resume": resume,
        }
        return subprocess.Popen([sys.executable, "-c", RUN, json.dumps(settings)], stderr=subprocess.DEVNULL)

    return run


def steps(path):
    """What was trained on by step; a line that the kill cut off does not count."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


@pytest.fixture(scope="module")
def whole(folder, start):
    """Two epochs without a break."""
    assert start("whole", workers=0).wait(timeout=120) == 0
    found = steps(folder / "whole.log")
    assert [step for step, *_ in found] == list(range(22))
    epoch = [image for _, images, *_ in found[:11] for image in images]
    assert len(set(epoch)) == len(epoch) == 44
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_sees_the_same_samples(start, whole, folder, workers):
    log = folder / f"{workers}.log"
    killed = start(workers, workers, pause=0.05)
    while len(steps(log)) < 8:  # in the first epoch, two steps after the second checkpoint
        assert killed.poll() is None
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = steps(log)
    log.unlink()
    assert start(workers, workers, resume=str(folder / f"run-{workers}" / "last.ckpt")).wait(timeout=120) == 0
    after = steps(log)
    resumed = after[0][0]
    assert 6 <= resumed <= len(before) < 11
    assert before[:resumed] + after == whole
