"""A few inputs of the fuzzer, which ``python tests/fuzz.py`` gives many to."""

import subprocess
import sys
from pathlib import Path

KINDS = ("own config", "list", "results JSON", "image", "checkpoint", "special list", "special results JSON")


def test_a_few_mutated_files_end_in_sentences() -> None:
    fuzz = [sys.executable, str(Path(__file__).with_name("fuzz.py")), "--count", "2", "--seed", "1", "--kinds", *KINDS]
    ran = subprocess.run(fuzz, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0 and all(kind in ran.stdout for kind in KINDS), ran.stdout + ran.stderr
