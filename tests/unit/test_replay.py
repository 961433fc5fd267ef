"""Stored documents again: fresh uids, their own time, and what goes wrong on purpose."""

import copy
import math
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import event_model
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inscan.callbacks.assembly import open_assembler
from inscan.callbacks.geometry import ScanGeometry
from inscan.callbacks.profile import load_profile
from inscan.callbacks.recording import DATA, Due, Recording
from inscan.callbacks.replay import Closing, identity, renamed
from inscan.callbacks.replay_clock import play, speed_of
from inscan.callbacks.replay_faults import FAULTS, Fault, inject, parse_fault, words
from inscan.callbacks.replay_lines import lines_of

ELEMENTS = ("Ca_K", "Fe_K")
ROWS, COLS, CHANNELS = 4, 5, 2
Documents = list[tuple[str, dict[str, Any]]]


def step_scan(**more: Any) -> tuple[Documents, np.ndarray]:
    """A map, event by event; and its counts (channel, element, row, col), none of them 0."""
    counts = np.random.default_rng(0).integers(1, 100, (CHANNELS, 2, ROWS, COLS))
    run = event_model.compose_run(
        metadata={
            "beamline_id": "sim_xrf",
            "shape": [ROWS, COLS],
            "extents": [[0.0, 3.0], [10.0, 14.0]],
            "snaking": [False, True],
            "motors": ["sample_y", "sample_x"],
            "scan": {"type": "XRF_STEP", "energy": 12.0, "dwell": 0.1},
            "scan_id": 41,
            "data_session": "pass-300000",
            "proposal": {"id": "300000"},
            "tiled_access_tags": ["pass-300000"],
            **more,
        },
        time=1000.0,
    )
    geometry = ScanGeometry.from_start(run.start_doc)
    number = {"dtype": "number", "shape": [], "source": "sim"}
    keys: dict[str, Any] = {"sclr_i0": number}
    keys |= {motor: number | {"units": "um"} for motor in ("sample_x", "sample_y")}
    for c in range(1, CHANNELS + 1):
        keys[f"xs_channel{c:02d}_live_time"] = number
        keys |= {f"xs_channel{c:02d}_mcaroi{m:02d}_total_rbv": number for m in (1, 2)}
    names = {f"xs_mcaroi{m:02d}_name": name for m, name in enumerate(ELEMENTS, 1)}
    stream = run.compose_descriptor(
        name="primary",
        data_keys=keys,
        time=1000.5,
        configuration={
            "xs": {
                "data": names,
                "timestamps": dict.fromkeys(names, 0.0),
                "data_keys": {
                    key: {"dtype": "string", "shape": [], "source": "sim"} for key in names
                },
            }
        },
    )
    documents: Documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]  # type: ignore[list-item]
    for n in range(ROWS * COLS):
        row, col = geometry.pixel_of(n + 1)
        slow, fast = geometry.position_of(row, col)
        data: dict[str, Any] = {"sclr_i0": 1000.0, "sample_y": slow, "sample_x": fast}
        for c in range(CHANNELS):
            data[f"xs_channel{c + 1:02d}_live_time"] = 0.1
            for m in range(2):
                data[f"xs_channel{c + 1:02d}_mcaroi{m + 1:02d}_total_rbv"] = int(
                    counts[c, m, row, col]
                )
        event = stream.compose_event(
            data=data, timestamps=dict.fromkeys(data, 0.0), time=1001.0 + n
        )
        documents.append(("event", event))  # type: ignore[arg-type]
    documents.append(("stop", run.compose_stop(time=1030.0)))  # type: ignore[arg-type]
    return documents, counts


