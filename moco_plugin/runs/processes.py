"""Process group of a command, and messages for processes that fail."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from moco_plugin.errors import UserError


def known_failure(error: RuntimeError, processes: int, timeout: float) -> str:
    """Return what happened, or "" if no process failed; torch distinguishes these errors by their text only."""
    text = str(error)
    if text.startswith("DataLoader worker"):
        return (
            "a loader process was killed, probably because memory ran out; choose fewer data.workers or a smaller batch"
        )
    if processes > 1 and (isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text):
        if "imed out" in text or "timeout" in text:
            return f"another training process did not respond for {timeout:g} s (the timeout key sets this)"
        return "another training process ended; its own message, if any, is above"
    return ""


def own_device() -> str:
    """Return this process's GPU by torchrun's local rank, or "cpu"."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


@contextmanager
def joined(timeout: float = 1800.0) -> Iterator[None]:
    """Initialize torchrun's process group, if any, inside the block.

    Args:
        timeout: Seconds that processes wait for each other.

    Raises:
        UserError: Another process exited or did not respond.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    started = count > 1 and not dist.is_initialized()
    try:
        if started:
            dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
        yield
    except RuntimeError as error:
        if sentence := known_failure(error, count, timeout):
            raise UserError(sentence) from error
        raise
    finally:
        if started and dist.is_initialized():
            dist.destroy_process_group()
