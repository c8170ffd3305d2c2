"""The page of one pre-training run, through the tool."""

from pathlib import Path

from tests.helpers.processes import Tool


def test_page_of_a_run(tiny_run: Path, tool: Tool, tmp_path: Path) -> None:
    shown = tool("report", tiny_run, "--out", tmp_path / "run.html").stdout
    page = (tmp_path / "run.html").read_text()
    for text in ("its numbers mean nothing", "contrastive loss", "kNN accuracy", "spread of the features"):
        assert text in shown and text in page
    assert page.count("view 1") == page.count("view 2") >= 1 and "queue_size" in page
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/config.yaml").write_text((tiny_run / "config.yaml").read_text())
    (tmp_path / "empty/metrics.csv").write_text("step,loss\n")
    assert "has no loss yet" in tool("report", tmp_path / "empty", code=1).stderr
