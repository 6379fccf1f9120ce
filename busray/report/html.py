"""Parts of a page: sections, tables, pictures. templates/parts.html has their markup.

Every part is Markup; whatever else stands in a template is escaped by jinja2.
"""

import base64
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from busray.report.tables import numeric

NOTHING = Markup("")

ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
PARTS: Any = ENVIRONMENT.get_template("parts.html").module


class Section(NamedTuple):
    """A part of the page with a heading and a line in the list of contents."""

    title: str
    inside: Markup
    """The page leaves a section out that has nothing inside."""

    @property
    def anchor(self) -> str:
        """What a link to it names."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def heading(words: str) -> Markup:
    """Inside a section."""
    return PARTS.heading(words)


def paragraph(words: str, kind: str = "") -> Markup:
    return PARTS.paragraph(words, kind)


def sentence_list(sentences: Iterable[str]) -> Markup:
    """Nothing where there are no sentences."""
    said = list(sentences)
    return PARTS.sentence_list(said) if said else NOTHING


def folded(title: str, inside: Markup) -> Markup:
    """Inside is seen after a click on the title; nothing where there is nothing inside."""
    return PARTS.folded(title, inside) if inside else NOTHING


def image(data: bytes, alt: str) -> Markup:
    """data: of a PNG or WebP."""
    return PARTS.image(data_address(data), alt)


def data_address(data: bytes) -> str:
    """A picture as an address: the page is one file, which can be sent, and fetches nothing."""
    kind = "webp" if data[8:12] == b"WEBP" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def figure(inside: Markup, caption: str, title: str = "") -> Markup:
    return PARTS.figure(inside, caption, title)


def columns(inside: Markup) -> Markup:
    """Figures side by side where the window is wide; nothing where there are none."""
    return PARTS.columns(inside) if inside else NOTHING


def legend(entries: Sequence[tuple[str, str]]) -> Markup:
    """What colours and lines mean, once for all plots below it.

    entries: (c0 .. c3, `bar` for a whisker or `floor` for the dashed line; its meaning).
    """
    return PARTS.legend(list(entries)) if entries else NOTHING


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], kind: str = "") -> Markup:
    """Columns of numbers to the right, of words to the left; nothing where there are no rows."""
    if not rows:
        return NOTHING
    printed = [list(map(str, row)) for row in rows]
    return PARTS.table(list(columns), printed, numeric(printed), kind)
