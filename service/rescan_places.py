"""Places of other chemistry in a stack, as positions of the motors that bring them to the middle of the image."""

from collections.abc import Mapping, Sequence
from typing import Any

from inscan.callbacks.geometry import RegionOfInterest
from inscan.callbacks.rescan_section import Rescan
from inscan.callbacks.units import convert
from inscan.service.proposal import FineRegion, Refusal
from inscan.service.rescan_limits import range_refusal

__all__ = ["chemistry_places"]

_TARGET = "chemistry"


def chemistry_places(
    regions: Sequence[Mapping[str, Any]], meta: Mapping[str, Any], rules: Rescan
) -> tuple[list[FineRegion], list[Refusal]]:
    """Make motor positions of the places that a stack's result names.

    Parameters
    ----------
    regions : sequence of mapping
        Boxes of image pixels (`box`, half-open), with `target`.
    meta : mapping
        Of the stack's job: `pixel_size_um`, `position` (`motors`: where they were), `shape` (energy, row, col) and
        `dwell`.
    rules : Rescan
        Its `energies.image_motors` says which motors move the image, and which way; `soft_limits` their units.

    Returns
    -------
    places : list of FineRegion
        `slow_range` and `fast_range`: where the motors of rows and columns are to be for the box's edges to be in the
        middle of the image; `predicted` has their names and units. No scan of its own, hence no cost.
    refusals : list of Refusal
        Of rule `geometry` where positions are not known, `soft_limits` where a motor may not go there.
    """
    found = [one for one in regions if one.get("target") == _TARGET][: rules.max_regions]
    axes = _axes(meta, rules)
    places, refusals = [], []
    for number, one in enumerate(found, 1):
        label = f"chemistry-{number}"
        row0, row1, col0, col1 = (int(edge) for edge in one["box"])
        if isinstance(axes, str):
            text = (
                f"{one.get('reason') or 'other chemistry'}: rows {row0} to {row1}, columns {col0} to {col1} of the "
                f"image; {axes}"
            )
            refusals.append(Refusal("geometry", text, region=label))
            continue
        slow, fast = (
            axis.positions(*edges)
            for axis, edges in zip(axes, ((row0, row1), (col0, col1)), strict=True)
        )
        refusal = None
        for axis, (low, high) in zip(axes, (slow, fast), strict=True):
            refusal = refusal or range_refusal(
                rules, axis.motor, axis.units, low, high, axis.pixel, label
            )
        if refusal is not None:
            refusals.append(refusal)
            continue
        places.append(
            FineRegion(
                region=RegionOfInterest(
                    slow,
                    fast,
                    (row0, row1, col0, col1),
                    float(one.get("score") or 0.0),
                    str(one.get("reason") or ""),
                    label,
                ),
                shape=(row1 - row0, col1 - col0),
                extents=(slow, fast),
                step=(axes[0].pixel, axes[1].pixel),
                dwell=float(meta.get("dwell") or 0.0),
                time_s=0.0,
                exposure_s=0.0,
                area_um2=0.0,
                dose=0.0,
                target=_TARGET,
                predicted={
                    "motors": [axis.motor for axis in axes],
                    "units": [axis.units for axis in axes],
                },
            )
        )
    return places, refusals


class _Axis:
    """One direction of the image, and the motor along it."""

    def __init__(
        self, motor: str, sign: int, units: str, here: float, pixel: float, pixels: int
    ) -> None:
        self.motor, self.units, self.pixel = motor, units, pixel
        self._sign, self._here, self._middle = sign, here, pixels / 2

    def positions(self, first: int, last: int) -> tuple[float, float]:
        """Where the motor brings the outer edges of pixels to the middle of the image, rising."""
        at = [
            self._here - self._sign * self.pixel * (edge - self._middle) for edge in (first, last)
        ]
        return min(at), max(at)


def _axes(meta: Mapping[str, Any], rules: Rescan) -> tuple[_Axis, _Axis] | str:
    """Rows and columns of the image, or why their motors are not known."""
    named = None if rules.energies is None else rules.energies.image_motors
    if named is None:
        return "which motors move it the profile does not say (rescan.energies.image_motors)"
    pixel, shape = meta.get("pixel_size_um"), meta.get("shape") or ()
    if not pixel or len(shape) != 3:
        return "how large its pixels are is not known (txm.pixel_size_um)"
    where = (meta.get("position") or {}).get("motors") or {}
    axes = []
    for name, pixels in zip(named, shape[1:], strict=True):
        motor = name.lstrip("-")
        if where.get(motor) is None:
            return f"where {motor} was is not known (txm.positions.motors)"
        if motor not in rules.soft_limits:
            return f"motor {motor} has no soft limits"
        units = rules.soft_limits[motor].units
        try:
            step = convert(float(pixel), "um", units)
        except ValueError as error:
            return f"motor {motor}: {error}"
        sign = -1 if name.startswith("-") else 1
        axes.append(_Axis(motor, sign, units, float(where[motor]), step, int(pixels)))
    return axes[0], axes[1]
