"""Pre-training: a method as a LightningModule, its run and its kNN monitor."""
