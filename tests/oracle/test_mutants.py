"""The oracle finds every fault that it is shown."""

from pathlib import Path

import pytest

from tests.oracle.mutants import Mutant, all_mutants, survives


@pytest.mark.slow
@pytest.mark.parametrize("mutant", list(all_mutants()), ids=lambda mutant: f"{mutant[0]}: {mutant[2]}")
def test_mutant_dies(mutant: Mutant, tmp_path: Path) -> None:
    assert survives(mutant, tmp_path) == ""


@pytest.mark.slow
def test_an_unchanged_copy_passes(tmp_path: Path) -> None:
    """So that the faults are what fails."""
    file, old, _, test = next(all_mutants())
    assert survives((file, old, old, test), tmp_path).startswith("pytest ended with 0")
