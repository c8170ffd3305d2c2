"""The table of published numbers in the docs."""

import re
from pathlib import Path

from moco_plugin.papers import FINETUNE, LINEAR, LVIS_2X_FROZEN, OMNIBENCHMARK, TRANSFER

DOCS = Path(__file__).parents[2] / "docs" / "reproduction.md"


def test_every_published_number_is_in_the_table() -> None:
    text = DOCS.read_text()
    rows = [re.split(r" *\| *", line.strip("| ")) for line in text.splitlines() if line.startswith("|")]
    for task, published in TRANSFER.items():
        listed = [row[-1] for row in rows if row[0] == f"`{task}`"]
        frozen = [LVIS_2X_FROZEN] if task == "lvis_2x" else []
        values = [*(row.values for row in published), *frozen]
        assert sorted(listed) == sorted(", ".join(map(str, numbers)) for numbers in values), task
    for row in LINEAR:
        assert any(cells[0] == row.name and cells[1].startswith(str(row.values[0])) for cells in rows), row
    for row in FINETUNE:
        assert [row.name, row.recipe, str(row.values[0])] in [cells[:3] for cells in rows], row
    assert f"{OMNIBENCHMARK.name}: mean over the realms {OMNIBENCHMARK.values[0]}" in text
