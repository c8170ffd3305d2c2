"""Pictures inside a page, as data, and how they are laid out."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape

from PIL import Image

from moco_plugin.report.page import Html


def data_uri(image: Image.Image, kind: str = "PNG") -> str:
    """Returns an image as a ``data:`` address.

    Args:
        image: The image.
        kind: "PNG", or "JPEG" for photographs.
    """
    buffer = io.BytesIO()
    image.save(buffer, kind, optimize=True, **({"quality": 88} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def picture(image: Image.Image, alt: str, kind: str = "PNG", dark: Image.Image | None = None) -> Html:
    """Returns an image element; ``dark`` takes its place where the reader prefers a dark page."""
    size = f'width="{image.width}" height="{image.height}"'
    element = f'<img src="{data_uri(image, kind)}" alt="{escape(alt)}" {size}>'
    if dark is not None:
        source = f'<source srcset="{data_uri(dark, kind)}" media="(prefers-color-scheme: dark)">'
        element = f"<picture>{source}{element}</picture>"
    return Html(element)


def tile(image: Image.Image, alt: str, label: str, frame: str = "") -> Html:
    """Returns a small picture with a word below it.

    Args:
        image: Shown 95 pixels wide.
        alt: What it shows.
        label: The word.
        frame: "right" for a green frame, "wrong" for a dashed red one, or none.
    """
    small = image.copy()
    small.thumbnail((190, 190))
    return Html(f'<div class="tile {frame}">{picture(small, alt)}<span>{escape(label)}</span></div>')


def panel(title: str, content: Html, note: str) -> Html:
    """Returns a picture as wide as its column, with a title above and a note below."""
    return Html(f'<div class="panel"><b>{escape(title)}</b>{content}<span>{escape(note)}</span></div>')


def row(parts: Iterable[Html]) -> Html:
    """Returns tiles side by side; the row scrolls where it does not fit."""
    return Html(f'<div class="row">{"".join(parts)}</div>')


def card(content: Html) -> Html:
    """Returns content with a border around it."""
    return Html(f'<div class="card">{content}</div>')


def grid(parts: Iterable[Html], columns: str = "") -> Html:
    """Returns parts in a grid.

    Args:
        parts: The cells.
        columns: "small" or "medium" for as many columns as fit, or one column.
    """
    return Html(f'<div class="grid {columns}">{"".join(parts)}</div>')
