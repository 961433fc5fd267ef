"""Runs of databroker: faithful out of its Mongo-era store, and by name out of a Tiled catalog."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import event_model
import numpy as np
import pytest
import tiled.profiles
import yaml
from bluesky_tiled_plugins import BlueskyRun, TiledWriter
from tiled.client import from_uri
from tiled.client.container import DEFAULT_STRUCTURE_CLIENT_DISPATCH

from inscan.callbacks.recording import Recording
from inscan.callbacks.sources.databroker import (
    broker_runs,
    close_broker,
    databroker_runs,
    open_broker,
    stored_run,
)
from inscan.callbacks.sources.interface import SourceError
from inscan.service.stored_runs import find_run, find_runs
from inscan.service.tiled_http import RAW, TiledHTTP
from inscan.service.tiled_server import EmbeddedTiled

Documents = list[tuple[str, Any]]


def a_run(events: int = 3, **start: Any) -> Documents:
    """Documents of a run with numbers, an array, and images by resource and datum."""
    run = event_model.compose_run(metadata={"purpose": "survey", **start}, time=100.0)
    keys: dict[str, Any] = {
        "x": {"dtype": "number", "shape": [], "source": "s", "dtype_numpy": "<f8"},
        "counts": {"dtype": "array", "shape": [2, 20], "source": "s", "dtype_numpy": "<u2"},
        "image": {
            "dtype": "array",
            "shape": [1, 2, 2],
            "source": "s",
            "dtype_numpy": "<u2",
            "external": "FILESTORE:",
        },
    }
    stream = run.compose_descriptor(name="primary", data_keys=keys, time=101.0)
    resource = run.compose_resource(
        spec="AD_HDF5", root="/data", resource_path="f.h5", resource_kwargs={"frame_per_point": 1}
    )
    documents: Documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    documents.append(("resource", resource.resource_doc))
    for n in range(events):
        datum = resource.compose_datum(datum_kwargs={"point_number": n})
        data = {"x": n / 2, "counts": np.full((2, 20), n, "u2"), "image": datum["datum_id"]}
        event = stream.compose_event(
            data=data,
            timestamps=dict.fromkeys(data, 102.0 + n),
            filled={"image": False},
            time=102.0 + n,
        )
        documents += [("datum", datum), ("event", event)]
    return [*documents, ("stop", run.compose_stop(time=110.0))]


@pytest.fixture(scope="module")
def temp() -> Iterator[Any]:
    """A store of the days of MongoDB, in memory, with two runs of one number and one that has not ended."""
    broker = open_broker("temp")
    yield broker
    close_broker(broker)


@pytest.fixture(scope="module")
def kept(temp: Any) -> list[Documents]:
    runs = [a_run(scan_id=5), a_run(scan_id=5, purpose="fine"), a_run(scan_id=6)[:-1]]
    with warnings.catch_warnings(action="ignore"):  # databroker's own
        for documents in runs:
            for name, doc in documents:
                plain = dict(doc)
                if name == "event":
                    plain["data"] = {
                        k: v.tolist() if isinstance(v, np.ndarray) else v
                        for k, v in doc["data"].items()
                    }
                temp.insert(name, plain)
    return runs


def test_a_run_of_the_mongo_era_comes_back_as_it_was(temp: Any, kept: list[Documents]) -> None:
    documents = kept[1]
    found = stored_run(temp, documents[0][1]["uid"])
    assert found.start["purpose"] == "fine" and found.where.startswith("databroker ")
    for _ in range(2):
        read = list(found.documents())
        assert [name for name, _ in read] == [name for name, _ in documents], "order is kept"
        for (name, mine), (_, theirs) in zip(read, documents, strict=True):
            assert type(mine) is dict
            if name == "event":
                np.testing.assert_array_equal(mine["data"]["counts"], theirs["data"]["counts"])
                assert mine["data"]["counts"].dtype == np.uint16
                assert mine["data"]["image"] == theirs["data"]["image"], "data stay references"
                assert mine["uid"] == theirs["uid"] and mine["filled"] == {"image": False}
            else:
                assert {k: mine[k] for k in theirs if k in mine} == dict(theirs), name


def test_runs_are_found_by_every_name(temp: Any, kept: list[Documents]) -> None:
    uids = [documents[0][1]["uid"] for documents in kept]
    assert sorted(run.uid for run in broker_runs(temp)) == sorted(uids)
    assert stored_run(temp, uids[0][:8]).uid == uids[0]
    assert stored_run(temp, "6").uid == uids[2]
    assert stored_run(temp, 5).uid in uids[:2]
    for wanted in ("77", "nosuchrun", "ab", ""):
        with pytest.raises(LookupError, match="no run .* in databroker"):
            stored_run(temp, wanted)


def test_a_run_that_has_not_ended_has_no_stop(
    temp: Any, kept: list[Documents], tmp_path: Path
) -> None:
    found = stored_run(temp, kept[2][0][1]["uid"])
    with Recording(found.documents(), tmp_path) as recording:
        assert recording.counts.keys() == {"start", "descriptor", "resource", "datum", "event"}
        # The store writes the last of the events with the stop, which has not come.
        assert 2 <= recording.counts["event"] <= recording.counts["datum"] == 3
        assert recording.files == {"/data"}


def test_nothing_is_let_out_but_documents(temp: Any, kept: list[Documents]) -> None:
    """databroker warns of its end; here warnings are errors, so any that came out would show."""

    class Gone:
        @property
        def v2(self) -> Any:
            return self

        def documents(self, fill: bool) -> Any:
            yield "start", {"uid": "u"}
            yield "event", {"descriptor": 5}
            raise KeyError("the server is gone")

    from inscan.callbacks.sources import databroker

    read = databroker._documents(temp, Gone())
    assert next(read) == ("start", {"uid": "u"})
    with pytest.raises(SourceError, match="cannot be read: the server is gone"):
        next(read)


@pytest.fixture(scope="module")
def profile(tiled: EmbeddedTiled, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Tiled profile of the shared server: what a databroker catalog is today."""
    folder = tmp_path_factory.mktemp("profiles")
    content = {
        "old_beamline": {"uri": tiled.uri},
        "away": {"uri": "http://127.0.0.1:9"},
    }
    (folder / "profiles.yml").write_text(yaml.safe_dump(content))
    before = tiled_profiles.paths[:]
    tiled_profiles.paths[:] = [folder]
    tiled_profiles.load_profiles.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TILED_API_KEY", tiled.api_key.get_secret_value())
        yield "old_beamline"
    tiled_profiles.paths[:] = before
    tiled_profiles.load_profiles.cache_clear()


