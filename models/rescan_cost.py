"""What a survey with targeted rescans takes, in time and dose, beside a full fine raster."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["FLY", "STEP_SCAN", "Account", "ScanCosts", "account", "break_even"]


@dataclass(frozen=True)
class ScanCosts:
    """How a microprobe moves.

    Attributes
    ----------
    name : str
    dwell : float
        Seconds a pixel, survey and fine maps alike.
    point_overhead : float
        Seconds a pixel beyond that: settling of a step scan.
    row_overhead : float
        Seconds a row beyond its pixels: turnaround, arming of the detectors.
    run_up_um : float
        Distance before and behind each row of a fly scan, covered at the speed of the row.
    region_overhead : float
        Seconds a region beyond its rows: moving there, staging, opening a run.
    wait : float
        Seconds from the end of the survey to the regions.
    """

    name: str
    dwell: float = 0.05
    point_overhead: float = 0.0
    row_overhead: float = 0.75
    run_up_um: float = 0.0
    region_overhead: float = 5.0
    wait: float = 10.0

    def seconds(self, rows: int, cols: int, step_um: float) -> float:
        """Duration of a raster of so many rows and columns.

        Parameters
        ----------
        rows, cols : int
        step_um : float
            Along the fast axis.
        """
        # The speed of a fly scan is its step over its dwell.
        run_up = 2 * self.run_up_um / step_um * self.dwell
        return rows * (self.row_overhead + run_up + cols * (self.point_overhead + self.dwell))


FLY = ScanCosts("fly scan")
STEP_SCAN = ScanCosts("step scan", dwell=0.05, point_overhead=0.1, row_overhead=0.5)


@dataclass(frozen=True)
class Account:
    """Where the time and the dose go.

    Attributes
    ----------
    survey_s, wait_s, regions_s, raster_s : float
        Seconds; the last is the full fine raster that all of it stands against.
    exposed_s, raster_exposed_s : float
        Seconds of beam on the sample, dwell of all pixels: the dose is proportional to it.
    outside : float
        Dose of a place outside all regions over what the raster gives it.
    inside : float
        Dose of a place inside a region over what the raster gives it; 1 more than `outside`.
    """

    survey_s: float
    wait_s: float
    regions_s: float
    raster_s: float
    exposed_s: float
    raster_exposed_s: float
    outside: float
    inside: float

    @property
    def total_s(self) -> float:
        """Survey, wait and regions."""
        return self.survey_s + self.wait_s + self.regions_s

    @property
    def time_saved(self) -> float:
        """So many times shorter than the raster; below 1 it is longer."""
        return self.raster_s / self.total_s

    @property
    def dose_saved(self) -> float:
        """So many times less dose than the raster, all places together."""
        return self.raster_exposed_s / self.exposed_s


def account(
    costs: ScanCosts,
    boxes: Sequence[tuple[int, int, int, int]],
    *,
    side: int,
    step_um: float,
    ratio: int,
) -> Account:
    """Survey a square field, wait, measure boxes finely.

    Parameters
    ----------
    costs : ScanCosts
    boxes : sequence of (row start, row stop, column start, column stop)
        Survey pixels, with whatever margin is measured around them. What two share is paid for twice.
    side : int
        Survey pixels on an edge of the field.
    step_um : float
        Of the survey.
    ratio : int
        Fine pixels to a survey pixel on each axis. Both have the same dwell.
    """
    fine = step_um / ratio
    sizes = [((r1 - r0) * ratio, (c1 - c0) * ratio) for r0, r1, c0, c1 in boxes]
    regions = sum(costs.region_overhead + costs.seconds(*size, fine) for size in sizes)
    pixels = side**2 + sum(rows * cols for rows, cols in sizes)
    outside = 1 / ratio**2
    return Account(
        survey_s=costs.seconds(side, side, step_um),
        wait_s=costs.wait,
        regions_s=regions,
        raster_s=costs.seconds(side * ratio, side * ratio, fine),
        exposed_s=pixels * costs.dwell,
        raster_exposed_s=(side * ratio) ** 2 * costs.dwell,
        outside=outside,
        inside=1 + outside,
    )


def break_even(
    costs: ScanCosts, box_px: int, *, side: int, step_um: float, ratio: int, times: float = 1.0
) -> float:
    """Share of the field in square regions at which a raster takes `times` as long as survey and regions.

    Parameters
    ----------
    costs, side, step_um, ratio
        As for `account`.
    box_px : int
        Edge of each region, survey pixels.
    times : float
        1: where it ceases to pay.

    Returns
    -------
    float
        Below 0 where not even the survey alone is that much shorter. Regions do not overlap.
    """
    none = account(costs, [], side=side, step_um=step_um, ratio=ratio)
    one = account(costs, [(0, box_px, 0, box_px)], side=side, step_um=step_um, ratio=ratio)
    left = none.raster_s / times - none.survey_s - none.wait_s
    return left / one.regions_s * box_px**2 / side**2
