"""Lightning around the method: optimizer, schedule, logs, monitor, checkpoints."""
