"""The reference pages: no setting, option or public name is without a text."""

from pathlib import Path

import pytest

import moco_plugin
from docs import reference_hook as reference
from moco_plugin.evaluation.protocols import ClassificationConfig
from moco_plugin.pretraining.config import PretrainConfig

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("schema", [PretrainConfig, ClassificationConfig])
def test_every_key_has_a_text(schema: type) -> None:
    keys = list(reference.schema_keys(schema))
    assert len(keys) > 20
    assert [key.name for key in keys if len(key.text) < 10] == []


def test_every_argument_has_a_text() -> None:
    assert [name for name, (_, text) in reference.method_keys().items() if not text] == []
    assert [name for name, (_, text) in reference.backbone_keys().items() if not text] == []
    assert "|  |" not in reference.views()  # an empty cell
    assert [key for key in reference.detector_settings() if not reference.DETECTOR_TEXTS.get(key)] == []


@pytest.mark.parametrize("tool", reference.TOOLS)
def test_every_option_has_a_text(tool: str) -> None:
    for name, parser in reference.commands_of(tool).items():
        assert parser.description, name
        assert [option for option, text in reference.options_of(parser) if len(text) < 5] == []


def test_every_public_name_is_documented() -> None:
    shown = reference.public_names()
    for name in moco_plugin.__all__:
        value = getattr(moco_plugin, name)
        assert value.__doc__ and f"heading: moco_plugin.{name}\n" in f"{shown}\n"


def test_pages_name_each_section_once() -> None:
    text = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    for name in reference.SECTIONS:
        assert text.count(f"<!-- reference: {name} -->") == 1
