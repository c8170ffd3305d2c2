"""The results of finished trials with other weights of the test images, from the predictions that they keep."""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moco_plugin.data.decode import decode_labels
from moco_plugin.detectors.verdict import Score
from moco_plugin.errors import UserError
from moco_plugin.files import read_json
from moco_plugin.transfer.voc_files import VOID

RECALLS = np.linspace(0, 1, 101)  # at which COCO takes the precision
AT_ONCE = 1 << 22  # numbers of a block of weights, thresholds and detections


def read_score(group: str, test: Path, trial: Path) -> Score:
    """Return how a trial scores: box AP of "bbox", or mIoU of "sem_seg".

    Args:
        group: The group of the metric.
        test: The file of the test set.
        trial: The trial's folder.

    Raises:
        UserError: It keeps no predictions.
    """
    names = {"bbox": "coco_instances_results.json", "sem_seg": "sem_seg_predictions.json"}
    predictions = trial / "inference" / names[group]
    if not predictions.is_file():
        raise UserError(
            f"{predictions} is missing, without which test images cannot be resampled; --overwrite trains anew"
        )
    return read_boxes(test, predictions) if group == "bbox" else read_labels_of(test, predictions)


@dataclass
class _Category:
    """Detections of a category, the best score first.

    Attributes:
        found: Whether each is an object, T x D for T thresholds of IoU.
        wrong: Whether it is none; neither, if it is to be ignored.
        image: Index of its image, D.
        objects: Number of objects in each image, M.
    """

    found: np.ndarray
    wrong: np.ndarray
    image: np.ndarray
    objects: np.ndarray

    def average_precision(self, weights: np.ndarray) -> np.ndarray:
        """Return COCO's AP, B x T, with images weighted by B x M; NaN where there is no object."""
        objects = weights @ self.objects
        every = weights[:, None, self.image]
        found, wrong = (np.cumsum(every * hit, axis=2) for hit in (self.found, self.wrong))
        recall = found / np.maximum(objects, 1)[:, None, None]
        precision = found / np.maximum(found + wrong, np.spacing(1))
        precision = np.maximum.accumulate(precision[..., ::-1], axis=2)[..., ::-1]
        padded = np.pad(precision, ((0, 0), (0, 0), (0, 1)))
        result = np.empty(recall.shape[:2])
        for place in np.ndindex(*result.shape):
            result[place] = padded[place][np.searchsorted(recall[place], RECALLS)].mean()
        result[objects == 0] = np.nan
        return result


def read_boxes(test: Path, predictions: Path) -> Score:
    """Return a trial's box AP as a function of the images' weights.

    Args:
        test: The COCO file of the test set.
        predictions: What detectron2's evaluator has written.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        truth = COCO(str(test))
        found = read_json(predictions)
        if not found:
            return lambda weights: np.zeros(len(weights))
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        parameters = evaluation.params
        parameters.maxDets = [len(found)]  # the trial has kept no more than AP counts
        parameters.areaRng, parameters.areaRngLbl = parameters.areaRng[:1], parameters.areaRngLbl[:1]
        evaluation.evaluate()
    images = len(parameters.imgIds)
    rows = [evaluation.evalImgs[start : start + images] for start in range(0, len(evaluation.evalImgs), images)]
    categories = [_category(row, len(parameters.iouThrs)) for row in rows]

    def score(weights: np.ndarray) -> np.ndarray:
        by_category = []
        for category in categories:
            size = max(1, AT_ONCE // max(1, category.found.size))
            blocks = [weights[start : start + size] for start in range(0, len(weights), size)]
            by_category.append(np.concatenate([category.average_precision(block) for block in blocks]))
        return np.asarray(100 * np.nanmean(np.stack(by_category), axis=(0, 2)))

    return score


def _category(row: list[dict[str, Any] | None], thresholds: int) -> _Category:
    """Return the detections of a category in all images from what COCOeval says of each."""
    known = [(index, one) for index, one in enumerate(row) if one is not None]
    objects = np.zeros(len(row))
    scores, image = [np.zeros(0)], [np.zeros(0, int)]
    found, ignored = ([np.zeros((thresholds, 0), bool)] for _ in range(2))
    for index, one in known:
        objects[index] = np.count_nonzero(np.asarray(one["gtIgnore"]) == 0)
        scores.append(np.array(one["dtScores"]))
        image.append(np.full(len(one["dtScores"]), index))
        found.append(np.asarray(one["dtMatches"]) > 0)
        ignored.append(np.asarray(one["dtIgnore"]) > 0)
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    hit, left_out = (np.concatenate(parts, axis=1)[:, order] for parts in (found, ignored))
    return _Category(hit & ~left_out, ~hit & ~left_out, np.concatenate(image)[order], objects)


def read_labels_of(test: Path, predictions: Path) -> Score:
    """Return a trial's mIoU as a function of the images' weights.

    Args:
        test: The list of images and label images that ``prepare_semantic`` has written.
        predictions: What detectron2's evaluator has written.
    """
    content = read_json(test)
    confusions = np.stack(list(_confusions(content, read_json(predictions))))

    def score(weights: np.ndarray) -> np.ndarray:
        confusion = np.tensordot(weights, confusions, axes=1)  # B x truth x predicted
        right, truth = np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(axis=2)
        union = truth + confusion.sum(axis=1) - right
        iou = right / np.maximum(union, 1)
        return np.asarray(100 * iou.sum(axis=1) / np.maximum((union > 0).sum(axis=1), 1))

    return score


def _confusions(content: dict[str, Any], predictions: list[dict[str, Any]]) -> Iterator[np.ndarray]:
    """Yield the confusion matrix of each image: true by predicted class, in pixels."""
    from pycocotools import mask

    classes = len(content["classes"])
    by_image: dict[str, list[dict[str, Any]]] = {}
    for one in predictions:
        by_image.setdefault(one["file_name"], []).append(one)
    for row in content["images"]:
        truth = decode_labels(row["sem_seg_file_name"]).astype(np.int64)
        predicted = np.zeros(truth.shape, np.int64)
        for one in by_image.get(row["file_name"], ()):
            predicted[mask.decode(one["segmentation"]) > 0] = one["category_id"]
        valid = truth != VOID
        counts = np.bincount(classes * truth[valid] + predicted[valid], minlength=classes**2)
        yield counts.reshape(classes, classes).astype(np.float64)
