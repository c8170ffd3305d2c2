"""The oracle finds every fault that it is shown."""

from pathlib import Path

import pytest

from tests.oracle.mutants import Mutant, all_mutants, survives


@pytest.mark.slow
@pytest.mark.parametrize("mutant", list(all_mutants()), ids=lambda mutant: f"{mutant[0]}: {mutant[2]}")
def test_mutant_dies(mutant: Mutant, tmp_path: Path) -> None:
    assert survives(mutant, tmp_path) == ""
