"""Training that learns nothing and remembers what it was given, whole, broken off, or on one of two ranks."""

import lightning
import torch


class Watcher(lightning.LightningModule):
    """Learns nothing and remembers the batches it was given."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []
        self.evaluated = []

    def training_step(self, batch, batch_idx):
        images = round(batch.images.double().sum().item(), 3)
        key = (self.current_epoch, batch_idx, batch.image_ids.tolist(), batch.languages, images)
        self.seen.append((*key, batch.input_ids.tolist()))
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch, batch_idx, dataloader_idx):
        self.evaluated.append(batch)

    test_step = predict_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class StopAt(lightning.Callback):
    """Saves a checkpoint at a moment of the run and breaks off."""

    def __init__(self, moment, epoch, batch, path):
        self.moment, self.epoch, self.batch, self.path = moment, epoch, batch, path

    def _maybe(self, moment, trainer, batch):
        if (moment, trainer.current_epoch, batch) == (self.moment, self.epoch, self.batch):
            trainer.save_checkpoint(self.path)
            raise KeyError("stopped")

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self._maybe("before batch", trainer, batch_idx)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self._maybe("after batch", trainer, batch_idx)

    def on_validation_end(self, trainer, module):
        self._maybe("after validation", trainer, trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def on_train_epoch_end(self, trainer, module):
        self._maybe("after epoch", trainer, None)


def trainer(**settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"max_epochs": 3, "enable_checkpointing": False, "num_sanity_val_steps": 0, **quiet, **settings}
    return lightning.Trainer(accelerator="cpu", **settings)


def one_of_two_ranks(rank):
    """The trainer of a rank, whose processes are never started."""
    one = trainer(devices=2, strategy="ddp", use_distributed_sampler=False)
    one.strategy.set_world_ranks = lambda: None
    one.strategy.cluster_environment.set_global_rank(rank)
    assert (one.world_size, one.global_rank) == (2, rank)
    return one
