"""People in the loop: recommending, proposing, looking and deciding, with a real Tiled, journal and ingest."""

import getpass
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from typer.testing import CliRunner

from inscan.callbacks.profile import load_profile
from inscan.service import derived
from inscan.service.cli import app
from inscan.service.commit import Committer
from inscan.service.ingest import Ingest
from inscan.service.intake import Uses
from inscan.service.journal import Journal
from inscan.service.mailbox import Mailbox
from inscan.service.messages import InferenceJob, InferenceResult, job_key
from inscan.service.processed import Processed, ResultArray
from inscan.service.rescan_states import Rescans
from inscan.service.result_file import write_result
from inscan.service.result_view import describe
from inscan.service.tiled_http import TiledHTTP
from inscan.service.tiled_server import EmbeddedTiled

SURVEY = "5eed0000-0000-4000-8000-000000000001"
FINE = "f17e0000-0000-4000-8000-000000000002"
STACK = "57ac0000-0000-4000-8000-000000000003"
LINES = ["P_K", "Ca_K", "Zn_K"]
ROWS, COLS = 60, 70


def geometry(rows: int, cols: int, slow: tuple[float, float], fast: tuple[float, float]) -> dict:
    return {
        "shape": [rows, cols],
        "slow_motor": "sample_y",
        "fast_motor": "sample_x",
        "slow_units": "um",
        "fast_units": "um",
        "slow_first": slow[0],
        "slow_last": slow[1],
        "fast_first": fast[0],
        "fast_last": fast[1],
        "snaking": False,
    }


FIELD = geometry(ROWS, COLS, (-20.0, 39.0), (0.0, 69.0))


