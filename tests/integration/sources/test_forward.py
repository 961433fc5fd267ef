"""`inscan forward` as a process: everything arrives, over its own death and the service's absence."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from bluesky.callbacks.zmq import Publisher

from inscan.callbacks.request import NoServiceError, request
from inscan.callbacks.sources.files import write_documents
from inscan.callbacks.sources.ready import NotReadyError, wait_ready
from inscan.service import source_table
from inscan.service.forward import log_folder
from inscan.service.settings import SettingsError, load_settings
from inscan.service.source_settings import command, environment
from inscan.service.source_table import SourceTable


def to_json(doc: Any) -> bytes:
    return json.dumps(doc).encode()


@pytest.fixture
def forward(tmp_path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``forward("file", path, "--address", ...)``: the command, on a state directory of the test's own."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "inscan.service.cli", "forward", *map(str, arguments)]
        process = subprocess.Popen(
            [*command, "--state", str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str], status: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=40)
    assert process.returncode == status, err
    return out, err


def test_a_file_is_forwarded_and_nothing_is_left(tmp_path, forward, ingest, store, documents):
    runs = [documents(5), documents(7)]
    write_documents(tmp_path / "runs.jsonl", [doc for run in runs for doc in run])
    out, _ = ended(forward("file", tmp_path / "runs.jsonl", "--address", ingest()))
    assert f"ready: file {tmp_path}/runs.jsonl" in out
    assert "documents 18" in out and "written 18" in out
    assert [store.runs[run[0][1]["uid"]] for run in runs] == runs
    assert not list(tmp_path.rglob("*.log"))


def test_without_a_service_documents_wait_for_the_next_time(
    tmp_path, forward, ingest, store, documents
):
    run = documents()
    path = tmp_path / "run.msgpack"
    write_documents(path, run)
    alone = forward("file", path, "--address", "tcp://127.0.0.1:9", "--grace", "1")
    _, err = ended(alone, status=3)
    assert "goes out when this source is forwarded again" in err
    (log,) = tmp_path.rglob("*.log")
    assert log.parent == log_folder(tmp_path, f"file {path}")
    out, _ = ended(forward("file", path, "--address", ingest()))
    assert store.runs[run[0][1]["uid"]] == run
    assert "repeated 3" in out and "written" not in out and not log.exists()


def test_a_file_that_grows_is_followed_until_told_to_stop(
    tmp_path, forward, ingest, store, documents, until
):
    run, path = documents(20), tmp_path / "growing.jsonl"
    ready = tmp_path / "ready"
    process = forward("file", path, "--follow", "--address", ingest(), "--ready-file", ready)
    until(ready.exists)
    with path.open("w") as file:
        for document in run:
            file.write(json.dumps(document) + "\n")
            file.flush()
    until(lambda: run[0][1]["uid"] in store.over)
    process.send_signal(signal.SIGTERM)
    ended(process)
    assert store.runs[run[0][1]["uid"]] == run and not ready.exists()


def test_killed_in_the_middle_of_a_run_it_goes_on_with_it(
    tmp_path, forward, ingest, store, documents, until, proxy
):
    """The service was away, too, when the run began."""
    run = documents(30)
    uid, ready = run[0][1]["uid"], tmp_path / "ready"
    arguments = ("0mq", proxy.out, "--in", proxy.into, "--ready-file", ready)
    address = ingest()
    first = forward(*arguments, "--address", address)
    until(ready.exists)
    with closing(Publisher(proxy.into, serializer=to_json)) as publish:
        wait_ready(address, publisher=publish)
        for name, doc in run[:15]:
            publish(name, doc)
        until(lambda: len(store.runs.get(uid, [])) == 15)
        first.kill()
        first.communicate()
        ready.unlink()
        second = forward(*arguments, "--address", address)
        until(ready.exists)
        for name, doc in run[15:]:
            publish(name, doc)
        until(lambda: uid in store.over)
    second.send_signal(signal.SIGTERM)
    out, _ = ended(second)
    assert store.runs[uid] == run and store.opened == [uid]
    assert "resumed runs 1" in out


def test_a_run_joined_late_is_forwarded_from_its_next_descriptor(
    tmp_path, forward, ingest, store, documents, until
):
    run = documents()
    path = tmp_path / "late.jsonl"
    write_documents(path, run[1:])
    ended(forward("file", path, "--address", ingest()))
    assert "start" in store.reasons[run[0][1]["uid"]]


def test_one_source_is_forwarded_by_one_process(tmp_path, forward, ingest, documents, until):
    ready = tmp_path / "ready"
    arguments = ("file", tmp_path / "x.jsonl", "--follow", "--address", ingest())
    first = forward(*arguments, "--ready-file", ready)
    until(ready.exists)
    _, err = ended(forward(*arguments), status=2)
    assert "another process already" in err and len(err.splitlines()) == 1
    first.send_signal(signal.SIGTERM)
    ended(first)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("file", "/nowhere/x.jsonl"), "no such file"),
        (("0mq", "nonsense"), "no 0MQ address"),
        (("0mq", "tcp://0.0.0.0:0", "--bind"), "other machines"),
        (("kafka", "127.0.0.1:9", "t", "--config", "/nowhere"), "cannot be read"),
    ],
)
def test_what_cannot_work_is_one_line(forward, arguments, says):
    _, err = ended(forward(*arguments), status=2)
    assert says in err and "Traceback" not in err


def test_waiting_names_what_is_not_ready(ingest, store):
    address = ingest()
    with pytest.raises(NotReadyError, match="no sources"):
        wait_ready(address, timeout=0.5)
    store.table.expect("0MQ tcp://x:1", "restarting: ended with status 2")
    with pytest.raises(NotReadyError, match="0MQ tcp://x:1: restarting"):
        wait_ready(address, timeout=0.5)
    with pytest.raises(NotReadyError, match="no source 'Kafka'"):
        wait_ready(address, timeout=0.5, sources=["Kafka"])
    store.table.report("file /x", True, {"documents": 3}, os.getpid(), "host", 1.0)
    (row,) = wait_ready(address, timeout=5, sources=["file"])
    assert row["documents"] == 3 and row["ready"]
    with pytest.raises(NotReadyError, match="no service"):
        wait_ready("tcp://127.0.0.1:9", timeout=0.5)


def test_a_catalog_of_tiled_is_forwarded(forward, ingest, until, tiled, tmp_path, monkeypatch):
    monkeypatch.setenv("INSCAN_SOURCE_TILED_API_KEY", tiled.api_key.get_secret_value())
    ready = tmp_path / "ready"
    process = forward("tiled", tiled.uri, "--address", ingest(), "--ready-file", ready)
    until(ready.exists)
    process.send_signal(signal.SIGTERM)
    out, _ = ended(process)
    assert f"ready: Tiled {tiled.uri}" in out


def test_the_table_of_sources_is_bounded_and_forgets_the_gone(monkeypatch):
    table = SourceTable()
    for number in range(64):
        table.report(f"source {number}", True, {"documents": number}, 1, "host")
    with pytest.raises(ValueError, match="64 sources"):
        table.report("one more", True, {}, 1, "host")
    table.report("source 7", False, {"documents": 70}, 1, "host", 2.0, "why")
    rows = {row["label"]: row for row in table.rows()}
    assert len(rows) == 64 and rows["source 7"]["documents"] == 70 and rows["source 8"]["ready"]
    monkeypatch.setattr(source_table, "_FRESH_S", 0.0)
    assert not any(row["ready"] for row in table.rows())
    table.report("one more", True, {}, 1, "host")
    assert len(table.rows()) == 64
    for label in ("", "x" * 301):
        with pytest.raises(ValueError, match="label"):
            table.report(label, True, {}, 1, "host")


# Settings


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"kind": "carrier pigeon"}, "kind"),
        ({"address": "tcp://127.0.0.1:1"}, "kind"),
        ({"kind": "0mq", "address": "nowhere"}, "no 0MQ address"),
        ({"kind": "0mq", "address": "tcp://127.0.0.1:1", "adress": "x"}, "adress"),
        ({"kind": "0mq", "address": "tcp://127.0.0.1:1", "prefix": "a b"}, "no spaces"),
        ({"kind": "0mq", "address": "tcp://0.0.0.0:1", "bind": True}, "other machines"),
        ({"kind": "0mq", "address": "tcp://127.0.0.1:1", "bind": True, "probe": "a:1"}, "no proxy"),
        ({"kind": "kafka", "servers": "a:1", "topics": []}, "at least 1"),
        ({"kind": "tiled", "uri": "127.0.0.1:8000"}, "no address of a Tiled"),
        ({"kind": "tiled", "uri": "http://x?api_key=secret"}, "api_key_file"),
    ],
)
def test_a_source_that_cannot_work_is_refused_with_its_settings(tmp_path, source, says):
    path = tmp_path / "service.yaml"
    path.write_text(yaml.safe_dump({"sources": [source]}))
    with pytest.raises(SettingsError, match=says) as error:
        load_settings(path)
    assert str(path) in str(error.value) and "sources" in str(error.value)


def test_the_settings_in_the_documentation_are_settings(tmp_path):
    text = (Path(__file__).parents[3] / "docs" / "sources.md").read_text(encoding="utf-8")
    path = tmp_path / "service.yaml"
    path.write_text(text.split("```yaml\n")[1].split("```")[0])
    kinds = [source.kind for source in load_settings(path).sources]
    assert kinds == ["0mq", "kafka", "tiled", "file"]


def test_sources_become_commands_without_secrets(tmp_path):
    path = tmp_path / "service.yaml"
    zmq_source = {"kind": "0mq", "address": "127.0.0.1:5578", "probe": "127.0.0.1:5577"}
    kafka = {"kind": "kafka", "servers": "a:1,b:2", "topics": ["x", "y"], "group": "g"}
    tiled = {"kind": "tiled", "uri": "http://127.0.0.1:1", "api_key": "secret"}
    file = {"kind": "file", "path": "/x.jsonl"}
    path.write_text(yaml.safe_dump({"sources": [zmq_source, kafka, tiled, file]}))
    sources = load_settings(path).sources
    commands = [" ".join(command(source, tmp_path, 7)[4:]) for source in sources]
    tail = f"--state {tmp_path} --parent 7"
    assert commands == [
        f"0mq 127.0.0.1:5578 --in 127.0.0.1:5577 {tail}",
        f"kafka a:1,b:2 x y --group g {tail}",
        f"tiled http://127.0.0.1:1 {tail}",
        f"file /x.jsonl --follow {tail}",
    ]
    key = {"INSCAN_SOURCE_TILED_API_KEY": "secret"}
    assert [environment(source) for source in sources] == [{}, {}, key, {}]
    assert "secret" not in repr(sources)
    path.write_text(yaml.safe_dump({"sources": [file, file]}))
    with pytest.raises(SettingsError, match="twice"):
        load_settings(path)


# Children of the service


@pytest.fixture
def service(tmp_path, until, proxy) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    state, any_port = tmp_path / "state", "tcp://127.0.0.1:0"
    config = tmp_path / "service.yaml"
    sources = [
        {"kind": "0mq", "address": proxy.out, "probe": proxy.into, "prefix": "xf05"},
        {"kind": "file", "path": str(tmp_path / "growing.jsonl")},
    ]
    fields = {"state_dir": str(state), "ingest": any_port, "broker": any_port, "spool": any_port}
    config.write_text(yaml.safe_dump({**fields, "workers": 0, "min_free": 0, "sources": sources}))
    with (tmp_path / "service.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "inscan.service.cli", "serve", str(config)],
            stdout=log,
            stderr=log,
        )
    try:

        def ready() -> bool:
            assert process.poll() is None, (tmp_path / "service.log").read_text()[-3000:]
            return (state / "service.json").exists()

        until(ready, 60)
        yield state, process
    finally:
        process.terminate()
        process.wait(60)


def test_the_service_starts_its_sources_and_starts_them_again(
    service, tmp_path, until, proxy, documents
):
    state, process = service
    first, second = documents(plan_name="x"), documents(plan_name="y")
    with closing(Publisher(proxy.into, prefix=b"xf05", serializer=to_json)) as publish:
        wait_ready(state, timeout=40)
        (zmq_source,) = wait_ready(state, timeout=40, sources=["0MQ"], publisher=publish)
        publish("start", {"no": "uid"})
        for name, doc in first:
            publish(name, doc)
        until(lambda: uids(state) == {first[0][1]["uid"]})

        def counted() -> Any:
            row = source(state, "0MQ")
            return row if row["documents"] == len(first) and row["garbage"] == 1 else None

        row = until(counted)
        assert row["pid"] == zmq_source["pid"] and row["age_s"] >= 0 and "uid" in row["note"]

        os.kill(zmq_source["pid"], signal.SIGKILL)
        until(lambda: source(state, "0MQ")["state"].startswith("restarting"))
        (again,) = wait_ready(state, timeout=40, sources=["0MQ"], publisher=publish)
        assert again["pid"] != zmq_source["pid"]
        for name, doc in second:
            publish(name, doc)
        until(lambda: uids(state) == {first[0][1]["uid"], second[0][1]["uid"]})
    with (tmp_path / "growing.jsonl").open("w") as file:
        third = documents()
        file.writelines(json.dumps(document) + "\n" for document in third)
    until(lambda: third[0][1]["uid"] in uids(state))
    command = [sys.executable, "-m", "inscan.service.cli", "status", "--state", str(state)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "2 sources" in told and "0MQ" in told and "running" in told
    known = request(state, "known_runs", uids=["nobody's", first[0][1]["uid"]])["known"]
    assert known == [first[0][1]["uid"]]
    process.terminate()
    assert process.wait(60) == 0
    with pytest.raises(NoServiceError):
        request(state, "sources", timeout=0.5)


def uids(state: Path) -> set[str]:
    return {run["run_uid"] for run in request(state, "runs")["runs"]}


def source(state: Path, label: str) -> dict[str, Any]:
    rows = request(state, "status")["sources"]
    (row,) = (row for row in rows if row["label"].startswith(label))
    return row
