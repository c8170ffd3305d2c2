"""User-facing errors: a one-line message and an exit code."""

import difflib
import functools
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence

# Prefixes of third-party warnings that users cannot act on; also ignored in the processes that a tool starts.
NOT_THE_USERS = ("`torch.jit.script` is deprecated", "The given NumPy array is not writable", "torch.meshgrid")


class UserError(Exception):
    """A failure that the user can fix; exit code 1."""

    exit_code = 1


class UsageError(UserError):
    """An invalid command, key or value; exit code 2."""

    exit_code = 2


class Stopped(UserError):
    """A run that was stopped by a signal, after it was saved; exit code 128 + the signal's number, as in shells."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def reason(error: BaseException) -> str:
    """Return a library's error as a part of one of our sentences: one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


def duration(seconds: float) -> str:
    """Return seconds as text, in the unit that suits them."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def command(main: Callable[[Sequence[str] | None], int | None]) -> Callable[..., int]:
    """Turn ``main(argv)`` into an entry point: a user's mistake ends in one sentence, not a traceback."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        # before torch is loaded: threads that spin for long while they wait make a busy machine many times slower
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
        for message in NOT_THE_USERS:
            warnings.filterwarnings("ignore", message=re.escape(message))
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # a compiler of CUDA, and no GPU
        os.environ.setdefault("PYTHONWARNINGS", ",".join(f"ignore:{message}" for message in NOT_THE_USERS))
        try:
            return main(argv) or 0
        except UserError as error:
            message = str(error)
            if message.startswith("Caught "):  # from a loader process: torch puts a traceback before the sentence
                message = message.strip().splitlines()[-1].partition("Error: ")[2]
            print(message if isinstance(error, Stopped) else f"error: {message}", file=sys.stderr)
            return error.exit_code
        except BrokenPipeError:  # `tool | head`: the reader has gone, and nothing more can be said
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return run
