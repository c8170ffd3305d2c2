"""The comparison of detectors on own data: one table, a sentence on what it says, and a page."""

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moco_plugin.detectors.recipe import Recipe
from moco_plugin.detectors.resampling import read_score
from moco_plugin.detectors.verdict import RESAMPLES, image_error, judge
from moco_plugin.pages.page import Page
from moco_plugin.pages.tables import Table
from moco_plugin.pages.transfer_page import add_curves, add_predictions
from moco_plugin.pages.transfer_table import measured
from moco_plugin.transfer.tasks import Task

START_TITLES = {
    "random": "random weights",
    "supervised": "supervised (ImageNet)",
    "moco": "MoCo on your images",
    "continued": "MoCo, continued from supervised",
}


def comparison_table(task: Task, results: Sequence[dict[str, Any]]) -> Table:
    """Return a row for each initialisation: mean ± sample standard deviation over trials, in percent."""
    rows = [(START_TITLES[result["name"]], *measured(task, result)) for result in results]
    caption = "In percent: mean ± sample standard deviation over trials."
    return Table(("initialisation", *(metric.name for metric in task.metrics), "trials"), rows, caption)


def compare_starts(out: Path, recipe: Recipe, results: Sequence[dict[str, Any]]) -> str:
    """Say whether MoCo's pre-training pays over each of the other starts; see ``Verdict``.

    Args:
        out: The folder of the comparison.
        recipe: How the detectors were trained.
        results: The content of each ``results.json``, with the start's name.

    Raises:
        UserError: A trial keeps no predictions.
    """
    metric, data = recipe.task.metrics[0], recipe.data
    by_name = {result["name"]: {trial["seed"]: trial for trial in result["trials"]} for result in results}
    values = {
        name: {seed: trial["metrics"].get(metric.path) or 0.0 for seed, trial in trials.items()}
        for name, trials in by_name.items()
    }
    if not any(value for trials in values.values() for value in trials.values()):
        return f"No start reaches any {metric.name}: train longer, or check the annotations."
    scores = {
        name: {
            seed: read_score(metric.group, data.test, out / name / trial["folder"]) for seed, trial in trials.items()
        }
        for name, trials in by_name.items()
    }
    sentences = []
    for ours, other in itertools.product(("moco", "continued"), ("random", "supervised")):
        if not {ours, other} <= values.keys():
            continue
        seeds = sorted(values[ours].keys() & values[other].keys())
        our_scores, other_scores = ([scores[name][seed] for seed in seeds] for name in (ours, other))
        error = image_error(our_scores, other_scores, data.test_images)
        our_values, other_values = ([values[name][seed] for seed in seeds] for name in (ours, other))
        means = f"{metric.name} {statistics.fmean(our_values):.1f} against {statistics.fmean(other_values):.1f}"
        verdict = judge(our_values, other_values, error, data.test_images)
        sentences.append(f"{START_TITLES[ours]} against {START_TITLES[other]}: {verdict.sentence(means)}.")
    return " ".join(sentences)


def write_comparison(out: Path, recipe: Recipe, results: Sequence[dict[str, Any]], verdicts: str) -> Path:
    """Write the page of a comparison, with the value of ``compare_starts``, into its folder; return its path."""
    task = recipe.task
    page = Page("Does pre-training pay?", verdicts)
    page.section("Results")
    page.add("table", comparison_table(task, results))
    runs = {START_TITLES[result["name"]]: (out / result["name"], result) for result in results}
    add_curves(page, runs)
    add_predictions(page, runs, "The first test images")
    page.section("How it was made")
    page.add("text", " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in recipe.sentences))
    page.add(
        "text",
        "The verdict pairs the trials, which share seeds. Its interval adds the spread of their differences (Student's t) "
        f"and the error from the choice of the test images, which are drawn with replacement {RESAMPLES} times.",
    )
    path = out / "comparison.html"
    page.save(path)
    return path
