"""Proposals in words: the list, one with everything that is known of it, and what an approval sets going."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from inscan.service.cli_answers import cell, short, table_of

__all__ = ["brief", "described", "duration", "followed_by", "listed"]

Proposal = Mapping[str, Any]

_LIST = {
    "id": "id",
    "scan": "scan",
    "state": "state",
    "regions": "n",
    "time": "time",
    "dose": "dose",
    "expires\nin": "expires",
    "who": "who",
    "why": "why",
}
_OPEN = ("suggested", "approved", "queued")
_WORDS = {
    "time_s": "time (s)",
    "scan_s": "time of the scan (s)",
    "relative_sigma": "sigma over value",
    "relative_sigma_before": "the same before",
    "information": "information (nats)",
    "counts": "counts per pixel",
    "background": "background per pixel",
    "dose": "dose (surveys)",
}


def duration(seconds: float) -> str:
    """A time span as people say it: `45 s`, `2 min 14 s`, `3 h 58 min`."""
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def listed(proposals: Sequence[Proposal], scans: Mapping[str, Any], now: float) -> Table:
    """The list, one line for each proposal.

    Parameters
    ----------
    scans : mapping
        Scan numbers by run uid, as far as known.
    now : float
        Seconds since the epoch.
    """
    title = _counted(len(proposals), "proposal", "proposals")
    table = _tight(title, [_list_row(one, scans, now) for one in proposals], _LIST)
    for column in table.columns:
        column.no_wrap = column.header not in ("who", "why")
    return table


def _list_row(proposal: Proposal, scans: Mapping[str, Any], now: float) -> dict[str, Any]:
    survey = str(proposal.get("survey_uid") or proposal.get("run_uid") or "")
    what = "energies_ev" if proposal.get("kind") == "energies" else "regions"
    count = len(proposal.get(what) or ())
    expires = proposal.get("expires")
    waits = proposal.get("state") in _OPEN and isinstance(expires, int | float)
    return {
        "id": proposal.get("id"),
        "scan": scans.get(survey) or survey,
        "state": proposal.get("state"),
        "n": f"{count} eV" if what == "energies_ev" else count,
        "time": duration(float(proposal.get("time_s") or 0.0)),
        "dose": float(proposal.get("dose") or 0.0),
        "expires": duration(max(0.0, expires - now)) if waits and expires is not None else None,
        "who": proposal.get("who"),
        "why": _rule(proposal),
    }


def _rule(proposal: Proposal) -> str:
    """What it waits for on its way into a queue, or the rule that closed it: who wants more asks for that proposal."""
    if proposal.get("state") in _OPEN and proposal.get("queue"):
        return str(proposal["queue"])
    if proposal.get("state") not in ("refused", "failed", "expired"):
        return ""
    rule, colon, _ = str(proposal.get("reason") or "").partition(": ")
    return rule if colon and len(rule) < 30 else "see there"


def brief(proposal: Proposal) -> str:
    """Its size and cost in one line."""
    if proposal.get("kind") == "energies":
        parts = [_counted(len(proposal.get("energies_ev") or ()), "energy", "energies")]
    else:
        parts = [_counted(len(proposal.get("regions") or ()), "region", "regions")]
    parts.append(duration(float(proposal.get("time_s") or 0.0)))
    if proposal.get("exposure_s"):
        parts.append(f"{duration(float(proposal['exposure_s']))} of exposure")
    if proposal.get("area_um2"):
        parts.append(f"{float(proposal['area_um2']):.4g} um^2")
    dose = float(proposal.get("dose") or 0.0)
    if dose:
        parts.append(f"{dose:.3g} times the survey's dose at most")
    return ", ".join(parts)


def followed_by(proposal: Proposal, now: float) -> str:
    """What happens after an approval: who takes the proposal, and until when."""
    expires = proposal.get("expires")
    until = ""
    if isinstance(expires, int | float):
        until = f"; nobody may after {_clock(expires)} (in {duration(max(0.0, expires - now))})"
    if proposal.get("through") == "queue":
        taker = "it becomes an item at the front of the queue server's queue as soon as that allows"
    else:
        taker = (
            "the plan that waits for this scan takes it; without one, "
            f"measure_proposal(connection, {str(proposal.get('id', ''))[:8]!r}, ...) does"
        )
    return f"next: {taker}{until}"


def described(proposal: Proposal, scan: Any, now: float) -> list[RenderableType]:
    """All that is known of a proposal, to be printed one after the other.

    Parameters
    ----------
    scan : object
        Scan number of the survey, None where it is not known.
    now : float
        Seconds since the epoch.
    """
    parts: list[RenderableType] = [_head(proposal, scan, now)]
    if proposal.get("kind") == "energies":
        parts.append(_energies(proposal))
    else:
        # A proposal that is taken again names only what is left of it.
        regions = list(proposal.get("all_regions") or proposal.get("regions") or ())
        if regions:
            parts += [_regions(proposal, regions), _reasons(regions)]
    records = list(proposal.get("measured") or ())
    compared = _compared(records)
    if records:
        parts.append(_seen(records))
    if compared:
        columns = {name: name for name in ("region", "what", "predicted", "measured", "ratio")}
        parts.append(_tight("predicted and measured", compared, columns))
    dropped = [dict(one) for one in proposal.get("dropped") or ()]
    if dropped:
        columns = {"region": "region", "rule": "rule", "limit": "limit", "value": "value"}
        columns |= {"units": "units", "why": "text"}
        parts.append(_tight("not proposed", dropped, columns))
    history = [
        {**step, "when": _clock(float(step["at"])), "why": step.get("reason")}
        for step in proposal.get("history") or ()
    ]
    if history:
        columns = {"when": "when", "state": "state", "who": "who", "why": "why"}
        parts.append(_tight("history", history, columns))
    return parts


def _head(proposal: Proposal, scan: Any, now: float) -> RenderableType:
    run = str(proposal.get("survey_uid") or proposal.get("run_uid") or "")
    expires = proposal.get("expires")
    facts = {
        "state": f"{proposal.get('state')} by {proposal.get('who')}: {proposal.get('reason')}",
        "survey": ", ".join(
            part
            for part in (
                f"scan {scan}" if scan is not None else "",
                f"run {run}",
                f"result {proposal['result_uid']}" if proposal.get("result_uid") else "",
                f"round {proposal['round']}" if int(proposal.get("round") or 1) > 1 else "",
            )
            if part
        ),
        "cost": brief(proposal),
        "mode": f"{proposal.get('mode')}, taken through "
        + ("the queue server" if proposal.get("through") == "queue" else "a plan"),
    }
    if isinstance(expires, int | float):
        left = expires - now
        facts["expires"] = _clock(expires) + (
            f" (in {duration(left)})" if proposal.get("state") in _OPEN and left > 0 else ""
        )
    if proposal.get("queue"):
        facts["waits for"] = str(proposal["queue"])
    if proposal.get("attempts"):
        facts["taken"] = _counted(int(proposal["attempts"]), "time", "times")
    if proposal.get("fine_uids"):
        facts["fine runs"] = ", ".join(str(uid) for uid in proposal["fine_uids"])
    context = proposal.get("context") or {}
    if context:
        facts["holds for"] = ", ".join(f"{path} {cell(value)}" for path, value in context.items())
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(f"  {name}", Text(short(value)))
    heading = Table.grid()
    heading.add_row(Text(f"proposal {short(str(proposal.get('id')))}", style="bold"))
    heading.add_row(table)
    return heading


def _energies(proposal: Proposal) -> RenderableType:
    energies = ", ".join(f"{float(one):.2f}" for one in proposal.get("energies_ev") or ())
    factor = float(proposal.get("exposure_factor") or 1.0)
    text = f"energies to add (eV): {energies or 'none'}"
    if proposal.get("dwell"):
        text += f"; {float(proposal['dwell']):.4g} s each"
    return Text(f"{text}, {factor:g} times the survey's exposure")


def _regions(proposal: Proposal, regions: Sequence[Mapping[str, Any]]) -> RenderableType:
    motors, units = _pair(proposal.get("motors")), _pair(proposal.get("units"))
    slow, fast = (f"{motor}\n({unit})" for motor, unit in zip(motors, units, strict=True))
    rows = []
    for region in regions:
        steps = dict.fromkeys(f"{float(step):.4g}" for step in region.get("step") or ())
        rows.append(
            {
                "region": region.get("label"),
                "slow": _range(region.get("slow_range")),
                "fast": _range(region.get("fast_range")),
                "pixels": " x ".join(str(n) for n in region.get("shape") or ()),
                "step": " x ".join(steps),
                "dwell": _number(region.get("dwell")),
                "time": _number(region.get("time_s")),
                "dose": _number(region.get("dose")),
                "nats": _number(region.get("information")),
                "sigma": _sigmas(region.get("predicted") or {}),
                "so far": _so_far(proposal, str(region.get("label"))),
            }
        )
    columns = {"region": "region", slow: "slow", fast: "fast", "pixels": "pixels"}
    columns |= {f"step\n({units[1]})": "step", "dwell\n(s)": "dwell", "time\n(s)": "time"}
    columns |= {"dose": "dose", "gain\n(nats)": "nats", "error, now\nand then": "sigma"}
    return _tight("regions", rows, columns | {"so far": "so far"})


def _tight(title: str, rows: list[dict[str, Any]], columns: dict[str, str]) -> Table:
    """Without lines between columns: there are many of them."""
    table = table_of(title, rows, columns)
    table.box, table.padding, table.title_style = SIMPLE_HEAD, (0, 1, 0, 0), "bold"
    return table


def _sigmas(predicted: Mapping[str, Any]) -> str:
    """Relative uncertainty of a pixel of the line, as it is and as it would be."""
    now, then = (_number(predicted.get(f"relative_sigma{when}")) for when in ("_before", ""))
    if now is None or then is None:
        return ""
    return f"{100 * now:.2g}, {100 * then:.2g} %"


def _reasons(regions: Iterable[Mapping[str, Any]]) -> RenderableType:
    return _sentences(
        (str(region.get("label")), str(region.get("reason") or "no reason")) for region in regions
    )


def _seen(records: Iterable[Mapping[str, Any]]) -> RenderableType:
    """What became of each region that was measured, in words."""
    return _sentences((str(one.get("region")), _words(one)) for one in records)


def _words(record: Mapping[str, Any]) -> str:
    seen = record.get("measured")
    if not isinstance(seen, Mapping):
        return "measured"
    said = []
    if "found" in seen:
        shift = [f"{float(one):.3g}" for one in seen.get("shift") or ()]
        drift = f", shifted by ({', '.join(shift)})" if shift else ""
        said.append(f"found again{drift}" if seen["found"] else "not found again in the survey")
    if "agrees" in seen:
        agrees = "agrees with the survey" if seen["agrees"] else "does not agree with the survey"
        said.append(agrees)
    ratio = _number(seen.get("likelihood_ratio"))
    if "confirmed" in seen:
        confirmed = "spot confirmed" if seen["confirmed"] else "no spot there"
        said.append(confirmed + (f" (likelihood ratio {ratio:.3g})" if ratio is not None else ""))
    return ", ".join(said) or "measured"


def _sentences(told: Iterable[tuple[str, str]]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, sentence in told:
        table.add_row(f"  {name}", Text(sentence))
    return Padding(table, (0, 0, 1, 0))


def _so_far(proposal: Proposal, label: str) -> str:
    if label in (proposal.get("covered") or ()):
        return "measured"
    begun = [one for one in proposal.get("begun") or () if one.get("region") == label]
    if begun:
        return "begun" if len(begun) == 1 else f"begun {len(begun)}x"
    return ""


def _compared(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of what a region was to give and gave: every number that both name."""
    rows = []
    for record in records:
        predicted, measured = record.get("predicted"), record.get("measured")
        if not isinstance(predicted, Mapping) or not isinstance(measured, Mapping):
            continue
        for name in predicted:
            value, got = _number(predicted[name]), _number(measured.get(name))
            if value is not None and got is not None:
                ratio = got / value if value else None
                rows.append(
                    {
                        "region": record.get("region"),
                        "what": _WORDS.get(name, name),
                        "predicted": value,
                        "measured": got,
                        "ratio": ratio,
                    }
                )
    return rows


def _number(value: Any) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return None


def _range(ends: Any) -> str:
    low, high = _pair(ends)
    return f"{float(low):.6g} to {float(high):.6g}" if low != "" else ""


def _pair(values: Any) -> tuple[Any, Any]:
    return (
        (values[0], values[1])
        if isinstance(values, list | tuple) and len(values) == 2
        else ("", "")
    )


def _counted(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"


def _clock(at: float) -> str:
    """Local time of the day, and the date where it is another."""
    then, today = time.localtime(at), time.localtime()
    same = (then.tm_year, then.tm_yday) == (today.tm_year, today.tm_yday)
    return time.strftime("%H:%M:%S" if same else "%Y-%m-%d %H:%M", then)
