"""OmniBenchmark (arXiv 2207.07106): a linear probe in each of 21 realms, and the mean over them."""

import re
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from typing_extensions import Unpack

from moco_plugin.data.images import ImageSet
from moco_plugin.data.listing import read_entries
from moco_plugin.errors import UsageError, UserError
from moco_plugin.evaluation.subject import Subject, ViewOptions, read_subject
from moco_plugin.files import read_json, write_json
from moco_plugin.papers import OMNIBENCHMARK
from moco_plugin.probes.linear_classifiers import fit_l2_weights
from moco_plugin.runs.run_folder import differences

REALMS = tuple(
    (
        "activity aircraft amphibian aquatic_vertebrate bird car consumer_goods creation decoration device food "
        "geological_formation instrumentality locomotive mammal material military_vehicle process region structure "
        "vascular_plant"
    ).split()
)
SPLITS = ("train", "val", "test")
L2_WEIGHTS = (1e-5, 1e-4, 3e-4, 1e-3, 1e-2, 0.1, 1.0)
MOCO_V2 = OMNIBENCHMARK.values[0]


def read_realm(root: Path, name: str) -> dict[str, ImageSet] | None:
    """Return the train, val and test sets of a realm; None if it has no folder.

    A split's file is ``train`` or ``train.txt`` (V2), ``NAME.train``, ``NAME.train.txt``, or ``record.txt`` or
    ``records.txt`` (the benchmark's download tool) in the folder ``NAME.train`` or ``train`` (V1). Its paths are
    relative to the realm's folder, to ``root``, to the list's folder or to ``images`` there. Labels need not be
    contiguous. A test list with one class for all images is the hidden test: the realm is then measured on val.

    Raises:
        UserError: A file or an image is missing, or a line is not ``path label``.
        UsageError: ``val`` or ``test`` has a class that ``train`` lacks.
    """
    folder = root / name
    if not folder.is_dir():
        return None
    sets = {split: _read_split(root, folder, split) for split in SPLITS}
    classes, tested = (set(_labels(sets[split]).tolist()) for split in ("train", "test"))
    if len(classes) > 1 and len(tested) == 1:
        spec = sets["test"].spec
        print(f"{name}: {spec} has one class for all images, as the hidden test has; measured on val", flush=True)
        sets["test"] = sets["val"]
    for images in sets.values():
        if unseen := sorted(set(_labels(images).tolist()) - classes):
            raise UsageError(
                f"the classes of {sets['train'].spec} and {images.spec} differ: only {images.spec} has "
                f"{', '.join(map(str, unseen[:5]))}"
            )
    return sets


def _read_split(root: Path, folder: Path, split: str) -> ImageSet:
    stems = (split, f"{folder.name}.{split}")
    names = [f"{stem}{end}" for stem in stems for end in ("", ".txt", "/record.txt", "/records.txt")]
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder} has no list of {split} images; expected a file {', '.join(names)}")
    bases = (folder, root, file.parent, file.parent / "images", folder / "images", folder / split / "images")
    entries = read_entries(file, *dict.fromkeys(bases))
    for entry in entries:
        if not re.fullmatch(r"\d{1,18}", entry.label, re.ASCII):
            raise UserError(
                f"{entry.where} is no 'path label'; expected an image's path and its class, a number from 0"
            )
    return ImageSet(str(file), files=([entry.path for entry in entries], [int(entry.label) for entry in entries]))


def _labels(images: ImageSet) -> np.ndarray:
    assert images.labels is not None
    return images.labels


