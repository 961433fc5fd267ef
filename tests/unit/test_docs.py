"""The documents speak of things that exist, and the wheel carries what it must."""

import re
import tomllib
from pathlib import Path

import pytest

from inscan.callbacks.profile import load_profile, shipped_profiles

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PATH = re.compile(
    r"`((?:service|models|callbacks|profiles|tests|docker|docs|benchmarks)/[\w./-]+)`"
)
LINK = re.compile(r"\]\(([^)#:]+)\)")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_and_link_in_a_document_exists(document):
    text = document.read_text(encoding="utf-8")
    missing = [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    missing += [link for link in LINK.findall(text) if not (document.parent / link).exists()]
    assert missing == []


def test_the_changelog_begins_with_the_version():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", changes, flags=re.MULTILINE)
    assert versions[0] == PYPROJECT["project"]["version"]


def test_the_readmes_commands_are_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", readme, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_shipped_profile_loads():
    assert set(shipped_profiles()) >= {"sim_xrf", "sim_txm"}
    for name in shipped_profiles():
        load_profile(name).references()


def test_package_data_covers_every_file_that_is_not_python():
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]
    for folder, rules in (
        ("profiles", patterns["inscan.profiles"]),
        ("models", patterns["inscan.models"]),
    ):
        covered = {path for rule in rules for path in (ROOT / folder).glob(rule)}
        for path in (ROOT / folder).rglob("*"):
            if (
                path.suffix in {".yaml", ".csv", ".safetensors", ".json"}
                or path.parent.name == "startup"
            ):
                if path.is_file() and "__pycache__" not in path.parts:
                    assert path in covered, path


def test_runtime_torch_range_holds_the_pinned_version():
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "torch==2.13.0\n" in pinned
