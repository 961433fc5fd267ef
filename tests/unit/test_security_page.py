"""The threat model names, for every line, where it is built and a test that exists."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "security.md"
PLACE = re.compile(r"`([a-z_A-Z]+/[\w./-]+\.(?:py|yaml|service|toml)|pyproject\.toml)`")
TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def rows() -> list[list[str]]:
    """Cells of the lines of every table of threats."""
    found, inside = [], False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| Threat |"):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("|---"):
            found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_every_line_names_code_and_tests_that_exist():
    names: dict[str, set[str]] = {}
    assert len(rows()) > 40
    for threat, control, where, test in rows():
        assert threat and control
        places, tests = PLACE.findall(where), TEST.findall(test)
        assert places and tests, threat
        assert not [place for place in places if not (ROOT / place).is_file()], threat
        for file, name in tests:
            if file not in names:
                tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
                names[file] = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
            assert not name or name in names[file], f"{threat}: {file}::{name}"


def test_every_file_of_security_tests_is_named():
    page = PAGE.read_text(encoding="utf-8")
    files = sorted((ROOT / "tests").rglob("test_security*.py"))
    missing = [path.name for path in files if str(path.relative_to(ROOT)) not in page]
    assert missing == [Path(__file__).name]
