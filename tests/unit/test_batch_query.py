"""Terms of a query over an archive."""

import pytest
from tiled.queries import Comparison, Eq, NotEq

from inscan.service.batch_query import QueryError, parse_query


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("sample=NMC811", Eq("start.sample", "NMC811")),
        ("scan.type = XRF_FLY", Eq("start.scan.type", "XRF_FLY")),
        ("scan_id=12", Eq("start.scan_id", 12)),
        ("scan_id='12'", Eq("start.scan_id", "12")),
        ("theta=-1.5", Eq("start.theta", -1.5)),
        ("simulated=true", Eq("start.simulated", True)),
        ("purpose!=alignment", NotEq("start.purpose", "alignment")),
        ("scan_id>=2300", Comparison("ge", "start.scan_id", 2300)),
        ("scan_id<2300", Comparison("lt", "start.scan_id", 2300)),
        ("note=a>b", Eq("start.note", "a>b")),
        ("since=2026-11-01", Comparison("ge", "start.time", 1793491200.0)),
        ("until=2026-11-01T01:00+01:00", Comparison("lt", "start.time", 1793491200.0)),
    ],
)
def test_a_term_becomes_what_the_server_compares(text: str, term: object) -> None:
    assert parse_query([text]).terms == (term,)


def test_all_is_no_term_and_nothing_is_not_all() -> None:
    assert parse_query(["all"]).terms == ()
    with pytest.raises(QueryError, match="or all"):
        parse_query([])


@pytest.mark.parametrize(
    "text", ["sample", "=NMC", "scan_id>many", "since=yesterday", "scan_id>=true", ""]
)
def test_what_says_nothing_is_refused_by_name(text: str) -> None:
    with pytest.raises(QueryError):
        parse_query([text])
