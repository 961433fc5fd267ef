"""Pixel, seq_num and motor position are one thing in three words."""

import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inscan.callbacks.geometry import GeometryError, RegionOfInterest, ScanGeometry, region_from_box
from inscan.callbacks.geometry_start import Raster, read_start
from inscan.callbacks.profile_sections import Geometry

few = settings(max_examples=50, deadline=None, derandomize=True)
coordinate = st.floats(-1e4, 1e4).map(lambda value: round(value, 3))


@st.composite
def geometries(draw):
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    ends = {}
    for axis in ("slow", "fast"):
        first = draw(coordinate)
        span = draw(st.floats(0.01, 1e3)) * draw(st.sampled_from([1, -1]))
        ends |= {f"{axis}_first": first, f"{axis}_last": first + span}
        n = shape[axis == "fast"]
        if n > 1 and draw(st.booleans()):
            # Uneven: steps of a list differ by at most a factor of four.
            steps = np.array(draw(st.lists(st.floats(1, 4), min_size=n - 1, max_size=n - 1)))
            centres = first + span * np.concatenate([[0], np.cumsum(steps)]) / steps.sum()
            ends[f"{axis}_centres"] = tuple(centres.tolist())
            ends[f"{axis}_last"] = float(centres[-1])
    return ScanGeometry(shape, "slow", "fast", "um", "um", snaking=draw(st.booleans()), **ends)


@st.composite
def with_box(draw):
    geometry = draw(geometries())
    rows, cols = geometry.shape
    row0, col0 = draw(st.integers(0, rows - 1)), draw(st.integers(0, cols - 1))
    row1, col1 = draw(st.integers(row0 + 1, rows)), draw(st.integers(col0 + 1, cols))
    return geometry, (row0, row1, col0, col1)


@few
@given(geometries())
def test_each_way_back_leads_to_the_same_pixel(geometry):
    seen = set()
    positions = geometry.positions()
    flat = geometry.flat_pixels(1, geometry.size + 1)
    for seq_num in range(1, geometry.size + 1):
        row, col = geometry.pixel_of(seq_num)
        assert flat[seq_num - 1] == row * geometry.shape[1] + col
        assert geometry.seq_num_of(row, col) == seq_num
        position = geometry.position_of(row, col)
        assert tuple(positions[:, row, col]) == position
        assert geometry.pixel_at(*position) == (row, col)
        seen.add((row, col))
    assert len(seen) == geometry.size