def all_kinds() -> Documents:
    """A run with a document of every kind."""
    run = event_model.compose_run(metadata={"scan_id": 7, "parent_uid": "the-survey"}, time=100.0)
    keys: dict[str, Any] = {
        "image": {"dtype": "array", "shape": [2, 2], "source": "s", "external": "FILESTORE:"},
        "note": {"dtype": "string", "shape": [], "source": "s"},
    }
    old = run.compose_descriptor(name="primary", data_keys=keys, time=101.0)
    resource = run.compose_resource(
        spec="AD_HDF5", root="/data", resource_path="a/f.h5", resource_kwargs={"frame_per_point": 1}
    )
    documents: list[tuple[str, Any]] = [
        ("start", run.start_doc),
        ("descriptor", old.descriptor_doc),
        ("resource", resource.resource_doc),
    ]
    for n in range(4):
        datum = resource.compose_datum(datum_kwargs={"point_number": n})
        # Some detectors write the reference where the time belongs.
        event = old.compose_event(
            data={"image": datum["datum_id"], "note": "a/b"},
            timestamps={"image": datum["datum_id"], "note": 1.0},
            filled={"image": False},
            time=102.0 + n,
            validate=False,
        )
        documents += [("datum", datum), ("event", event)]
    documents[3:5] = [("datum_page", event_model.pack_datum_page(documents[3][1]))] + documents[4:5]
    documents[4:5] = [("event_page", event_model.pack_event_page(documents[4][1]))]
    fly = run.compose_descriptor(
        name="fly",
        data_keys={"xs": {"dtype": "array", "shape": [1, 3], "source": "s", "external": "STREAM:"}},
        time=102.0,
    )
    assert run.compose_stream_resource is not None
    stream = run.compose_stream_resource(
        mimetype="application/x-hdf5",
        uri="file://localhost/data/b/g.h5",
        data_key="xs",
        parameters={"dataset": "entry/data"},
    )
    documents += [
        ("descriptor", fly.descriptor_doc),
        ("stream_resource", stream.stream_resource_doc),
    ]
    for n in range(2):
        datum = stream.compose_stream_datum(
            indices={"start": 5 * n, "stop": 5 * n + 5},
            seq_nums={"start": 5 * n + 1, "stop": 5 * n + 6},
            descriptor=fly.descriptor_doc,
        )
        documents.append(("stream_datum", datum))
    documents.append(("stop", run.compose_stop(time=112.0)))
    return documents


