"""Pictures of predictions: boxes, masks, keypoints and semantic segmentation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils.colormap import colormap
from PIL import Image
from tqdm import tqdm

from moco_plugin.data.decode import CannotDecode, decode
from moco_plugin.data.images import ImageSet
from moco_plugin.errors import UsageError, UserError
from moco_plugin.files import atomic_path, check_output, write_json
from moco_plugin.transfer.components.datasets import require_dataset
from moco_plugin.transfer.config import fit_device, load_detector_config, parse_detector_config
from moco_plugin.transfer.weights import fill, read_file

MIN_SIDE = 640  # pixels; smaller images are drawn enlarged
NAME_HEIGHT = 20  # of a picture's longest side to the height of class names, at least


def predict(
    config: str | CfgNode | None,
    weights: str,
    images: Sequence[str | Path],
    out: str | Path,
    *,
    results: str | Path | None = None,
    threshold: float = 0.5,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Draw the predictions for images into PNG files, ``{name of the image}.png``.

    Args:
        config: The config that the weights were trained with; a path, or a name below ``configs/detectron2``, or as read.
            None for the one that the model file holds.
        weights: What training has written, such as ``model_final.pth``.
        images: Image files, or folders of them.
        out: Folder for the pictures.
        results: JSON file for the detections in COCO's form, ``image_id`` being the image's name; or None.
        threshold: Smallest score (0 to 1) of what is drawn.
        overrides: ``KEY VALUE`` pairs for the config.
        overwrite: Replace existing pictures.
        progress: Show a progress bar.

    Returns:
        The pictures.

    Raises:
        UsageError: An argument that cannot be right, or a picture that exists.
        UserError: Weights that leave a part of the model random, or images that cannot be decoded; all others
            have been drawn by then.
    """
    if not 0 <= threshold <= 1:
        raise UsageError(f"--threshold is a score from 0 to 1, got {threshold}")
    pictures = _outputs(images, Path(out), overwrite)
    if results is not None:
        check_output(Path(results), overwrite)
    content = read_file(weights) if weights else None
    described: dict[str, Any] = (content or {}).get("moco_plugin") or {}
    if isinstance(config, CfgNode):
        cfg = config.clone()
    elif config is not None:
        cfg = load_detector_config(config, overrides)
    elif isinstance(described.get("config"), str):
        cfg = parse_detector_config(described["config"], weights, overrides)
    else:
        raise UsageError(f"{weights} does not hold its config; give the one that it was trained with as --config-file")
    cfg.MODEL.WEIGHTS = ""  # loaded below, with checks
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = threshold
    fit_device(cfg)
    predictor = DefaultPredictor(cfg)
    _load_whole(predictor.model, weights, content, cfg)
    metadata = class_metadata(cfg, described.get("classes") or {})
    broken, detections = [], []
    for source, picture in tqdm(pictures.items(), desc="images", unit="image", disable=not progress):
        try:
            image = np.asarray(decode(source, str(source)))
        except CannotDecode:
            broken.append(source)
            continue
        prediction = predictor(image[:, :, ::-1])
        drawn = draw(image, prediction, metadata)
        if results is not None and "instances" in prediction:
            rows = instances_to_coco_json(prediction["instances"].to("cpu"), source.name)
            ids = described.get("category_ids") or range(len(metadata.get("thing_classes", ())))
            detections += [{**row, "category_id": ids[row["category_id"]]} for row in rows]
        with atomic_path(picture) as temporary:
            Image.fromarray(drawn).save(temporary)
    if results is not None:
        write_json(Path(results), detections)
    if broken:
        raise UserError(
            f"{len(broken)} of {len(pictures)} images cannot be decoded, {broken[0]} first; the others were drawn"
        )
    return list(pictures.values())


def _outputs(images: Sequence[str | Path], out: Path, overwrite: bool) -> dict[Path, Path]:
    """Return the output path of each image's picture."""
    sources: list[Path] = []
    for path in map(Path, images):
        if not path.exists():
            raise UsageError(f"image {path} does not exist")
        sources += ImageSet(str(path)).paths if path.is_dir() else [path]
    pictures: dict[Path, Path] = {}
    for source in dict.fromkeys(sources):
        picture = check_output(out / f"{source.stem}.png", overwrite)
        if picture in pictures.values():
            raise UsageError(f"two of the images would be drawn to {picture}; draw them into two folders")
        pictures[source] = picture
    return pictures


