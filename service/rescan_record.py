"""What was predicted of rescans and what they gave, side by side; and what is learned from it.

A fine run's own documents tell its time; the composite of survey and fine runs tells what it saw
(`report["composite"]`). Records stay in the journal.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from inscan.service.rescan_worth import Light

LEAST_RECORDS = 5
"""Fewer than these correct nothing."""
SLOWEST, FASTEST = 3.0, 0.5
"""Bounds of the correction: a record is a reason to plan for more time, not for anything."""
COMPARED = ("time", "counts", "background", "relative_sigma", "information")


def records_of(
    proposal: Mapping[str, Any],
    layers: Iterable[Mapping[str, Any]],
    timing: Callable[[str], tuple[float | None, float | None]],
    *,
    min_score: float,
) -> list[dict[str, Any]]:
    """One record for each fine run of a proposal that a composite holds.

    Parameters
    ----------
    proposal : mapping
        As the journal gives it.
    layers : iterable of mapping
        Of the proposal's runs, as `report["composite"]["layers"]` has them: `uid`, `region`, `found`, `shift`,
        `agrees`, and `observed` (`inscan.service.rescan_observed`), where it was looked at.
    timing : callable
        Uid of a run to (start, end) in seconds since the epoch, as its documents say; None where they do not.
    min_score : float
        Likelihood ratio from which a spot counts as confirmed.

    Returns
    -------
    list of dict
        `region`, `run_uid`, `profile`, `predicted` and `measured`, each with `time_s` (of the scan, without the way
        there), `counts` and `background` per fine pixel, `relative_sigma` (per survey pixel), `information` (nats)
        where it is known; `measured` with `shift`, `found`, `agrees`, `likelihood_ratio` and `confirmed` besides.
    """
    regions = {str(one["label"]): one for one in proposal.get("all_regions") or proposal["regions"]}
    records = []
    for layer in layers:
        region = regions.get(str(layer.get("region")))
        if region is None:
            continue
        predicted = dict(region.get("predicted") or {})
        if "scan_s" in predicted:
            predicted["time_s"] = predicted["scan_s"]
        line = str(predicted.get("line") or "")
        seen = _seen(layer.get("observed"), line)
        begun, ended = timing(str(layer["uid"]))
        took = None if begun is None or ended is None or ended < begun else ended - begun
        ratio = seen.get("likelihood_ratio")
        measured = {
            "time_s": took,
            "counts": seen.get("counts"),
            "background": seen.get("background"),
            "relative_sigma": seen.get("relative_sigma"),
            "information": _gained(predicted, seen),
            "shift": list(layer.get("shift") or ()),
            "found": bool(layer.get("found")),
            "agrees": bool(layer.get("agrees")),
            "likelihood_ratio": ratio,
            "confirmed": None if ratio is None else bool(ratio >= min_score),
        }
        records.append(
            {
                "region": str(region["label"]),
                "run_uid": str(layer["uid"]),
                "profile": proposal.get("profile"),
                "target": region.get("target"),
                "predicted": predicted,
                "measured": {name: value for name, value in measured.items() if value is not None},
            }
        )
    return records


def pace_of(records: Sequence[Mapping[str, Any]]) -> float:
    """Time that scans took in the time that the cost model says, to correct what is predicted next.

    Returns
    -------
    float
        The median, within `FASTEST` and `SLOWEST`; 1 with fewer than `LEAST_RECORDS`.
    """
    ratios = _ratios(records, "time")
    if len(ratios) < LEAST_RECORDS:
        return 1.0
    return min(max(statistics.median(ratios), FASTEST), SLOWEST)


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What past records say of predictions.

    Returns
    -------
    dict
        `records` (their number); for each of `COMPARED` measured over predicted: `n`, `median`, `low`, `high` (of
        all); `pace` (what predicted times are multiplied by), `found`, `agrees` and `confirmed` (shares; None where
        nothing is known), `text`.
    """
    told: dict[str, Any] = {"records": len(records), "pace": pace_of(records)}
    for name in COMPARED:
        ratios = _ratios(records, name)
        told[name] = {"n": len(ratios)}
        if ratios:
            told[name] |= {
                "median": statistics.median(ratios),
                "low": min(ratios),
                "high": max(ratios),
            }
    for name in ("found", "agrees", "confirmed"):
        known = [one["measured"][name] for one in records if name in one["measured"]]
        told[name] = sum(known) / len(known) if known else None
    told["text"] = _words(told)
    return told


def _words(told: Mapping[str, Any]) -> str:
    if not told["records"]:
        return "nothing was measured again yet"
    words = [f"{told['records']} fine maps"]
    for name in COMPARED:
        if told[name]["n"]:
            words.append(
                f"{name.replace('_', ' ')} {told[name]['median']:.3g} of what was predicted"
            )
    if told["confirmed"] is not None:
        words.append(f"{100 * told['confirmed']:.0f} % of the spots confirmed")
    return ", ".join(words)


def _ratios(records: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    key = f"{name}_s" if name == "time" else name
    ratios = []
    for one in records:
        before, after = one["predicted"].get(key), one["measured"].get(key)
        if _number(before) and _number(after) and before > 0 and after > 0:
            ratios.append(after / before)
    return ratios


def _seen(observed: Any, line: str) -> dict[str, float]:
    """What a layer saw of a line; of several that are searched as one, all of them together."""
    if not isinstance(observed, Mapping):
        return {}
    one = observed.get(line)
    return {name: value for name, value in one.items() if _number(value)} if one else {}


def _gained(predicted: Mapping[str, Any], seen: Mapping[str, float]) -> float | None:
    """Information gained in nats: as it was predicted, from the counts that came."""
    needed = ("pixels", "per_pixel", "dose", "share", "relative_sigma_before")
    if not {"counts", "background"} <= seen.keys() or not all(
        _number(predicted.get(name)) and predicted[name] > 0 for name in needed
    ):
        return None
    # Of the mean over the fine map, to the place that was found in it.
    signal = max(seen["counts"] - seen["background"], 0.0) / predicted["share"]
    total = max(signal + seen["background"], 1e-9)
    fisher = max(signal**2 / total * predicted["per_pixel"] / predicted["dose"], 1e-6)
    light = Light("", signal, seen["background"], predicted["relative_sigma_before"], fisher)
    return light.information(
        pixels=predicted["pixels"], per_pixel=predicted["per_pixel"], dose=predicted["dose"]
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
