"""Files of documents: every format gives the same runs, damage is counted, hostility is refused."""

import gzip
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import event_model
import msgpack
import msgpack_numpy  # noqa: TID251 - the encoder other programs use; only its decoder is dangerous
import numpy as np
import pytest
from bluesky.callbacks.json_writer import JSONLinesWriter, JSONWriter

from inscan.callbacks.document_log import DocumentLog
from inscan.callbacks.sources import file_formats
from inscan.callbacks.sources.files import FileSource, stored_runs, write_documents
from inscan.callbacks.sources.interface import SourceError

DATA = Path(__file__).parents[3] / "shared" / "data" / "bluesky_docs"


def run_documents(points: int = 3, seed: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """A run with scalars, arrays, and a resource."""
    model: Any = event_model
    rng = np.random.default_rng(seed)
    run = model.compose_run(metadata={"scan_id": seed, "shape": [points]})
    keys = {
        "x": {"dtype": "number", "shape": [], "source": "s"},
        "spectrum": {"dtype": "array", "shape": [8], "source": "s", "dtype_numpy": "<u4"},
        "image": {"dtype": "array", "shape": [2, 2], "source": "s", "external": "FILESTORE:"},
    }
    stream = run.compose_descriptor(name="primary", data_keys=keys)
    resource = run.compose_resource(
        spec="S", root="/", resource_path="f", resource_kwargs={}, path_semantics="posix"
    )
    found = [("start", run.start_doc), ("resource", resource.resource_doc)]
    found.append(("descriptor", stream.descriptor_doc))
    for point in range(points):
        datum = resource.compose_datum(datum_kwargs={"point": point})
        event = stream.compose_event(
            data={
                "x": float(rng.normal()),
                "spectrum": rng.poisson(5, 8).astype("<u4"),
                "image": datum["datum_id"],
            },
            timestamps={"x": 0.0, "spectrum": 0.0, "image": 0.0},
            filled={"image": False},
        )
        found += [("datum", datum), ("event", event)]
    found.append(("stop", run.compose_stop()))
    return [(name, dict(doc)) for name, doc in found]


def as_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: as_lists(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_lists(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def same(found, expected) -> None:
    assert as_lists(list(found)) == as_lists(expected)
    for (name, doc), (_, wanted) in zip(found, expected, strict=True):
        if name == "event":
            spectrum = doc["data"]["spectrum"]
            assert isinstance(spectrum, np.ndarray), "arrays come back as arrays"
            assert spectrum.dtype == wanted["data"]["spectrum"].dtype


def jsonl(path, documents) -> None:
    path.write_text("".join(json.dumps([n, as_lists(d)]) + "\n" for n, d in documents))


def named_jsonl(path, documents) -> None:
    lines = (json.dumps({"name": n, "doc": as_lists(d)}) + "\n" for n, d in documents)
    path.write_text("".join(lines))


def json_seq(path, documents) -> None:
    lines = (f"\x1e{json.dumps({'name': n, 'doc': as_lists(d)})}\n" for n, d in documents)
    path.write_text("".join(lines))


def json_list(path, documents) -> None:
    path.write_text(json.dumps([[n, as_lists(d)] for n, d in documents], indent=1))


def flat_json_list(path, documents) -> None:
    path.write_text(json.dumps([[n, as_lists(d)] for n, d in documents]))


def uid_mapping(path, documents) -> None:
    path.write_text(json.dumps({documents[0][1]["uid"]: [[n, as_lists(d)] for n, d in documents]}))


def text_in_text(path, documents) -> None:
    whole = {documents[0][1]["uid"]: [[n, as_lists(d)] for n, d in documents]}
    path.write_text(json.dumps(json.dumps(whole, indent=4)))


def plain_msgpack(path, documents) -> None:
    pairs: Any = [msgpack.packb([n, as_lists(d)]) for n, d in documents]
    path.write_bytes(b"".join(pairs))


def numpy_msgpack(path, documents) -> None:
    pairs: Any = [msgpack.packb((n, d), default=msgpack_numpy.encode) for n, d in documents]
    path.write_bytes(b"".join(pairs))


def own_jsonl(path, documents) -> None:
    assert write_documents(path.with_suffix(".jsonl"), documents) == len(documents)
    path.with_suffix(".jsonl").rename(path)


def own_msgpack(path, documents) -> None:
    assert write_documents(path.with_suffix(".msgpack"), documents) == len(documents)
    path.with_suffix(".msgpack").rename(path)


def own_log(path, documents) -> None:
    log = DocumentLog(path.parent / "log")
    for name, doc in documents:
        log.append(name, doc)
    (file,) = log.take_new()
    os.link(file.path, path)
    file.close()


FORMATS = [
    jsonl,
    named_jsonl,
    json_seq,
    json_list,
    flat_json_list,
    uid_mapping,
    text_in_text,
    plain_msgpack,
    numpy_msgpack,
    own_jsonl,
    own_msgpack,
    own_log,
]


@pytest.mark.parametrize("compressed", [False, True], ids=["", "gz"])
@pytest.mark.parametrize("write", FORMATS)
def test_every_format_gives_the_same_documents(tmp_path, write, compressed):
    documents = run_documents()
    path = tmp_path / "file"
    write(path, documents)
    if compressed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    (run,) = stored_runs(path)
    assert run.uid == documents[0][1]["uid"] == run.start["uid"]
    assert str(path) in run.where
    same(list(run.documents()), documents)
    same(list(run.documents()), documents)  # again: it is read anew


def test_a_run_longer_than_a_piece_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(file_formats, "_PIECE", 13)
    documents = run_documents(points=50)
    for write in (jsonl, flat_json_list, numpy_msgpack, own_msgpack, own_log):
        path = tmp_path / write.__name__
        write(path, documents)
        same(list(stored_runs(path)[0].documents()), documents)


def test_what_bluesky_itself_writes(tmp_path):
    documents = [(n, as_lists(d)) for n, d in run_documents()]
    for writer, suffix in ((JSONLinesWriter, "jsonl"), (JSONWriter, "json")):
        write = writer(tmp_path, filename=f"run.{suffix}")
        for name, doc in documents:
            write(name, doc)
        (run,) = stored_runs(tmp_path / f"run.{suffix}")
        assert as_lists(list(run.documents())) == as_lists(documents)


def test_runs_that_interleave_are_told_apart(tmp_path):
    first, second = run_documents(seed=1), run_documents(seed=2)
    mixed = [doc for pair in zip(first, second, strict=True) for doc in pair]
    write_documents(tmp_path / "two.jsonl", mixed)
    runs = stored_runs(tmp_path / "two.jsonl")
    assert [run.uid for run in runs] == [first[0][1]["uid"], second[0][1]["uid"]]
    same(list(runs[0].documents()), first)
    same(list(runs[1].documents()), second)


def test_start_comes_first_and_stop_last_whatever_the_file_says(tmp_path):
    documents = run_documents()
    shuffled = [documents[1], documents[0], documents[2], documents[-1], *documents[3:-1]]
    write_documents(tmp_path / "odd.jsonl", shuffled)
    (run,) = stored_runs(tmp_path / "odd.jsonl")
    found = list(run.documents())
    assert found[0][0] == "start" and found[-1][0] == "stop"
    assert sorted(n for n, _ in found) == sorted(n for n, _ in documents)


def test_text_and_odd_values_are_written_all_the_same(tmp_path):
    start = {
        "uid": "ä" * 20,
        "time": 1.0,
        "nan": float("nan"),
        "set": {"b", "a"},
        "bytes": b"\xff",
        "object": object(),
        "f4": np.float32(1.5),
    }
    for name in ("x.jsonl", "x.msgpack", "x.jsonl.gz"):
        assert write_documents(tmp_path / name, [("start", start)]) == 1
        (run,) = stored_runs(tmp_path / name)
        assert run.uid == "ä" * 20 and run.start["f4"] == 1.5 and np.isnan(run.start["nan"])
    assert not list(tmp_path.glob(".*")), "nothing half-written is left"


def test_an_unknown_suffix_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(SourceError, match=r"\.jsonl or \.msgpack"):
        write_documents(tmp_path / "x.csv", [])
    assert not list(tmp_path.iterdir())


def test_damaged_pieces_are_counted_and_the_first_is_named(tmp_path, caplog):
    documents = run_documents()
    lines = [json.dumps([n, as_lists(d)]) for n, d in documents]
    broken = [*lines[:3], "{broken", '["event", {}]', '["spam", {"uid": "x"}]', "7", *lines[3:]]
    path = tmp_path / "damaged.jsonl"
    path.write_text("\n".join(broken))
    with caplog.at_level(logging.WARNING):
        (run,) = stored_runs(path)
    same(list(run.documents()), documents)
    assert "4 garbage" in caplog.text and "line 4" in caplog.text


def test_a_file_cut_anywhere_gives_what_is_whole(tmp_path):
    documents = run_documents()
    for write in (jsonl, numpy_msgpack, own_msgpack, own_log):
        path = tmp_path / write.__name__
        write(path, documents)
        path.write_bytes(path.read_bytes()[:-5])
        (run,) = stored_runs(path)
        same(list(run.documents()), documents[:-1])


def test_a_damaged_record_of_a_log_costs_that_record_only(tmp_path):
    documents = run_documents()
    own_log(tmp_path / "x.log", documents)
    data = bytearray((tmp_path / "x.log").read_bytes())
    data[data.index(b"seq_num") + 2] ^= 0xFF
    (tmp_path / "x.log").write_bytes(data)
    (run,) = stored_runs(tmp_path / "x.log")
    assert len(list(run.documents())) == len(documents) - 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no start document"),
        (b"\n\n", "no start document"),
        (b"hello", "no file of Bluesky documents"),
        (b"\x80\x04\x95", "pickle"),
        (b"PK\x03\x04", "no file of Bluesky documents"),
        (b'{"event_name": "on_event", "subscription_segments": []}', "websocket"),
        (b'{"a": 1, "b": 2}', "keys"),
        (b'["stop", {"run_start": "u"}]', "no start document"),
        (b"[" * 10_000, "deep"),
        (b"\x92" * 10_000, "no start document"),
        (b"\xdd\xff\xff\xff\xff", "no start document"),
        (gzip.compress(b'["start", {"uid": "u"}]', mtime=0)[:-9], "cut short"),
        (b"\x1f\x8b" + b"\x00" * 50, "damaged"),
    ],
)
def test_files_of_something_else_are_refused_in_one_line(tmp_path, content, says):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(SourceError) as error:
        stored_runs(path)
    assert says in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(SourceError, match="no such file|no file"):
            stored_runs(path)


def test_a_decompression_bomb_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(file_formats, "_MAX_EXPANDED", 10 * 2**20)
    line = json.dumps(["stop", {"run_start": "u", "spam": " " * 100_000}]) + "\n"
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(line.encode() * 500))
    with pytest.raises(SourceError, match="expands to more"):
        stored_runs(tmp_path / "bomb.gz")


