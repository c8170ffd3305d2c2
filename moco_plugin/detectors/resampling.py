"""Results of finished trials with other weights of the test images, from their saved predictions."""

import contextlib
import io
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from moco_plugin.data.decode import decode_labels
from moco_plugin.detectors.verdict import Score
from moco_plugin.errors import UserError
from moco_plugin.files import read_json
from moco_plugin.transfer.voc_files import VOID

RECALLS = np.linspace(0, 1, 101)  # recalls of COCO's precisions


def read_score(group: str, test: Path, trial: Path) -> Score:
    """Return how a trial scores: box AP of "bbox", or mIoU of "sem_seg".

    Args:
        group: The group of the metric.
        test: The file of the test set.
        trial: The trial's folder.

    Raises:
        UserError: It has no predictions.
    """
    names = {"bbox": "coco_instances_results.json", "sem_seg": "sem_seg_predictions.json"}
    predictions = trial / "inference" / names[group]
    if not predictions.is_file():
        raise UserError(f"{predictions} is missing, so test images cannot be resampled; --overwrite trains again")
    return read_boxes(test, predictions) if group == "bbox" else read_labels_of(test, predictions)


def read_boxes(test: Path, predictions: Path) -> Score:
    """Return a trial's box AP as a function of the images' weights.

    Args:
        test: The COCO file of the test set.
        predictions: The output of detectron2's evaluator.
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
    categories = [_average_precision(row) for row in rows if any(row)]
    return lambda weights: 100 * np.nanmean(np.stack([score(weights) for score in categories]), axis=(0, 2))


def _average_precision(row: list[dict[str, Any] | None]) -> Score:
    """Return a category's AP as a function of the images' weights (B x M).

    Args:
        row: COCOeval's matches of each image, M.

    Returns:
        A function that returns B x T for T thresholds of IoU, from 0 to 1; NaN without an object.
    """
    known = [(index, one) for index, one in enumerate(row) if one is not None]
    objects = np.array([0 if one is None else np.count_nonzero(np.asarray(one["gtIgnore"]) == 0) for one in row])
    order = np.argsort(-np.concatenate([one["dtScores"] for _, one in known]), kind="stable")
    image = np.concatenate([np.full(len(one["dtScores"]), index) for index, one in known])[order]
    matched, ignored = (
        np.concatenate([np.asarray(one[key]) > 0 for _, one in known], axis=1)[:, order]
        for key in ("dtMatches", "dtIgnore")
    )

    def score(weights: np.ndarray) -> np.ndarray:
        result = np.full((len(weights), len(matched)), np.nan)
        for index in np.flatnonzero(weights @ objects):
            every = weights[index, image] * ~ignored
            found, wrong = np.cumsum(every * matched, axis=1), np.cumsum(every * ~matched, axis=1)
            precision = found / np.maximum(found + wrong, np.spacing(1))
            precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            at = [np.searchsorted(recall, RECALLS) for recall in found / (weights[index] @ objects)]
            result[index] = np.take_along_axis(np.pad(precision, ((0, 0), (0, 1))), np.array(at), axis=1).mean(axis=1)
        return result

    return score


def read_labels_of(test: Path, predictions: Path) -> Score:
    """Return a trial's mIoU as a function of the images' weights.

    Args:
        test: The list of images and label images that ``prepare_semantic`` wrote.
        predictions: The output of detectron2's evaluator.
    """
    from pycocotools import mask

    content, by_image = read_json(test), defaultdict[str, list[dict[str, Any]]](list)
    for one in read_json(predictions):
        by_image[one["file_name"]].append(one)
    classes, matrices = len(content["classes"]), []
    for row in content["images"]:
        truth = decode_labels(row["sem_seg_file_name"]).astype(np.int64)
        predicted = np.zeros(truth.shape, np.int64)
        for one in by_image[row["file_name"]]:
            predicted[mask.decode(one["segmentation"]) > 0] = one["category_id"]
        valid = truth != VOID
        counts = np.bincount(classes * truth[valid] + predicted[valid], minlength=classes**2)
        matrices.append(counts.reshape(classes, classes).astype(np.float64))
    confusions = np.stack(matrices)  # of each image: true by predicted class, in pixels

    def score(weights: np.ndarray) -> np.ndarray:
        confusion = np.tensordot(weights, confusions, axes=1)  # B x truth x predicted
        right, truth = np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(axis=2)
        union = truth + confusion.sum(axis=1) - right
        iou = right / np.maximum(union, 1)
        return np.asarray(100 * iou.sum(axis=1) / np.maximum((union > 0).sum(axis=1), 1))

    return score
