"""Console output of trials: progress and warnings."""

import logging
import sys

from detectron2.utils.logger import setup_logger


class Brief(logging.Filter):
    """Passes progress and warnings to the terminal; ``log.txt`` has everything."""

    def filter(self, record: logging.LogRecord) -> bool:
        known = record.name.startswith("moco_plugin") or record.name == "detectron2.utils.events"
        return known or record.levelno >= logging.WARNING

    def apply(self, output: str, rank: int) -> None:
        """Filter what detectron2's loggers print, not what they write to files."""
        for name in ("fvcore", "detectron2"):
            for handler in setup_logger(output, distributed_rank=rank, name=name).handlers:
                if not isinstance(handler, logging.FileHandler) and getattr(handler, "stream", None) is sys.stdout:
                    handler.addFilter(self)
