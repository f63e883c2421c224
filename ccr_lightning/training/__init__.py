"""Training: the LightningModule, the optimiser and its schedule, checkpoints and run folders."""
