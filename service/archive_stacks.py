"""Stacks over energy of a file: transmission, from frames and flats or as stored, in the order of energy."""

from typing import Any

import numpy as np

from inscan.service.archive_choice import Crop, values_of
from inscan.service.archive_files import Archive
from inscan.service.archive_request import Asked, Prepared, method_for
from inscan.service.archive_types import ArchiveDataset, ArchiveError, Reading

_WHAT = (
    "say what the values are: --flat DATASET (and --dark), --empty R0:R1,C0:C1 (a part without sample), or --quantity "
    "transmission | density | counts"
)
_SCALE_PERCENTILE = 99.0


def prepare_stack(archive: Archive, reading: Reading, asked: Asked) -> Prepared:
    """Read a stack and make transmission of it.

    Raises
    ------
    ArchiveError
        When energies or the meaning of the values are not known; names the option.
    """
    recipe = method_for("stack", asked, counts=True)
    values, dims = values_of(reading, asked.naming.crop)
    wanted = ("energy", "row", "col")
    if any(dim not in wanted for dim in dims):
        raise ArchiveError(f"axes {', '.join(dims)} make no stack (energy, row, col)")
    present = [dim for dim in wanted if dim in dims]
    stack = values.transpose([dims.index(dim) for dim in present])
    stack = stack[tuple(slice(None) if dim in dims else None for dim in wanted)].astype(np.float32)
    energies = asked.energies_ev if asked.energies_ev is not None else reading.energies_ev
    count = stack.shape[0]
    if energies is None:
        raise ArchiveError(
            f"{archive.path}: the {count} energies of {reading.name} are not in the file: --energies FILE, or "
            "--energies 8320,8330,..."
        )
    if energies.shape != (count,):
        raise ArchiveError(f"{energies.size} energies for {count} frames of {reading.name}")
    said = list(reading.said)
    if asked.energies_ev is not None:
        said.append(f"energies as named: {energies.min():g} to {energies.max():g} eV")
    transmission, flats, quantity, told = _transmission(archive, stack, reading, asked)
    said += told
    order = np.argsort(energies, kind="stable")
    if (order != np.arange(count)).any():
        transmission, energies = transmission[order], energies[order]
        said.append("frames put into the order of energy")
    measured = np.isfinite(transmission)
    if not measured.any():
        raise ArchiveError(f"{archive.path}: {reading.name} holds no finite transmission")
    if not measured.all():
        said.append(f"{100 * (1 - measured.mean()):.2g} % of the values are masked: not finite")
    arrays = {
        "transmission": np.where(measured, transmission, 0).astype(np.float32),
        "measured": measured,
    }
    if flats is not None:
        arrays["flats"] = flats
    meta: dict[str, Any] = {
        "technique": "txm",
        "energies_ev": [float(energy) for energy in energies],
        "geometry": None,
        "pixel_size_um": asked.pixel_um,
        "units": "1",
        "quantity": quantity,
        "source": reading.name,
        "references": [
            {
                "name": name,
                "energies_ev": at.tolist(),
                "absorption": absorption.tolist(),
            }
            for name, at, absorption in asked.references
        ],
        "warnings": ["the noise is measured from the stack itself: the file does not say it"],
        "rows_done": count,
    }
    return Prepared("stack", recipe, arrays, meta, tuple(said))


