"""The demo's last word: the table on the terminal and `report.html`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from rich.console import Console
from rich.table import Table

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .25rem .8rem; text-align: right }
th { border-bottom: 2px solid #888 } td:first-child, th:first-child { text-align: left }
tr:nth-child(even) { background: #f4f4f4 } code, pre { background: #f0f0f0; padding: .1rem .3rem }
pre { padding: .6rem; overflow-x: auto } .problem { color: #a00; font-weight: 600 } img { max-width: 100% }
"""


@dataclass(frozen=True)
class Block:
    """One table: a title, a heading per column, rows of text, and what to know about it."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """Everything the report says.

    Attributes
    ----------
    title : str
    blocks : sequence of Block
    notes : sequence of str
        What happened, in sentences.
    problems : sequence of str
        What is missing and why; empty when all went well.
    opening : str
        Lines of Python that open the result.
    picture : str or None
        File name of the PNG beside the page.
    """

    title: str
    blocks: Sequence[Block] = ()
    notes: Sequence[str] = ()
    problems: Sequence[str] = ()
    opening: str = ""
    picture: str | None = None
    links: Sequence[tuple[str, str]] = field(default_factory=tuple)


def print_report(report: Report, console: Console) -> None:
    """Print the tables, what went wrong, and how to open the result."""
    for block in report.blocks:
        table = Table(title=block.title, title_justify="left", caption=block.note or None)
        table.caption_justify = "left"
        for k, heading in enumerate(block.headings):
            table.add_column(heading, justify="left" if k == 0 else "right")
        for row in block.rows:
            table.add_row(*row)
        console.print(table)
    for problem in report.problems:
        console.print(f"problem: {problem}", style="bold red", markup=False)
    for name, value in report.links:
        console.print(f"{name}: {value}", markup=False, soft_wrap=True)
    if report.opening:
        console.print("\nopen the result in Python:\n", markup=False)
        console.print(report.opening, markup=False, soft_wrap=True, highlight=False)


def write_html(report: Report, path: Path) -> None:
    """Write the same as a page of its own; every text in it is escaped."""
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>{escape(report.title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(report.title)}</h1>",
    ]
    parts += [f"<p class='problem'>Problem: {escape(text)}</p>" for text in report.problems]
    for block in report.blocks:
        parts.append(f"<h2>{escape(block.title)}</h2><table><tr>")
        parts += [f"<th>{escape(heading)}</th>" for heading in block.headings]
        parts.append("</tr>")
        for row in block.rows:
            parts.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
        parts.append("</table>")
        if block.note:
            parts.append(f"<p>{escape(block.note)}</p>")
    if report.picture:
        parts.append(f"<img src='{escape(report.picture)}' alt='maps, results and truth'>")
    if report.notes:
        parts.append("<h2>What happened</h2><ul>")
        parts += [f"<li>{escape(text)}</li>" for text in report.notes]
        parts.append("</ul>")
    if report.links:
        parts.append("<h2>Where it is</h2><ul>")
        parts += [
            f"<li>{escape(name)}: <code>{escape(value)}</code></li>" for name, value in report.links
        ]
        parts.append("</ul>")
    if report.opening:
        parts.append(f"<h2>Open the result in Python</h2><pre>{escape(report.opening)}</pre>")
    parts.append("</body></html>\n")
    path.write_text("\n".join(parts), encoding="utf-8")
