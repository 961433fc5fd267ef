"""The plans that Bluesky comes with, run for real: their documents are the ones we copy, and become
maps."""

from collections.abc import Callable
from typing import Any

import bluesky.plans as bp
import numpy as np
import pytest
from bluesky import RunEngine
from cycler import cycler
from ophyd.sim import SynAxis, SynSignal

from inscan.callbacks.assembly import NotUnderstood, open_assembler
from inscan.callbacks.geometry import ScanGeometry
from inscan.callbacks.profile import BeamlineProfile, load_profile
from inscan.profiles import bluesky_starts

ELEMENTS = ("Ca_K", "Fe_K")
COUNT_KEY = "xs_channel01_mcaroi{:02d}_total_rbv"


def profile() -> BeamlineProfile:
    content = load_profile("sim_xrf").model_dump(mode="json")
    content["match"] = {"plan_type": "generator"}
    content["xrf"]["elements"]["lines"] = ELEMENTS
    content["geometry"]["units"] = "um"
    return BeamlineProfile.model_validate(content)


class Bench:
    """Two motors, a third, and a detector whose counts are a known function of where it is."""

    def __init__(self) -> None:
        axes: list[Any] = [SynAxis(name=name) for name in ("sample_y", "sample_x", "z")]
        self.y, self.x, self.z = axes
        self.detectors: list[Any] = [
            SynSignal(name=COUNT_KEY.format(1), func=self.counts),
            SynSignal(name=COUNT_KEY.format(2), func=lambda: 3 * self.counts()),
            SynSignal(name="xs_channel01_live_time", func=lambda: 0.5),
            SynSignal(name="sclr_i0", func=lambda: 1000.0),
        ]
        self.documents: list[tuple[str, Any]] = []
        self.engine = RunEngine({}, context_managers=[], call_returns_result=False)
        self.engine.subscribe(lambda name, doc: self.documents.append((name, doc)))

    def counts(self) -> int:
        return counts_at(self.y.position, self.x.position)

    def run(self, plan: Any) -> list[tuple[str, Any]]:
        self.documents.clear()
        self.engine(plan)
        return list(self.documents)


def counts_at(y: float, x: float) -> int:
    return round(1000 + 10 * y + x)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


def assemble(documents):
    assembler = open_assembler(documents[0][1], [profile()])
    return [update for name, doc in documents for update in assembler(name, doc)][-1]


def same_as_bench(final: Any, documents: Any) -> ScanGeometry:
    """Compare each pixel with the events that were taken in it."""
    geometry = ScanGeometry.from_dict(final.meta["geometry"])
    expected = np.zeros(geometry.shape)
    events = [doc["data"] for name, doc in documents if name == "event"]
    for data in events:
        expected[geometry.pixel_at(data["sample_y"], data["sample_x"])] += data[COUNT_KEY.format(1)]
    np.testing.assert_array_equal(final.arrays["counts"][0, 0], expected)
    np.testing.assert_array_equal(final.arrays["counts"][0, 1], 3 * expected)
    np.testing.assert_array_equal(final.arrays["measured"], expected > 0)
    np.testing.assert_allclose(final.arrays["exposure"].sum(), 0.5 * len(events))
    assert final.meta["complete"]
    return geometry


def _lists(bench: Bench) -> tuple[Any, ...]:
    return bench.y, [0, 1, 5], bench.x, [2, 3, 3]


