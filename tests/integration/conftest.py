"""What the integration tests share: one real Tiled for all of them, and how to wait for something."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inscan.service.tiled_server import EmbeddedTiled

Until = Callable[..., Any]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State directory of the shared Tiled; it may read `results` and `data` in it."""
    state = tmp_path_factory.mktemp("state")
    (state / "results").mkdir()
    (state / "data").mkdir()
    return state


@pytest.fixture(scope="session")
def tiled(folder: Path) -> Iterator[EmbeddedTiled]:
    """A real Tiled in its own process, for all tests of the session."""
    with EmbeddedTiled(folder, readable=[folder / "results", folder / "data"]) as server:
        yield server


@pytest.fixture(scope="session")
def until() -> Until:
    """`until(condition, seconds=20)`: wait until it holds and return what it returned, or fail."""

    def wait(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            found = condition()
            if found:
                return found
            assert time.monotonic() < deadline, f"it did not come true within {seconds:g} s"
            threading.Event().wait(0.01)

    return wait
