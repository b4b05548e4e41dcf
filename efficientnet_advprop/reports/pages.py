"""Pages of results: titles, tables, charts and pictures, as one HTML file that needs no
other, as Markdown, and their tables as files for a paper.

    page = Page("B3", [Section("What was measured", tables=[table])])
    write(page, "runs/evaluation/b3")    # report.html, report.md, report.tex, results.csv
"""

import dataclasses
import os
from typing import Mapping, Sequence, Union

import jinja2

from efficientnet_advprop.reports.table import (
    Cell,
    Table,
    format_csv,
    format_latex,
    format_markdown,
)
from efficientnet_advprop.runtime.errors import RunError
from efficientnet_advprop.runtime.files import write_atomically

# People with any kind of colour vision can distinguish these colours.
COLORS = ("#7b8794", "#0b6bcb", "#e07b00", "#7a3fb0", "#0e8a6d", "#b3365b")
HTML_FILE = "report.html"
MARKDOWN_FILE = "report.md"
LATEX_FILE = "report.tex"


@dataclasses.dataclass(frozen=True)
class Card:
    """A framed part of a page: a title, a chart or images, and lines below."""

    title: str = ""
    note: str = ""
    svg: str = ""  # an `<svg>` element
    images: Sequence[tuple[str, str]] = ()  # (`data:` URI or "", caption), side by side
    lines: Sequence[Cell] = ()


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of a page."""

    title: str  # "": it goes on with the section before
    note: str = ""  # words below the title
    marks: Sequence[str] = ()  # what limits the section
    legend: Mapping[str, str] = dataclasses.field(default_factory=dict)  # label → CSS colour
    cards: Sequence[Card] = ()
    grid: str = "three"  # or "one", "two" columns at most; "thumbs": as many as fit
    tables: Sequence[Table] = ()  # below the cards
    # Summary → table or preformatted text, folded up; not in Markdown.
    details: Mapping[str, Union[Table, str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Page:
    """A page: a title, words below it, and sections."""

    title: str
    sections: Sequence[Section]
    lead: str = ""

    def tables(self) -> list[Table]:
        return [table for section in self.sections for table in section.tables]


def legend(labels: Sequence[str]) -> dict[str, str]:
    """Returns the colours of compared things; empty for a single one."""
    return colors(labels) if len(labels) > 1 else {}


def colors(labels: Sequence[str]) -> dict[str, str]:
    """Returns label → CSS colour."""
    return {label: COLORS[number % len(COLORS)] for number, label in enumerate(labels)}


def render_html(page: Page) -> str:
    """Renders the page as one HTML file without links to others."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("efficientnet_advprop.reports", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(page=page)


def render_markdown(page: Page) -> str:
    """Renders the page's words and tables as Markdown."""
    parts = [f"# {page.title}", page.lead]
    for section in page.sections:
        shown = [table for table in section.tables if table.rows]
        if shown or section.marks:
            parts += [f"## {section.title}" if section.title else "", section.note]
            parts += [f"- **{mark}**" for mark in section.marks]
            for table in shown:
                parts += [table.note, format_markdown(table)]
    return "\n\n".join(filter(None, parts)) + "\n"


def write(page: Page, directory: str) -> str:
    """Writes the page and its tables into a folder; returns the path of the HTML file."""
    os.makedirs(directory, exist_ok=True)
    named = [table for table in page.tables() if table.name and table.rows]
    files = {
        HTML_FILE: render_html(page),
        MARKDOWN_FILE: render_markdown(page),
        LATEX_FILE: "\n\n".join(map(format_latex, named)) + "\n",
        **{f"{table.name}.csv": format_csv(table) for table in named},
    }
    _require_ours(directory, files)
    for name, text in files.items():
        write_atomically(os.path.join(directory, name), text.encode())
    return os.path.abspath(os.path.join(directory, HTML_FILE))


def _require_ours(directory: str, files: Mapping[str, str]) -> None:
    """Raises a `RunError` if a file is there that is not of an earlier page of ours."""
    there = [name for name in files if os.path.exists(os.path.join(directory, name))]
    if HTML_FILE in there:
        with open(os.path.join(directory, HTML_FILE), encoding="utf-8", errors="replace") as file:
            head = files[HTML_FILE].partition("<title>")[0]
            if file.read(len(head)) == head:
                return
    if there:
        raise RunError(
            f"{os.path.join(directory, there[0])!r} would be replaced, but is no report of this "
            "project; move it away, or choose another folder."
        )
