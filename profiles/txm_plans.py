"""Plans of the simulated transmission microscope."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import bluesky.plan_stubs as bps
import bluesky.preprocessors as bpp
from bluesky.utils import Msg
from ophyd import Signal

from inscan.profiles.stages import Stage
from inscan.profiles.txm_camera import FrameStream, TXMCamera

__all__ = ["Microscope", "xanes_scan"]

Plan = Generator[Msg, Any, Any]
_STREAMS = ("dark", "flat", "primary")


@dataclass(frozen=True)
class Microscope:
    """What an energy scan needs.

    Attributes
    ----------
    camera, energy, sample_x, sample_y, shutter
        Devices.
    out
        Position of ``sample_x`` at which the sample is out of the field, um.
    """

    camera: TXMCamera
    energy: Stage
    sample_x: Stage
    sample_y: Stage
    shutter: Signal
    out: float


def xanes_scan(
    microscope: Microscope,
    energies_ev: Sequence[float],
    *,
    frames_per_energy: int = 4,
    exposure: float = 0.05,
    order: Sequence[str] = _STREAMS,
    flats: Literal["each", "one"] = "each",
    darks: int = 5,
    md: Mapping[str, Any] | None = None,
) -> Plan:
    """Take one stack over an absorption edge: streams dark, flat and primary of one run.

    The sample goes out of the beam for flats and comes back; afterwards the shutter is closed and
    the sample is in, also when the plan is aborted.

    Parameters
    ----------
    microscope
        Devices.
    energies_ev
        Energies, eV: one event of ``primary`` each, in this order.
    frames_per_energy
        Frames per event of every stream.
    exposure
        Time per frame, s.
    order
        Order of the streams; each of dark, flat and primary once.
    flats
        ``each``: one event at every energy. ``one``: ``darks`` events at the middle energy.
    darks
        Events without beam.
    md
        Added to the start document.

    Raises
    ------
    ValueError
        Nothing to take, or an order that is not one of the three streams.
    LimitError
        An energy outside the soft limits; nothing has moved then.
    """
    energies = [float(energy) / 1000.0 for energy in energies_ev]
    if not energies or frames_per_energy < 1 or darks < 1 or not exposure > 0:
        raise ValueError(
            f"{len(energies)} energies, {frames_per_energy} frames, {darks} darks, {exposure} s:"
            f" expected at least one of each and an exposure above 0"
        )
    if sorted(order) != sorted(_STREAMS) or flats not in ("each", "one"):
        raise ValueError(
            f"order {tuple(order)}, flats {flats!r}: expected each of {_STREAMS} once, and flats"
            f" 'each' or 'one'"
        )
    camera = microscope.camera
    for energy in energies:
        microscope.energy.check_value(energy)
    given = dict(md or {})
    meta = {
        "plan_name": "xanes_scan",
        "detectors": [camera.name],
        "motors": [microscope.energy.name],
        "eng_list": energies,
        "num_eng": len(energies),
        "frames_per_energy": frames_per_energy,
        "exposure_time": exposure,
        "num_points": len(energies),
        "hints": {"dimensions": [[[microscope.energy.name], "primary"]]},
        **given,
        "scan": {
            "type": "XANES_STACK",
            "order": list(order),
            "flats": flats,
            "dwell": exposure,
            **given.get("scan", {}),
        },
    }
    read: list[Any] = [camera, microscope.energy, microscope.sample_y, microscope.sample_x]
    yield from bps.mv(camera.num_images, frames_per_energy, camera.exposure_time, exposure)

    def take(stream: FrameStream, at: list[float], inside: bool, light: bool) -> Plan:
        yield from bps.checkpoint()
        yield from bps.mv(microscope.sample_x, 0.0 if inside else microscope.out)
        yield from bps.mv(microscope.shutter, int(light))
        yield from bps.prepare(camera, stream, wait=True)
        for energy in at:
            yield from bps.checkpoint()
            yield from bps.mv(microscope.energy, energy)
            yield from bps.trigger_and_read(read, name=stream)

    @bpp.stage_decorator([camera])
    @bpp.run_decorator(md=meta)
    def streams() -> Plan:
        middle = energies[len(energies) // 2]
        for stream in order:
            if stream == "dark":
                yield from take("dark", [middle] * darks, inside=True, light=False)
            elif stream == "flat":
                at = energies if flats == "each" else [middle] * darks
                yield from take("flat", at, inside=False, light=True)
            else:
                yield from take("primary", energies, inside=True, light=True)

    def leave() -> Plan:
        yield from bps.mv(microscope.shutter, 0)
        yield from bps.mv(microscope.sample_x, 0.0)

    return (yield from bpp.finalize_wrapper(streams(), leave))
