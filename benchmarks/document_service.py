"""Spoiled runs through a whole service: log, forwarder, intake, journal, spool, real workers, Tiled."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import yaml
from document_policy import faults
from document_runs import Documents, Run, take_runs
from torture_check import Ends
from torture_rig import Rig, until

from inscan.callbacks import connect
from inscan.callbacks.request import request

_QUIET_S, _HAND_OVER_S = 420.0, 60.0
# What must not be in the log of a service that lives on: it survived, and was wrong.
_WORDS = ("defect", "could not be recorded", "Traceback")


@dataclass
class Passage:
    """What became of the runs of one passage.

    Attributes
    ----------
    ends : Ends
        By the journal and by Tiled.
    refused : int
        Documents that the forwarder's side did not record, for they name no run.
    kinds : Counter
        Of failures, by the first words of their reason.
    problems : list of str
        Anything that must not be.
    """

    ends: Ends = field(default_factory=Ends)
    refused: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def renamed(documents: Documents, mark: str) -> Documents:
    """The same documents as those of another run: every uid in them ends with a mark."""
    own = {
        value
        for _, doc in documents
        for key in ("uid", "datum_id")
        if isinstance(value := doc.get(key), str)
    }

    def new(value: Any) -> Any:
        if isinstance(value, str):
            return f"{value}{mark}" if value in own else value
        if isinstance(value, dict):
            return {key: new(item) for key, item in value.items()}
        return [new(item) for item in value] if isinstance(value, list) else value

    return [(name, new(doc)) for name, doc in documents]


def passage(
    folder: Path,
    seed: int,
    most: int,
    *,
    pause_s: float | None = None,
    only: Sequence[str] = (),
) -> Passage:
    """Send spoiled runs, mixed with one another, and wait until the service has nothing more to do.

    Parameters
    ----------
    folder
        For state, files and logs.
    seed
        Which faults, in which shapes of runs, in which order.
    most
        Most runs.
    pause_s
        Of a worker without recipes; None: the real one.
    only
        Names of faults; empty: any.
    """
    rng = Random(seed)
    runs = take_runs(folder / "data")
    spoiled = _chosen(runs, rng, most, only)
    rig = Rig(folder, _settings(folder, runs), pause_s)
    found = Passage()
    try:
        rig.start()
        with connect(state_dir=rig.state) as connection:
            left = [list(documents) for documents in spoiled.values()]
            while left := [documents for documents in left if documents]:
                connection(*rng.choice(left).pop(0))
            found.refused = connection.defects
            # Runs without a stop are not over for it: whether they end is counted below.
            connection.close(_HAND_OVER_S)
        wanted = list(spoiled)
        try:
            until(lambda: not _waiting(rig, wanted), "every run has ended", _QUIET_S)
        except TimeoutError as error:
            found.problems.append(str(error))
        found.ends = rig.ends(wanted)
        found.problems += found.ends.problems
        for run in rig.journal()[0]:
            if run.state in ("failed", "passed_by"):
                found.kinds[f"{run.state}: {run.reason[:40]}"] += 1
                if not run.reason:
                    found.problems.append(f"run {run.run_uid} {run.state} without a reason")
        messages = request(rig.state, "status")["messages"]
        for word in ("defects", "garbage", "damaged"):
            if messages.get(word):
                found.problems.append(f"{messages[word]} {word} are counted")
    finally:
        rig.close()
    log = rig.log.read_text(errors="replace").splitlines()
    found.problems += [line[:300] for line in log if any(word in line for word in _WORDS)][:20]
    return found


def _chosen(
    runs: Sequence[Run], rng: Random, most: int, only: Sequence[str]
) -> dict[str, Documents]:
    """Run uid -> its documents, each with a fault of its own."""
    kinds = {run.kind: run for run in runs}
    table = [one for one in faults() if (one.name in only if only else "100 000" not in one.name)]
    rng.shuffle(table)
    found: dict[str, Documents] = {}
    for number, fault in enumerate(table[:most]):
        run = kinds[rng.choice(fault.kinds)]
        mark = f"-{number}"
        own = replace(run, documents=renamed(run.documents, mark))
        found[own.uid] = fault.of(own, number)
    return found


def _settings(folder: Path, runs: Sequence[Run]) -> dict[str, Any]:
    profiles = []
    for number, run in enumerate(runs):
        content = run.profile.model_dump(mode="json")
        if content.get("txm"):
            content["txm"]["references"] = None
        content["read_deadline"] = 0.5
        path = folder / f"profile{number}.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        if content["name"] not in [json.loads(one)["name"] for one in profiles]:
            profiles.append(json.dumps({"name": content["name"], "path": str(path)}))
    return {
        "profiles": [json.loads(one)["path"] for one in profiles],
        "data_roots": [str((folder / "data").resolve())],
        "repair": None,
        "incomplete_after": 10.0,
        "spool_budget": 1 << 29,
        "workers": 1,
        "worker_threads": 1,
    }


def _waiting(rig: Rig, wanted: Sequence[str]) -> int:
    """Runs and jobs that have not ended."""
    runs, jobs = rig.journal()
    over = {run.run_uid for run in runs if run.state != "open"}
    open_runs = sum(uid not in over for uid in wanted)
    return open_runs + sum(job.state not in ("committed", "failed") for job in jobs)
