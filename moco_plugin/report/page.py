"""One self-contained HTML page of sections: text, facts, tables, figures. All text given to it is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import NamedTuple, NewType

from moco_plugin.report.style import STYLE
from moco_plugin.report.tables import Table

Html = NewType("Html", str)
"""Text that is HTML already: every piece of it was escaped where it was made."""


class Fact(NamedTuple):
    """A number to see at first sight: what it is, its value, and what to compare it with."""

    name: str
    value: str
    note: str


class Page:
    """Collects sections in the order of the calls; ``html()`` returns the page.

    Args:
        title: Headline.
        lead: What the page says, in a sentence below the headline.
    """

    def __init__(self, title: str, lead: str) -> None:
        self.title = title
        self.lead = lead
        self.sections: list[list[str]] = []

    def section(self, heading: str) -> None:
        """Begins a section; what is added next goes there."""
        self.sections.append([f"<h2>{escape(heading)}</h2>"])

    def text(self, text: str) -> None:
        """Adds a paragraph."""
        self._add(f"<p>{escape(text)}</p>")

    def facts(self, facts: Iterable[Fact]) -> None:
        """Adds numbers in large type, side by side."""
        cells = "".join(
            f'<div><dt>{escape(fact.name)}</dt><dd class="value">{escape(fact.value)}</dd>'
            f'<dd class="note">{escape(fact.note)}</dd></div>'
            for fact in facts
        )
        self._add(f'<dl class="facts">{cells}</dl>')

    def table(self, table: Table) -> None:
        """Adds a table."""
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.columns)
        body = "".join(
            f'<tr><th scope="row">{escape(row[0])}</th>'
            + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in table.rows
        )
        caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
        rows = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        self._add(f'<div class="wide"><table>{caption}{rows}</table></div>')

    def settings(self, settings: Mapping[str, str]) -> None:
        """Adds names and their values, one a line."""
        lines = "".join(
            f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in settings.items()
        )
        self._add(f'<dl class="settings">{lines}</dl>')

    def code(self, text: str) -> None:
        """Adds commands or the like, as they are."""
        self._add(f"<pre>{escape(text.rstrip())}</pre>")

    def figure(self, content: Html, caption: str) -> None:
        """Adds pictures and, below them, what one sees."""
        self._add(f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>")

    def _add(self, block: str) -> None:
        self.sections[-1].append(block)

    def html(self) -> str:
        """Returns the page, which fetches nothing."""
        sections = "\n".join("<section>\n{}\n</section>".format("\n".join(s)) for s in self.sections)
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<link rel="icon" href="data:,">\n'
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            f"<header>\n<h1>{escape(self.title)}</h1>\n<p>{escape(self.lead)}</p>\n</header>\n"
            f"<main>\n{sections}\n</main>\n</body>\n</html>\n"
        )