def _transmission(
    archive: Archive, stack: np.ndarray, reading: Reading, asked: Asked
) -> tuple[np.ndarray, np.ndarray | None, str, list[str]]:
    """Transmission, the flats where there are several, what it is, and what was done."""
    named = asked.naming
    given = [bool(named.flat), asked.empty is not None, asked.quantity is not None]
    if sum(given) != 1:
        problem = (
            "more than one of these is named" if sum(given) else "frames alone are no transmission"
        )
        raise ArchiveError(f"{archive.path}: {reading.name}: {problem}; {_WHAT}")
    if named.flat:
        return _by_flats(archive, stack, asked)
    if asked.empty is not None:
        r0, r1, c0, c1 = asked.empty
        part = np.asarray(stack[:, r0:r1, c0:c1])
        if r1 > stack.shape[1] or c1 > stack.shape[2]:
            raise ArchiveError(f"--empty {asked.empty} reaches beyond the frames {stack.shape[1:]}")
        light = np.asarray(np.nanmean(part, axis=(1, 2), dtype=np.float64))
        if not (light > 0).all():
            raise ArchiveError("--empty: no light there at some energy")
        text = f"transmission: frames over their mean in rows {r0} to {r1 - 1}, columns {c0} to {c1 - 1}"
        return (stack / light[:, None, None]).astype(np.float32), None, "transmission", [text]
    if asked.quantity == "transmission":
        return stack, None, "transmission", ["values taken as transmission, as named"]
    if asked.quantity == "density":
        text = "values taken as optical density, as named: transmission is exp(-value)"
        return np.exp(-stack), None, "transmission", [text]
    scale = float(np.nanpercentile(stack, _SCALE_PERCENTILE))
    if not scale > 0:
        raise ArchiveError("--quantity counts: no counts above zero")
    text = (
        f"values are counts, as named, divided by {scale:g} (one number for all): the beam's own changes with energy "
        "are still in them"
    )
    return stack / np.float32(scale), None, f"counts over {scale:g}", [text]


def _by_flats(
    archive: Archive, stack: np.ndarray, asked: Asked
) -> tuple[np.ndarray, np.ndarray | None, str, list[str]]:
    named = asked.naming
    flat, several = _frames(archive, named.flat, stack, named.crop, "--flat")
    dark = np.zeros(stack.shape[1:], np.float32)
    said = []
    if named.dark:
        darks, _ = _frames(archive, named.dark, stack, named.crop, "--dark")
        dark = darks.mean(axis=0)
        said.append(f"dark: mean of {len(darks)} frames of {', '.join(named.dark)}")
    else:
        said.append("no dark is named: the camera's offset, if any, is still in the transmission")
    flat = (flat - dark) * np.float32(asked.flat_factor)
    with np.errstate(divide="ignore", invalid="ignore"):
        if several:
            said.append(f"flats: one for each of the {len(flat)} energies")
            light, flats = flat, None
        else:
            said.append(f"flats: mean of {len(flat)} frames for all energies")
            light, flats = flat.mean(axis=0)[None], flat if len(flat) > 1 else None
        result = np.where(light > 0, (stack - dark) / light, np.nan)
    return result.astype(np.float32), flats, "transmission", said


def _frames(
    archive: Archive, names: tuple[str, ...], stack: np.ndarray, crop: Crop | None, what: str
) -> tuple[np.ndarray, bool]:
    """Frames (n, row, col), and whether there is one for each energy."""
    data = [one for name in names for one in archive.named(name)]
    frames = np.concatenate([_planes(one, crop) for one in data])
    if frames.shape[1:] != stack.shape[1:]:
        raise ArchiveError(
            f"{what}: frames of {frames.shape[1:]}, the stack's have {stack.shape[1:]}"
        )
    return frames.astype(np.float32), len(stack) > 1 and len(frames) == len(stack)


def _planes(dataset: ArchiveDataset, crop: Crop | None) -> np.ndarray:
    if len(dataset.shape) not in (2, 3) or not dataset.numeric:
        raise ArchiveError(
            f"{dataset.name} {dataset.shape}: expected frames (row, col) or (n, row, col)"
        )
    part: tuple[slice, ...] = ()
    if crop is not None:
        part = (slice(crop[0], crop[1]), slice(crop[2], crop[3]))
        part = part if len(dataset.shape) == 2 else (slice(None), *part)
    values = dataset.read(part)
    return values[None] if values.ndim == 2 else values
