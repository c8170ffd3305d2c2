"""The demo's page: correct numbers, complete HTML that fetches nothing, no complaint of a browser."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from moco_plugin.data.images import ImageSet
from moco_plugin.demo.page import write_demo_report
from moco_plugin.errors import UserError
from moco_plugin.evaluation.neighbours import Neighbours
from moco_plugin.pages.curves import line_chart
from moco_plugin.pages.neighbours_picture import write_neighbours
from moco_plugin.pages.page import Page, Picture
from moco_plugin.pages.tables import Table
from tests.demo.conftest import BOX_AP, COMMAND, write_accuracies, write_transfer
from tests.helpers.browser import Reader, load


@pytest.fixture(scope="module")
def report(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("report") / "report.html"
    return output, write_demo_report(demo_folder, output)


def test_numbers_in_page_table_and_json(report: tuple[Path, str], demo_folder: Path) -> None:
    output, table = report
    sentence = (
        "MoCo pre-training helps: kNN accuracy (k 20) rises from 60.0% (untrained; raw pixels 50.0%) to 70.2% (MoCo); "
        "linear accuracy rises from 60.0% (untrained; raw pixels 50.0%) to 70.2% (MoCo); "
        "C4 box AP rises from 12.0 (random init) to 22.0 (MoCo), mean of 3 seeds; "
        "FPN box AP rises from 12.0 (random init) to 22.0 (MoCo), mean of 3 seeds."
    )
    text = Reader(output.read_text()).text
    results = json.loads((output.parent / "results.json").read_text())
    assert sentence in text and table.startswith(sentence) and results["headline"] == sentence
    for detector in ("C4", "FPN"):
        assert re.search(rf"{detector} box AP +12\.0 ± 2\.0 +22\.0 ± 2\.6 +\+10\.0 +3\n", table)
    assert re.search(r"FPN mask AP50, MoCo +20\.0 +21\.0 +25\.0$", table)
    box = results["results"]["C4 box AP"]
    assert (box["baseline"]["mean"], box["moco"]["mean"], box["gain"]) == (12.0, 22.0, 10.0)
    assert (box["baseline"]["std"], box["moco"]["std"]) == pytest.approx((2.0, 7**0.5))
    assert [box[init]["seeds"] for init in ("baseline", "moco")] == list(BOX_AP.values())
    assert re.search(r"kNN accuracy \(k 1\) +50\.0 +60\.0 +70\.2 +\+10\.2 +1\n", table)
    knn = results["results"]["kNN accuracy (k 1)"]
    assert knn["moco"] == {"mean": 70.25, "std": None, "seeds": [70.25]} and knn["pixels"] == 50.0
    toy = write_demo_report(demo_folder, output.with_name("toy.html"), quick=True)
    assert toy.startswith("Toy size: every stage works, and the numbers below mean nothing.") and "helps" not in toy
    assert "numbers below mean nothing" in output.with_name("toy.html").read_text()


def test_page_is_whole_and_fetches_nothing(report: tuple[Path, str]) -> None:
    html = report[0].read_text()
    reader = Reader(html)
    headings = ("Results", "Pre-training", "What MoCo learns from", "What it finds similar", "How this was made")
    places = [html.index(f"<h2>{heading}</h2>") for heading in headings]
    assert places == sorted(places)
    links = ("src", "href", "srcset")
    addresses = [about[name] for _, about in reader.elements for name in links if name in about]
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert not any(text in html for text in ("http:", "https:", "url(", "@import", "<script"))
    pictures = [attributes for tag, attributes in reader.elements if tag == "img"]
    assert all(attributes["alt"] for attributes in pictures)
    # 3 curves, 12 images and their pairs of views, 3 classes with 8 neighbours, 2 scenes of 3 panels for 2 detectors
    assert len(pictures) == 3 + 12 * 3 + 3 * 9 + 2 * 2 * 3


def test_text_is_escaped(report: tuple[Path, str]) -> None:
    html = report[0].read_text()
    assert COMMAND not in html and COMMAND in Reader(html).text
    page = Page("<i>", "a & b")
    page.section("<b>")
    page.add("text", "<script>")
    page.add("table", Table(("<u>", "x"), [("<s>", "<p>")], "<q>"))
    page.add("settings", {"<em>": "<a>"})
    page.add("code", "<kbd>")
    page.add("facts", [("<dfn>", "<var>", "<samp>")])
    evil = Picture(Image.new("RGB", (2, 2)), '"><img src=x onerror=alert(1)>', "<mark>")
    page.add("panels", [evil], "<cite>")
    page.add("cards", [[evil]], "<del>")
    found = Reader(page.html())
    tags = [tag for tag, _ in found.elements]
    given = {"i", "script", "u", "s", "q", "em", "a", "kbd", "dfn", "var", "samp", "mark", "cite", "del"}
    assert not given & {*tags} and tags.count("b") == 1 and tags.count("img") == 2
    assert not any("onerror" in attributes for _, attributes in found.elements)
    for text in ("<script>", "<kbd>", "<var>", "<mark>", "<cite>"):
        assert text in found.text


RETRIEVED: dict[str, Any] = {
    "recall": {"1": 50.0},
    "chance_recall": {"1": 25.0},
    "weights": "<b>.ckpt",
    "weights_sha256": "0" * 64,
}
RETRIEVED |= {"untrained": False, "train_images": 2, "test_images": 2}


def test_names_of_files_and_classes_are_escaped(tmp_path: Path) -> None:
    for label in ("<b onclick=x>", "$\\frac$ & more"):
        (tmp_path / label).mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / label / "one.png")
    images = ImageSet(str(tmp_path))
    write_neighbours(tmp_path / "page.html", images, images, [Neighbours(0, [0, 1])], RETRIEVED)
    found = Reader((tmp_path / "page.html").read_text())
    assert "b" not in {tag for tag, _ in found.elements}
    assert "<b onclick=x>" in found.text and str(tmp_path) in found.text
    line_chart({"$\\frac$": ([0, 1], [1.0, 2.0]), "b_$": ([0], [1.0])}, "loss", "a chart")


@pytest.fixture
def folder(demo_folder: Path, tmp_path: Path) -> Path:
    """A copy of the demo's folder."""
    return Path(shutil.copytree(demo_folder, tmp_path / "copy"))


