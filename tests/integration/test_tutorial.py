"""The tutorial, as it stands in the documents: its shell blocks by a shell, its Python blocks by IPython."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
SERVE = "inscan serve service.yaml"
SESSION = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
shell.colors = "nocolor"
for number, cell in enumerate(json.loads(open(sys.argv[1], encoding="utf-8").read()), 1):
    print(f"In [{number}]:", cell, flush=True)
    result = shell.run_cell(cell, store_history=False)
    if not result.success:
        sys.exit(f"block {number} failed")
    if shell.user_ns.get("_exit_code"):
        sys.exit(f"a command of block {number} ended with {shell.user_ns['_exit_code']}")
shell.user_ns["inscan"].close()
"""


def blocks(language: str) -> list[str]:
    """Blocks of one language of the page, in order."""
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def environment() -> dict[str, str]:
    """What a terminal has in which the project's commands are found."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("INSCAN_")}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONUNBUFFERED": "1",
        "MPLBACKEND": "agg",
        "COLUMNS": "120",
    }


@pytest.fixture
def service(
    tmp_path: Path, environment: dict[str, str], until: Callable[..., Any]
) -> Iterator[Path]:
    """The first terminal: every shell block, the last of which serves until it is interrupted."""
    *before, serve = [block.strip() for block in blocks("sh")]
    assert serve == SERVE
    for block in before:
        subprocess.run(["bash", "-euc", block], cwd=tmp_path, env=environment, check=True)
    folder = tmp_path / "tutorial"
    with (folder / "service.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {serve}"], cwd=folder, env=environment, stdout=log, stderr=log
        )
        try:
            until(
                lambda: (folder / "state" / "service.json").exists() or process.poll() is not None,
                90,
            )
            assert process.poll() is None, (folder / "service.log").read_text()
            yield folder
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0


@pytest.mark.timeout(400)
def test_every_block_of_the_tutorial_runs(service: Path, environment: dict[str, str]) -> None:
    (service / "blocks.json").write_text(json.dumps(blocks("python")), encoding="utf-8")
    session = subprocess.run(
        [sys.executable, "-c", SESSION, "blocks.json"],
        cwd=service,
        env=environment | {"IPYTHONDIR": str(service / "ipython")},
        capture_output=True,
        text=True,
        timeout=380,
    )
    assert session.returncode == 0, session.stdout + session.stderr
    assert "Traceback" not in session.stdout, session.stdout
