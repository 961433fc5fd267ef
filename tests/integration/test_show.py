"""`inscan show`: results found in a real Tiled by every name they have, and a running scan followed."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from inscan.service import derived
from inscan.service.commit import Committer
from inscan.service.ingest import Ingest
from inscan.service.intake import Uses
from inscan.service.live import follow
from inscan.service.mailbox import Mailbox, Outcome, SnapshotDone
from inscan.service.messages import derived_uid, job_key
from inscan.service.results import NoResult, NoSuchRun, Results
from inscan.service.show import TiledAccess, show, tiled_of
from inscan.service.tiled_http import PROCESSED, RAW, TiledHTTP
from inscan.service.tiled_server import EmbeddedTiled

Commit = Any
Until = Callable[..., Any]


@pytest.fixture
def access(tiled: EmbeddedTiled) -> TiledAccess:
    return TiledAccess(tiled.uri, tiled.api_key)


@pytest.fixture
def http(tiled: EmbeddedTiled) -> Iterator[TiledHTTP]:
    with TiledHTTP(tiled.uri, tiled.api_key) as connection:
        yield connection


def test_a_run_is_shown_by_each_of_its_names(
    access: TiledAccess, commit: Commit, tmp_path: Path
) -> None:
    raw_uid = "5d0c4f9e-0000-4000-8000-000000000001"
    uid = commit(raw_uid, 7001)
    with Results(access.uri, access.api_key) as results:
        for name in ("7001", raw_uid, raw_uid[:9], uid, uid[:7]):
            assert results.latest(name).metadata["start"]["uid"] == uid
    shown = show(access, "7001", tmp_path)
    assert (shown["result_uid"], shown["raw_uid"]) == (uid, raw_uid)
    assert shown["verdict"] == "pass"
    assert Path(shown["png"]).read_bytes()[:4] == b"\x89PNG"
    page = Path(shown["html"]).read_text()
    assert "scan 7001" in page
    assert "whiteness within limits" in page
    assert "refresh" not in page


def test_the_latest_result_of_a_run_is_shown(access: TiledAccess, commit: Commit) -> None:
    raw_uid = "77aa77aa-0000-4000-8000-000000000002"
    commit(raw_uid, 7002)
    newer = commit(raw_uid, 7002, seed=1)
    with Results(access.uri, access.api_key) as results:
        assert results.latest("7002").metadata["start"]["uid"] == newer
        shown = results.read(results.latest(raw_uid))
    expected = np.random.default_rng(1).random((1, 4, 5), "f4")
    np.testing.assert_array_equal(shown.arrays["values"], expected)
    assert shown.axes["x"].motor == "sample_x"


def test_a_stack_is_read_in_parts(access: TiledAccess, commit: Commit) -> None:
    commit("run-of-a-stack", 7003, recipe="subspace")
    with Results(access.uri, access.api_key) as results:
        shown = results.read(results.latest("7003"))
    rng = np.random.default_rng(3)
    whole = rng.random((6, 4, 5), "f4")
    assert shown.labels == ["8300.00 eV", "8320.00 eV", "8350.00 eV"]
    np.testing.assert_array_equal(shown.arrays["values"], whole[[0, 2, 5]])
    assert shown.arrays["fractions"].shape == (2, 4, 5)
    assert shown.start["reference_labels"] == ["A", "B"]


def test_what_cannot_be_shown_says_why(
    access: TiledAccess, http: TiledHTTP, folder: Path, tmp_path: Path
) -> None:
    failed = derived.compose_failure(
        job_key("run-failed", "primary", "n2n", {}),
        "run-failed",
        "primary",
        "n2n",
        {"scan_id": 7004},
        "too_slow",
        "took longer than its budget",
        time.time(),
    )
    committer = Committer(http)
    committer.commit(failed)
    committer.close()
    begun = derived_uid("f" * 64)
    http.create(
        PROCESSED, begun, metadata={"start": {"uid": begun, "scan_id": 7005, "raw_uid": "x"}}
    )
    http.create(RAW, "raw-alone", metadata={"start": {"uid": "raw-alone", "scan_id": 7006}})
    with pytest.raises(NoResult, match="it failed: too_slow: took longer"):
        show(access, "7004", tmp_path)
    with pytest.raises(NoResult, match="no result yet"):
        show(access, "7005", tmp_path)
    for name in ("7006", "raw-al"):
        with pytest.raises(NoResult, match="in Tiled and has no result; `inscan jobs`"):
            show(access, name, tmp_path)
    with pytest.raises(NoSuchRun, match="no run '799999'"):
        show(access, "799999", tmp_path)
    with pytest.raises(NoSuchRun, match="no run 'abc'"):
        show(access, "abc", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_beginning_that_several_runs_share_is_not_guessed(
    access: TiledAccess, commit: Commit, tmp_path: Path
) -> None:
    commit("shared-name-1", 7007)
    commit("shared-name-2", 7008)
    with pytest.raises(NoSuchRun, match="begins the uids of 2 runs"):
        show(access, "shared-name", tmp_path)


def test_a_tiled_that_is_away_or_refuses_is_named(tiled: EmbeddedTiled, tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="refuses our key"):
        show(TiledAccess(tiled.uri, SecretStr("wrong0key")), "1", tmp_path)
    with pytest.raises(ConnectionError, match="start `inscan serve`"):
        tiled_of(tmp_path)


def test_the_key_and_address_of_a_service_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("INSCAN_TILED_API_KEY", raising=False)
    (tmp_path / "tiled").mkdir()
    (tmp_path / "tiled" / "api_key").write_text("abc123\n")
    (tmp_path / "service.json").write_text(json.dumps({"tiled": "http://127.0.0.1:1"}))
    found = tiled_of(tmp_path)
    assert found.uri == "http://127.0.0.1:1"
    assert found.api_key is not None
    assert found.api_key.get_secret_value() == "abc123"
    assert "abc123" not in repr(found)


class Rig:
    """An ingest that knows one run, and nothing else of a service."""

    def __init__(self, state_dir: Path) -> None:
        self.mailbox = Mailbox()
        self.open = threading.Event()
        self.ingest = Ingest(
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
        address = self.ingest.bind()
        self.ingest.start()
        (state_dir / "service.json").write_text(json.dumps({"ingest": address}))

    def _answer(self, op: str, fields: Mapping[str, Any], peer: bytes) -> Mapping[str, Any]:
        assert op == "runs"
        runs = [{"scan_id": 7009, "run_uid": "run-live"}] if self.open.is_set() else []
        return {"runs": runs}

    def close(self) -> None:
        assert self.ingest.stop()
        self.mailbox.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def test_a_running_scan_is_followed_to_its_end(
    rig: Rig, access: TiledAccess, commit: Commit, tmp_path: Path, until: Until
) -> None:
    meta = {
        "run_uid": "run-live",
        "assembled": {"scan_id": 7009, "geometry": commit.geometry, "rows_done": 2},
    }
    commit.maps(tmp_path / "live.h5", {"verdict": "warn"}, meta)
    out, said, stop = tmp_path / "out", [], threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="ThreadPoolExecutor-follow") as pool:
        following = pool.submit(follow, tmp_path, out, tell=said.append, access=access, stop=stop)
        until(lambda: said == ["waiting for a scan"])
        rig.open.set()
        until(lambda: rig.ingest.counts["WATCH"])
        rig.mailbox.post(SnapshotDone("run-live", 2, str(tmp_path / "gone.h5")))
        rig.mailbox.post(SnapshotDone("run-live", 2, str(tmp_path / "live.h5")))
        until(lambda: said[-1].startswith("run run-live: 2 rows"))
        page = (out / "live.html").read_text()
        assert "so far (2 rows)" in page
        assert "refresh" in page
        uid = commit("run-live", 7009)
        outcome = {"run": "run-live", "status": "done", "result_uid": uid, "verdict": "pass"}
        rig.mailbox.post(Outcome("run-live", outcome))
        until(lambda: said[-1] == "waiting for a scan")
        assert said[-2].startswith("done, verdict pass")
        stop.set()
        assert following.result(20) == outcome
    assert "so far" not in (out / "live.html").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["live.html", "live.png"]


def test_one_run_is_followed_by_its_number(
    rig: Rig, access: TiledAccess, tmp_path: Path, until: Until
) -> None:
    rig.open.set()
    said: list[str] = []
    with ThreadPoolExecutor(1, thread_name_prefix="ThreadPoolExecutor-follow") as pool:
        following = pool.submit(follow, tmp_path, tmp_path, "7009", tell=said.append, access=access)
        until(lambda: rig.ingest.counts["WATCH"])
        outcome = {"run": "run-live", "status": "failed", "reason": "too slow"}
        rig.mailbox.post(Outcome("run-live", outcome))
        assert following.result(20) == outcome
    assert said == ["failed: too slow"]
    with pytest.raises(NoSuchRun, match="no run 'zz' has come"):
        follow(tmp_path, tmp_path, "zz", access=access)