def planted() -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Maps of round objects, (element, row, col), and where those with zinc are."""
    rng = np.random.default_rng(11)
    row, col = np.mgrid[:ROWS, :COLS]
    maps, zinc = np.full((3, ROWS, COLS), 3.0), []
    for index, (r, c) in enumerate((r, c) for r in (8, 22, 36, 50) for c in (8, 22, 36, 50, 62)):
        rich = index % 4 == 1
        inside = (row - r) ** 2 + (col - c) ** 2 <= rng.uniform(3, 4.2) ** 2
        amount = np.exp(rng.normal(0, 0.15))
        maps += inside * amount * np.array([80.0, 30.0, 40.0 if rich else 4.0])[:, None, None]
        zinc += [(r, c)] if rich else []
    return rng.poisson(maps).astype(np.float32), zinc


def results_of(maps: np.ndarray, labels: list[str]) -> list[ResultArray]:
    dims = ("element", "row", "col")
    arrays = [
        ResultArray(name, dims, "counts/s", values.astype(np.float32), labels)
        for name, values in (("values", maps), ("sigma", np.sqrt(maps + 1)), ("raw", maps))
    ]
    return [*arrays, ResultArray("measured", ("row", "col"), "", np.ones(maps.shape[1:], bool))]


class Desk:
    """What a service knows and answers, without its workers: journal, proposals, ingest, results."""

    def __init__(self, state: Path, tiled: EmbeddedTiled, results: Path) -> None:
        self.state, self._results = state, results
        self.journal = Journal(state / "journal.db")
        shipped = load_profile("sim_xrf")
        rules = shipped.rescan.model_copy(update={"mode": "approve", "max_regions": 4})
        self.rescans = Rescans(self.journal, [shipped.model_copy(update={"rescan": rules})])
        self._http = TiledHTTP(tiled.uri, tiled.api_key)
        self._committer = Committer(self._http, readable=[results])
        self.mailbox = Mailbox()
        self._ingest = Ingest(
            "tcp://127.0.0.1:0",
            Uses(
                open_run=lambda start: pytest.fail("no documents here"),
                on_update=lambda update: None,
                on_closed=lambda uid: None,
                on_passed_by=lambda uid, reason: None,
                on_failed=lambda uid, reason: None,
            ),
            is_closed=lambda uid: False,
            on_incomplete=lambda uid, reason: None,
            outcome_of=lambda uid: None,
            handle_request=self._answer,
            mailbox=self.mailbox,
        )
        address = self._ingest.bind()
        self._ingest.start()
        (state / "service.json").write_text(json.dumps({"ingest": address, "tiled": tiled.uri}))

    def _answer(self, op: str, fields: dict[str, Any], peer: bytes) -> dict[str, Any]:
        """As `inscan.service.requests` does, of what people ask."""
        known: dict[str, Callable[..., Any]] = {
            "runs": lambda limit: {"runs": self.journal.runs(limit=limit)},
            "proposals": lambda run_uid: {"proposals": self.journal.proposals(run_uid)},
            "proposal": lambda proposal: {"proposal": self.rescans.find(proposal)},
            "propose_places": self.rescans.propose_places,
            "approve": self.rescans.approve,
            "refuse": self.rescans.refuse,
            "rescan_record": self.rescans.past,
        }
        return known[op](**fields)

    def finished(
        self,
        uid: str,
        start: dict[str, Any],
        arrays: list[ResultArray],
        meta: dict[str, Any],
        report: dict[str, Any],
        recipe: Any = "n2n",
    ) -> str:
        """A run with its result, in the journal and in Tiled; returns the result's uid."""
        start = {"uid": uid, "beamline_id": "sim_xrf", **start}
        key = job_key(uid, "primary", recipe, {})
        path = self._results / f"{key}.h5"
        digest = write_result(path, Processed(arrays, report), meta)
        job = InferenceJob(
            key=key,
            run_uid=uid,
            stream="primary",
            kind="final",
            recipe=recipe,
            parameters={},
            meta={"profile": "sim_xrf", **meta},
            spool=f"/spool/{uid}",
            arrays={},
            input_digest="",
            result_path=str(path),
            host_id="here",
        )
        self.journal.record_run(uid, start["scan_id"], "sim_xrf", start)
        self.journal.add_job(job)
        self.journal.synced(key, "sha256:in")
        leased = self.journal.leases.lease("worker", 60.0)
        assert leased is not None and leased[0].key == key
        fence = leased[0].fence
        result = InferenceResult(
            key=key,
            fence=fence,
            result_path=str(path),
            digest=digest,
            report=report,
            regions=[],
            timings={},
        )
        assert self.journal.computed(key, fence, result) == "accepted"
        run = derived.compose(job, result, describe(path), start, time.time())
        self._committer.commit(run, derived.axes_of(job.meta, report, run.arrays), path, digest)
        assert self.journal.committed(key, run.uid)
        return run.uid

    def close(self) -> None:
        assert self._ingest.stop()
        self.mailbox.close()
        self._committer.close()
        self._http.close()
        self.journal.close()


@pytest.fixture(scope="module")
def desk(
    tiled: EmbeddedTiled, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Desk]:
    desk = Desk(tmp_path_factory.mktemp("desk"), tiled, folder / "results")
    maps, _ = planted()
    start = {"scan_id": 8101, "purpose": "survey", "sample": {"name": "cells"}}
    meta = {"technique": "xrf", "geometry": FIELD, "dwell": 0.01, "elements": LINES}
    desk.finished(SURVEY, start, results_of(maps, LINES), meta, {"verdict": "pass"})
    yield desk
    desk.close()