def _load_whole(model: torch.nn.Module, weights: str, content: dict[str, Any] | None, cfg: CfgNode) -> None:
    """Load the content of a weight file, and refuse a backbone without heads: random heads draw nonsense."""
    unfilled = fill(model, weights, content, cfg=cfg).unfilled
    random = [name for name, value in model.named_parameters() if name in unfilled and value.ndim > 1]
    if random:
        raise UserError(
            f"{weights or 'an empty --weights'} leaves {len(random)} of the model's tensors random, {random[0]} "
            "first; give the weights that training with this config has written, such as model_final.pth"
        )


def class_metadata(cfg: CfgNode, stored: Mapping[str, Any] | None = None) -> Metadata:
    """Return the class metadata of a config's first test set, which need not be on disk.

    Args:
        cfg: The config.
        stored: ``thing_classes`` or ``stuff_classes`` that the model file holds, which go first.

    Where the names are only known from files that are absent, or do not fit the model, classes are numbered.
    """
    known: dict[str, Any] = dict(stored or {})
    if cfg.DATASETS.TEST and not known:
        name = cfg.DATASETS.TEST[0]
        if not {"thing_classes", "stuff_classes"} & set(MetadataCatalog.get(name).as_dict()):
            try:
                require_dataset(name)
                DatasetCatalog.get(name)  # loading sets the names
            except UserError:
                pass
        known = MetadataCatalog.get(name).as_dict()
    colours = colormap(rgb=True).astype(int).tolist()
    retina = cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
    things = cfg.MODEL.RETINANET.NUM_CLASSES if retina else cfg.MODEL.ROI_HEADS.NUM_CLASSES
    for kind, count in (("thing", things), ("stuff", cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)):
        if len(known.get(f"{kind}_classes", ())) != count:
            known[f"{kind}_classes"] = [str(index) for index in range(count)]
            known.pop(f"{kind}_colors", None)
        known.setdefault(f"{kind}_colors", [colours[index % len(colours)] for index in range(count)])
    metadata = Metadata()
    known.pop("name", None)
    for key, value in known.items():
        metadata.set(**{key: value})
    return metadata


def open_visualizer(image: np.ndarray, metadata: Metadata) -> Any:
    """Return detectron2's Visualizer of an RGB image, enlarged if it is small, with legible class names.

    Raises:
        UserError: OpenCV, which detectron2 traces masks with, is not installed.
    """
    try:
        from detectron2.utils.visualizer import ColorMode, Visualizer
    except ModuleNotFoundError as error:
        raise UserError(
            f"drawing needs {error.name}, which is not installed; run `pip install opencv-python-headless`"
        ) from error
    side = max(image.shape[:2])
    visualizer = Visualizer(image, metadata, max(1.0, MIN_SIDE / side), ColorMode.SEGMENTATION)
    visualizer._jitter = lambda color: color  # one colour per class
    # in pixels of the image; detectron2 draws names of small objects at 0.6 of it
    visualizer._default_font_size = max(visualizer._default_font_size, side / NAME_HEIGHT)
    return visualizer


def draw(image: np.ndarray, prediction: dict[str, Any], metadata: Metadata) -> np.ndarray:
    """Draw a model's output over an image.

    Args:
        image: uint8, H x W x 3, RGB.
        prediction: ``instances`` (with boxes, and masks and keypoints if there are any), or ``sem_seg``
            (class scores, C x H x W), as detectron2's models give them.
        metadata: Names of the classes and, for keypoints, what to connect.

    Returns:
        The picture, uint8, RGB, enlarged where the image is small.

    Raises:
        UserError: OpenCV is not installed.
    """
    visualizer = open_visualizer(image, metadata)
    drawn = visualizer.output
    state = np.random.get_state()
    np.random.seed(0)  # the visualizer draws random colours
    try:
        if "sem_seg" in prediction:
            drawn = visualizer.draw_sem_seg(prediction["sem_seg"].argmax(dim=0).cpu(), alpha=0.5)
        if "instances" in prediction:
            drawn = visualizer.draw_instance_predictions(prediction["instances"].to("cpu"))
    finally:
        np.random.set_state(state)
    picture: np.ndarray = drawn.get_image()
    return picture
