"""Makes docs/reliability.md of what the parts of the torture wrote: `python reliability_page.py [--check]`.

The page's own words stay; between its markers come, for each part, `docs/reliability/<part>.md` (what is done and what
it found, by hand) and the table of `docs/reliability/<part>.json`. A part that was not run is said to be so.
"""

import argparse
import sys
from pathlib import Path

import fault_row
from fault_row import FOLDER, FaultRow

PAGE = FOLDER.parent / "reliability.md"
BEGIN = "<!-- made by benchmarks/reliability_page.py: do not edit between the markers -->"
END = "<!-- end of what is made -->"
TITLES = {
    "kills": "Killed processes",
    "network": "Frozen, slow and cut off",
    "fuzz": "Random bytes on every port",
    "tiled": "Tiled away, slow and refusing",
    "resources": "Disk, memory, clock",
    "documents": "Documents that are not as they should be",
    "scan": "The scan meanwhile",
    "soak": "Thousands of runs",
}
_COLUMNS = ("fault", "how", "times", "runs", "results", "failures", "lost", "duplicated")


def sections(folder: Path) -> str:
    """All parts, as Markdown."""
    return "\n\n".join(f"## {title}\n\n{_part(folder, part)}" for part, title in TITLES.items())


def _part(folder: Path, part: str) -> str:
    words, figures = folder / f"{part}.md", folder / f"{part}.json"
    pieces = [words.read_text(encoding="utf-8").strip()] if words.exists() else []
    if not figures.exists():
        return "\n\n".join([*pieces, "Not run to the end yet: no figures are kept."])
    head, rows = fault_row.read(figures)
    options = ", ".join(f"{name} {value}" for name, value in head["options"].items() if value != "")
    on = head["machine"]
    machine = (
        f"{on['cores']} cores of a {on['processor']}, {on['memory_gib']} GiB, Python {on['python']}"
    )
    source = f"`benchmarks/torture_{part}.py`, {options}; {head['date']}, {machine}."
    return "\n\n".join([*pieces, _table(rows), source])


def _table(rows: list[FaultRow]) -> str:
    lines = [
        "| fault | what was done | times | runs | results | failures | lost | duplicated | remarks |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        cells = [str(getattr(row, name)) for name in _COLUMNS]
        lines.append(f"| {' | '.join(_cell(text) for text in (*cells, row.remarks))} |")
    if len(rows) > 1:
        sums = [sum(getattr(row, name) for row in rows) for name in _COLUMNS[2:]]
        lines.append(f"| **together** | | {' | '.join(f'**{n}**' for n in sums)} | |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def page(before: str, folder: Path) -> str:
    """The page with its made part made anew.

    Raises
    ------
    ValueError
        When the markers are not there, once each.
    """
    if before.count(BEGIN) != 1 or before.count(END) != 1:
        raise ValueError(f"{PAGE} needs each of these lines once: {BEGIN!r}, {END!r}")
    head, rest = before.split(BEGIN)
    tail = rest.split(END)[1]
    return f"{head}{BEGIN}\n\n{sections(folder)}\n\n{END}{tail}"


def main() -> int:
    """Write the page; with `--check` only say whether it is what it should be."""
    parser = argparse.ArgumentParser(prog="reliability_page.py")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if old")
    given = parser.parse_args()
    before = PAGE.read_text(encoding="utf-8")
    after = page(before, FOLDER)
    if given.check:
        print("as it should be" if after == before else "old: run reliability_page.py")
        return int(after != before)
    PAGE.write_text(after, encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