def evaluate_omnibenchmark(
    weights: str | Path, root: str | Path, *, protocol: Literal["v1", "v2"] = "v2", **options: Unpack[ViewOptions]
) -> dict[str, Any]:
    """Measure a linear probe in each of OmniBenchmark's realms, and their mean.

    With ``out``, each realm's result is written to ``NAME_realms/REALM.json`` next to it as soon as it is measured, and
    the same call continues with the next realm.

    Args:
        weights: A checkpoint of any layout that ``read_checkpoint`` knows.
        root: Folder of the realms' folders.
        protocol: v2 chooses each realm's L2 weight on val and penalises squared weights, as the benchmark's second text
            asks for; v1 does what its code does: it chooses by the best test score and penalises the norm.
        **options: See ``ViewOptions``.

    Returns:
        The content of the JSON, with ``mean_per_class`` in percent.

    Raises:
        UserError: ``root`` has no realm, or a file of one is invalid.
        UsageError: ``NAME_realms`` has results of other weights or of another ``root``.
    """
    if protocol not in ("v1", "v2"):
        raise UsageError(f"protocol is {protocol!r}; expected v1 or v2")
    root = Path(root).expanduser().resolve()
    realms = {name: realm for name in REALMS if (realm := read_realm(root, name))}
    missing = [name for name in REALMS if name not in realms]
    if not realms:
        raise UserError(f"{root} is not a folder of realms; expected folders {', '.join(REALMS[:3])} and so on in it")
    subject = read_subject(weights, **options)
    if missing:
        print(f"missing, {len(missing)} of {len(REALMS)} realms: {', '.join(missing)}")
    out = subject.out
    results: dict[str, Any] = {}
    for position, (name, realm) in enumerate(realms.items(), start=1):
        part = out.with_name(f"{out.stem}_realms") / f"{name}.json" if out else None
        result = None if part is None or subject.overwrite else _measured(part, subject, protocol, root)
        if result is None:
            result = _measure(name, realm, subject, protocol) | {"root": str(root)}
            if part:
                write_json(part, result)
        results[name] = result
        print(
            f"{position:2}/{len(realms)} {name}: mean per class {result['mean_per_class']:.1f}%, "
            f"top-1 {result['top1']:.1f}%, L2 {result['l2']:g}"
        )
    measures = ("mean_per_class", "top1", "l2", "classes", "train_images", "test_images")
    mean, top1 = (statistics.fmean(r[key] for r in results.values()) for key in ("mean_per_class", "top1"))
    partial = f", partial: {len(realms)} of {len(REALMS)} realms" if missing else ""
    print(f"OmniBenchmark mean {mean:.1f}% (top-1 {top1:.1f}%{partial}; the benchmark's MoCo v2 has {MOCO_V2})")
    if protocol == "v2":
        print(
            f"L2 weights were chosen on val; the benchmark's code, which gave {MOCO_V2}, chooses by test (--protocol v1)"
        )
    return subject.write(
        "omnibenchmark",
        mean_per_class=mean,
        top1=top1,
        partial=bool(missing),
        missing=missing,
        realms={name: {key: result[key] for key in measures} for name, result in results.items()},
        root=str(root),
        reference={"MoCo v2": MOCO_V2},
        settings={"l2_weights": list(L2_WEIGHTS), "protocol": protocol},
    )


def _measured(path: Path, subject: Subject, protocol: str, root: Path) -> dict[str, Any] | None:
    """Return the result of an earlier run of the same command, or None."""
    if not path.is_file():
        return None
    result = read_json(path)
    if not isinstance(result, dict):
        raise UserError(f"{path} is not a result of a realm; remove it to measure that realm again")
    now = subject.record(f"omnibenchmark_realm_{protocol}", root=str(root))
    keys = ("protocol", "root", "weights_sha256", "encoder", "untrained", "image_size")
    if changed := differences(*({key: part.get(key) for key in keys} for part in (result, now))):
        raise UsageError(
            f"{path} is another run's ({changed[0]}) and was kept; choose another --out, or --overwrite to start again"
        )
    return result


def _measure(name: str, realm: dict[str, ImageSet], subject: Subject, protocol: str) -> dict[str, Any]:
    classes = torch.from_numpy(_labels(realm["train"])).unique()
    features, labels = {}, {}
    for split, images in realm.items():
        part = subject.features(images, f"{name} {split}", normalized=False)
        features[split], labels[split] = part.features, torch.searchsorted(classes, part.labels)
    squared, device = protocol == "v2", subject.device
    known = (features["train"], labels["train"], len(classes), L2_WEIGHTS)
    probes = fit_l2_weights(*known, device=device, progress=name, squared=squared)
    val = [score.mean_per_class for score in probes.score(features["val"], labels["val"])]
    tests = probes.score(features["test"], labels["test"])
    chosen_by = val if protocol == "v2" else [score.mean_per_class for score in tests]
    best = chosen_by.index(max(chosen_by))
    return subject.record(
        f"omnibenchmark_realm_{protocol}",
        realm=name,
        **asdict(tests[best]),
        l2=L2_WEIGHTS[best],
        val_mean_per_class={f"{l2:g}": value for l2, value in zip(L2_WEIGHTS, val, strict=True)},
        classes=len(classes),
        train_images=len(labels["train"]),
        test_images=len(labels["test"]),
    )