@few
@given(geometries(), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_a_position_anywhere_in_a_pixel_is_that_pixel(geometry, up, along):
    for row in range(geometry.shape[0]):
        for col in range(geometry.shape[1]):
            slow, fast = geometry.ranges((row, row + 1, col, col + 1))
            centre = geometry.position_of(row, col)
            assert slow[0] < centre[0] < slow[1]
            assert fast[0] < centre[1] < fast[1]
            at = slow[0] + up * (slow[1] - slow[0]), fast[0] + along * (fast[1] - fast[0])
            assert geometry.pixel_at(*at) == (row, col)


@few
@given(geometries())
def test_pixels_fill_the_field_without_a_gap(geometry):
    rows, cols = geometry.shape
    edges = [geometry.ranges((row, row + 1, 0, 1))[0] for row in range(rows)]
    for one, other in itertools.pairwise(sorted(edges)):
        assert one[1] == pytest.approx(other[0])
    assert geometry.field()[0] == pytest.approx(
        (min(e[0] for e in edges), max(e[1] for e in edges))
    )


@few
@given(geometries(), coordinate, coordinate)
def test_a_shift_moves_every_pixel(geometry, slow, fast):
    moved = replace(geometry, planned=False).shifted(slow, fast)
    assert moved.planned
    expected = geometry.positions() + np.array([slow, fast])[:, None, None]
    np.testing.assert_allclose(moved.positions(), expected, rtol=1e-9, atol=1e-9)


def test_positions_that_are_not_planned_are_nobodys():
    geometry = replace(ScanGeometry.from_start(start()), planned=False)
    assert np.isnan(geometry.positions()).all()
    assert ScanGeometry.from_dict(json.loads(json.dumps(geometry.to_dict()))) == geometry


@few
@given(geometries())
def test_json_and_back(geometry):
    assert ScanGeometry.from_dict(json.loads(json.dumps(geometry.to_dict()))) == geometry


@few
@given(with_box(), st.floats(0, 3))
def test_a_region_covers_its_box_and_stays_in_the_field(case, padding):
    geometry, box = case
    region = region_from_box(geometry, box, padding=padding, score=3.0, reason="r", label="a")
    bare = region_from_box(geometry, box)
    (slow_low, slow_high), (fast_low, fast_high) = geometry.field()
    assert slow_low <= region.slow_range[0] <= bare.slow_range[0]
    assert bare.slow_range[1] <= region.slow_range[1] <= slow_high
    assert fast_low <= region.fast_range[0] <= bare.fast_range[0]
    assert bare.fast_range[1] <= region.fast_range[1] <= fast_high
    for row, col in ((box[0], box[2]), (box[1] - 1, box[3] - 1)):
        slow, fast = geometry.position_of(row, col)
        assert bare.slow_range[0] < slow < bare.slow_range[1]
        assert bare.fast_range[0] < fast < bare.fast_range[1]
    assert region.area > 0
    assert RegionOfInterest.from_dict(json.loads(json.dumps(region.to_dict()))) == region


def start(**changes):
    return {
        "shape": [3, 5],
        "extents": [[0, 2], [10, 14]],
        "snaking": [False, True],
        "motors": ["y", "x"],
    } | changes


def test_a_grid_scan():
    geometry = ScanGeometry.from_start(start(), units={"x": "mm"})
    assert geometry == ScanGeometry((3, 5), "y", "x", "", "mm", 0, 2, 10, 14, True)
    assert [geometry.pixel_of(seq) for seq in (1, 5, 6, 10, 11)] == [
        (0, 0), (0, 4), (1, 4), (1, 0), (2, 0)
    ]  # fmt: skip
    assert geometry.field() == ((-0.5, 2.5), (9.5, 14.5))


@few
@given(geometries())
def test_both_orders_say_the_same_raster(geometry):
    one = {
        "shape": list(geometry.shape),
        "extents": [
            [geometry.slow_first, geometry.slow_last],
            [geometry.fast_first, geometry.fast_last],
        ],
        "snaking": [False, geometry.snaking],
        "motors": ["slow", "fast"],
    }
    other = {key: value[::-1] for key, value in one.items()}
    even = replace(geometry, slow_centres=(), fast_centres=())
    units = {"slow": "um", "fast": "um"}
    assert ScanGeometry.from_start(one, units=units) == even
    keys = Geometry(order="fast_slow")
    assert ScanGeometry.from_start(other, keys, units) == even
    (slow, fast), (rows, cols) = one["extents"], geometry.shape
    keys = Geometry(scan_input="list", order="fast_slow")
    listed = other | {"list": [*fast, cols, *slow, rows]}
    assert ScanGeometry.from_start(listed, keys, units) == even


def test_a_beamline_that_writes_the_fast_axis_first():
    keys = Geometry(shape="scan.shape", order="fast_slow", units="um")
    document = start(extents=[[10, 14], [0, 2]], motors=["x", "y"], snaking=[True, False])
    document["scan"] = {"shape": [5, 3]}
    geometry = ScanGeometry.from_start(document, keys)
    assert geometry == ScanGeometry((3, 5), "y", "x", "um", "um", 0, 2, 10, 14, True)


@pytest.mark.parametrize("snaking", [None, False, [], [False], [False, False], [True, False], 0])
def test_no_snaking(snaking):
    assert not ScanGeometry.from_start(start(snaking=snaking)).snaking


@pytest.mark.parametrize("snaking", [True, 1, [False, True]])
def test_snaking(snaking):
    assert ScanGeometry.from_start(start(snaking=snaking)).snaking


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shape": None}, "no 'shape'"),
        ({"shape": [3, 4, 5]}, "two axes"),
        ({"shape": "35"}, "two axes"),
        ({"shape": [3, 4.5]}, "whole"),
        ({"shape": [0, 4]}, "at least 1"),
        ({"shape": [1 << 20, 1 << 20]}, "at most"),
        ({"shape": ["many", 4]}, "expected \\[rows, cols\\]"),
        ({"extents": [[0, 2], 7]}, "expected \\[rows, cols\\]"),
        ({"extents": [[0, 2], [1, 1]]}, "x: 5 positions, but all of them at 1"),
        ({"extents": [[0, float("inf")], [1, 2]]}, "finite"),
        ({"motors": ["y"]}, "two axes"),
    ],
)
def test_a_start_document_that_says_no_geometry(changes, said):
    with pytest.raises(GeometryError, match=said):
        ScanGeometry.from_start(start(**changes))


