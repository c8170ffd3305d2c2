"""The verdict of a comparison: its error rate, its sentences, and the results of resampled images."""

import contextlib
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moco_plugin.detectors.resampling import read_boxes, read_score
from moco_plugin.detectors.verdict import image_error, judge
from moco_plugin.errors import UserError

IMAGES, RUNS = 500, 300


def verdicts(effect: float, trials: int, noise: tuple[float, float]) -> Counter[str]:
    """Count the verdicts on simulated pairs of starts.

    An image's score (0 to 100) is the sum of parts that depend on the image, on the start, and on the trial.

    Args:
        effect: True difference in points.
        trials: Number of trials of each start.
        noise: Standard deviation in points of the effect of the seed, for each of the two starts.
    """
    random = np.random.default_rng(trials)
    found: Counter[str] = Counter()
    for _ in range(RUNS):
        image = random.normal(50, 30, IMAGES)
        starts = []
        for gain, deviation in zip((effect, 0.0), noise, strict=True):
            own = image + random.normal(0, 8, IMAGES) + gain
            starts.append([own + random.normal(0, 10, IMAGES) + random.normal(0, deviation) for _ in range(trials)])
        scores = [[lambda weights, values=values: weights @ values / IMAGES for values in start] for start in starts]
        means = [[float(values.mean()) for values in start] for start in starts]
        error = image_error(scores[0], scores[1], IMAGES)
        found[judge(means[0], means[1], error, IMAGES).word] += 1
    return found


@pytest.mark.parametrize("trials", [2, 3, 5])
@pytest.mark.parametrize("noise", [(0.0, 0.0), (0.5, 0.5), (0.5, 3.0)])
def test_at_most_one_verdict_in_twenty_names_a_winner_where_there_is_none(
    trials: int, noise: tuple[float, float]
) -> None:
    found = verdicts(0.0, trials, noise)
    assert found["pays"] + found["harms"] <= 0.05 * RUNS, found


def test_most_verdicts_see_two_points_with_five_trials() -> None:
    found = verdicts(2.0, 5, (0.5, 0.5))
    assert found["pays"] > RUNS / 2 and not found["harms"], found


@pytest.mark.parametrize(
    ("ours", "other", "error", "verdict", "end"),
    [
        ([20, 21, 22.5], [10, 11, 12], 1.0, "pays from 3 trials", "+10.2 points, 95% interval +8.1 to +12.3)"),
        ([10, 11], [20, 21], 1.0, "harms from 2 trials", "-10.0 points, 95% interval -12.0 to -8.0)"),
        ([10, 14, 12], [10, 11, 12], 0.2, "cannot tell from 3 trials", "to +5.3); about 17 trials would tell, if the"),
        ([12, 13, 14], [11, 12, 13.1], 2.0, "cannot tell from 3 trials", "to +4.9); nor would 30 trials tell, if the"),
        ([12], [10], 1.0, "cannot tell from 1 trial", "+2.0); one trial shows no spread: repeat with --trials 3"),
    ],
)
def test_sentences(ours: list[float], other: list[float], error: float, verdict: str, end: str) -> None:
    sentence = judge(ours, other, error, 100).sentence("box AP")
    assert sentence.startswith(f"{verdict} and 100 test images (box AP, ") and end in sentence


def box_file(path: Path, copies: int = 1) -> tuple[Path, Path]:
    """Write six images with objects of two classes and a crowd, and detections of them; each image ``copies[i]`` times."""
    random = np.random.default_rng(0)
    content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": [{"id": 3}, {"id": 9}]}
    detections = []
    for number in range(6):
        boxes = random.integers(5, 60, (4, 4)).tolist()
        noise = random.normal(0, 4, (4, 4))
        scores = random.random(4).tolist()
        for _ in range(copies if number % 2 else 1):
            key = len(content["images"]) + 1
            content["images"].append({"id": key, "width": 128, "height": 128})
            for index, (box, moved, value) in enumerate(zip(boxes, (boxes + noise).tolist(), scores, strict=True)):
                category, crowd = (3, 9)[index % 2 * (number > 0)], int(index == 3 and number == 2)
                row = {"image_id": key, "category_id": category, "bbox": box}
                row |= {"id": len(content["annotations"]) + 1, "area": box[2] * box[3], "iscrowd": crowd}
                content["annotations"].append(row)
                detections.append({"image_id": key, "category_id": category, "bbox": moved, "score": value})
    files = path / "test.json", path / "found.json"
    for file, part in zip(files, (content, detections), strict=True):
        file.write_text(json.dumps(part))
    return files


def coco_ap(test: Path, found: Path) -> float:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(test))
        evaluation = COCOeval(truth, truth.loadRes(str(found)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(100 * evaluation.stats[0])


def test_weights_are_copies_of_images(tmp_path: Path) -> None:
    """Also, images of weight one give COCO's own AP."""
    files = box_file(tmp_path)
    once, thrice = read_boxes(*files)(np.array([[1.0] * 6, [1.0, 3.0] * 3]))
    assert 5 < once == pytest.approx(coco_ap(*files))
    assert thrice != once and thrice == pytest.approx(coco_ap(*box_file(tmp_path, copies=3)))


def test_trials_without_detections_or_predictions(tmp_path: Path) -> None:
    test, _ = box_file(tmp_path)
    (tmp_path / "inference").mkdir()
    with pytest.raises(UserError, match=r"coco_instances_results.json is missing, so test images"):
        read_score("bbox", test, tmp_path)
    (tmp_path / "inference" / "coco_instances_results.json").write_text("[]")
    assert read_score("bbox", test, tmp_path)(np.ones((2, 6))).tolist() == [0, 0]
