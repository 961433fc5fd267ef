"""Several stored runs as one energy stack: fluorescence maps of one place at several energies."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from inscan.callbacks.map_series import (
    SeriesError,
    incident_energy_ev,
    series_profile,
    stack_of_maps,
)
from inscan.callbacks.profile import BeamlineProfile, matches
from inscan.callbacks.sources.interface import StoredRun
from inscan.callbacks.updates import NotUnderstood, Update
from inscan.service.offline import Wanted, assemble, workplace
from inscan.service.offline_job import Place, Progress, Record, result_of
from inscan.service.offline_store import ResultStore
from inscan.service.spool import Spool
from inscan.service.tiled_http import TiledRefusedKey, TiledUnavailable

_ASSEMBLED = 0.5
"""Fraction of the time, as shown, that assembling takes."""


def process_stack(
    runs: Sequence[StoredRun],
    line: str,
    parameters: Mapping[str, Any],
    wanted: Wanted,
    store: ResultStore | None = None,
    progress: Progress = lambda fraction, text: None,
) -> Record:
    """Assemble maps, put them together, and denoise the stack.

    Parameters
    ----------
    runs : sequence of StoredRun
        In any order; one map each.
    line : str
        The line that is followed, such as `Fe_K`.
    parameters : mapping
        Keyword arguments of subspace.

    Returns
    -------
    Record
        In the name of the run at the lowest energy.

    Raises
    ------
    TiledUnavailable, TiledRefusedKey
        When Tiled does not answer, or refuses the key.
    """
    began = time.monotonic()
    blank = Record(runs[0].uid if runs else "", "failed", recipe="subspace")
    with workplace(wanted) as (spool, results):
        try:
            update = _stacked(runs, line, wanted, spool, progress)
            place_of = spool.run("stack")
            arrays = {name: place_of.spec(name, values) for name, values in update.arrays.items()}
            start = next(run.start for run in runs if run.uid == update.run_uid)
            scan_id = start.get("scan_id")
            blank = Record(
                update.run_uid, "failed", scan_id=scan_id if isinstance(scan_id, int) else None
            )
            place = Place(place_of, results, wanted.again, store, start, blank)

            def onward(fraction: float, text: str) -> None:
                progress(_ASSEMBLED + (1 - _ASSEMBLED) * fraction, text)

            record = result_of(update, "subspace", dict(parameters), arrays, "", place, onward)
        except (TiledUnavailable, TiledRefusedKey):
            raise
        except (SeriesError, NotUnderstood) as error:
            record = replace(blank, reason=str(error))
        except Exception as error:  # noqa: BLE001 - whatever its documents do, a stack is a record
            reason = f"{type(error).__name__}: {error}"
            record = replace(blank, reason=reason, retryable=isinstance(error, OSError))
    progress(1.0, "done")
    return replace(record, seconds=time.monotonic() - began)


def _stacked(
    runs: Sequence[StoredRun], line: str, wanted: Wanted, spool: Spool, progress: Progress
) -> Update:
    finals, energies = [], []
    for number, run in enumerate(runs):
        profile = _profile(run, wanted.profiles)
        # A map below the edge is one of the series, although nothing excites the line there.
        one = replace(wanted, profiles=(series_profile(profile),))
        made = assemble(run, one, spool.run(f"run{number}"), lambda fraction, text: None)
        if len(made) != 1:
            raise SeriesError(
                f"run {run.uid[:8]} holds {len(made)} maps; a series takes one of each"
            )
        finals.append(made[0])
        energies.append(incident_energy_ev(run.start, profile))
        progress(_ASSEMBLED * (number + 1) / len(runs), "assembling")
    return stack_of_maps(finals, line, energies)


def _profile(run: StoredRun, profiles: Sequence[BeamlineProfile]) -> BeamlineProfile:
    for profile in profiles:
        if matches(profile, run.start):
            return profile
    names = ", ".join(profile.name for profile in profiles) or "none is loaded"
    raise NotUnderstood(f"run {run.uid[:8]} matches no profile ({names})")