@pytest.fixture
def inscan(desk: Desk, tiled: EmbeddedTiled, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a command; returns (exit status, what it printed)."""
    monkeypatch.setenv("INSCAN_TILED_API_KEY", tiled.api_key.get_secret_value())
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: object) -> tuple[int, str]:
        done = CliRunner().invoke(app, [*map(str, arguments), "--state", str(desk.state)])
        if isinstance(done.exception, Exception):
            raise done.exception
        return done.exit_code, done.output

    return run


def painted(path: Path) -> float:
    """Share of a picture that is not white."""
    image = matplotlib.image.imread(path)[..., :3]
    return float((image < 0.99).any(axis=-1).mean())


def test_objects_are_grouped_and_numbered(inscan: Callable[..., Any], tmp_path: Path) -> None:
    status, said = inscan("recommend", "8101", "--picture", tmp_path / "a" / "groups.png")
    assert status == 0
    assert "scan 8101, run 5eed0000: 20 objects, outlined by P_K + Ca_K + Zn_K" in said
    assert "most typical" in said and "high mean Zn_K" in said
    assert max(len(line) for line in said.splitlines() if "picture" not in line) <= 100
    assert painted(tmp_path / "a" / "groups.png") > 0.3


def test_more_like_these_become_a_proposal(inscan: Callable[..., Any]) -> None:
    _, zinc = planted()
    first = zinc[0]
    status, said = inscan(
        *("recommend", SURVEY[:8], "--element", "P_K", "--like", f"{first[0]},{first[1]}"),
        *("--top", len(zinc) - 1, "--propose", "--with-examples"),
        *("--reason", "zinc-rich cells", "--json"),
    )
    assert status == 0
    answer = json.loads(said)
    found = answer["recommended"]
    assert {(round(one["row"]), round(one["col"])) for one in found} == set(zinc[1:])
    assert all(0.3 < one["score"] <= 1 and "mean Zn_K" in one["agrees"] for one in found)
    proposal = answer["proposal"]
    assert (proposal["state"], proposal["who"]) == ("suggested", getpass.getuser())
    assert "zinc-rich cells" in proposal["reason"]
    regions, dropped = proposal["regions"], proposal["dropped"]
    # Of five places four are allowed, and the fifth is named with its rule.
    assert len(regions) == 4 and [one["rule"] for one in dropped] == ["max_regions"]
    assert {one["target"] for one in regions} == {"like"}
    assert all("like " in one["reason"] and "score" in one["reason"] for one in regions)
    for one in regions:
        slow, fast = one["slow_range"], one["fast_range"]
        inside = [(r, c) for r, c in zinc if slow[0] < r - 20 < slow[1] and fast[0] < c < fast[1]]
        assert len(inside) == 1


def test_a_person_reads_and_decides(inscan: Callable[..., Any], desk: Desk, tmp_path: Path) -> None:
    status, said = inscan(
        *("recommend", "8101", "--like", 1, "--unlike", 2, "--top", 2, "--propose")
    )
    assert status == 0, said
    assert "unlike: 2" in said and "lets it be taken" in said
    name = said.split("`inscan approve ")[1][:8]
    status, listed = inscan("proposals")
    assert status == 0 and name in listed and "8101" in listed and "suggested" in listed
    status, said = inscan("proposals", name)
    assert status == 0
    (proposal,) = (one for one in desk.journal.proposals() if one["id"].startswith(name))
    label = proposal["regions"][0]["label"]
    for words in (label, "scan 8101", "sample_y", "sample_x", "history", "like 1 (score"):
        assert words in said
    assert "expires" in said and "sample {'name': 'cells'}" in said
    status, said = inscan("approve", name, "--reason", "look at these")
    assert status == 0
    assert "approved" in said and f"measure_proposal(connection, '{name}'" in said
    assert "nobody may after" in said and ("3 h 59 min" in said or "4 h 0 min" in said)
    _, said = inscan("proposals", name)
    assert "look at these" in said and getpass.getuser() in said
    measured(desk, proposal["id"], proposal["regions"][0])
    _, said = inscan("proposals", name, "--picture", tmp_path / "after.png")
    assert "measured" in said and FINE[:8] in said and "done by plan" in said
    # Two maps of the survey, and the fine map beneath them: most of the page is painted.
    assert painted(tmp_path / "after.png") > 0.3
    status, said = inscan("refuse", name, "--reason", "enough")
    assert status == 1 and "is done" in said


def measured(desk: Desk, name: str, region: dict[str, Any]) -> None:
    """A plan takes the proposal and measures one region."""
    begun = desk.rescans.update(name, "plan-1", "running", region=region["label"])
    assert begun["ok"], begun["reason"]
    rows, cols = region["shape"]
    start = {"scan_id": 8102, "purpose": "fine", "parent_uid": SURVEY, "rescan_proposal": name}
    slow, fast = (tuple(axis) for axis in region["extents"])
    meta = {"technique": "xrf", "geometry": geometry(rows, cols, slow, fast), "elements": LINES}
    maps = np.random.default_rng(2).poisson(50.0, (3, rows, cols)).astype(np.float32)
    arrays = results_of(maps, LINES)
    start |= {"region": region["label"]}
    desk.finished(FINE, start, arrays, meta, {"verdict": "pass"})
    answer = desk.rescans.update(name, "plan-1", "done", runs=[FINE])
    assert answer["ok"], answer["reason"]


def test_added_energies_are_shown_on_the_spectrum(
    inscan: Callable[..., Any], desk: Desk, tmp_path: Path
) -> None:
    energies = [8300.0 + 10 * i for i in range(6)]
    edge = 1 - 0.5 / (1 + np.exp(-(np.array(energies) - 8333) / 4))
    values = (edge[:, None, None] * np.ones((6, 5, 7))).astype(np.float32)
    labels = [f"{energy:.2f} eV" for energy in energies]
    dims = ("energy", "row", "col")
    arrays = [ResultArray(name, dims, "transmission", values, labels) for name in ("values", "raw")]
    report = {"verdict": "pass", "energies_ev": energies}
    meta = {"technique": "txm", "energies_ev": energies, "pixel_size_um": 0.05}
    uid = desk.finished(STACK, {"scan_id": 8103}, arrays, meta, report, "subspace")
    desk.journal.add_proposal(
        {
            "id": "e0e0e0e0-0000-4000-8000-000000000009",
            "run_uid": STACK,
            "survey_uid": STACK,
            "result_uid": uid,
            "state": "suggested",
            "kind": "energies",
            "energies_ev": [8328.5, 8331.0, 8336.25],
            "exposure_factor": 2.0,
            "time_s": 61.0,
            "dose": 0.5,
            "profile": "sim_txm",
            "mode": "approve",
            "expires": time.time() + 600,
            "reason": "3 of 3 energies, within all limits",
        }
    )
    _, said = inscan("proposals", "e0e0", "--picture", tmp_path / "energies.png")
    assert "8328.50, 8331.00, 8336.25" in said and "2 times the survey's exposure" in said
    assert "1 min 1 s" in said and "scan 8103" in said
    assert painted(tmp_path / "energies.png") > 0.01
    assert "3 eV" in inscan("proposals")[1]
    with pytest.raises(ValueError, match="is no element map"):
        inscan("recommend", "8103")


def test_what_cannot_be_recommended_says_why(inscan: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="like what"):
        inscan("recommend", "8101", "--propose")
    with pytest.raises(ValueError, match="is for --propose"):
        inscan("recommend", "8101", "--like", "1", "--with-examples")
    with pytest.raises(ValueError, match="no object 99: there are 1 to 20"):
        inscan("recommend", "8101", "--like", "99")


def test_wrong_ids_are_a_sentence_and_exit_status_1(inscan: Callable[..., Any]) -> None:
    for command in (("proposals", "none"), ("approve", "none"), ("refuse", "none")):
        status, said = inscan(*command)
        assert status == 1
        assert said == "inscan: no proposal 'none'; `inscan proposals` lists them\n"
    with pytest.raises(ValueError, match="a picture of which proposal"):
        inscan("proposals", "--picture", "x.png")


def test_places_that_no_limit_allows_are_refused_with_exit_status_1(
    inscan: Callable[..., Any], desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = load_profile("sim_xrf")
    rules = shipped.rescan.model_copy(update={"max_area": 1.0})
    tight = Rescans(desk.journal, [shipped.model_copy(update={"rescan": rules})])
    monkeypatch.setattr(desk, "rescans", tight)
    status, said = inscan("recommend", "8101", "--like", 6, "--top", 1, "--propose")
    assert status == 1 and "refused" in said and "max_area" in said
