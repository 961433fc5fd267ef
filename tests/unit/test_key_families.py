"""Templates found in data keys."""

import pytest

from inscan.callbacks.key_families import families


@pytest.mark.parametrize(
    ("keys", "template", "channels", "mcarois"),
    [
        (
            [f"xs_channel{c:02d}_fluor" for c in range(1, 9)],
            "xs_channel{channel:02d}_fluor",
            tuple(range(1, 9)),
            (),
        ),
        (
            [
                f"xs_channel{c:02d}_mcaroi{m:02d}_total_rbv"
                for c in range(1, 12)
                for m in range(1, 5)
            ],
            "xs_channel{channel:02d}_mcaroi{mcaroi:02d}_total_rbv",
            tuple(range(1, 12)),
            (1, 2, 3, 4),
        ),
        ([f"vortex_mca{c}" for c in (1, 2, 3, 4)], "vortex_mca{channel}", (1, 2, 3, 4), ()),
        (["det_mcaroi1", "det_mcaroi2"], "det_mcaroi{mcaroi}", (), (1, 2)),
        (["ch9", "ch10"], "ch{channel}", (9, 10), ()),
        (["i0"], "i0", (), ()),
        (["a{b}"], "a{{b}}", (), ()),
    ],
)
def test_numbers_become_fields(
    keys: list[str], template: str, channels: tuple[int, ...], mcarois: tuple[int, ...]
) -> None:
    (family,) = families(keys)
    assert (family.template, family.channels, family.mcarois) == (template, channels, mcarois)
    filled = {
        template.format(channel=c, mcaroi=m) for c in channels or (1,) for m in mcarois or (1,)
    }
    assert filled == set(keys)


def test_keys_that_differ_in_too_much_stay_alone() -> None:
    keys = ["a1_b1_c1", "a1_b2_c3", "a2_b1_c2"]
    assert sorted(family.template for family in families(keys)) == keys