def test_outside_is_an_error():
    geometry = ScanGeometry.from_start(start())
    for wrong in (0, -1, 16):
        with pytest.raises(IndexError, match="1 to 15"):
            geometry.pixel_of(wrong)
    with pytest.raises(IndexError, match="outside"):
        geometry.position_of(3, 0)
    with pytest.raises(IndexError, match="outside"):
        geometry.seq_num_of(0, -1)
    with pytest.raises(ValueError, match="x lies outside the field 9.5 ... 14.5"):
        geometry.pixel_at(0, 14.6)
    for box in ((0, 0, 0, 1), (0, 4, 0, 1), (-1, 1, 0, 1)):
        with pytest.raises(ValueError, match="box"):
            region_from_box(geometry, box)
    with pytest.raises(ValueError, match="padding"):
        region_from_box(geometry, (0, 1, 0, 1), padding=-1)
    with pytest.raises(GeometryError, match="not a scan geometry"):
        ScanGeometry.from_dict({"shape": [1, 2]})
    with pytest.raises(ValueError, match="not a region"):
        RegionOfInterest.from_dict({"box": [0, 1, 0, 1]})


def test_a_line_scan_has_a_width():
    line = ScanGeometry((1, 5), "y", "x", "um", "um", 3.0, 3.0, 0.0, 8.0, False)
    assert line.field() == ((2.0, 4.0), (-1.0, 9.0))
    point = ScanGeometry((1, 1), "y", "x", "um", "um", 3.0, 3.0, 0.0, 0.0, False)
    assert point.field() == ((2.5, 3.5), (-0.5, 0.5))
    np.testing.assert_array_equal(point.positions(), [[[3.0]], [[0.0]]])


FLAT = Geometry(
    shape="scan.shape",
    scan_input="scan.scan_input",
    fast_motor="scan.fast_axis.motor_name",
    slow_motor="scan.slow_axis.motor_name",
    fast_units="scan.fast_axis.units",
    slow_units="scan.slow_axis.units",
    snaking="scan.snake",
    order="fast_slow",
)


def flat(scan_input: Any, *, fast: str | None = "sx", slow: str = "sy", **scan: Any):
    return {
        "scan": {
            "scan_input": scan_input,
            "fast_axis": {"motor_name": fast, "units": "um"},
            "slow_axis": {"motor_name": slow, "units": "mm"},
            **scan,
        }
    }


@pytest.mark.parametrize(
    "written",
    [
        [10, 14, 5, 0, 2, 3, 0.05],
        (10.0, 14.0, 5.0, 0.0, 2.0, 3.0),
        np.array([10, 14, 5, 0, 2, 3]),
        "[10, 14, 5, 0, 2, 3, 0.05]",
        "(10., 14, np.float64(5.0), 0, .2e1, 3, 0.05)",
        [10, 14, 5, 0, 2, 3, "0.05 s"],
    ],
)
def test_a_flat_list_with_the_fast_axis_first(written):
    geometry = ScanGeometry.from_start(flat(written, snake=1), FLAT)
    assert geometry == ScanGeometry((3, 5), "sy", "sx", "mm", "um", 0, 2, 10, 14, True)
    fast_is_y = ScanGeometry.from_start(flat(written, fast="sy", slow="sx"), FLAT)
    assert (fast_is_y.slow_motor, fast_is_y.fast_motor, fast_is_y.snaking) == ("sx", "sy", False)
    assert fast_is_y.shape == (3, 5)


def with_form(form):
    return FLAT.model_copy(update={"scan_input_form": form})


