"""Drawing of predictions: boxes, masks, keypoints and semantic segmentation."""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import ColorMode, Visualizer
from PIL import Image
from tqdm import tqdm

from moco_plugin.data.decode import CannotDecode, decode
from moco_plugin.data.images import ImageSet
from moco_plugin.detectors.coco import read_coco
from moco_plugin.detectors.images import ImageFinder
from moco_plugin.detectors.records import few
from moco_plugin.errors import UsageError, UserError
from moco_plugin.files import (
    atomic_folder,
    atomic_path,
    check_output,
    full_disk_is_an_error,
    read_text,
    sha256,
    write_json,
)
from moco_plugin.transfer.components.datasets import metadata_of, require_dataset
from moco_plugin.transfer.config import fit_device, load_detector_config, parse_detector_config
from moco_plugin.transfer.weights import fill, read_file
from moco_plugin.typed import decode_or_none

KINDS = ("thing", "stuff")
EXAMPLES = 4  # test images that are drawn
USUAL_FONT = "DejaVu Sans"  # matplotlib's
JOURNAL = ".unfinished.jsonl"
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
    value_range: Sequence[float] | None = None,
    coco: str | Path | None = None,
) -> list[Path]:
    """Draw the predictions for images into PNG files, ``{name of the image}.png``, with the images' subfolders.

    The same call resumes an interrupted one, whose detections are in ``.unfinished.jsonl`` in ``out``.

    Args:
        config: The config of the training: a path, a name below ``configs/detectron2``, or a ``CfgNode``; None for the
            config in the model file.
        weights: Output of a training, such as ``model_final.pth``.
        images: Image files, or folders of them.
        out: Folder for the pictures.
        results: JSON file for the detections in COCO's format, or None. ``image_id`` is the image's id in ``coco``, or its
            path below the given folder.
        threshold: Smallest score (0 to 1) of drawn objects.
        overrides: ``KEY VALUE`` pairs for the config.
        overwrite: Replace existing pictures.
        progress: Show a progress bar.
        value_range: The values that become black and white in images of more than 8 bits; None for those of training.
        coco: A COCO file that lists the images.

    Returns:
        Paths of the pictures.

    Raises:
        UsageError: An invalid argument, or a picture that exists.
        UserError: Weights that leave a part of the model random, or images that cannot be decoded; all others are drawn
            first.
    """
    if not 0 <= threshold <= 1:
        raise UsageError(f"--threshold is a score from 0 to 1, got {threshold}")
    pictures, names = _outputs(images, Path(out))
    ids = _image_ids(Path(coco), list(pictures)) if coco is not None else names
    content = read_file(weights) if weights else None
    described: dict[str, Any] = (content or {}).get("moco_plugin") or {}
    if isinstance(config, CfgNode):
        cfg = config.clone()
    elif config is not None:
        cfg = load_detector_config(config, overrides)
    elif isinstance(described.get("config"), str):
        cfg = parse_detector_config(described["config"], weights, overrides)
    else:
        if isinstance(content, dict) and {"callbacks", "loops"} <= content.keys():
            raise UsageError(
                f"{weights} is of a pre-training run and detects nothing; train a detector from it by tools/transfer.py "
                "--train-folder FOLDER --weights FILE, and give its model_final.pth"
            )
        raise UsageError(f"{weights} does not contain its config; give the config of its training as --config-file")
    cfg.MODEL.WEIGHTS = ""  # loaded below, with checks
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = threshold
    fit_device(cfg)
    if value_range is not None:
        cfg.INPUT.VALUE_RANGE = list(value_range)
    asked = {"weights": sha256(weights) if content else "", "config": cfg.dump(), "images": list(names.values())}
    asked["results"] = str(results)
    journal = Journal(Path(out), hashlib.sha256(json.dumps(asked).encode()).hexdigest())
    written = [*pictures.values(), *([Path(results)] if results is not None else [])]
    for path in written:
        check_output(path, overwrite or journal.resumed)
    predictor = DefaultPredictor(cfg)
    _load_whole(predictor.model, weights, content, cfg)
    metadata = class_metadata(cfg, described.get("classes") or {})
    kinds = described.get("category_ids") or range(len(metadata.get("thing_classes", ())))
    journal.start(written)
    broken, todo = [], [source for source in pictures if names[source] not in journal.rows]
    for source in tqdm(todo, desc="images", unit="image", disable=not progress):
        try:
            image = np.asarray(decode(source, str(source), list(cfg.INPUT.VALUE_RANGE) or None))
        except CannotDecode:
            broken.append(source)
            continue
        prediction = predictor(image[:, :, ::-1])
        rows = instances_to_coco_json(prediction["instances"].to("cpu"), "") if "instances" in prediction else []
        with atomic_path(pictures[source]) as temporary:
            Image.fromarray(draw(image, prediction, metadata)).save(temporary)
        journal.add(names[source], [{**row, "category_id": kinds[row["category_id"]]} for row in rows])
    if results is not None:
        found = [(ids[source], row) for source in pictures for row in journal.rows.get(names[source], ())]
        write_json(Path(results), [{**row, "image_id": number} for number, row in found])
    journal.path.unlink(missing_ok=True)
    if broken:
        raise UserError(
            f"{len(broken)} of {len(pictures)} images cannot be decoded, {broken[0]} first; the others were drawn"
        )
    return list(pictures.values())


