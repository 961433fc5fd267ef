"""What is read of a queue that others write into, and which of it belongs to a proposal."""

import sys
from typing import Any

import pytest

from inscan.service.queue_client import QueueClient, QueueUnavailable
from inscan.service.queue_items import attempt, belongs, confirmed, ended_of, item_of, marks_of
from inscan.service.settings import QueueServerSettings


def proposal(*states: str) -> dict[str, Any]:
    return {
        "id": "p",
        "run_uid": "composite",
        "survey_uid": "survey",
        "regions": [{"label": "1-Fe_K"}],
        "history": [{"state": state} for state in states],
    }


def item(**kwargs: Any) -> dict[str, Any]:
    return {"item_type": "plan", "name": "inscan_rescan", "item_uid": "u", **kwargs}


def test_an_item_belongs_to_the_approval_that_it_was_added_for():
    first, again = proposal("approved", "queued"), proposal("approved", "failed", "approved")
    added = item_of(item(kwargs={"proposal": "p"}, meta=marks_of(first)))
    assert (added.uid, added.proposal, added.attempt) == ("u", "p", 1)
    assert belongs(added, first) and not belongs(added, again)
    assert attempt(again) == 2 and marks_of(again)["inscan"]["attempt"] == 2
    assert marks_of(first)["parent_uid"] == "survey" and marks_of(first)["regions"] == ["1-Fe_K"]


def test_an_item_was_seen_once_the_journal_has_its_uid():
    assert not confirmed(proposal("approved", "queued"))
    assert confirmed(proposal("approved", "queued", "queued"))
    assert not confirmed(proposal("approved", "queued", "queued", "approved", "queued"))


@pytest.mark.parametrize(
    "given",
    [
        None,
        [],
        "text",
        {"item_type": "instruction", "name": "queue_stop"},
        item(kwargs=["p"], meta="x"),
        item(kwargs={"proposal": ["p"]}, meta={"inscan": {"attempt": "1"}}),
        item(kwargs={"proposal": "p"}, meta={"inscan": {"attempt": -1}}),
        item(kwargs={"proposal": "p"}, meta={"inscan": 3}),
    ],
)
def test_what_others_wrote_is_none_of_ours(given):
    assert not belongs(item_of(given), proposal("approved"))


def test_texts_of_the_queue_server_are_cut():
    ended = ended_of(item(item_uid="u" * 10_000, result={"exit_status": None, "msg": "a\nb" * 999}))
    assert ended.status == "unknown" and "\n" not in ended.reason
    assert len(ended.reason) <= 300 and len(ended.item.uid) <= 300
    assert ended_of(item(result="lost")).status == "unknown"


def test_without_its_client_the_queue_server_is_away_and_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bluesky_queueserver_api.zmq", None)
    with pytest.raises(QueueUnavailable, match=r"pip install 'inscan\[queueserver\]'"):
        QueueClient(QueueServerSettings())
