"""Pictures of what a trial's model finds in a few test images, with the ground truth."""

from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog
from PIL import Image

from moco_plugin.data.decode import decode
from moco_plugin.detectors.predict import class_metadata, open_visualizer, predict
from moco_plugin.files import atomic_folder
from moco_plugin.transfer.config import load_detector_config

COUNT = 4


def draw_examples(trial: Path, out: Path, threshold: float) -> None:
    """Write ``{name}.png`` with the predictions, and ``{name}_truth.png``, for the first test images.

    Args:
        trial: Folder of a finished trial, with ``config.yaml`` and ``model_final.pth``.
        out: Folder to write, whole or not at all.
        threshold: Smallest score of what is drawn.

    Raises:
        UserError: The trial's files are missing, or OpenCV is not installed.
    """
    cfg = load_detector_config(str(trial / "config.yaml"))
    entries = DatasetCatalog.get(cfg.DATASETS.TEST[0])[:COUNT]
    metadata = class_metadata(cfg)
    with atomic_folder(out) as temporary:
        images = [entry["file_name"] for entry in entries]
        predict(cfg, str(trial / "model_final.pth"), images, temporary, threshold=threshold, progress=False)
        for entry in entries:
            path = Path(entry["file_name"])
            image = np.asarray(decode(path, str(path), list(cfg.INPUT.VALUE_RANGE) or None))
            truth = open_visualizer(image, metadata).draw_dataset_dict(entry).get_image()
            Image.fromarray(truth).save(temporary / f"{Path(entry['file_name']).stem}_truth.png")