def test_a_flat_list_of_steps():
    steps = [10, 14, 1, 2, 0, 0.5, 0.05]
    geometry = ScanGeometry.from_start(flat(steps), with_form("fast_slow_step"))
    assert geometry == ScanGeometry((5, 5), "sy", "sx", "mm", "um", 2, 0, 10, 14, False)
    assert geometry == ScanGeometry.from_start(flat(steps, shape=[5, 5]), with_form("fast_slow"))
    by_number = flat([10, 14, 5, 0, 2, 3], shape=[5, 3])
    assert ScanGeometry.from_start(by_number, with_form("fast_slow")).shape == (3, 5)


def test_steps_that_do_not_divide_the_way_are_said():
    layout = read_start(flat([0, 1, 0.3, 0, 1, 0.1]), with_form("fast_slow_step"))
    assert isinstance(layout, Raster)
    assert layout.shape == (11, 4)
    assert layout.fast == pytest.approx((0, 0.9))
    (said,) = layout.warnings
    assert "fast axis 0 to 1 is not a whole number of steps of 0.3: 4 points up to 0.9" in said
    layout = read_start(flat([0, 1, 0.3, 0, 1, 0.1], shape=[5, 11]), with_form("fast_slow_step"))
    assert isinstance(layout, Raster)
    assert layout.shape == (11, 5), "the plan's own count decides between the nearest two"
    assert "5 points up to 1.2" in layout.warnings[0]
    layout = read_start(flat([0, 1, 4, 0, 1, 3], shape=[4, 7]), FLAT)
    assert "says (4, 7) fast and slow points" in layout.warnings[0]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("written", "form", "said"),
    [
        ([0, 9, 1.5, 0, 2, 3], "fast_slow_num", "geometry.scan_input_form: fast_slow_step"),
        ([0, 9, 0, 0, 2, 3], "fast_slow_num", "no number of fast points"),
        ([0, 9, 0, 0, 2, 3], "fast_slow_step", "no scan"),
        ([0, 9, 1e-12, 0, 2, 3], "fast_slow_step", "no scan"),
        ([0, 9, 7, 0, 2, 3], "fast_slow", "neither"),
        ([0, 9, 7], "fast_slow_num", "expected \\[first, last"),
        ("__import__('os').system('true')", "fast_slow_num", "not a list"),
        ("[" * 1999, "fast_slow_num", "not a list"),
        ("[" + "1," * 5000 + "1]", "fast_slow_num", "characters"),
        ([0, float("nan"), 5, 0, 2, 3], "fast_slow_num", "finite"),
        ([0, "far", 5, 0, 2, 3], "fast_slow_num", "not all are numbers"),
        ({"a": 1}, "fast_slow_num", "expected a list"),
        (12, "fast_slow_num", "expected a list"),
        ([0, 9, 1 << 20, 0, 2, 1 << 20], "fast_slow_num", "at most"),
    ],
)
def test_a_flat_list_that_says_no_geometry(written, form, said):
    with pytest.raises(GeometryError, match=said):
        ScanGeometry.from_start(flat(written, shape=[3, 4]), with_form(form))


def test_a_flat_list_without_motors():
    with pytest.raises(GeometryError, match="geometry.fast_motor"):
        ScanGeometry.from_start(flat([0, 9, 5, 0, 2, 3], fast=None), FLAT)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (None, "without its lists"),
        ({"args": ["y", [0, 1, 2]]}, "without its lists"),
        ({"args": ["y", [0, 1], "x", [0, 1, 2, 3, 4]]}, "a list of 2"),
        ({"args": ["y", [0, 1, 2], "x", "01234"]}, "a list of 1"),
    ],
)
def test_a_grid_of_lists_is_never_taken_as_even(args, said):
    document = start(plan_pattern="outer_list_product", plan_pattern_args=args)
    with pytest.raises(GeometryError, match=said):
        ScanGeometry.from_start(document)


@few
@given(st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
), st.sampled_from(["shape", "extents", "motors", "snaking", "hints", "plan_pattern",
                    "plan_pattern_args", "num_points", "plan_name", "scan"]))  # fmt: skip
def test_whatever_a_start_document_holds_is_read_or_refused(value, key):
    for pattern in ({}, {"plan_pattern": "outer_list_product"}, {"plan_pattern": "spiral"}):
        for keys in (Geometry(), FLAT):
            try:
                read_start(start(**pattern) | {key: value}, keys)
                read_start(flat([0, 1, 2, 0, 1, 2], shape=value), keys)
            except GeometryError as error:
                assert "\n" not in str(error)
