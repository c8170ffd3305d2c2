"""The driver of every training run: Trainer, resume, signals, limits, checkpoints and logs."""
