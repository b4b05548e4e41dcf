"""One table, rendered as Markdown, CSV, LaTeX, for a console, and (by `pages`) as HTML."""

import csv
import dataclasses
import io
import math
from typing import Any, Optional, Sequence, Union

_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"−": "$-$", "–": "--", "…": r"\ldots{}", "×": r"$\times$", "±": r"$\pm$", "→": r"$\to$"},
        **{"ε": r"$\varepsilon$", "γ": r"$\gamma$", "β": r"$\beta$", "∞": r"$\infty$", "’": "'"},
        **{
            "<": r"\textless{}",
            ">": r"\textgreater{}",
            "≥": r"$\geq$",
            "≤": r"$\leq$",
            "·": r"$\cdot$",
        },
    }
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell: its text, the number behind it, and what stands beside it."""

    text: str = ""
    value: Optional[float] = None  # for files, as is `interval`; None: the cell is words
    interval: Optional[tuple[float, float]] = None
    notes: Sequence[str] = ()  # what explains it, in small print; a console leaves them out
    marks: Sequence[str] = ()  # what a reader must know before trusting it; never left out
    color: str = ""  # of CSS, of a dot before the text
    verdict: bool = False  # the text is one, which pages emphasise
    best: bool = False  # of the models compared; bold in LaTeX


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; texts and whole numbers may stand in place of cells."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Union[Cell, str, int]]]
    name: str = ""  # of its CSV file, without ending; "": it has none
    note: str = ""  # what a reader needs for the whole table

    def __post_init__(self):
        rows = [[_as_cell(cell) for cell in row] for row in self.rows]
        object.__setattr__(self, "rows", rows)

    def shown(self) -> "Table":
        """Returns the table for people: without the columns in which no row has anything."""
        kept = [
            index
            for index in range(len(self.columns))
            if any(row[index].text or row[index].marks for row in self.rows)
        ]
        rows = [[row[index] for index in kept] for row in self.rows]
        return dataclasses.replace(self, columns=[self.columns[i] for i in kept], rows=rows)

    def is_number(self, column: int) -> bool:
        """Whether a column has numbers, which stand on the right."""
        return any(row[column].value is not None for row in self.rows)

    def is_repeated(self, row: int, column: int) -> bool:
        """Whether a row begins like the one above, up to and including a column."""
        own, above = self.rows[row], self.rows[row - 1]
        return row > 0 and all(own[i].text == above[i].text for i in range(column + 1))

    def num_labels(self) -> int:
        """Returns the number of columns before the first one with numbers."""
        numbers = [column for column in range(len(self.columns)) if self.is_number(column)]
        return numbers[0] if numbers else 1


def _as_cell(cell: Union[Cell, str, int]) -> Cell:
    if isinstance(cell, Cell):
        return cell
    return Cell(cell) if isinstance(cell, str) else Cell(f"{cell:,}", cell)


def points(value: float, digits: int = 1) -> str:
    """Formats a difference with its sign: −1.23 → "−1.2"."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else f"±{0:.{digits}f}"


def percent(
    value: float, interval: Optional[tuple[float, float]] = None, *, sign: str = "", **options: Any
) -> Cell:
    """Returns the cell of a fraction of 1, in per cent: "97.3 (96.1 … 98.1)".

    Args:
        interval: None, or of nan: there is none.
        sign: "+" for a difference.
        options: further arguments of `Cell`.
    """
    if interval is None or math.isnan(interval[0]):
        return Cell(f"{100 * value:{sign}.1f}", 100 * value, **options)
    low, high = (100 * end for end in interval)
    text = f"{100 * value:{sign}.1f} ({low:{sign}.1f} … {high:{sign}.1f})"
    return Cell(text, 100 * value, (low, high), **options)


def probability(value: float) -> Cell:
    """Returns the cell of a p-value: "0.012", "< 0.0001"; empty for nan."""
    if math.isnan(value):
        return Cell()
    text = "< 0.0001" if value < 1e-4 else f"{value:.4f}" if value < 0.01 else f"{value:.3f}"
    return Cell(text, value)


