# ruff: noqa: F821 - names come from earlier files of this folder
"""Plans for users: a coarse survey, and a fine map of a region."""

from typing import Any

from bluesky.utils import MsgGenerator

from inscan.profiles.xrf_plans import fly_raster, step_raster

RUN_UP_STEPS = 2.0  # of the fast motor before and beyond each row; what the profile's limits assume
BACKLASH_UM = 0.5  # of the slow motor, see `soft_limits` of the profile


def _raster(slow_range, fast_range, step, dwell, fly, snake, md):
    """Map the area within the outer edges of its pixels, which are about ``step`` (slow, fast)."""
    axes = []
    for motor, (low, high), width in zip(
        (sample_y, sample_x), (slow_range, fast_range), step, strict=True
    ):
        count = max(1, round((high - low) / width))
        half = (high - low) / count / 2
        axes += [motor, low + half, high - half, count]
    if fly:
        motion = {"run_up": RUN_UP_STEPS * step[1], "backlash": BACKLASH_UM}
        return (yield from fly_raster(xs_fly, *axes, dwell=dwell, snake=snake, md=md, **motion))
    return (yield from step_raster(xs, sclr, *axes, dwell=dwell, snake=snake, md=md))


def survey(
    step: float = 0.5,
    dwell: float = 0.0,
    fly: bool = True,
    snake: bool = True,
    md: dict[str, Any] | None = None,
) -> MsgGenerator:
    """Map the whole sample coarsely.

    Parameters
    ----------
    step
        Pixel size, um.
    dwell
        Time per pixel, s. 0: the default of this beamline.
    fly
        In flight, else point by point.
    snake
        Every second row backwards.
    md
        Added to the start document.
    """
    slow_range, fast_range = sample_field
    meta = {"purpose": "survey", "sample": {"name": sample_name}, **(md or {})}
    dwell = dwell or parameters.dwell
    shape = (slow_range, fast_range, (step, step))
    return (yield from _raster(*shape, dwell, fly, snake, meta))


def fine(
    region: dict[str, Any],
    proposal: dict[str, Any] = {},  # noqa: B006 - never changed; queueserver needs plain defaults
    step: float = 0.0,
    dwell: float = 0.0,
    fly: bool = True,
    snake: bool = True,
    md: dict[str, Any] | None = None,
) -> MsgGenerator:
    """Map one region finely.

    Parameters
    ----------
    region
        ``slow_range`` and ``fast_range``: outer edges in um. Its own ``step`` (slow, fast) and ``dwell`` come before
        the proposal's.
    proposal
        Where step and dwell come from unless they are given.
    step
        Pixel size, um. 0: the proposal's, or 0.125 without one.
    dwell
        Time per pixel, s. 0: the proposal's, or twice the default of this beamline.
    fly, snake, md
        As for `survey`.
    """
    asked = {**proposal, **region}
    steps = (step, step) if step else asked.get("step", (0.125, 0.125))
    seconds = dwell or asked.get("dwell") or 2 * parameters.dwell
    meta = {"purpose": "fine", "sample": {"name": sample_name}, **(md or {})}
    shape = (region["slow_range"], region["fast_range"], steps)
    return (yield from _raster(*shape, seconds, fly, snake, meta))
