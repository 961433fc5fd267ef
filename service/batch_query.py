"""Which runs of an archive are meant: terms over start documents, as a person types them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tiled.queries import Comparison, Eq, NotEq

from inscan.callbacks.sources.tiled import is_derived

__all__ = ["BatchQuery", "QueryError", "parse_query"]

_TIMES = {"since": "ge", "until": "lt"}
_OPERATORS = ("!=", ">=", "<=", "=", ">", "<")
_COMPARED = {">=": "ge", "<=": "le", ">": "gt", "<": "lt"}


class QueryError(ValueError):
    """A term that says nothing; the message shows what one looks like."""


@dataclass(frozen=True)
class BatchQuery:
    """Terms that must all hold, as Tiled's server understands them."""

    terms: tuple[Any, ...]
    text: str

    def uids(self, container: Any) -> Iterator[str]:
        """Uids of the runs that are meant, in the order of their writing; results of inscan are none.

        Parameters
        ----------
        container
            Tiled's client of the container that holds raw runs.
        """
        found = container
        for term in self.terms:
            found = found.search(term)
        for run in found.values():
            start = run.metadata.get("start") or {}
            if "uid" in start and not is_derived(start):
                yield str(start["uid"])


def parse_query(terms: Sequence[str]) -> BatchQuery:
    """Read terms.

    Parameters
    ----------
    terms : sequence of str
        Each ``KEY=VALUE`` (or ``!=``, ``<``, ``<=``, ``>``, ``>=``) with a dotted key of the start document:
        ``sample=NMC811``, ``scan.type=XRF_FLY``, ``scan_id>=2300``; ``since=2026-11-01`` and
        ``until=2026-11-08T12:00`` (UTC unless said) for the time of the scan; ``all`` for every run.

    Raises
    ------
    QueryError
        For a term of another form, or a date that is none.
    """
    if not terms:
        raise QueryError("no term: say KEY=VALUE, since=DATE, or all")
    found = [_term(text.strip()) for text in terms if text.strip() != "all"]
    return BatchQuery(tuple(found), " and ".join(terms))


def _term(text: str) -> Any:
    places = [(text.index(sign), -len(sign), sign) for sign in _OPERATORS if sign in text]
    if not places or min(places)[0] == 0:
        raise QueryError(
            f"{text!r} is no term: write KEY=VALUE with a key of the start document, such as sample=NMC811,"
            " scan_id>=2300, since=2026-11-01; or all"
        )
    at, _, sign = min(places)
    key, value = text[:at].strip(), text[at + len(sign) :].strip()
    if sign == "=" and key in _TIMES:
        return Comparison(_TIMES[key], "start.time", _seconds(value))
    path = f"start.{key}"
    if sign in _COMPARED:
        return Comparison(_COMPARED[sign], path, _number(value))  # type: ignore[arg-type]
    return (Eq if sign == "=" else NotEq)(path, _value(value))


def _value(text: str) -> Any:
    """A number where it is one, true and false, else text; quotes make it text."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if math.isfinite(number):
            return number
    return text


def _number(text: str) -> float:
    value = _value(text)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise QueryError(f"{text!r}: larger and smaller are for numbers")
    return value


def _seconds(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise QueryError(f"{text!r} is no date: write 2026-11-01 or 2026-11-01T14:30") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
