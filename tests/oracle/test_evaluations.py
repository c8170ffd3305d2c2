"""Evaluations: the same numbers from any processes, loader processes, batch size, source and memory layout.

What is expected is computed in evaluation_oracle.py.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn import functional as F

from tests.helpers.processes import Tool
from tests.oracle import evaluation_sets as sets
from tests.oracle.evaluation_oracle import (
    EPOCHS,
    accuracies,
    fast_logits,
    features,
    files_of,
    labels,
    trained,
    view_features,
    votes,
)

CLASSIFY = ["data.batch_size=16", f"schedule.epochs={EPOCHS}", f"schedule.milestones=[{EPOCHS - 1}]"]
KS, RECALLS = ("1", "3", "8", "20"), ("1", "2", "5")
FEATURES = ("knn", "retrieve", "multilabel", "omnibenchmark")  # protocols with --workers and --batch-size
LISTS = ("multilabel", "omnibenchmark")  # of images, nothing else
TRAINED = ("linear", "finetune")  # on several processes
OPTIONS = {
    "knn": ["--k", *KS, "--temperature", "0.3"],
    "retrieve": ["--k", *RECALLS],
    "linear": [*CLASSIFY, "optimizer.lr=0.5"],
    "finetune": [*CLASSIFY, "optimizer.lr=0.2"],
    "linear --fast": ["--lrs", "0.05", "data.batch_size=16", "schedule.epochs=4"],
    "lowshot": ["--lrs", "0.05", "--shares", "0.5", "1", "data.batch_size=16", "schedule.epochs=4"],
    "multilabel": ["--k", "5"],
    "omnibenchmark": [],
}
UNLIKE = ("train", "test", "weights", "weights_sha256", "settings", "root")  # how the command was given


@dataclass(frozen=True)
class Way:
    """A way to evaluate the same images: the source, loader processes, batch size, layout of the weights, processes."""

    source: str
    workers: int | None = None  # the tool's default
    batch: int | None = None
    channels_last: bool = False
    processes: int = 1
    network: str = "resnet"


WAYS = [
    Way("csv", 1, 7, True, 2),
    Way("txt", 3, 1, False, 1),
    Way("zip", 0, 16, True, 4),
    Way("tar", 3, 23, True, 1),
    Way("idx", 1, 5, False, 1),
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Checkpoints by network and layout, and specs by split and source."""
    folder = tmp_path_factory.mktemp("evaluations")
    found: dict[str, Any] = {"folder": folder, "train": {}, "test": {}, "omni": folder / "omni"}
    for kind in sets.NETWORKS:
        for last in (False, True):
            found[kind, last] = folder / f"{kind}-{last}.ckpt"
            sets.write_checkpoint(found[kind, last], kind, last)
    for split, seed, count in (("train", 1, 42), ("test", 2, 23)):
        found[split] = sets.write_sources(folder, split, seed, count)
        found[split] |= {("bands", k): v for k, v in sets.write_bands(folder / "bands", split, seed, count).items()}
        found[split] |= {("several", k): v for k, v in sets.write_colours(folder, split, seed, count).items()}
    for realm, classes, form in (("bird", range(7), "{}"), ("car", range(2, 6), "car.{}.txt")):
        (found["omni"] / realm).mkdir(parents=True)
        (found["omni"] / realm / "images").symlink_to(folder)
        for split, lines in (("train", "train"), ("val", "test"), ("test", "test")):
            rows = [row.split() for row in Path(found[lines]["txt"]).read_text().splitlines()]
            rows = [row for row in rows if sets.CLASSES.index(int(row[1])) in classes]
            part = {"train": rows, "val": rows[::2], "test": rows[1::2]}[split]
            text = "".join(f"images/{path} {100 * int(label)}\n" for path, label in part)
            (found["omni"] / realm / form.format(split)).write_text(text)
    return found


