"""How runs ended, counted from the journal and from Tiled, each for itself and against each other.

Nothing here uses the code that writes either: the journal is read with SQL, Tiled over HTTP as any reader does.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

_PAGE = 100
Expected = Callable[[str], np.ndarray | None]
"""Uid of a raw run -> values of its result, or None where nobody knows them."""


class NotNow(Exception):
    """Tiled is away."""


@dataclass(frozen=True)
class RunRow:
    """A run as the journal has it."""

    run_uid: str
    state: str
    reason: str


@dataclass(frozen=True)
class JobRow:
    """A job as the journal has it."""

    key: str
    run_uid: str
    state: str
    code: str
    reason: str
    lost_on: tuple[str, ...]
    result_uid: str | None
    updated: float


@dataclass(frozen=True)
class Node:
    """A derived run as Tiled has it; `status` is that of its stop document, None without one."""

    uid: str
    raw_uid: str
    key: str
    status: str | None
    complete: bool


@dataclass
class Ends:
    """What became of runs.

    Attributes
    ----------
    runs, results, failures : int
    lost : int
        Runs without an end, or with one that the journal or Tiled does not have.
    duplicated : int
        Ends beyond the first.
    problems : list of str
        Each of them, in words.
    """

    runs: int = 0
    results: int = 0
    failures: int = 0
    lost: int = 0
    duplicated: int = 0
    problems: list[str] = field(default_factory=list)

    def lose(self, text: str) -> None:
        self.lost += 1
        self.problems.append(text)

    def double(self, text: str, times: int = 1) -> None:
        self.duplicated += times
        self.problems.append(text)


def ends_of(
    wanted: Iterable[str],
    runs: Iterable[RunRow],
    jobs: Iterable[JobRow],
    nodes: Iterable[Node] | None,
) -> Ends:
    """Count how runs ended.

    Parameters
    ----------
    wanted : iterable of str
        Uids of the runs whose start had reached a log: each is to have ended once.
    runs, jobs
        The journal.
    nodes : iterable of Node or None
        Tiled; None counts from the journal alone.
    """
    ends = Ends()
    known = {run.run_uid: run for run in runs}
    their_jobs: dict[str, list[JobRow]] = {}
    for job in jobs:
        their_jobs.setdefault(job.run_uid, []).append(job)
    their_nodes: dict[str, list[Node]] = {}
    for node in nodes or ():
        their_nodes.setdefault(node.raw_uid, []).append(node)
    for uid in wanted:
        ends.runs += 1
        _one(ends, uid, known.get(uid), their_jobs.get(uid, []))
        if nodes is not None:
            _against(ends, uid, their_jobs.get(uid, []), their_nodes.get(uid, []))
    return ends


def _one(ends: Ends, uid: str, run: RunRow | None, jobs: list[JobRow]) -> None:
    if run is None:
        ends.lose(f"run {uid}: the journal does not know it")
        return
    results = sum(job.state == "committed" for job in jobs)
    failures = sum(job.state == "failed" for job in jobs)
    if not jobs and run.state in ("failed", "incomplete", "passed_by"):
        failures = 1
    ends.results += results
    ends.failures += failures
    waiting = [job.state for job in jobs if job.state not in ("committed", "failed")]
    if run.state == "open" or waiting or not results + failures:
        ends.lose(f"run {uid} has not ended: {run.state}, jobs {waiting}")
    elif results + failures > 1:
        ends.double(f"run {uid} ended {results + failures} times", results + failures - 1)


def _against(ends: Ends, uid: str, jobs: list[JobRow], nodes: list[Node]) -> None:
    """What the journal says was written, and nothing else, is in Tiled, each once."""
    for status, state, word in (("success", "committed", "result"), ("fail", "failed", "failure")):
        there = Counter(node.key for node in nodes if node.status == status)
        said = {job.key for job in jobs if job.state == state}
        for key in said - there.keys():
            ends.lose(f"run {uid}: the {word} of job {key[:12]} is not in Tiled")
        for key, count in there.items():
            if key not in said:
                ends.double(f"run {uid}: Tiled has a {word} of job {key[:12]}, the journal has not")
            elif count > 1:
                ends.double(f"run {uid}: {count} {word}s of job {key[:12]} in Tiled", count - 1)
    for node in nodes:
        if node.status is None:
            ends.double(f"run {uid}: {node.uid} in Tiled was begun and has no stop")


class TiledReader:
    """Reads derived runs as anybody does, over HTTP.

    Parameters
    ----------
    uri : str
    api_key : str
    """

    def __init__(self, uri: str, api_key: str) -> None:
        self.uri = uri
        self._http = httpx.Client(
            base_url=f"{uri}/api/v1",
            headers={"Authorization": f"Apikey {api_key}"},
            timeout=20.0,
            trust_env=False,
        )

    def close(self) -> None:
        self._http.close()

    def _get(self, path: str, **params: Any) -> httpx.Response:
        try:
            answer = self._http.get(path, params=params)
        except httpx.RequestError as error:
            raise NotNow(f"{type(error).__name__}: {error}") from error
        if answer.status_code >= 500 and not path.startswith("/array"):
            raise NotNow(f"{answer.status_code} {path}")
        return answer

    def _pages(self, **params: Any) -> Iterator[dict[str, Any]]:
        found = 0
        while True:
            page = {"page[limit]": _PAGE, "page[offset]": found, **params}
            answer = self._get("/search/processed", **page)
            if answer.status_code == 404:
                return
            items = answer.json()["data"]
            yield from items
            found += len(items)
            if len(items) < _PAGE:
                return

    def uids(self) -> list[str]:
        """Uids of all derived runs, whole or not.

        Raises
        ------
        NotNow
        """
        return [item["id"] for item in self._pages(fields="")]

    def nodes(self) -> list[Node]:
        """All derived runs, whole or not."""
        found = self._pages(fields="metadata")
        return [_node(item["id"], item["attributes"]["metadata"]) for item in found]

    def node(self, uid: str) -> Node | None:
        """One derived run, None where it is gone."""
        answer = self._get(f"/metadata/processed/{uid}")
        if answer.status_code == 404:
            return None
        return _node(uid, answer.json()["data"]["attributes"]["metadata"])

    def values(self, uid: str) -> np.ndarray:
        """Values of a result that was seen whole before, without their shape.

        Raises
        ------
        ValueError
            When they cannot be read.
        """
        path = f"/array/full/processed/{uid}/primary/values"
        answer = self._get(path, format="application/octet-stream")
        if answer.status_code != 200:
            raise ValueError(f"values: {answer.status_code} {answer.text[:200]}")
        return np.frombuffer(answer.content, "<f4")

    def arrays(self, uid: str) -> dict[str, np.ndarray]:
        """All arrays of a derived run.

        Raises
        ------
        ValueError
            What of them cannot be read.
        NotNow
        """
        answer = self._get(f"/metadata/processed/{uid}/primary")
        if answer.status_code != 200:
            raise ValueError(f"no stream: {answer.status_code}")
        keys = answer.json()["data"]["attributes"]["metadata"]["data_keys"]
        found = {}
        for name, key in keys.items():
            answer = self._get(
                f"/array/full/processed/{uid}/primary/{name}", format="application/octet-stream"
            )
            if answer.status_code != 200:
                raise ValueError(f"array {name}: {answer.status_code} {answer.text[:200]}")
            values = np.frombuffer(answer.content, np.dtype(key["dtype_numpy"]))
            if values.size != np.prod(key["shape"], dtype=int):
                raise ValueError(f"array {name}: {values.size} values, expected {key['shape']}")
            found[name] = values.reshape(key["shape"])
        return found


def _node(uid: str, metadata: Mapping[str, Any]) -> Node:
    start, stop = (metadata.get(name) or {} for name in ("start", "stop"))
    return Node(
        uid,
        str(start.get("raw_uid")),
        str(start.get("job_key")),
        stop.get("exit_status"),
        bool(start.get("complete")),
    )


def misfit(node: Node, arrays: Mapping[str, np.ndarray], wanted: np.ndarray | None) -> str | None:
    """What is wrong with the values of a result, or None.

    Of a run that was cut short, what was measured must be right and the rest be nothing.
    """
    values = arrays.get("values")
    if values is None:
        return "it has no values"
    if wanted is None:
        return None
    if values.shape != wanted.shape:
        if not node.complete:
            return None  # a stack without its last energies
        return f"its shape is {values.shape}, expected {wanted.shape}"
    right = values == wanted
    if not node.complete:
        right |= (values == 0) | np.isnan(values)
    return None if right.all() else f"{int((~right).sum())} of {values.size} values are wrong"


class Watch:
    """Looks at Tiled again and again: whatever has a stop must be whole and right at that very moment.

    Attributes
    ----------
    checked : int
        Results found whole and right, each when its stop was first seen.
    exact : int
        Those of them whose every value is known.
    problems : list of str
        Those that were not, once each.
    """

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._known: set[str] = set()
        self.checked = self.exact = 0
        self.problems: list[str] = []

    def look(self, tiled: TiledReader) -> None:
        """Check what is new.

        Raises
        ------
        NotNow
        """
        for uid in tiled.uids():
            if uid in self._known:
                continue
            node = tiled.node(uid)
            if node is not None and node.status is not None:
                self._check(tiled, node)
                self._known.add(uid)

    def _check(self, tiled: TiledReader, node: Node) -> None:
        if node.status != "success":
            return
        try:
            wanted = self._expected(node.raw_uid)
            wrong = misfit(node, tiled.arrays(node.uid), wanted)
        except ValueError as error:
            wrong, wanted = str(error), None
        if wrong:
            self.problems.append(f"result {node.uid} of run {node.raw_uid}: {wrong}")
        else:
            self.checked += 1
            self.exact += wanted is not None