def test_one_endless_document_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(file_formats, "MAX_DOCUMENT_BYTES", 2**20)
    for begin, name in ((b'["start", {"uid": "', "json"), (b"\xc6\x7f\xff\xff\xff", "msgpack")):
        (tmp_path / name).write_bytes(gzip.compress(begin + b"a" * 4 * 2**20))
        with pytest.raises(SourceError, match="more than 1 MiB|no start document"):
            stored_runs(tmp_path / name)


# The live form


class Collected(list):
    def __call__(self, name, doc):
        self.append((name, doc))

    def wait(self, count: int) -> None:
        for _ in range(1000):
            if len(self) >= count:
                return
            threading.Event().wait(0.01)
        raise AssertionError(f"{len(self)} of {count} documents")


def test_a_file_is_handed_on_once(tmp_path):
    documents = run_documents()
    numpy_msgpack(tmp_path / "file", documents)
    source, sink = FileSource(tmp_path / "file"), Collected()
    source.run(sink, threading.Event())
    same(sink, documents)
    assert source.ready.is_set() and source.counts == {"documents": len(documents)}
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(SourceError, match="no documents"):
        FileSource(tmp_path / "empty").run(sink, threading.Event())


@pytest.mark.parametrize("write", [jsonl, own_msgpack, own_log])
def test_a_growing_file_is_followed(tmp_path, write):
    documents = run_documents(points=10)
    write(tmp_path / "whole", documents)
    data, path = (tmp_path / "whole").read_bytes(), tmp_path / "growing"
    source, sink, stop = FileSource(path, follow=True), Collected(), threading.Event()
    thread = threading.Thread(target=source.run, args=(sink, stop))
    thread.start()
    try:
        assert source.ready.wait(10)
        with path.open("wb") as file:
            for at in range(0, len(data), 333):  # pieces that end in the middle of documents
                file.write(data[at : at + 333])
                file.flush()
        sink.wait(len(documents))
        same(sink, documents)
        jsonl(path, documents[:2])  # cut and written anew
        sink.wait(len(documents) + 2)
        assert source.counts["replaced"] == 1
    finally:
        stop.set()
        thread.join()
    assert not source.counts["garbage"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (gzip.compress(b'["start", {"uid": "u"}]\n', mtime=0), "compressed"),
        (msgpack.packb(["start", {"uid": "u"}]) + b"\xc1" * 30, "rest is lost"),  # type: ignore[operator]
    ],
)
def test_what_cannot_be_followed_ends_with_the_reason(tmp_path, content, says):
    (tmp_path / "file").write_bytes(content)
    sink = Collected()
    with pytest.raises(SourceError, match=says):
        FileSource(tmp_path / "file", follow=True).run(sink, threading.Event())
    assert sink == [("start", {"uid": "u"})]


# Real files


@pytest.mark.measured
@pytest.mark.skipif(not DATA.exists(), reason="the measured data are not beside the project")
def test_recorded_documents_of_real_beamlines(tmp_path):
    found = {}
    for path in sorted(DATA.glob("*/*")):
        try:
            runs = stored_runs(path)
        except SourceError as error:
            assert "websocket" in str(error) and path.parent.name == "arroyosas_smi"
            continue
        found[path.name] = len(runs)
        for run in runs:
            documents = list(run.documents())
            assert documents[0][0] == "start" and documents[-1][0] == "stop"
            assert write_documents(tmp_path / "x.msgpack", documents) == len(documents)
            (again,) = stored_runs(tmp_path / "x.msgpack")
            assert as_lists(list(again.documents())) == as_lists(documents)
    assert found["usaxs.json.gz"] == 10
    assert found["SAMPLE_IMAGE_STACK_energystack.json.gz"] == 3
    assert len(found) == 10
