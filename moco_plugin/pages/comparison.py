"""The comparison of detectors on own data: one table, a sentence on what it says, and a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moco_plugin.detectors.recipe import Recipe
from moco_plugin.pages.page import Page
from moco_plugin.pages.tables import Table, spread
from moco_plugin.pages.transfer_page import add_curves, add_predictions
from moco_plugin.pages.transfer_table import measured
from moco_plugin.transfer.tasks import Metric, Task

START_TITLES = {
    "random": "random weights",
    "supervised": "supervised (ImageNet)",
    "moco": "MoCo on your images",
    "continued": "MoCo, continued from supervised",
}
FEW_IMAGES = 50  # test images below which a difference says little


def comparison_table(task: Task, results: Sequence[dict[str, Any]]) -> Table:
    """Return a row for each initialisation: mean ± sample standard deviation over trials, in percent."""
    rows = [(START_TITLES[result["name"]], *measured(task, result)) for result in results]
    caption = "In percent: mean ± sample standard deviation over trials."
    return Table(("initialisation", *(metric.name for metric in task.metrics), "trials"), rows, caption)


def conclusion(metric: Metric, results: Sequence[dict[str, Any]], test_images: int) -> str:
    """Say which initialisation is the best, and whether MoCo's pre-training pays over each of the others."""
    values = {
        result["name"]: [trial["metrics"].get(metric.path) or 0.0 for trial in result["trials"]] for result in results
    }
    means = {name: sum(trials) / len(trials) for name, trials in values.items()}
    ours = max((name for name in means if name in ("moco", "continued")), key=lambda name: means[name])
    sentences = []
    if max(means.values()) == 0:
        sentences.append(f"No start reaches any {metric.name}: train longer, or check the annotations.")
    for name in ("random", "supervised"):
        if name not in means or max(means.values()) == 0:
            continue
        difference = means[ours] - means[name]
        means_of_both = f"{metric.name} {means[ours]:.1f} against {means[name]:.1f}"
        spreads = [spread(values[start]) for start in (ours, name)]
        if None in spreads:
            verdict = "ahead" if difference > 0 else "behind" if difference < 0 else "equal"
            sentences.append(
                f"{START_TITLES[ours]} against {START_TITLES[name]}: {verdict} in one trial ({means_of_both})."
            )
            continue
        noise = max(one or 0.0 for one in spreads)
        clear = "pays" if difference > 0 else "does not pay"
        verdict = clear if abs(difference) > noise else "makes no clear difference"
        sentences.append(
            f"{START_TITLES[ours]} against {START_TITLES[name]}: {verdict} ({means_of_both}; trials differ by {noise:.1f})."
        )
    if test_images < FEW_IMAGES:
        sentences.append(f"There are only {test_images} test images: small differences mean little.")
    if min(map(len, values.values())) < 2:
        sentences.append("One trial shows no spread: repeat with --trials 3.")
    return " ".join(sentences)


def write_comparison(out: Path, recipe: Recipe, results: Sequence[dict[str, Any]]) -> Path:
    """Write the page of a comparison into its folder; return its path."""
    task, test_images = recipe.task, recipe.data.test_images
    page = Page("Does pre-training pay?", conclusion(task.metrics[0], results, test_images))
    page.section("Results")
    page.add("table", comparison_table(task, results))
    runs = {START_TITLES[result["name"]]: (out / result["name"], result) for result in results}
    add_curves(page, runs)
    add_predictions(page, runs, "The first test images")
    page.section("How it was made")
    page.add("text", " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in recipe.sentences))
    path = out / "comparison.html"
    page.save(path)
    return path
