"""What is said of a Tiled key that may too much, or too little."""

import pytest

from inscan.service.tiled_scopes import command, judge, needed


@pytest.mark.parametrize("shared", [True, False])
def test_a_key_with_what_is_needed_is_right_and_the_command_makes_it(shared):
    words = command(shared).split()
    asked = [words[i + 1] for i, word in enumerate(words) if word == "--scopes"]
    assert tuple(asked) == needed(shared)
    assert judge(asked, shared) == ("", "")


@pytest.mark.parametrize("shared", [True, False])
def test_every_scope_that_is_missing_or_too_much_is_named_with_the_command(shared):
    for scope in needed(shared):
        wrong, remedy = judge([one for one in needed(shared) if one != scope], shared)
        assert scope in wrong and "lacks" in wrong and command(shared) in remedy
    for scope in ("admin:apikeys", "write:principals", "create:apikeys", "metrics", "new:scope"):
        wrong, remedy = judge([*needed(shared), scope], shared)
        assert scope in wrong and "more than" in wrong and command(shared) in remedy
    assert "whatever its owner may" in judge(["inherit"], shared)[0]
