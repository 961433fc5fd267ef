"""Results of offline processing on their way into Tiled, beside those of a live service: one key, one result."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from inscan.service import derived, tiled_sources
from inscan.service.commit import Committer, Fate
from inscan.service.messages import Fail, InferenceJob, InferenceResult, derived_uid
from inscan.service.result_view import describe
from inscan.service.tiled_http import PROCESSED, TiledHTTP


class ResultStore:
    """One connection that writes results to one Tiled, for one thread. Use it as a context manager.

    Parameters
    ----------
    uri : str
    api_key : SecretStr or None
    readable : sequence of Path
        Folders that this Tiled may read: result files in them are registered where they lie.
    shared : Path or None
        Folder that it may read and into which result files from elsewhere are copied. None: they are uploaded.

    Raises
    ------
    TiledUnavailable, TiledRefusedKey
        When Tiled does not answer, or refuses the key.
    """

    def __init__(
        self,
        uri: str,
        api_key: SecretStr | None,
        *,
        readable: Sequence[Path] = (),
        shared: Path | None = None,
    ) -> None:
        self._readable = tuple(folder.resolve() for folder in readable)
        self._tiled = TiledHTTP(uri, api_key)
        try:
            self._tiled.ensure_catalogs()
        except BaseException:
            self._tiled.close()
            raise
        self._committer = Committer(self._tiled, readable=readable, shared=shared)

    def close(self) -> None:
        """Finish requests under way and end the connection."""
        self._committer.close()
        self._tiled.close()

    def __enter__(self) -> "ResultStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def keeps(self, path: Path) -> bool:
        """Whether a result file stays where it is, because this Tiled reads it there."""
        return any(path.resolve().is_relative_to(folder) for folder in self._readable)

    def find(self, key: str) -> dict[str, Any] | None:
        """Start document of the whole, successful result of a job, None where there is none."""
        found = self._tiled.get(f"{PROCESSED}/{derived_uid(key)}")
        if found is None:
            return None
        stop = found["metadata"].get("stop") or {}
        return dict(found["metadata"]["start"]) if stop.get("exit_status") == "success" else None

    def commit(
        self, job: InferenceJob, result: InferenceResult, raw_start: Mapping[str, Any]
    ) -> Fate:
        """Write a result; one that is there already stands, and the file of the other goes.

        Raises
        ------
        DamagedResult, TiledUnavailable, TiledRefusedKey, TiledRejected
            See `inscan.service.commit.Committer.commit`.
        """
        path = Path(result.result_path)
        run = derived.compose(job, result, describe(path), raw_start, time.time())
        axes = derived.axes_of(job.meta, result.report, run.arrays)
        fate = self._committer.commit(run, axes, path, result.digest)
        if fate != "written" and self.keeps(path):
            path.unlink(missing_ok=True)
            tiled_sources.axes_path(path).unlink(missing_ok=True)
        return fate

    def fail(self, job: InferenceJob, why: Fail, raw_start: Mapping[str, Any]) -> None:
        """Record that a job failed; a result that is there, or comes later, takes its place."""
        run = derived.compose_failure(
            job.key,
            job.run_uid,
            job.stream,
            job.recipe,
            raw_start,
            why.code,
            why.message,
            time.time(),
        )
        self._committer.commit(run)