Plan = Callable[[Bench], Any]
RASTERS: dict[str, tuple[Plan, tuple[int, int]]] = {
    "grid": (lambda b: bp.grid_scan(b.detectors, b.y, -1, 1, 3, b.x, -2, 2, 4), (3, 4)),
    "snake": (
        lambda b: bp.grid_scan(b.detectors, b.y, 1, -1, 3, b.x, -2, 2, 4, snake_axes=True),
        (3, 4),
    ),
    "snake of one": (
        lambda b: bp.grid_scan(b.detectors, b.y, -1, 1, 3, b.x, -2, 2, 4, snake_axes=[b.x]),
        (3, 4),
    ),
    "lists": (lambda b: bp.list_grid_scan(b.detectors, b.y, [5, 1, 0], b.x, [1, 2, 4, 8]), (3, 4)),
    "lists, snake": (
        lambda b: bp.list_grid_scan(
            b.detectors,
            b.y,
            [0, 1, 2],
            b.x,
            [8, 4, 2, 1],
            snake_axes=[b.x],  # type: ignore[arg-type]
        ),
        (3, 4),
    ),
}
RELATIVE: dict[str, tuple[Plan, tuple[int, int]]] = {
    "grid": (
        lambda b: bp.rel_grid_scan(b.detectors, b.y, -1, 1, 3, b.x, -2, 2, 4, snake_axes=True),
        (3, 4),
    ),
    "lists": (
        lambda b: bp.rel_list_grid_scan(b.detectors, b.y, [0, 1, 5], b.x, [1, 2, 4, 8]),
        (3, 4),
    ),
}
POINTS: dict[str, Plan] = {
    "spiral": lambda b: bp.spiral(b.detectors, b.x, b.y, 2, 30, 8, 8, 1, 6),
    "fermat": lambda b: bp.spiral_fermat(b.detectors, b.x, b.y, 0, 0, 8, 8, 1, 1),
    "square": lambda b: bp.spiral_square(b.detectors, b.x, b.y, 0, 0, 4, 8, 5, 3),
    "relative spiral": lambda b: bp.rel_spiral(b.detectors, b.x, b.y, 8, 8, 1, 6),
    "relative fermat": lambda b: bp.rel_spiral_fermat(b.detectors, b.x, b.y, 8, 8, 1, 1),
    "relative square": lambda b: bp.rel_spiral_square(b.detectors, b.x, b.y, 4, 8, 5, 3),
    "cycler of a grid": lambda b: bp.scan_nd(
        b.detectors, cycler(b.y, [0, 1, 2]) * cycler(b.x, [1, 2, 3, 4])
    ),
    "cycler of points": lambda b: bp.scan_nd(
        b.detectors, cycler(b.y, [0.0, 1.1, 4, 2.2]) + cycler(b.x, [3.0, 2.1, 1.7, 0])
    ),
    "scan": lambda b: bp.scan(b.detectors, b.y, 0, 4, b.x, 0, 8, 5),
    "list scan": lambda b: bp.list_scan(b.detectors, *_lists(b)),
    "relative scan": lambda b: bp.rel_scan(b.detectors, b.y, 0, 4, b.x, 0, 8, 5),
    "lists up and down": lambda b: bp.list_grid_scan(b.detectors, b.y, [0, 2, 1], b.x, [1, 3, 2]),
}


@pytest.mark.parametrize("name", RASTERS)
def test_rasters(bench, name):
    plan, shape = RASTERS[name]
    documents = bench.run(plan(bench))
    final = assemble(documents)
    geometry = same_as_bench(final, documents)
    assert geometry.shape == shape
    assert not [w for w in final.meta["warnings"] if "half a step" in w]
    # Each event lies where its number says.
    for name_, doc in documents:
        if name_ == "event":
            where = geometry.position_of(*geometry.pixel_of(doc["seq_num"]))
            assert where == pytest.approx((doc["data"]["sample_y"], doc["data"]["sample_x"]))


@pytest.mark.parametrize("name", RELATIVE)
def test_relative_rasters(bench, name):
    plan, shape = RELATIVE[name]
    bench.y.set(12.0).wait()
    bench.x.set(-40.0).wait()
    documents = bench.run(plan(bench))
    final = assemble(documents)
    geometry = same_as_bench(final, documents)
    assert geometry.shape == shape
    assert any("12 " in w and "-40 " in w and "relative" in w for w in final.meta["warnings"])
    assert not [w for w in final.meta["warnings"] if "half a step" in w]


