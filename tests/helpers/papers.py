"""The transcription of the papers (tests/data/PAPERS.md), as text and as tables."""

import re
from pathlib import Path

FILE = Path(__file__).parents[1] / "data" / "PAPERS.md"
TEXT = FILE.read_text()


def table(corner: str) -> dict[str, dict[str, str]]:
    """Return the table whose first cell is ``corner``: {row: {column: cell}}."""
    lines = TEXT.splitlines()
    start = next(i for i, line in enumerate(lines) if re.match(rf"\| *{re.escape(corner)} *\|", line))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    header, _, *body = rows
    return {name: dict(zip(header[1:], cells, strict=True)) for name, *cells in body}


def numbers(cell: str) -> tuple[float, ...]:
    """Return the decimal numbers in a cell."""
    return tuple(map(float, re.findall(r"\d+\.\d+", cell)))


def short(value: float) -> str:
    """Write a number as the transcription does: 1e-4, 1.5e-6, 0.03, 30."""
    if not 0 < value < 1e-3:
        return f"{value:g}"
    digits, power = f"{value:.3e}".split("e")
    return f"{float(digits):g}e{int(power)}"


def thousands(iterations: int) -> str:
    """Write 24000 as 24k."""
    assert iterations % 1000 == 0
    return f"{iterations // 1000}k"