@pytest.fixture(scope="module")
def evaluate(sources: dict[str, Any], tool: Tool) -> Callable[[str, Way], dict[str, Any]]:
    """The JSON of a protocol carried out in one way, and what it left in its folder; each is run once."""

    @functools.cache
    def run(protocol: str, way: Way, same: bool) -> dict[str, Any]:
        out = sources["folder"] / f"results{run.cache_info().misses}.json"
        source: Any = way.source
        source = ("several", source) if protocol == "multilabel" else source
        source = ("bands", source) if way.network == "bands" else source
        images = ["--train", sources["train"][source], "--test", sources["train" if same else "test"][source]]
        options = list(OPTIONS[protocol])
        if protocol == "omnibenchmark":
            images = ["--root", sources["omni"]]
        if way.workers is not None:
            options += ["--workers", str(way.workers)] if protocol in FEATURES else [f"data.workers={way.workers}"]
        if way.batch is not None and protocol in FEATURES:
            options += ["--batch-size", str(way.batch)]
        if protocol in TRAINED:
            options += ["trainer.accelerator=cpu", f"trainer.devices={way.processes}"]
        weights = ["--weights", sources[way.network, way.channels_last]]
        tool("evaluate", *protocol.split(), *weights, *images, *options, "--out", out, processes=way.processes)
        result = measured(out)
        if protocol == "omnibenchmark":
            parts = sorted(out.with_name(f"{out.stem}_realms").glob("*.json"))
            result["parts"] = {part.stem: measured(part) for part in parts}
        if protocol in TRAINED:
            result["state"] = torch.load(out.with_name(f"{out.stem}_run") / "last.ckpt")["state_dict"]
        return result

    return lambda protocol, way, same=False: run(protocol, way, same)


def measured(file: Path) -> dict[str, Any]:
    """Return what a JSON file says of the result, without how the command was given."""
    return {key: value for key, value in json.loads(file.read_text()).items() if key not in UNLIKE}