def test_features_that_pixels_beat_are_no_help(folder: Path, tmp_path: Path) -> None:
    write_accuracies(folder, 60.0, 70.0, pixels=71.0)
    table = write_demo_report(folder, tmp_path / "report.html")
    assert table.startswith(
        "MoCo pre-training helps in part: kNN accuracy (k 20) rises from 60.0% (untrained; raw pixels 71"
    )


def test_page_says_so_when_moco_loses(folder: Path, tmp_path: Path) -> None:
    write_accuracies(folder, 60.0, 55.0)
    write_transfer(folder, {"random": [20.0], "moco": [5.0]})
    for path in folder.glob("transfer/*/*/results.json"):  # of a detector without masks
        trials = json.loads(path.read_text())["trials"]
        for trial in trials:
            trial["metrics"] = {k: v for k, v in trial["metrics"].items() if k.startswith("bbox")}
        path.write_text(json.dumps({"trials": trials}))
    table = write_demo_report(folder, tmp_path / "out" / "report.html")
    sentence = (
        "MoCo pre-training does not help here: kNN accuracy (k 20) falls from 60.0% (untrained; raw pixels 50.0%) to 55.0% "
        "(MoCo); linear accuracy falls from 60.0% (untrained; raw pixels 50.0%) to 55.0% (MoCo); "
        "C4 box AP falls from 20.0 (random init) to 5.0 (MoCo); FPN box AP falls from 20.0 (random init) to 5.0 (MoCo)."
    )
    assert table.startswith(sentence) and "mask" not in table
    assert sentence in (tmp_path / "out" / "report.html").read_text()


NAMES = "pretrain/metrics.csv pretrain/config.yaml knn_moco.json linear_pixels.json transfer/c4/random/results.json"


@pytest.mark.parametrize("name", [*NAMES.split(), "neighbours.json"])
def test_missing_and_broken_files_are_named(name: str, folder: Path, tmp_path: Path) -> None:
    for spoil in (lambda path: path.write_text("[1"), Path.unlink):
        spoil(folder / name)
        with pytest.raises(UserError) as error:
            write_demo_report(folder, tmp_path / "report.html")
        assert str(folder / name) in str(error.value) and "\n" not in str(error.value)
        assert not list(tmp_path.glob("*report*"))


def test_broken_neighbours_and_pictures_are_named(folder: Path, tmp_path: Path) -> None:
    retrieval = json.loads((folder / "neighbours.json").read_text())
    for neighbours in ([{"test": 0}], [{"test": 0, "train": [40]}], [{"test": -1, "train": [0]}]):
        (folder / "neighbours.json").write_text(json.dumps({**retrieval, "neighbours": neighbours}))
        with pytest.raises(UserError, match=r"neighbours\.json has no neighbours|has no labelled image number"):
            write_demo_report(folder, tmp_path / "report.html")
    (folder / "neighbours.json").write_text(json.dumps(retrieval))
    picture = folder / "transfer/fpn/moco/predictions/test_1.png"
    picture.write_bytes(b"[1")
    with pytest.raises(UserError, match=f"{picture} cannot be read as a picture"):
        write_demo_report(folder, tmp_path / "report.html")
    assert not list(tmp_path.glob("*report*"))
    shutil.rmtree(picture.parent)
    shutil.rmtree(folder / "transfer/fpn/random/predictions")
    write_demo_report(folder, tmp_path / "report.html")
    assert "FPN: no predictions were drawn." in (tmp_path / "report.html").read_text()


def test_browser_shows_every_picture_and_has_no_complaint(report: tuple[Path, str], tmp_path: Path) -> None:
    html = report[0].read_text()
    count = """<script>addEventListener("load", () => {
      const images = [...document.images];
      document.body.dataset.shown = images.filter(i => i.complete && i.naturalWidth > 0).length;
      document.body.dataset.wide = document.documentElement.scrollWidth > innerWidth;
      missing();
    });</script>"""
    page = tmp_path / "counted.html"
    page.write_text(html.replace("</body>", f"{count}</body>"))
    document, complaints = load(page, tmp_path / "profile")
    assert f'data-shown="{html.count("<img ")}"' in document and 'data-wide="false"' in document
    assert len(complaints) == 1 and "missing is not defined" in complaints[0]  # ours alone
