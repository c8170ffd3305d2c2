"""The data sets of the papers' tasks: which are complete, what is missing and where to get it."""

from collections.abc import Sequence

from tqdm import tqdm

from moco_plugin.transfer.components.dataset_files import Files, datasets_root, find_files, source
from moco_plugin.transfer.tasks import TASKS, find_task


def check_datasets(tasks: Sequence[str] = (), progress: bool = True) -> tuple[str, bool]:
    """Look for the data sets of tasks under ``DETECTRON2_DATASETS``.

    Args:
        tasks: Tasks by name, or several by the first part of their names (``coco_c4`` for ``coco_c4_1x`` and
            ``coco_c4_2x``); by default all of the paper's.
        progress: Show a progress bar.

    Returns:
        A table as text, and whether everything was found.

    Raises:
        UsageError: There is no such task.
    """
    groups: dict[tuple[str, ...], list[str]] = {}  # tasks that take the same data sets
    for task in _chosen(tasks):
        groups.setdefault(TASKS[task].datasets, []).append(task)
    names = list(dict.fromkeys(name for group in groups for name in group))
    found = {
        name: find_files(name)
        for name in tqdm(names, desc="data sets", unit="data set", disable=not progress, leave=False)
    }
    lines = [f"data sets in {datasets_root()}"]
    for group, sharing in groups.items():
        whole = all(_whole(found[name]) for name in group)
        lines += ["", f"{', '.join(sharing)}: {'complete' if whole else 'not complete'}"]
        for name in group:
            lines += _rows(name, found[name])
    return "\n".join(lines), all(map(_whole, found.values()))


def _chosen(names: Sequence[str]) -> list[str]:
    if not names:
        return [task for task in TASKS if not task.startswith("scenes_")]  # the demo's own
    chosen: list[str] = []
    for name in names:
        several = [task for task in TASKS if task.startswith(f"{name}_")]
        chosen += [name] if name in TASKS else several or [find_task(name).name]
    return list(dict.fromkeys(chosen))


def _whole(files: list[Files]) -> bool:
    return not any(part.missing for part in files)


def _rows(name: str, files: list[Files]) -> list[str]:
    """Return one line for a complete data set, or one line per missing part."""
    if _whole(files):
        return [f"  {name:<35}  found    {', '.join(map(str, files))}"]
    missing = [str(part) for part in files if part.missing]
    return [
        f"  {'' if number else name:<35}  {'       ' if number else 'missing'}  {text}"
        for number, text in enumerate([*missing, f"get it from {source(name)}"])
    ]
