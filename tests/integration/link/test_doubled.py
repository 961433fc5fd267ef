"""A run that two forwarders send is taken from one of them, and no log is deleted before the run is over."""

from pathlib import Path
from typing import Any

import pytest
from event_model import compose_run

from inscan.callbacks import outbox
from inscan.service import ingest as ingest_module

Documents = list[tuple[str, Any]]


@pytest.fixture
def documents() -> Documents:
    run = compose_run()
    bundle = run.compose_descriptor(
        name="primary", data_keys={"x": {"dtype": "number", "shape": [], "source": "sim"}}
    )
    found: Documents = [("start", run.start_doc), ("descriptor", bundle.descriptor_doc)]
    for number in range(1, 9):
        event = bundle.compose_event(data={"x": number}, timestamps={"x": 0.0}, seq_num=number)
        found.append(("event", event))
    return [*found, ("stop", run.compose_stop())]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "STALL", 0.3)
    monkeypatch.setattr(ingest_module, "LIVING_S", 1.5)


def logs(folder: Path) -> list[Path]:
    return list((folder / "log").glob("*.log"))


def test_the_first_is_taken_and_the_other_keeps_its_log(
    serve: Any,
    link: Any,
    store: Any,
    documents: Documents,
    wait_until: Any,
    tmp_path: Path,
    hasty: None,
) -> None:
    service = serve()
    uid = documents[0][1]["uid"]
    one, other = (link(service.address, tmp_path / name) for name in ("one", "other"))
    for name, doc in documents[:5]:
        one(name, doc)
    wait_until(lambda: store.tapes and len(store.documents(uid)) == 5)
    # The other has lost something: its offsets mean something else.
    for name, doc in (*documents[:3], *documents[4:]):
        other(name, doc)
    wait_until(lambda: service.ingest.counts["doubled"] == 1, "the other is told")
    assert logs(tmp_path / "other") and not store.finals(uid)
    for name, doc in documents[5:]:
        one(name, doc)
    wait_until(lambda: store.finals(uid))
    assert store.documents(uid) == [(name, dict(doc)) for name, doc in documents]
    wait_until(lambda: not logs(tmp_path / "one") and not logs(tmp_path / "other"))
    assert len(store.tapes) == 1 and service.ingest.counts["garbage"] == 0


def test_the_other_is_taken_when_the_first_has_died(
    serve: Any,
    link: Any,
    store: Any,
    documents: Documents,
    wait_until: Any,
    tmp_path: Path,
    hasty: None,
) -> None:
    service = serve()
    uid = documents[0][1]["uid"]
    one, other = (link(service.address, tmp_path / name) for name in ("one", "other"))
    for name, doc in documents[:5]:
        one(name, doc)
    wait_until(lambda: store.tapes and len(store.documents(uid)) == 5)
    for name, doc in documents:
        other(name, doc)
    wait_until(lambda: service.ingest.counts["doubled"] == 1, "the other is told")
    one.close(0.0)
    wait_until(lambda: store.finals(uid))
    assert store.documents(uid) == [(name, dict(doc)) for name, doc in documents]
    wait_until(lambda: not logs(tmp_path / "other"))
