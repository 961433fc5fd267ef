"""Pixel, seq_num and motor position are one thing in three words."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inscan.callbacks.geometry import GeometryError, RegionOfInterest, ScanGeometry, region_from_box
from inscan.callbacks.profile_sections import Geometry

coordinate = st.floats(-1e4, 1e4).map(lambda value: round(value, 3))


@st.composite
def geometries(draw):
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    ends = {}
    for axis in ("slow", "fast"):
        first = draw(coordinate)
        span = draw(st.floats(0.01, 1e3)) * draw(st.sampled_from([1, -1]))
        ends |= {f"{axis}_first": first, f"{axis}_last": first + span}
    return ScanGeometry(shape, "slow", "fast", "um", "um", snaking=draw(st.booleans()), **ends)


@st.composite
def with_box(draw):
    geometry = draw(geometries())
    rows, cols = geometry.shape
    row0, col0 = draw(st.integers(0, rows - 1)), draw(st.integers(0, cols - 1))
    row1, col1 = draw(st.integers(row0 + 1, rows)), draw(st.integers(col0 + 1, cols))
    return geometry, (row0, row1, col0, col1)


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


@given(geometries(), st.floats(-0.49, 0.49), st.floats(-0.49, 0.49))
def test_a_position_anywhere_in_a_pixel_is_that_pixel(geometry, up, along):
    for pixel in ((0, 0), (geometry.shape[0] - 1, geometry.shape[1] - 1)):
        slow, fast = geometry.position_of(*pixel)
        at = (slow + up * geometry.slow_step, fast + along * geometry.fast_step)
        assert geometry.pixel_at(*at) == pixel


@given(geometries())
def test_json_and_back(geometry):
    assert ScanGeometry.from_dict(json.loads(json.dumps(geometry.to_dict()))) == geometry


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
