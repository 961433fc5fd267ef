"""The mailbox loses nothing, keeps order, is bounded, and wakes a poll."""

import select
import threading
from itertools import pairwise

import pytest

from inscan.service.mailbox import Mailbox, MailboxFullError, Outcome, SnapshotDone


@pytest.fixture
def mailbox():
    box = Mailbox(4)
    yield box
    box.close()


def readable(box: Mailbox, timeout: float = 0.0) -> bool:
    return bool(select.select([box.fileno()], [], [], timeout)[0])


def test_it_is_readable_exactly_while_items_wait(mailbox):
    assert not readable(mailbox) and mailbox.drain() == []
    mailbox.post(Outcome("a", {}))
    mailbox.post(SnapshotDone("a", 3, "x.h5"))
    assert readable(mailbox) and len(mailbox) == 2
    assert mailbox.drain() == [Outcome("a", {}), SnapshotDone("a", 3, "x.h5")]
    assert not readable(mailbox) and mailbox.drain() == []


def test_a_full_mailbox_refuses_and_says_what(mailbox):
    for item in range(4):
        mailbox.post(item)
    with pytest.raises(MailboxFullError, match="4 items wait; cannot post a str"):
        mailbox.post("more")
    assert mailbox.drain() == [0, 1, 2, 3]
    mailbox.post("more")


def test_a_post_waits_for_room_if_asked_to(mailbox):
    for item in range(4):
        mailbox.post(item)
    poster = threading.Thread(target=mailbox.post, args=("later",), kwargs={"timeout": 30})
    poster.start()
    found = []
    while "later" not in found:
        assert readable(mailbox, 30)
        found += mailbox.drain()
    poster.join()
    assert found == [0, 1, 2, 3, "later"]


def test_many_threads_lose_nothing_and_keep_their_order():
    box = Mailbox(64)

    def post(name: int) -> None:
        for number in range(500):
            box.post((name, number), timeout=30)

    threads = [threading.Thread(target=post, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    found: list[tuple[int, int]] = []
    while len(found) < 2000:
        assert readable(box, 30)
        found += box.drain()
    for thread in threads:
        thread.join()
    box.close()
    for name in range(4):
        numbers = [number for who, number in found if who == name]
        assert len(numbers) == 500 and all(a < b for a, b in pairwise(numbers))


def test_a_closed_mailbox_refuses_and_lets_waiting_posters_go(mailbox):
    for item in range(4):
        mailbox.post(item)
    caught = []

    def post() -> None:
        try:
            mailbox.post("later", timeout=30)
        except ValueError as error:
            caught.append(str(error))

    poster = threading.Thread(target=post)
    poster.start()
    mailbox.close()
    poster.join(30)
    assert "closed" in caught[0] and mailbox.drain() == []
    mailbox.close()


def test_a_mailbox_without_room_is_refused():
    with pytest.raises(ValueError, match="1 at least"):
        Mailbox(0)