def format_text(table: Table) -> str:
    """Returns lines of aligned columns for a console; marks follow as footnotes."""
    table = table.shown()
    lines = [list(table.columns)]
    footnotes: dict[str, list[str]] = {}
    for number, row in enumerate(table.rows):
        label = ", ".join(cell.text for cell in row[: table.num_labels()])
        lines.append(
            [
                "" if column < table.num_labels() and table.is_repeated(number, column) else
                cell.text + "*" * bool(cell.marks)
                for column, cell in enumerate(row)
            ]
        )  # fmt: skip
        for mark in dict.fromkeys(mark for cell in row for mark in cell.marks):
            footnotes.setdefault(mark, []).append(label)
    widths = [max(map(len, column)) for column in zip(*lines)]
    sides = [">" if table.is_number(column) else "<" for column in range(len(widths))]
    text = [
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths)
        ).rstrip()
        for line in lines
    ]
    text.insert(1, "-" * max(map(len, text)))
    return "\n".join(text + [f"* {_first(labels)}: {mark}" for mark, labels in footnotes.items()])


def _first(labels: Sequence[str]) -> str:
    if len(labels) <= 2:
        return " and ".join(labels)
    return f"{labels[0]} and {len(labels) - 1} more rows"


def format_markdown(table: Table) -> str:
    """Returns a table of GitHub's Markdown, with notes and marks in the cells."""
    table = table.shown()

    def line(cells):
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    lines = [line(table.columns), "|" + "---|" * len(table.columns)]
    for row in table.rows:
        lines.append(
            line(
                "; ".join(filter(None, [cell.text, *cell.notes, *(f"**{m}**" for m in cell.marks)]))
                for cell in row
            )
        )
    return "\n".join(lines)


def format_csv(table: Table) -> str:
    """Returns CSV with the numbers in full, the ends of intervals in columns of their own,
    and notes and marks in the last one.
    """
    ranged = [
        any(row[column].interval is not None for row in table.rows)
        for column in range(len(table.columns))
    ]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    header = []
    for title, has_interval in zip(table.columns, ranged):
        header += [title, *([f"{title}, low", f"{title}, high"] if has_interval else [])]
    writer.writerow([*header, "remarks"])
    for row in table.rows:
        cells: list[Any] = []
        for cell, has_interval in zip(row, ranged):
            cells.append(cell.text if cell.value is None else _number(cell.value))
            if has_interval:
                cells += ["", ""] if cell.interval is None else map(_number, cell.interval)
        remarks = [remark for cell in row for remark in (*cell.notes, *cell.marks)]
        writer.writerow([*cells, "; ".join(remarks)])
    return file.getvalue()


def _number(value: float) -> Any:
    return "" if math.isnan(value) else value


def format_latex(table: Table) -> str:
    """Returns a `tabular` that needs the package booktabs; marks follow as footnotes."""
    table = table.shown()
    sides = ["r" if table.is_number(column) else "l" for column in range(len(table.columns))]
    lines = [
        f"\\begin{{tabular}}{{{''.join(sides)}}}",
        "\\toprule",
        " & ".join(title.translate(_LATEX) for title in table.columns) + r" \\",
        "\\midrule",
    ]
    marks: dict[str, int] = {}
    for row in table.rows:
        cells = []
        for cell in row:
            numbers = [marks.setdefault(mark, len(marks) + 1) for mark in cell.marks]
            raised = f"$^{{{','.join(map(str, numbers))}}}$" if numbers else ""
            text = cell.text.translate(_LATEX)
            cells.append((f"\\textbf{{{text}}}" if cell.best else text) + raised)
        lines.append(" & ".join(cells) + r" \\")
    lines += ["\\bottomrule"]
    lines += [
        f"\\multicolumn{{{len(sides)}}}{{l}}{{\\footnotesize $^{{{number}}}$ "
        f"{mark.translate(_LATEX)}}} \\\\"
        for mark, number in marks.items()
    ]
    return "\n".join([*lines, "\\end{tabular}"])