@pytest.mark.parametrize("name", POINTS)
def test_points(bench, name):
    bench.y.set(7.0).wait()
    bench.x.set(-3.0).wait()
    documents = bench.run(POINTS[name](bench))
    final = assemble(documents)
    geometry = same_as_bench(final, documents)
    said = " ".join(final.meta["warnings"])
    assert "were put on a grid" in said
    assert ("sample_y", "sample_x") == (geometry.slow_motor, geometry.fast_motor)
    if "square" in name:
        # Shape and extents are y first, motors x first: 4 wide and 8 high, 5 across and 3 up.
        assert geometry.shape == (3, 5)
        assert (geometry.slow_step, geometry.fast_step) == (4.0, 1.0)
    if name == "cycler of a grid":
        assert geometry.shape == (3, 4)
    if "spiral" in name:
        assert "the spiral's dr" in said


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (
            lambda b: bp.grid_scan(b.detectors, b.z, 0, 1, 2, b.y, 0, 1, 2, b.x, 0, 1, 2),
            "two axes.*geometry.shape",
        ),
        (lambda b: bp.scan(b.detectors, b.x, 0, 1, 3), "two axes.*geometry.motors"),
        (lambda b: bp.count(b.detectors, 2), "geometry.motors"),
        (
            lambda b: bp.scan(b.detectors, b.x, 0, 1, b.y, 0, 1, b.z, 0, 1, 3),
            "two axes.*geometry.motors",
        ),
    ],
)
def test_what_is_no_map_is_said(bench, plan, said):
    documents = bench.run(plan(bench))
    with pytest.raises(NotUnderstood, match=said):
        open_assembler(documents[0][1], [profile()])


def test_an_adaptive_scan_of_two_motors_says_no_number(bench):
    """A plan of a beamline's own: nothing in its start document tells how many points come."""

    def plan():
        md = {"motors": ["sample_y", "sample_x"]}
        import bluesky.plan_stubs as bps
        import bluesky.preprocessors as bpp

        @bpp.run_decorator(md=md)
        def inner():
            for step in range(6):
                yield from bps.mv(bench.y, step, bench.x, (7 * step) % 4)
                yield from bps.trigger_and_read([*bench.detectors, bench.y, bench.x])

        return (yield from inner())

    documents = bench.run(plan())
    final = assemble(documents)
    same_as_bench(final, documents)
    assert "geometry.most_points" in " ".join(final.meta["warnings"])


@pytest.mark.parametrize(
    ("real", "copy"),
    [
        (
            lambda b: bp.grid_scan(b.detectors, b.y, 0, 2, 3, b.x, -3, 3, 4, snake_axes=True),
            bluesky_starts.grid((3, 4), (0, 2), (-3, 3), snake=True),
        ),
        (
            lambda b: bp.rel_grid_scan(b.detectors, b.y, 0, 2, 3, b.x, -3, 3, 4),
            bluesky_starts.grid((3, 4), (0, 2), (-3, 3), relative_to=(5, 6)),
        ),
        (
            lambda b: bp.list_grid_scan(b.detectors, b.y, [5, 1, 0], b.x, [1, 2], snake_axes=True),
            bluesky_starts.list_grid([5, 1, 0], [1, 2], snake=True),
        ),
        (
            lambda b: bp.spiral(b.detectors, b.x, b.y, 2, 30, 8, 8, 1, 6),
            bluesky_starts.spiral(4, 1, 6, centre=(30, 2)),
        ),
        (
            lambda b: bp.spiral_square(b.detectors, b.x, b.y, 4, 0, 8, 4, 3, 5),
            bluesky_starts.square_spiral((5, 3), (-2, 2), (0, 8)),
        ),
        (
            lambda b: bp.scan_nd(b.detectors, cycler(b.y, [0.0, 1.0]) + cycler(b.x, [3.0, 2.0])),
            bluesky_starts.scattered(np.array([[0, 1], [3, 2]])),
        ),
    ],
)
def test_synthetic_start_documents_are_like_real_ones(bench, real, copy):
    bench.y.set(5.0).wait()
    bench.x.set(6.0).wait()
    documents = bench.run(real(bench))
    start = _plain(documents[0][1])
    for key, value in copy.start.items():
        if key == "motors":
            # The real order is one of chance where points come in no rows.
            assert sorted(start[key]) == sorted(value)
        elif key == "hints" and copy.start["plan_name"] == "scan_nd":
            assert sorted(start[key]["dimensions"]) == sorted(_plain(value)["dimensions"])
        elif key != "detectors":
            assert start[key] == _plain(value), key
    own = {"uid", "time", "scan_id", "versions", "plan_args"}
    assert set(start) - own <= set(copy.start), "a key of the real one is missing"
    taken = [
        (doc["data"]["sample_y"], doc["data"]["sample_x"]) for n, doc in documents if n == "event"
    ]
    if copy.start["plan_name"] == "spiral_square":
        taken, copied = sorted(taken), sorted(map(tuple, copy.positions.T))
    else:
        copied = copy.positions.T
    np.testing.assert_allclose(taken, copied, atol=1e-9)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
