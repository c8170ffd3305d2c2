"""Self-contained HTML pages, rendered from one Jinja2 template that escapes all text."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from moco_plugin.files import atomic_path

Kind = Literal["text", "code", "facts", "settings", "table", "charts", "panels", "rows", "cards"]
Frame = Literal["right", "wrong", ""]
TILE = 190  # pixels of a small picture, which is shown at half of that


@dataclass
class Picture:
    """An image on a page.

    Attributes:
        image: What to show, at most at its own size.
        alt: What it shows, in words.
        label: A short caption.
        frame: "right" for a green frame, "wrong" for a dashed red one, or none.
        dark: Replaces the image where the reader prefers dark pages.
        kind: "PNG", or "JPEG" for photographs.
    """

    image: Image.Image
    alt: str
    label: str = ""
    frame: Frame = ""
    dark: Image.Image | None = None
    kind: Literal["PNG", "JPEG"] = "PNG"


def tile(image: Image.Image, alt: str, label: str, frame: Frame = "") -> Picture:
    """Return a small picture."""
    small = image.copy()
    small.thumbnail((TILE, TILE))
    return Picture(small, alt, label, frame)


class Page:
    """A page of sections, in the order of the calls.

    Args:
        title: Headline.
        lead: What the page says, in a sentence.
    """

    def __init__(self, title: str, lead: str) -> None:
        self.title, self.lead = title, lead
        self.sections: list[tuple[str, list[tuple[str, Any, str]]]] = []

    def section(self, heading: str) -> None:
        """Begin a section."""
        self.sections.append((heading, []))

    def add(self, kind: Kind, content: Any, caption: str = "") -> None:
        """Add to the section.

        Args:
            kind: "text", "code"; "facts", the name, value and note of each; "settings", values by name; a "table"; pictures
                in as many columns as fit, "charts" or "panels" with labels above; lists of tiles, "rows" or "cards".
            content: Accordingly.
            caption: Of pictures and tiles.
        """
        self.sections[-1][1].append((kind, content, caption))

    def html(self) -> str:
        """Return the page, which requests nothing from elsewhere."""
        return _ENVIRONMENT.get_template("page.html").render(title=self.title, lead=self.lead, sections=self.sections)

    def save(self, path: str | Path) -> None:
        """Write the page, whole or not at all."""
        html = self.html()
        with atomic_path(path) as temporary:
            temporary.write_text(html, encoding="utf-8", errors="replace")  # names of files may be no text


def _data_uri(image: Image.Image, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, optimize=True, **({"quality": 88} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["data_uri"] = _data_uri
