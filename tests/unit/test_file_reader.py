"""Reading beside the run: ahead, in order, and without waiting for ever."""

import gc
import threading

import numpy as np
import pytest

from inscan.callbacks.file_access import NotReadable
from inscan.callbacks.file_reader import FileReader


@pytest.fixture
def reader():
    found = FileReader()
    yield found
    found.close(lambda: None)


@pytest.fixture
def hasty():
    found = FileReader(patience=0.2)
    yield found
    found.close(lambda: None)


def rows(n, size=4, error=None):
    for index in range(n):
        yield index, np.full(size, index)
    if error is not None:
        raise error


def test_blocks_come_in_order_whatever_their_size(reader):
    for size in (4, 1 << 20):
        found = list(reader.blocks(rows(7, size)))
        assert [index for index, _ in found] == list(range(7))
        assert all((block == index).all() for index, block in found)
    assert list(reader.blocks(rows(0))) == []


def test_an_error_comes_after_the_blocks_before_it(reader):
    for size in (4, 1 << 20):
        seen = []
        with pytest.raises(NotReadable, match="no more"):
            for index, _ in reader.blocks(rows(3, size, NotReadable("no more"))):
                seen.append(index)
        assert seen == [0, 1, 2]


def test_the_next_block_is_read_while_the_last_one_is_placed(reader):
    reading = threading.Event()

    def blocks():
        yield 0, np.zeros(1 << 20)
        reading.set()
        yield 1, np.zeros(1 << 20)

    for index, _ in reader.blocks(blocks()):
        if index == 0:
            assert reading.wait(10)


def test_blocks_left_early_leave_the_reader_free(reader):
    for _ in reader.blocks(rows(9, 1 << 20)):
        break
    assert reader(lambda: 5) == 5


def test_what_a_read_raises_is_raised_where_it_is_asked_for(reader):
    with pytest.raises(KeyError):
        reader({}.__getitem__, "x")
    with pytest.raises(TimeoutError, match="mine"):
        reader(_raise, TimeoutError("mine"))


def _raise(error):
    raise error


def test_a_read_that_hangs_is_given_up_and_taken_up_again_when_it_returns(hasty):
    go, gone = threading.Event(), threading.Event()

    def hang():
        go.wait(60)
        gone.set()

    with pytest.raises(NotReadable, match="has not returned for 0.2 s"):
        hasty(hang)
    with pytest.raises(NotReadable, match="an earlier read"):
        hasty(lambda: 1)
    with pytest.raises(NotReadable, match="an earlier read"):
        list(hasty.blocks(rows(3)))
    go.set()
    assert gone.wait(10)
    # The thread says that it is done a moment after the function returns.
    for _ in range(1000):
        try:
            assert hasty(lambda: 1) == 1
            break
        except NotReadable:
            threading.Event().wait(0.01)
    else:
        pytest.fail("the reader never became free again")


def test_a_hanging_block_leaves_those_before_it(hasty):
    go = threading.Event()

    def blocks():
        yield 0, np.zeros(1 << 20)
        go.wait(60)
        yield 1, np.zeros(1)

    seen = []
    with pytest.raises(NotReadable, match="has not returned"):
        for index, _ in hasty.blocks(blocks()):
            seen.append(index)
    assert seen == [0]
    go.set()


def test_closing_does_not_wait_for_a_read_that_hangs():
    go, closed = threading.Event(), threading.Event()
    reader = FileReader(patience=0.2)
    with pytest.raises(NotReadable):
        reader(go.wait, 60)
    reader.close(closed.set)
    assert not closed.is_set()
    go.set()
    # Files are closed by the thread that has them, as soon as it can.
    assert closed.wait(10)
    for thread in threading.enumerate():
        if thread.name == "files":
            thread.join(10)
    reader.close(closed.clear)
    assert closed.is_set()
    with pytest.raises(NotReadable, match="closed"):
        reader(lambda: 1)


def test_a_run_that_is_dropped_takes_its_thread_along():
    reader = FileReader()
    assert reader(lambda: 1) == 1
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "files")
    del reader
    gc.collect()
    thread.join(30)
    assert not thread.is_alive()
