"""What a person names is found, or one line says where it was looked for."""

from pathlib import Path
from typing import Any

import pytest
from event_model import compose_run

from inscan.callbacks.sources.files import write_documents
from inscan.service.stored_runs import find_run, find_runs


def documents(scan_id: int) -> list[tuple[str, Any]]:
    run = compose_run(metadata={"scan_id": scan_id})
    bundle = run.compose_descriptor(
        name="primary", data_keys={"x": {"dtype": "number", "shape": [], "source": "sim"}}
    )
    event = bundle.compose_event(data={"x": 1.0}, timestamps={"x": 0.0})
    found = [("start", run.start_doc), ("descriptor", bundle.descriptor_doc), ("event", event)]
    return [*found, ("stop", run.compose_stop())]


@pytest.mark.parametrize("name", ["runs.jsonl", "runs.msgpack"])
def test_runs_of_a_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    one, other = documents(1), documents(2)
    write_documents(path, one)
    found = find_run(str(path))
    assert found.uid == one[0][1]["uid"] and found.start["scan_id"] == 1
    assert [kind for kind, _ in found.documents()] == ["start", "descriptor", "event", "stop"]
    write_documents(path, [*one, *other])
    assert [run.start["scan_id"] for run in find_runs(str(path))] == [1, 2]
    with pytest.raises(LookupError, match="holds 2 runs .* name one of them"):
        find_run(str(path))


def test_what_is_not_there_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wanted in ("missing.jsonl", "somewhere/else", str(tmp_path / "none")):
        with pytest.raises(LookupError, match="no file"):
            find_runs(wanted)
    with pytest.raises(LookupError, match="is a folder, no file: name a file of documents"):
        find_runs(str(tmp_path))
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(LookupError, match="is a folder, no file"):
        find_runs(tmp_path.name, state=tmp_path)
    with pytest.raises(ConnectionError, match="no service runs on"):
        find_runs("5d0c4f9e", state=tmp_path)