def check_equal(found: Any, expected: Any, where: str = "") -> None:
    """Check that two results are the same, numbers and tensors up to rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            check_equal(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for one, other in zip(found, expected, strict=True):
            check_equal(one, other, where)
    elif isinstance(expected, Tensor):
        torch.testing.assert_close(found.double(), expected.double(), rtol=1e-3, atol=2e-4, msg=lambda m: where + m)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-3), where
    else:
        assert found == expected, where


@pytest.mark.parametrize(
    ("protocol", "way"),
    [(protocol, way) for protocol in OPTIONS for way in (WAYS[:3] if protocol in LISTS else WAYS)],
    ids=lambda part: part if isinstance(part, str) else part.source,
)
def test_every_way_gives_the_same_numbers(
    protocol: str, way: Way, evaluate: Callable[..., dict[str, Any]], sources: dict[str, Any]
) -> None:
    if protocol in LISTS and way.source == "zip":
        way = replace(way, source="csv")
    network = "vit" if protocol == "finetune" else "resnet"
    usual = Way("csv" if protocol == "multilabel" else "folder", network=network)
    check_equal(evaluate(protocol, replace(way, network=network)), evaluate(protocol, usual))


@pytest.mark.parametrize("kind", ["", "same", "bands"])
def test_neighbours_are_those_of_a_plain_search(
    kind: str, evaluate: Callable[..., dict[str, Any]], sources: dict[str, Any]
) -> None:
    bands, same = kind.replace("same", ""), kind == "same"
    (bank, queries), (known, truth) = features(sources, sets.CROP, bands), labels(sources, bands)
    queries, truth = (bank, known) if same else (queries, truth)
    way = Way("npy", network="bands") if bands else Way("folder")
    ones = F.one_hot(known, len(sets.CLASSES)).double()
    found = evaluate("knn", way, same)
    for k in KS:
        expected = accuracies(votes(bank, queries, ones, int(k), 0.3, same), truth)["top1"]
        assert found["top1_by_k"][k] == pytest.approx(expected), k
    found = evaluate("retrieve", way, same)
    similar = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T
    near = (similar.fill_diagonal_(-torch.inf) if same else similar).topk(5).indices
    for k in RECALLS:
        hits = (known[near[:, : int(k)]] == truth[:, None]).any(dim=1)
        assert found["recall"][k] == pytest.approx(100 * float(hits.double().mean())), k
    assert len(found["neighbours"]) == len(sets.CLASSES)
    assert all(one["train"] == near[one["test"]].tolist() for one in found["neighbours"])


@pytest.mark.parametrize("source", ["tif", "zip", "csv"])
@pytest.mark.parametrize("protocol", ["retrieve", "linear"])
def test_images_of_four_channels(protocol: str, source: str, evaluate: Callable[..., dict[str, Any]]) -> None:
    way = Way(source, 1, 9, source == "zip", 2 if source == "csv" else 1, "bands")
    check_equal(evaluate(protocol, way), evaluate(protocol, Way("npy", network="bands")))


@pytest.mark.parametrize(
    ("protocol", "network", "lr", "decay"),
    [("linear", "resnet", 0.5 * 16 / 256, 0.0), ("linear", "bands", 0.5 * 16 / 256, 0.0)]
    + [("finetune", network, 0.2 * 16 / 256, 1e-4) for network in ("resnet", "vit")],
)
def test_training_is_a_plain_loop(
    protocol: str,
    network: str,
    lr: float,
    decay: float,
    evaluate: Callable[..., dict[str, Any]],
    sources: dict[str, Any],
) -> None:
    kind = "bands" if network == "bands" else ""
    found = evaluate(protocol, Way("npy" if kind else "folder", network=network))
    known, truth = labels(sources, kind)
    plain = trained(files_of(sources, "train", kind), known, network, protocol == "linear", lr, decay)
    state = {f"fc.{name}": value for name, value in plain["fc"].state_dict().items()}
    if protocol == "finetune":
        state |= {f"backbone.{name}": value for name, value in plain["network"].state_dict().items()}
    check_equal(found["state"], state)
    tests = view_features(plain["network"], files_of(sources, "test", kind), 0.875, kind)
    expected = accuracies(plain["fc"].double()(tests), truth) | {"loss": plain["loss"]}
    check_equal({name: found[name] for name in expected}, expected)


def test_fits_on_cached_features(evaluate: Callable[..., dict[str, Any]], sources: dict[str, Any]) -> None:
    (bank, queries), (known, truth) = features(sources, 0.875), labels(sources)
    expected = accuracies(fast_logits(bank, known, queries, 0.05), truth)
    fast, few = (evaluate(protocol, Way("folder")) for protocol in ("linear --fast", "lowshot"))
    check_equal({name: fast[name] for name in expected}, expected)
    half, whole = few["shares"]
    check_equal({name: whole[name] for name in expected}, expected)
    assert (half["train_images"], whole["train_images"]) == (21, 42)


def test_several_labels(evaluate: Callable[..., dict[str, Any]], sources: dict[str, Any]) -> None:
    names = ["blue", "green", "red"]
    rows = [Path(sources[split]["several", "csv"]).read_text().splitlines() for split in ("train", "test")]
    known, truth = (torch.tensor([[name in row.split(",")[1] for name in names] for row in part]) for part in rows)
    scores = votes(*features(sources, sets.CROP, "several"), known.double(), 5, 0.1)
    expected = {n: 100 * average_precision_score(truth[:, i], scores[:, i]) for i, n in enumerate(names)}
    found = evaluate("multilabel", Way("csv"))
    check_equal(found["knn_ap"], expected)
    assert found["knn_map"] == pytest.approx(np.mean(list(expected.values())), abs=1e-3)
    assert found["chance_map"] == pytest.approx(100 * float(truth.double().mean()))


def test_realms_are_logistic_regressions(evaluate: Callable[..., dict[str, Any]], sources: dict[str, Any]) -> None:
    bank, queries = (part.numpy() for part in features(sources, sets.CROP))
    known, truth = (part.numpy() for part in labels(sources))
    found = evaluate("omnibenchmark", Way("folder"))["parts"]
    for realm, classes in (("bird", range(7)), ("car", range(2, 6))):
        train, test = np.isin(known, classes), np.isin(truth, classes)
        mean, deviation = bank[train].mean(0), bank[train].std(0)
        x, y = (bank[train] - mean) / np.where(deviation > 1e-6, deviation, 1), known[train]
        others, labelled = (queries[test] - mean) / np.where(deviation > 1e-6, deviation, 1), truth[test]
        chosen, val_scores = found[realm]["l2"], found[realm]["val_mean_per_class"]
        assert f"{chosen:g}" == max(val_scores, key=val_scores.__getitem__)
        for l2 in (0.001, 0.01, 0.1, 1.0):
            model = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-9, max_iter=5000).fit(x, y)
            right = model.predict(others) == labelled
            val, hits = (
                100
                * float(np.mean([right[i::2][labelled[i::2] == label].mean() for label in np.unique(labelled[i::2])]))
                for i in (0, 1)
            )
            assert val_scores[f"{l2:g}"] == pytest.approx(val), (realm, l2)
            if l2 == chosen:
                assert found[realm]["mean_per_class"] == pytest.approx(hits), realm


def test_fewer_test_images_than_processes_are_refused(sources: dict[str, Any], tool: Tool) -> None:
    images = ("--train", sources["train"]["csv"], "--test", f"{sources['test']['csv']}[0:1]")
    options = ("--weights", sources["resnet", False], "trainer.accelerator=cpu", "trainer.devices=2")
    done = tool("evaluate", "linear", *images, *options, *CLASSIFY, processes=2, code=2)
    assert "has 1 images for 2 processes; expected one for each: use fewer trainer.devices" in done.stderr
