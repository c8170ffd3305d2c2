"""Faults that the oracle must find: each is put into a copy of the package, and a test must fail there.

``python tests/oracle/mutants.py [TEXT]`` tries all of mutants.txt, or those whose lines contain TEXT; ``pytest -m slow``
does so, too.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("moco_plugin", "configs", "tools", "demo", "benchmarks", "tests", "pyproject.toml")
Mutant = tuple[str, str, str, str]  # file, text that occurs in it once, text in its place, test that fails


def all_mutants() -> Iterator[Mutant]:
    """Yield the mutants, with the tests as pytest's arguments."""
    for part in Path(__file__).with_suffix(".txt").read_text().split("\n== ")[1:]:
        names = dict(re.findall(r"^(\w+) = (.+)$", part, re.M))
        entries = re.findall(r"^(\S+) \[(.+)\] .+\n((?:-.*\n)+)((?:\+.*\n)+)", part, re.M)
        for file, test, *texts in entries:
            old, new = ("\n".join(line[2:] for line in text.splitlines()) for text in texts)
            yield f"moco_plugin/{file}", old, new, part.splitlines()[0].format(names.get(test, test))


def survives(mutant: Mutant, folder: Path) -> str:
    """Return "" if the test fails in a copy of the package with the mutant, else why it does not."""
    file, old, new, test = mutant
    for name in COPIED:
        source, copy = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    text = (folder / file).read_text()
    if text.count(old) != 1:
        return f"{file} has {old!r} {text.count(old)} times, expected once"
    (folder / file).write_text(text.replace(old, new))
    expression, _, path = test.partition(" tests/")
    arguments = [expression, f"tests/{path}"] if path else [test]
    command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(folder)}
    )
    if done.returncode == 1:
        return ""
    return f"pytest ended with {done.returncode}: {' '.join(done.stdout.split())[-300:]}"


def main(text: str = "") -> int:
    """Try mutants; print those that survive and return their number."""
    found = 0
    for mutant in [m for m in all_mutants() if text in " ".join(m)]:
        with tempfile.TemporaryDirectory() as folder:
            reason = survives(mutant, Path(folder))
        found += bool(reason)
        print("SURVIVES" if reason else "dies", *map(repr, mutant[:3]), reason, flush=True)
    return found


if __name__ == "__main__":
    sys.exit(min(1, main(*sys.argv[1:])))
