"""Would rescans pay at your beamline: time and dose of a survey with regions against a full fine raster.

    python benchmarks/rescan_saving.py --field 48 --step 0.5 --ratio 4 --regions 10 --edge 7 --dwell 0.05

Nothing is measured: it is the account that `inscan evaluate regions` is made with, at other numbers. Those for a
beamline are in its logs: how long a fly-scanned row takes beyond its pixels, and a region before its first row.
"""

import argparse
from dataclasses import replace

from inscan.models.rescan_cost import FLY, account, break_even


def main() -> None:
    """Print the account, and beyond which share of the field a raster is better."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--field", type=float, default=48.0, help="edge of the field, um")
    parser.add_argument("--step", type=float, default=0.5, help="of the survey, um")
    parser.add_argument(
        "--ratio", type=int, default=4, help="fine pixels to a survey pixel, an axis"
    )
    parser.add_argument("--regions", type=int, default=10)
    parser.add_argument(
        "--edge", type=int, default=7, help="of a region with margin, survey pixels"
    )
    parser.add_argument("--dwell", type=float, default=FLY.dwell, help="s")
    parser.add_argument("--settle", type=float, default=FLY.point_overhead, help="a pixel, s")
    parser.add_argument("--turnaround", type=float, default=FLY.row_overhead, help="a row, s")
    parser.add_argument("--run-up", type=float, default=FLY.run_up_um, help="each end of a row, um")
    parser.add_argument("--staging", type=float, default=FLY.region_overhead, help="a region, s")
    parser.add_argument("--wait", type=float, default=FLY.wait, help="for the regions, s")
    given = parser.parse_args()
    costs = replace(
        FLY,
        dwell=given.dwell,
        point_overhead=given.settle,
        row_overhead=given.turnaround,
        run_up_um=given.run_up,
        region_overhead=given.staging,
        wait=given.wait,
    )
    side = round(given.field / given.step)
    if side < given.edge:
        parser.error(f"regions of {given.edge} survey pixels do not fit into a field of {side}")
    scan = {"side": side, "step_um": given.step, "ratio": given.ratio}
    spent = account(costs, [(0, given.edge, 0, given.edge)] * given.regions, **scan)
    print(f"full fine raster  {spent.raster_s:10.0f} s")
    print(f"survey            {spent.survey_s:10.0f} s")
    print(f"wait              {spent.wait_s:10.0f} s")
    print(f"{given.regions:4d} regions      {spent.regions_s:10.0f} s")
    print(f"saved             {spent.time_saved:10.1f} x time, {spent.dose_saved:.1f} x dose")
    print(f"dose outside      {spent.outside:10.3f} of the raster's, inside {spent.inside:.3f}")
    for times in (1, 4, 10):
        share = break_even(costs, given.edge, times=times, **scan)
        said = (
            f"up to {100 * share:.1f} % of the field" if share > 0 else "not even without regions"
        )
        print(f"saves {times:2d} x time    {said}")


if __name__ == "__main__":
    main()