class Journal:
    """Detections of an unfinished call, one line for each drawn image, in the folder of the pictures.

    Args:
        folder: Folder of the pictures.
        request: Identifies the call; lines of other calls are ignored.

    Attributes:
        rows: The detections of the drawn images, by name.
        resumed: Whether the call was started earlier.
    """

    def __init__(self, folder: Path, request: str) -> None:
        self.path, self.request = folder / JOURNAL, request
        lines = read_text(self.path).splitlines(keepends=True) if self.path.is_file() else []
        self.resumed = lines[:1] == [json.dumps(request) + "\n"]
        whole = [line.encode() for line in lines[1:] if self.resumed and line.endswith("\n")]
        rows = [decode_or_none(line, tuple[str, list[dict[str, Any]]]) for line in whole]
        self.rows: dict[str, list[dict[str, Any]]] = dict(filter(None, rows))

    def start(self, written: Iterable[Path]) -> None:
        """Write the file before the first picture, and remove the temporary files of a killed call."""
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in (self.request, *self.rows.items())))
        names = {(path.parent, path.stem, path.suffix) for path in (self.path, *written)}
        for folder in {folder for folder, _, _ in names} if self.resumed else ():
            for left in folder.glob(".*"):
                if (folder, left.stem[1:].rpartition(".")[0], left.suffix) in names:
                    left.unlink()

    def add(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Add the detections of an image."""
        self.rows[name] = rows
        with full_disk_is_an_error(self.path), self.path.open("a") as file:
            file.write(json.dumps([name, rows]) + "\n")


def _outputs(images: Sequence[str | Path], out: Path) -> tuple[dict[Path, Path], dict[Path, str]]:
    """Return the output path of each image's picture, and each image's path below the folder that was given."""
    names: dict[Path, str] = {}
    for path in map(Path, images):
        if not path.exists():
            raise UsageError(f"image {path} does not exist")
        for source in ImageSet(str(path)).paths if path.is_dir() else [path]:
            names.setdefault(source, source.relative_to(path).as_posix() if path.is_dir() else source.name)
    stems = Counter(name.rpartition(".")[0] for name in names.values())
    pictures: dict[Path, Path] = {}
    for source, name in names.items():
        stem = name.rpartition(".")[0]  # images that differ in their suffix keep it
        picture = out / f"{name if stems[stem] > 1 else stem}.png"
        if picture in pictures.values():
            raise UsageError(f"two of the images would be drawn to {picture}; draw them into two folders")
        pictures[source] = picture
    return pictures, names


def _image_ids(file: Path, images: Sequence[Path]) -> dict[Path, int | str]:
    """Return the ids that a COCO file has for images.

    Raises:
        UsageError: It does not list one of them.
    """
    data = read_coco(file, None)
    paths = map(ImageFinder(data.roots, images).find, data.records)
    found = {path.resolve(): key for path, key in zip(paths, data.image_ids, strict=True) if path}
    if lost := [path.name for path in images if path.resolve() not in found]:
        raise UsageError(f"{file} does not list {len(lost)} of the {len(images)} images: {few(lost)}; leave them out")
    return {path: found[path.resolve()] for path in images}


def _load_whole(model: torch.nn.Module, weights: str, content: dict[str, Any] | None, cfg: CfgNode) -> None:
    """Load the content of a weight file, and refuse a file without the heads of the model."""
    unfilled = fill(model, weights, content, cfg=cfg).unfilled
    if random := [name for name, value in model.named_parameters() if name in unfilled and value.ndim > 1]:
        raise UserError(
            f"{weights or 'an empty --weights'} leaves {len(random)} of the model's tensors random, {random[0]} "
            "first; give the weights of a training with this config, such as model_final.pth"
        )


def class_metadata(cfg: CfgNode, stored: Mapping[str, Any] | None = None) -> Metadata:
    """Return the class metadata of a config's first test set, which need not be on disk.

    Classes are numbered if their names are unknown or do not fit the model.

    Args:
        cfg: The config.
        stored: ``thing_classes`` or ``stuff_classes`` of the model file, which take precedence.
    """
    known: dict[str, Any] = dict(stored or {})
    if cfg.DATASETS.TEST and not known:
        name = cfg.DATASETS.TEST[0]
        known = MetadataCatalog.get(name).as_dict()
        if not {"thing_classes", "stuff_classes"} & known.keys():
            with suppress(UserError):
                require_dataset(name)
                known = metadata_of(name).as_dict()
    colours = colormap(rgb=True).astype(int).tolist()
    retina = cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
    things = cfg.MODEL.RETINANET.NUM_CLASSES if retina else cfg.MODEL.ROI_HEADS.NUM_CLASSES
    for kind, count in (("thing", things), ("stuff", cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)):
        if len(known.get(f"{kind}_classes", ())) != count:
            known[f"{kind}_classes"] = [str(index) for index in range(count)]
            known.pop(f"{kind}_colors", None)
        known.setdefault(f"{kind}_colors", [colours[index % len(colours)] for index in range(count)])
        names = known[f"{kind}_classes"]
        if missing := choose_fonts(names):
            known[f"{kind}_classes"] = [f"#{index}" if missing & {*name} else name for index, name in enumerate(names)]
            print(f"no font of this machine has {few(sorted(missing))}: such classes are drawn as #0 and so on")
    known.pop("name", None)
    return Metadata().set(**known)


def open_visualizer(image: np.ndarray, metadata: Metadata) -> Any:
    """Return detectron2's Visualizer of an RGB image, enlarged if it is small, with legible class names."""
    side = max(image.shape[:2])
    visualizer = Visualizer(image, metadata, max(1.0, MIN_SIDE / side), ColorMode.SEGMENTATION)
    visualizer._jitter = lambda color: color  # one colour per class
    # in pixels of the image; detectron2 draws names of small objects at 0.6 of it
    visualizer._default_font_size = max(visualizer._default_font_size, side / NAME_HEIGHT)
    choose_fonts([name for kind in KINDS for name in metadata.get(f"{kind}_classes", ())])
    return visualizer


def choose_fonts(names: Sequence[str]) -> set[str]:
    """Set matplotlib's fonts to some that have the characters of names; return the characters that no font has."""
    import matplotlib

    fonts, missing = _fonts_for(frozenset(letter for name in names for letter in name if not letter.isascii()))
    matplotlib.rcParams["font.sans-serif"] = list(fonts)
    return set(missing)


@functools.cache
def _fonts_for(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    missing, chosen = {*map(ord, letters)}, {USUAL_FONT: None}
    # "Last Resort" has boxes for all characters
    fonts = [font for font in font_manager.fontManager.ttflist if "Last Resort" not in font.name]
    for font in sorted(fonts, key=lambda font: (font.name != USUAL_FONT, font.weight != 400, font.name)):
        if missing and missing & (has := {*FT2Font(font.fname).get_charmap()}):
            missing -= has
            chosen[font.name] = None
    return tuple(chosen), frozenset(map(chr, missing))


def _keep_inside(drawn: Any) -> None:
    """Move names that would be cut off at the sides of a picture, and shrink names that are too long."""
    width, height = drawn.canvas.get_width_height()
    renderer = drawn.canvas.get_renderer()
    for text in drawn.ax.texts:
        if (area := text.get_window_extent(renderer)).width > width:
            text.set_fontsize(text.get_fontsize() * width / area.width)
            area = text.get_window_extent(renderer)
        right = max(0, -area.x0) - max(0, area.x1 - width)
        up = max(0, -area.y0) - max(0, area.y1 - height)
        if right or up:
            x, y = text.get_transform().transform(text.get_position())
            text.set_position(text.get_transform().inverted().transform((x + right, y + up)))


def draw(image: np.ndarray, prediction: dict[str, Any], metadata: Metadata) -> np.ndarray:
    """Draw a model's output over an image.

    Args:
        image: uint8, H x W x 3, RGB.
        prediction: Output of detectron2's models: ``instances`` (with boxes, and masks and keypoints if there are any), or
            ``sem_seg`` (class scores, C x H x W).
        metadata: Names of the classes and, for keypoints, what to connect.

    Returns:
        The picture, uint8, RGB, enlarged if the image is small.
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
        _keep_inside(drawn)
    finally:
        np.random.set_state(state)
    picture: np.ndarray = drawn.get_image()
    return picture


def draw_examples(trial: Path, out: Path, threshold: float) -> None:
    """Draw predictions (``{name}.png``) and ground truth (``{name}_truth.png``) of the first test images.

    Args:
        trial: Folder of a finished trial, with ``config.yaml`` and ``model_final.pth``.
        out: Folder to write, whole or not at all.
        threshold: Smallest score of drawn objects.

    Raises:
        UserError: The trial's files are missing.
    """
    cfg = load_detector_config(str(trial / "config.yaml"))
    entries = DatasetCatalog.get(cfg.DATASETS.TEST[0])[:EXAMPLES]
    metadata = class_metadata(cfg)
    with atomic_folder(out) as temporary:
        images = [entry["file_name"] for entry in entries]
        predict(cfg, str(trial / "model_final.pth"), images, temporary, threshold=threshold, progress=False)
        for entry in entries:
            path = Path(entry["file_name"])
            image = np.asarray(decode(path, str(path), list(cfg.INPUT.VALUE_RANGE) or None))
            truth = open_visualizer(image, metadata).draw_dataset_dict(entry).get_image()
            Image.fromarray(truth).save(temporary / f"{Path(entry['file_name']).stem}_truth.png")