tiled_profiles: Any = tiled.profiles


def test_a_catalog_is_named_on_the_command_line(tiled: EmbeddedTiled, profile: str) -> None:
    """``catalog.v1`` over Tiled's own SQL catalog, as `inscan replay databroker:NAME/UID` uses it."""
    documents = [pair for pair in a_run(scan_id=4711) if pair[0] not in ("resource", "datum")]
    descriptor = documents[1][1]
    del descriptor["data_keys"]["image"]
    client = from_uri(tiled.uri, api_key=tiled.api_key.get_secret_value())
    writer: Any = TiledWriter(client[RAW])
    for name, doc in documents:
        if name == "event":
            for part in ("data", "timestamps", "filled"):
                doc[part].pop("image", None)
        writer(name, doc)
    # Something that is no run, as people put beside runs.
    client[RAW].create_container("notes", metadata={})
    client.context.http_client.close()
    uid = documents[0][1]["uid"]
    (found,) = find_runs(f"databroker:{profile}/{uid[:10]}")
    assert found.uid == uid and found.where == f"databroker {profile}"
    assert find_run(f"databroker:{profile}/4711").uid == uid
    for _ in range(2):
        read = list(found.documents())
        assert [name for name, _ in read if name != "event"] == ["start", "descriptor", "stop"]
        counts = [doc["data"]["counts"] for name, doc in read if name == "event"]
        np.testing.assert_array_equal(counts, [np.full((2, 20), n) for n in range(3)])
        assert {one.dtype for one in counts} == {np.dtype("u2")}
    assert uid in [run.uid for run in databroker_runs(profile)]
    with TiledHTTP(tiled.uri, tiled.api_key) as http:
        http.delete(f"{RAW}/notes")


def test_catalogs_that_are_not_there_are_named(profile: str) -> None:
    with pytest.raises(LookupError, match=r"no databroker catalog 'nosuch'.*away, old_beamline"):
        find_runs("databroker:nosuch/1")
    spoiled = tiled_profiles.paths[0] / "spoiled.yml"
    spoiled.write_text("spoiled: {nonsense: 1}")
    with pytest.raises(LookupError, match="Failed to parse"):
        find_runs("databroker:spoiled/1")
    spoiled.unlink()
    with pytest.raises(LookupError, match="no run 'nosuchrun'"):
        find_runs(f"databroker:{profile}/nosuchrun")


def test_a_broker_leaves_tileds_client_as_it_was(temp: Any, kept: list[Documents]) -> None:
    assert len(list(broker_runs(temp))) == len(kept)
    for kind in DEFAULT_STRUCTURE_CLIENT_DISPATCH.values():
        # Old-style runs have their data elsewhere: no reader of results would find them.
        assert kind["BlueskyRun"] is BlueskyRun
