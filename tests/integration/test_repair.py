"""Documents lost on the way to a real service, the raw run whole in its Tiled: the final is that of the whole run."""

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from bluesky import RunEngine
from bluesky_tiled_plugins import TiledWriter
from event_model import compose_run
from tiled.client import from_uri

from inscan.callbacks.assembly import open_assembler
from inscan.callbacks.connection import connect
from inscan.callbacks.missing import Missing
from inscan.callbacks.profile import BeamlineProfile, load_profile
from inscan.callbacks.request import request
from inscan.profiles.samples import cells
from inscan.profiles.simulation import sim_xrf
from inscan.profiles.srx_documents import fly, hf2dxrf
from inscan.profiles.srx_truth import SRXMap
from inscan.profiles.xrf_plans import fly_raster, step_raster
from inscan.service.repair import Catalog, Repairs
from inscan.service.tiled_http import RAW
from inscan.service.tiled_server import EmbeddedTiled

Documents = list[tuple[str, Any]]
Until = Callable[..., Any]
_SERVICE = Path(__file__).parent / "broker" / "small_service.py"
_ANY = "tcp://127.0.0.1:0"


class Server:
    """`inscan serve` without workers, and a client of its Tiled."""

    def __init__(self, state: Path, data: Path, until: Until) -> None:
        self.state, self.until = state, until
        fields = {
            "state_dir": str(state),
            "profiles": ["sim_xrf"],
            **dict.fromkeys(("ingest", "broker", "spool"), _ANY),
            "workers": 0,
            "min_free": 0,
            "keep_spool": True,
            "data_roots": [str(data)],
            "repair": {"deadline": 8.0},
        }
        config = state.with_suffix(".yaml")
        config.write_text(yaml.safe_dump(fields))
        self.log = state.with_suffix(".log")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(_SERVICE), str(config), "double"], stdout=log, stderr=log
            )
        until(self._ready, 60)
        self.addresses = json.loads((state / "service.json").read_text())
        key = (state / "tiled" / "api_key").read_text().strip()
        self.client = from_uri(self.addresses["tiled"], api_key=key)
        self.raw = self.client[RAW]

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        return (self.state / "service.json").exists()

    def close(self) -> None:
        self.client.context.http_client.close()
        self.process.terminate()
        self.process.wait(60)

    def send(self, documents: Documents, folder: Path) -> None:
        """Send what is left of a run, as a beamline does."""
        with connect(self.addresses["ingest"], state_dir=folder) as link:
            for name, doc in documents:
                link(name, doc)
            self.until(lambda: link.close(20.0))

    def write(self, documents: Documents) -> None:
        """Write a run to Tiled, as a beamline's own writer does."""
        writer = TiledWriter(self.raw)
        for name, doc in documents:
            writer(name, doc)

    def run(self, uid: str) -> dict[str, Any]:
        """The journal's row of a run that is over."""

        def over() -> Any:
            runs = request(self.state, "runs", timeout=20.0)["runs"]
            return [run for run in runs if run["run_uid"] == uid and run["state"] != "open"]

        return self.until(over, 40)[0]

    def final(self, uid: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Meta and arrays of a run's final."""
        folder = self.state / "spool" / uid
        meta = json.loads(next(folder.glob("meta*.json")).read_text())
        return meta, {path.stem: np.load(path) for path in folder.glob("*.npy")}

    @property
    def repaired(self) -> int:
        return request(self.state, "status", timeout=20.0)["messages"].get("repaired", 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, data: Path, until: Until) -> Iterator[Server]:
    state = tmp_path_factory.mktemp("repair") / "state"
    state.mkdir()
    server = Server(state, data, until)
    yield server
    server.close()


@pytest.fixture(scope="module")
def engine() -> RunEngine:
    return RunEngine({"beamline_id": "sim_xrf"}, context_managers=[])


@pytest.fixture
def scan(engine: RunEngine, data: Path) -> Callable[[str], Documents]:
    """Documents of a small map: ``step``, ``fly``."""

    def take(kind: str) -> Documents:
        beamline = sim_xrf(
            cells(0, pixel_size=0.4), data, channels=2, time_scale=0, bins=256, energy_per_bin=64.0
        )
        axes = (beamline.sample_y, -4.0, 4.0, 4, beamline.sample_x, -6.0, 6.0, 5)
        documents: Documents = []
        if kind == "step":
            beamline.xs.spectra.put(1)
            plan = step_raster(beamline.xs, beamline.sclr, *axes, dwell=0.05, snake=True)
        else:
            plan = fly_raster(beamline.xs_fly, *axes, dwell=0.05, snake=True)
        token = engine.subscribe(lambda name, doc: documents.append((name, dict(doc))))
        engine(plan)
        engine.unsubscribe(token)
        return documents

    return take


def whole(documents: Documents, data: Path) -> dict[str, np.ndarray]:
    """Arrays of the final of all documents."""
    assembler = open_assembler(documents[0][1], [load_profile("sim_xrf")], data_roots=[data])
    for name, doc in documents:
        updates = assembler(name, doc)
    return updates[-1].arrays  # pyright: ignore[reportPossiblyUnboundVariable]


def same(ours: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert set(wanted) <= set(ours)
    for name, values in wanted.items():
        np.testing.assert_array_equal(ours[name], values, err_msg=name)
    assert wanted["measured"].all()


@pytest.mark.parametrize(("kind", "seed"), [("step", 0), ("fly", 1)])
def test_documents_dropped_at_random_come_from_tiled(
    server: Server, scan: Any, data: Path, tmp_path: Path, kind: str, seed: int
) -> None:
    documents = scan(kind)
    uid = documents[0][1]["uid"]
    server.write(documents)
    rng = random.Random(seed)
    kept = [documents[0], *(d for d in documents[1:-1] if rng.random() < 0.5), documents[-1]]
    before = server.repaired
    server.send(kept, tmp_path)
    run = server.run(uid)
    meta, arrays = server.final(uid)
    same(arrays, whole(documents, data))
    assert run["state"] == "complete" and "repaired from Tiled" in run["reason"]
    assert any("repaired from Tiled" in line for line in meta["warnings"])
    assert not any("missing" in line for line in meta["warnings"]), meta["warnings"]
    assert server.repaired > before


def test_a_writer_that_is_later_than_the_stop_is_waited_for(
    server: Server, scan: Any, data: Path, tmp_path: Path
) -> None:
    documents, other = scan("step"), scan("step")
    uid = documents[0][1]["uid"]
    with connect(server.addresses["ingest"], state_dir=tmp_path) as link:
        for name, doc in documents[:8] + documents[12:]:
            link(name, doc)
        server.until(lambda: f"run {uid} ended without" in server.log.read_text())
        # The other runs go on meanwhile.
        server.send(other, tmp_path / "other")
        assert server.run(other[0][1]["uid"])["reason"] == ""
        server.write(documents)
        server.until(lambda: link.close(20.0))
    assert server.run(uid)["reason"].startswith("4 events repaired from Tiled")
    same(server.final(uid)[1], whole(documents, data))


def test_what_is_nowhere_stays_masked_and_is_named(
    server: Server, scan: Any, data: Path, tmp_path: Path
) -> None:
    documents = scan("step")
    uid = documents[0][1]["uid"]
    kept = documents[:8] + documents[12:]
    lost = {doc["seq_num"] for name, doc in documents[8:12] if name == "event"}
    server.send(kept, tmp_path)
    reason = server.run(uid)["reason"]
    assert f"seq_num {min(lost)} to {max(lost)}" in reason and "missing" in reason
    meta, arrays = server.final(uid)
    assert reason in meta["warnings"]
    assert (~arrays["measured"].astype(bool)).sum() == len(lost) == 4


def test_a_run_joined_in_mid_scan_is_completed(
    server: Server, scan: Any, data: Path, tmp_path: Path
) -> None:
    """Tiled has the start when the first document comes: what follows is placed as it comes."""
    documents = scan("step")
    uid = documents[0][1]["uid"]
    server.write(documents)
    descriptor = next(d for d in documents if d[0] == "descriptor")
    server.send([descriptor, *documents[10:]], tmp_path)
    run = server.run(uid)
    assert run["state"] == "complete", run
    meta, arrays = server.final(uid)
    same(arrays, whole(documents, data))
    assert any("joined late" in line for line in meta["warnings"])


def test_a_run_joined_late_that_tiled_gets_at_its_end(
    server: Server, scan: Any, data: Path, tmp_path: Path
) -> None:
    documents = scan("fly")
    uid = documents[0][1]["uid"]
    with connect(server.addresses["ingest"], state_dir=tmp_path) as link:
        for name, doc in documents[1:-1]:
            link(name, doc)
        # It is looked up at its first document, and is not there.
        server.until(lambda: f"run {uid}" in server.log.read_text())
        server.write(documents)
        link(*documents[-1])
        server.until(lambda: link.close(20.0))
    assert server.run(uid)["state"] == "complete"
    same(server.final(uid)[1], whole(documents, data))


def test_a_run_joined_late_that_is_nowhere_is_passed_by(server: Server, tmp_path: Path) -> None:
    run = compose_run()
    server.send([("stop", dict(run.compose_stop()))], tmp_path)
    row = server.run(run.start_doc["uid"])
    assert row["state"] == "passed_by" and "joined late" in row["reason"]


class Gaps:
    """An assembler that lacks two events."""

    def missing(self, stop: Mapping[str, Any], /) -> Missing:
        return Missing(events={"primary": ((2, 4),)})

    def resource_of(self, key: str, /) -> str | None:
        return None

    def forget_waiting(self) -> None:
        raise AssertionError("nothing came")


def test_a_catalog_that_is_away_is_asked_again_until_the_deadline() -> None:
    repairs, assembler = Repairs(60.0), Gaps()
    repairs.use(Catalog("http://127.0.0.1:9"))
    mending = repairs.fill("run", assembler, {"num_events": {"primary": 5}}, gaps=False)
    assert mending is not None
    assert not repairs.look(mending, assembler, lambda name, doc: None)
    first = mending.due
    assert not repairs.look(mending, assembler, lambda name, doc: None)
    assert mending.due > first and repairs.told("run") == ""
    mending.until = 0.0
    assert repairs.look(mending, assembler, lambda name, doc: None)
    assert "2 events of primary (seq_num 2 to 3) missing" in mending.said
    assert "http://127.0.0.1:9 cannot be used" in mending.said
    assert repairs.told("run") == mending.said and repairs.told("run") == ""
    assert repairs.counts["given up"] == 1


@pytest.mark.parametrize("scan", [fly, hf2dxrf])
def test_ids_of_data_that_never_came_are_replaced_by_arrays(
    tiled: EmbeddedTiled, folder: Path, scan: Any
) -> None:
    """Detector files named by resource and datum documents, some of them lost with the events between them."""
    data = folder / "data"
    documents = list(scan(data, SRXMap.make((3, 4), 2, 1024)))
    uid = documents[0][1]["uid"]
    client = from_uri(tiled.uri, api_key=tiled.api_key.get_secret_value())
    write_srx(client[RAW], documents)
    client.context.http_client.close()
    content = load_profile("srx" if scan is fly else "srx_hf2dxrf").model_dump(mode="json")
    content["xrf"]["elements"]["lines"] = ["Ca_K", "Fe_K", "Zn_K"]
    profile = BeamlineProfile.model_validate(content)

    def take(documents: Documents, stop: Any, repairs: Repairs | None) -> Any:
        assembler = open_assembler(documents[0][1], [profile], data_roots=[data])
        for name, doc in documents:
            assembler(name, doc)
        if repairs is not None:
            mending = repairs.fill(uid, assembler, stop, gaps=False)
            assert mending is not None
            assert repairs.look(mending, assembler, lambda name, doc: assembler(name, doc))
            assert mending.complete and "repaired from Tiled" in mending.said
        return assembler("stop", stop)[-1]

    repairs = Repairs(5.0)
    repairs.use(Catalog(tiled.uri, tiled.api_key))
    rng = random.Random(3)
    kept = [documents[0], *(d for d in documents[1:-1] if rng.random() < 0.6)]
    stop = documents[-1][1]
    ours, wanted = take(kept, stop, repairs), take(documents[:-1], stop, None)
    same(ours.arrays, wanted.arrays)
    assert ours.meta["warnings"] == wanted.meta["warnings"]


def write_srx(raw: Any, documents: Documents) -> None:
    """Write with what TiledWriter has to be told of this beamline's files."""

    def resource(doc: Any) -> Any:
        if doc["spec"] == "XSP3_FLY":
            doc["resource_kwargs"]["dataset"] = "entry/instrument/detector/data"
        return doc

    def datum(doc: Any) -> Any:
        kwargs = doc["datum_kwargs"]
        if "column" in kwargs:
            kwargs["dataset"] = kwargs.pop("column")
        elif "channel" in kwargs:
            kwargs["slice"] = f":,{kwargs.pop('channel') - 1},:"
        return doc

    specs = ("XSP3_FLY", "ZEBRA_HDF51", "SIS_HDF51")
    mimetypes: Any = dict.fromkeys(specs, "application/x-hdf5")
    patches: Any = {"resource": resource, "datum": datum}
    writer = TiledWriter(raw, spec_to_mimetype=mimetypes, patches=patches)
    for name, doc in documents:
        writer(name, doc)