def validate(documents: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    for name, doc in documents:
        plain = {key: value for key, value in doc.items() if key != "timestamps"}
        if name in ("event", "event_page"):
            plain["timestamps"] = {
                key: [0.0] if name == "event_page" else 0.0 for key in doc["timestamps"]
            }
        event_model.schema_validators[event_model.DocumentNames[name]].validate(plain)  # type: ignore[misc]


def refer(documents: Iterable[tuple[str, Mapping[str, Any]]]) -> set[str]:
    """Whatever documents refer to and nothing in them is."""
    own, referred = set(), set()
    for name, doc in documents:
        own |= set(_listed(doc.get("uid"))) | set(_listed(doc.get("datum_id")))
        for key in ("run_start", "descriptor", "resource", "stream_resource"):
            referred |= set(_listed(doc.get(key)))
        if name in ("event", "event_page") and "image" in doc["data"]:
            referred |= set(_listed(doc["data"]["image"]))
            referred |= set(_listed(doc["timestamps"]["image"]))
    return referred - own


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


@pytest.mark.parametrize("documents", [step_scan()[0], all_kinds()], ids=["step", "every kind"])
def test_a_replay_is_a_valid_run_of_its_own(documents: Documents) -> None:
    before = copy.deepcopy(documents)
    who = identity(documents[0][1]["uid"])
    again = list(renamed(documents, who, {"time": 5.0}))
    validate(again)
    assert documents == before, "stored documents are not ours to change"
    assert refer(again) == set()
    assert [name for name, _ in again] == [name for name, _ in documents]
    uids = {uid for _, doc in again for uid in _listed(doc.get("uid"))}
    old = {uid for _, doc in documents for uid in _listed(doc.get("uid"))}
    assert len(uids) == len(old) and not uids & old
    assert again[0][1]["uid"] == who.uid != who.original


def test_the_start_document_says_what_it_is() -> None:
    documents, _ = step_scan()
    original = documents[0][1]
    (_, start), *_ = renamed(documents, identity(original["uid"]), {"time": 5.0})
    assert start["replay_of"] == original["uid"]
    assert start["replay"] == {"time": 5.0, "scan_id": 41}
    assert "scan_id" not in start, "the number keeps meaning the run itself"
    assert start["simulated"] is False
    for key in ("data_session", "proposal", "tiled_access_tags", "time", "beamline_id"):
        assert start[key] == original[key]
    simulated, _ = step_scan(simulated=True)
    (_, start), *_ = renamed(simulated, identity("x"), {})
    assert start["simulated"] is True, "what was simulated does not become real"


def test_parents_that_are_replayed_too_are_followed() -> None:
    documents = all_kinds()
    who = identity(documents[0][1]["uid"])
    (_, start), *_ = renamed(documents, who, {})
    assert start["parent_uid"] == "the-survey"
    (_, start), *_ = renamed(documents, who, {}, runs={"the-survey": "its-replay"})
    assert start["parent_uid"] == "its-replay"


def test_references_to_data_change_and_texts_stay() -> None:
    documents = all_kinds()
    again = list(renamed(documents, identity(documents[0][1]["uid"]), {}))
    ids = [doc["datum_id"] for name, doc in again if name == "datum"]
    events = [doc for name, doc in again if name == "event"]
    assert [event["data"]["image"] for event in events] == ids
    assert [one.split("/")[1] for one in ids] == ["1", "2", "3"]
    assert {event["data"]["note"] for event in events} == {"a/b"}
    # Tiled and MongoDB drop `filled`: the descriptor says the same.
    bare = [(n, {k: v for k, v in d.items() if k != "filled"}) for n, d in documents]
    assert refer(renamed(bare, identity(documents[0][1]["uid"]), {})) == set()


def test_the_same_seed_gives_the_same_uids_and_another_none_of_them() -> None:
    documents = all_kinds()

    def uids(**of: Any) -> list[Any]:
        who = identity(documents[0][1]["uid"], **of)
        return [doc.get("uid") for _, doc in renamed(documents, who, {})]

    assert uids(seed=1) == uids(seed=1)
    assert uids(seed=1) != uids(seed=2)
    assert uids(seed=1) != uids(seed=1, of="dropped=0.1"), "other faults make another run"
    assert uids() != uids()


def test_what_is_no_document_is_left_out_and_counted() -> None:
    counts: Counter[str] = Counter()
    rubbish: list[Any] = [("start", 3), ("nonsense", {}), ("event", {}), ("event", {"data": 5})]
    rubbish += [
        ("descriptor", {"data_keys": 1, "uid": 4}),
        ("stop", {}),
        ("datum", {"datum_id": []}),
    ]
    rubbish += [("event", {"descriptor": ["x"], "data": {"a": "b"}, "filled": {"a": [False]}})]
    kept = list(renamed(rubbish, identity("x"), {}, counts=counts))
    assert sum(counts.values()) == 2
    assert [name for name, _ in kept] == ["event", "event", "descriptor", "datum", "event"]
    assert "stop" not in [name for name, _ in kept], "an empty one is Tiled's of an unfinished run"


# Time


def recorded(documents: Iterable[Any], tmp_path: Path) -> list[Due]:
    with Recording(documents, tmp_path) as recording:
        return list(recording)


def test_documents_come_back_as_they_were(tmp_path: Path) -> None:
    documents, _ = step_scan()
    documents[2][1]["data"]["sclr_i0"] = np.arange(3, dtype="u2")
    with Recording(documents, tmp_path) as recording:
        assert len(recording) == len(documents) == recording.data + 3
        assert recording.start["scan_id"] == 41 and recording.streams == {"primary": ROWS * COLS}
        assert recording.duration == 30.0
        for found in (list(recording), list(recording)):
            assert [due.name for due in found] == [name for name, _ in documents]
            np.testing.assert_array_equal(found[2].doc["data"]["sclr_i0"], np.arange(3))
            assert found[2].doc["data"]["sclr_i0"].dtype == np.uint16
            assert [due.at for due in found] == [0.0, 0.5, *map(float, range(1, 21)), 30.0]
    assert list(tmp_path.iterdir()) == []


def test_documents_without_a_time_are_due_with_what_they_announce(tmp_path: Path) -> None:
    found = recorded(all_kinds(), tmp_path)
    at = [(due.name, due.at) for due in found]
    assert at[:4] == [("start", 0.0), ("descriptor", 1.0), ("resource", 2.0), ("datum_page", 2.0)]
    # Each stream_datum has its share of the time from its descriptor to the stop.
    assert [due.at for due in found if due.name == "stream_datum"] == [7.0, 12.0]
    names = [name for name, _ in at]
    assert names.index("stream_resource") == names.index("stream_datum") - 1
    assert at[-1] == ("stop", 12.0)


def test_streams_that_were_stored_one_after_the_other_are_interleaved_again(tmp_path: Path) -> None:
    documents, _ = step_scan()
    baseline = dict(documents[1][1], uid="b", name="baseline", time=1000.6)
    late = [dict(documents[2][1], descriptor="b", uid=str(t), time=t) for t in (1000.7, 1029.0)]
    stored = [*documents[:1], ("descriptor", baseline), *(("event", one) for one in late)]
    found = recorded([*stored, *documents[1:]], tmp_path)
    assert [due.at for due in found] == sorted(due.at for due in found)
    assert [due.doc["uid"] for due in found if due.name == "event"][-1] == "1029.0"
    described: set[str] = set()
    for due in found:
        if due.name == "descriptor":
            described.add(due.doc["uid"])
        elif due.name == "event":
            assert due.doc["descriptor"] in described


@pytest.mark.parametrize("time", [None, math.nan, math.inf, -1e300, 1e300, "noon", [], True])
def test_wrong_clocks_hold_nothing_up(time: Any, tmp_path: Path) -> None:
    documents = copy.deepcopy(step_scan()[0])
    documents[1][1]["time"] = documents[5][1]["time"] = time
    found = recorded(documents, tmp_path)
    assert len(found) == len(documents)
    assert all(0.0 <= due.at <= 30.0 for due in found)
    names = [due.name for due in found]
    assert names[0] == "start" and names[-1] == "stop" and names.index("descriptor") == 1


class Patient(threading.Event):
    """Waits for nothing, and remembers how long it was asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.asked.append(timeout)
        return self.is_set()


def played(found: Iterable[Due], speed: float, stop: threading.Event, **more: Any) -> Documents:
    taken: Documents = []
    closing = Closing("6f0f6f5c-6d19-5c0a-9d5e-5a0e0f6a3b11")
    play(
        found,
        lambda name, doc: taken.append((name, dict(doc))),
        closing,
        speed=speed,
        stop=stop,
        **more,
    )
    return taken


def test_each_document_waits_for_its_time(tmp_path: Path) -> None:
    found, stop = recorded(step_scan()[0], tmp_path), Patient()
    assert len(played(found, 0.001, stop)) == len(found)
    # 500 s and more apart, the few microseconds that pass meanwhile do not show.
    assert [round(pause / 500) for pause in stop.asked] == [1, *range(2, 42, 2), 60]
    stop = Patient()
    played(found, math.inf, stop)
    assert stop.asked == []


def test_a_replay_that_is_stopped_ends_its_run(tmp_path: Path) -> None:
    found, stop = recorded(step_scan()[0], tmp_path), threading.Event()

    def halfway(due: Due) -> None:
        if due.name == "event" and due.doc["seq_num"] == 8:
            stop.set()

    taken = played(found, math.inf, stop, progress=halfway)
    assert [name for name, _ in taken] == ["start", "descriptor", *["event"] * 8, "stop"]
    assert taken[-1][1]["exit_status"] == "abort"
    assert taken[-1][1]["reason"] == "the replay was stopped"
    assert taken[-1][1]["num_events"] == {"primary": 8}
    validate(taken[-1:])
    assert played(found, math.inf, stop) == [], "nothing was begun, nothing needs an end"


def test_a_replay_that_breaks_off_and_a_run_without_stop_are_ended(tmp_path: Path) -> None:
    found = recorded(step_scan()[0], tmp_path)

    def broken() -> Iterator[Due]:
        yield from found[:4]
        raise OSError("the disk is gone")

    taken: Documents = []
    closing = Closing("6f0f6f5c-6d19-5c0a-9d5e-5a0e0f6a3b11")
    with pytest.raises(OSError, match="disk is gone"):
        play(
            broken(),
            lambda name, doc: taken.append((name, dict(doc))),
            closing,
            speed=math.inf,
            stop=threading.Event(),
        )
    assert taken[-1][1]["reason"] == "the replay broke off"
    taken = played(found[:-1], math.inf, threading.Event())
    assert taken[-1][1]["reason"] == "the stored run has no stop document"


def test_speeds_are_numbers_or_max() -> None:
    assert speed_of("max") == math.inf and speed_of("2.5") == 2.5
    for text in ("0", "-1", "fast", "nan", "inf", ""):
        with pytest.raises(ValueError, match="expected a positive number"):
            speed_of(text)


# Faults


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("dropped=0.05", Fault("dropped", 0.05)),
        ("reordered", Fault("reordered", 20)),
        ("delayed=2s", Fault("delayed", 2.0)),
        ("dead_lines=3", Fault("dead_lines", 3)),
        ("aborted=0.6", Fault("aborted", 0.6)),
    ],
)
def test_faults_are_read(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    "text", ["dropt=1", "dropped=2", "dropped=x", "dead_lines=1.5", "delayed=", "aborted=-1", ""]
)
def test_wrong_faults_are_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(ValueError, match="--fault.*(takes a|There are dead_lines)"):
        parse_fault(text)


PROFILE = load_profile("sim_xrf")
SCAN, COUNTS = step_scan()
DUES = [Due(float(n), name, doc) for n, (name, doc) in enumerate(SCAN)]


def faulted(seed: int, *faults: Fault) -> tuple[list[Due], Counter[str]]:
    done: Counter[str] = Counter()
    lines = lines_of(SCAN[0][1], [PROFILE], ROWS * COLS)
    data = sum(due.name in DATA for due in DUES)
    return list(inject(DUES, faults, seed, done, data=data, lines=lines)), done


amounts = {
    "dead_lines": st.integers(1, 6),
    "reordered": st.integers(1, 30),
    "delayed": st.floats(0, 30),
}
several = st.lists(st.sampled_from(sorted(FAULTS)), unique=True).flatmap(
    lambda names: st.tuples(
        *(
            st.builds(Fault, st.just(name), amounts.get(name, st.floats(0, 1)).map(float))
            for name in names
        )
    )
)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), faults=several)
def test_whatever_goes_wrong_the_map_is_true_where_it_says_measured(
    seed: int, faults: tuple[Fault, ...]
) -> None:
    before = copy.deepcopy(SCAN)
    found, done = faulted(seed, *faults)
    again, counted = faulted(seed, *faults)
    assert found == again and done == counted, "same seed, same faults"
    assert before == SCAN, "stored documents are not ours to change"
    names = [due.name for due in found]
    assert names[0] == "start" and names[-1] == "stop"
    assert names.count("start") == names.count("stop") == 1
    validate([(found[-1].name, found[-1].doc)])

    assembler = open_assembler(found[0].doc, [PROFILE])
    updates = [update for due in found for update in assembler(due.name, due.doc)]
    assert updates, "the stop document always brings a final"
    if updates[-1].kind == "rejected":
        return
    arrays, asked = updates[-1].arrays, {fault.name for fault in faults}
    measured, counts = arrays["measured"], arrays["counts"]
    assert not np.any(counts[:, :, ~measured]), "what is missing is masked"
    right = counts == COUNTS
    if "dead_lines" in asked:
        right |= counts == 0
    assert right[:, :, measured].all(), "what is measured is what was measured"
    if not asked & {"dropped", "truncated", "aborted"}:
        assert measured.all(), "order, repetition and delay cost nothing"
    lost = done["dropped event"] + done["truncated event"]
    if lost and not asked & {"duplicated", "aborted"}:
        assert measured.sum() >= ROWS * COLS - lost


def test_dead_lines_are_of_one_channel() -> None:
    found, done = faulted(3, Fault("dead_lines", 2))
    assert done == {"killed detector line": 2}
    assembler = open_assembler(found[0].doc, [PROFILE])
    updates = [update for due in found for update in assembler(due.name, due.doc)]
    counts = updates[-1].arrays["counts"]
    dead = (counts == 0).all(axis=(1, 3))
    assert dead.sum() == 2 and dead.any(axis=0).sum() == 2, "two rows, one channel in each"
    alive = ~np.broadcast_to(dead[:, None, :, None], counts.shape)
    np.testing.assert_array_equal(counts[alive], COUNTS[alive])
    assert updates[-1].arrays["measured"].all(), "nothing was counted, but it was measured"


def test_lines_of_a_run_that_nobody_knows_stay_alive() -> None:
    assert lines_of({"uid": "x"}, [PROFILE], 5) is None
    assert lines_of({**SCAN[0][1], "shape": "broken"}, [PROFILE], 5) is None
    done: Counter[str] = Counter()
    assert list(inject(DUES, [Fault("dead_lines", 1)], 0, done, data=20)) == DUES
    assert words(done) == ["lines left alive, no raster is known: 1 run"]


def test_lines_whose_counts_are_in_files_stay_alive_and_are_counted() -> None:
    lines = lines_of(SCAN[0][1], [PROFILE], ROWS * COLS)
    files = [due for due in DUES if due.name != "event"]
    done: Counter[str] = Counter()
    assert list(inject(files, [Fault("dead_lines", 3)], 0, done, data=0, lines=lines)) == files
    assert words(done) == ["lines left alive, no event has their counts: 3 lines"]


def test_an_aborted_run_ends_after_its_share() -> None:
    found, done = faulted(0, Fault("aborted", 0.6))
    assert [due.name for due in found] == ["start", "descriptor", *["event"] * 12, "stop"]
    assert found[-1].doc["exit_status"] == "abort"
    assert found[-1].doc["num_events"] == {"primary": 12}
    assert words(done) == ["aborted 1 run"]
    whole, done = faulted(0, Fault("aborted", 1.0))
    assert whole == DUES and not done


def test_documents_that_are_late_come_late_but_in_the_run() -> None:
    found, _ = faulted(1, Fault("delayed", 5.0))
    numbers = [due.doc["seq_num"] for due in found if due.name == "event"]
    assert sorted(numbers) == list(range(1, 21)) != numbers
    assert [due.at for due in found] == sorted(due.at for due in found)
    found, done = faulted(1, Fault("reordered", 4))
    numbers = [due.doc["seq_num"] for due in found if due.name == "event"]
    assert sorted(numbers) == list(range(1, 21)) != numbers
    assert max(abs(number - place) for place, number in enumerate(numbers, 1)) <= 4
    assert done["reordered event"] == sum(
        number < max(numbers[: place + 1]) for place, number in enumerate(numbers)
    )


def test_faults_do_not_change_each_other() -> None:
    alone, _ = faulted(5, Fault("dropped", 0.3))
    kept = {due.doc["seq_num"] for due in alone if due.name == "event"}
    both, _ = faulted(5, Fault("duplicated", 0.5), Fault("dropped", 0.3))
    assert {due.doc["seq_num"] for due in both if due.name == "event"} == kept
    with pytest.raises(ValueError, match="each at most once"):
        faulted(5, Fault("dropped", 0.3), Fault("dropped", 0.2))
