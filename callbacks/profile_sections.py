"""The sections of a beamline profile. Every field says what it means, also when it is 0 or null."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from inscan.callbacks.lines import EmissionLine

__all__ = [
    "DatumFile",
    "Geometry",
    "Magnification",
    "Method",
    "Part",
    "Positions",
    "References",
    "ServiceAddress",
    "TXM",
    "TXMStreams",
]

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Scalar = str | int | float | bool


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ServiceAddress(Part):
    """Where the service of this beamline listens."""

    ingest: str | None = None
    """ZeroMQ address of the service, e.g. ``tcp://127.0.0.1:5620``. null: the address that the
    running service wrote to its state folder, else the default port on this machine."""


class DatumFile(Part):
    """How the files of one resource ``spec`` (of resource and datum documents) are laid out."""

    dataset: str | None = None
    """Path of the dataset in the HDF5 file. null: named by ``dataset_from``."""
    dataset_from: str | None = None
    """Keyword of the datum that names the dataset, e.g. ``column``. null: ``dataset`` is given."""
    index_from: str | None = None
    """Keyword of the datum with the index, from 0, e.g. ``point_number``. null: all of it."""
    channel_from: str | None = None
    """Keyword of the datum with the number, from 1, on the second axis. null: no such axis."""
    nanoseconds: str | None = None
    """Path of a second dataset, 1e-9 of which is added: time stamps in two parts. null: none."""

    @model_validator(mode="after")
    def _one_dataset(self) -> DatumFile:
        if (self.dataset is None) == (self.dataset_from is None):
            raise ValueError("give one of dataset and dataset_from")
        if self.channel_from is not None and self.index_from is None:
            raise ValueError("channel_from needs index_from")
        return self


class Geometry(Part):
    """Where the start document says how the map is laid out. Paths are dotted: ``scan.shape``.

    A start document without ``shape`` (and ``scan_input``) is taken as points anywhere in the plane
    of two motors: their readbacks say where, and they are put on an even grid at the end of the
    run; such runs have no snapshots, because what falls into a pixel adds up until the last point.
    """

    shape: str = "shape"
    """Path of the number of points per axis."""
    extents: str = "extents"
    """Path of [[first, last], [first, last]]: centres of the first and last pixel per axis."""
    scan_input: str | None = None
    """Path of a flat list [first, last, number or step] of the fast axis, then of the slow axis;
    what follows is left alone. Also the text of such a list. Where it is present it wins over
    ``extents``. null: not used."""
    scan_input_form: Literal["fast_slow_num", "fast_slow_step", "fast_slow"] = "fast_slow_num"
    """Whether the third entry of each axis is a number of points or a step. ``fast_slow``: whichever
    agrees with ``shape``; the run is not understood when neither does."""
    snaking: str = "snaking"
    """Path of a boolean, or of one per axis (that of the fast axis counts). Missing: no snaking."""
    motors: str = "motors"
    """Path of the two motor names."""
    slow_motor: str | None = None
    """Path of the slow motor's name, e.g. ``scan.slow_axis.motor_name``. null: from ``motors``."""
    fast_motor: str | None = None
    """Path of the fast motor's name. null: from ``motors``."""
    order: Literal["slow_fast", "fast_slow"] = "slow_fast"
    """Order of the axes in the keys above. Bluesky plans write the slow axis first; some beamlines'
    own metadata have the fast axis first."""
    relative: bool | None = None
    """Whether positions are counted from where the motors stood before the scan, so that readbacks
    decide where the map lies. null: when plan_name begins with ``rel_`` or ``relative_``."""
    units: str | None = None
    """Units of the motors where a descriptor has none. null: unknown units are named ``""``.
    A descriptor's own units always win."""
    slow_units: str | None = None
    """Path of the slow motor's units in the start document, e.g. ``scan.slow_axis.units``. null, or
    nothing there: ``units``."""
    fast_units: str | None = None
    """Path of the fast motor's units in the start document. null, or nothing there: ``units``."""
    slow_readback: str | None = None
    """Data key with the slow position of each pixel. null: the key named like the motor. Both
    readbacks name the axes of points when the start document names no motors."""
    fast_readback: str | None = None
    """Data key with the fast position of each pixel. null: the key named like the motor."""
    grid_step: tuple[Positive, Positive] | None = None
    """(slow, fast) step, in motor units, of the grid that points anywhere are put on. null: from
    the plan's own parameters, else from the points; a warning says which, and the value."""
    most_points: Annotated[int, Field(gt=0, le=1 << 24)] | None = None
    """Points anywhere for which place is kept, at least. Points beyond are left out, and counted.
    null: as many as the plan says, or 16384 where it does not."""


class TXMStreams(Part):
    """Names of the streams of an energy stack."""

    primary: str = "primary"
    """Frames with the sample, one event per energy."""
    dark: str = "dark"
    """Frames without beam."""
    flat: str = "flat"
    """Frames without sample: at one energy, or at every energy. May be recorded last."""


class Magnification(Part):
    """How large an image pixel is on the sample, from where lens and camera stand:
    magnification = (camera / lens - 1) * optics, both distances from the sample."""

    stream: str = "baseline"
    """Stream in which the distances are read."""
    lens: str
    """Data key of the distance between sample and lens (zone plate)."""
    camera: str
    """Data key of the distance between sample and camera. The units of both are those of the
    descriptor; without units they are taken as the same."""
    optics: Positive = 1.0
    """Further magnification behind the lens, e.g. 10 for a scintillator seen through an objective."""
    camera_pixel_um: Positive
    """Size of an image pixel at the camera in um, binning included."""


class Positions(Part):
    """Several places of the sample, imaged in turn at each energy: one stack each."""

    number: str = "num_pos"
    """Path of the number of places in the start document. Missing there: one."""
    repeats: str | None = "plan_args.repeat_num"
    """Path of how often all energies are taken, one after the other: one stack each. Missing there,
    or null: once."""
    motors: tuple[str, ...] = ()
    """Data keys of the sample's position, which tell whether images were sorted well. Empty: the
    energies that were read back tell alone."""
    rotation: str | None = None
    """Data key of the sample's rotation in degrees. A stack in which it turns by more than 0.5 is
    angle x energy (3D XANES), which is not understood. null: not watched."""


class References(Part):
    """Measured standards: absorption spectra that a chemical map is a combination of."""

    file: str
    """CSV beside the profile: a header line, energies in the first column, one standard per
    further column. Lines that begin with # are comments."""
    energy_units: Literal["eV", "keV"] = "eV"
    """Units of the first column."""


class TXM(Part):
    """A full-field transmission microscope that takes stacks over an absorption edge."""

    image: str
    """Data key of the camera: (frame, y, x), several frames per energy."""
    energy: str | None = None
    """Data key of the energy that was reached. null: the planned energies are believed."""
    energies: str = "eng_list"
    """Path of the planned energies in the start document, in the order they are taken. Those that
    are listed twice are averaged."""
    energies_units: Literal["eV", "keV"] = "keV"
    """Units of the planned energies, and of ``energy`` where its descriptor names none."""
    angles: str | None = "angle_list"
    """Path of rotation angles in the start document. A run with several (3D XANES) is not
    understood. null: not looked at."""
    frames: str | None = None
    """Path of the number of frames per energy in the start document, compared with what comes.
    null: what comes is believed."""
    streams: TXMStreams = TXMStreams()
    """Names of the streams."""
    positions: Positions = Positions()
    """Several places of the sample in one run."""
    edge: str = "auto"
    """Absorption edge under study, e.g. ``Ni_K``. ``auto``: the known edge that lies within the
    planned energies."""
    element: str | None = "sample.element"
    """Path of the symbol of the element under study in the start document, for ``edge: auto``.
    null or missing there: the edge is sought among all elements."""
    adu_per_photon: Positive | None = None
    """Camera counts per detected photon. null: found from the scatter between repeated flats."""
    saturation: Positive | None = None
    """Camera value from which on a pixel is saturated and masked. null: never."""
    exposure: str | None = None
    """Configuration key with the exposure time per frame: flats that were exposed longer or shorter
    than the images are scaled. null: all frames are taken as equally long."""
    pixel_size_um: Positive | None = None
    """Size of a pixel on the sample in um. null: from ``magnification``, else unknown, and maps are
    shown in pixels."""
    magnification: Magnification | None = None
    """How the size of a pixel follows from what was read. null: ``pixel_size_um`` says it."""
    dwell: str | None = "exposure_time"
    """Path of the exposure per frame (s) in the start document. null: unknown."""
    max_bytes: Annotated[int, Field(gt=0)] = 1 << 37
    """Largest size of the arrays of one run, all stacks together. A run that would need more is not
    understood, and says so."""
    references: References | None = None
    """Standards for the chemical map. null: none, only the edge energy is mapped."""

    @field_validator("edge")
    @classmethod
    def _known(cls, edge: str) -> str:
        return edge if edge == "auto" else EmissionLine.parse(edge).name

    @model_validator(mode="after")
    def _one_pixel_size(self) -> TXM:
        if self.pixel_size_um is not None and self.magnification is not None:
            raise ValueError("give one of pixel_size_um and magnification")
        return self


class Method(Part):
    """What is computed from each run."""

    name: Literal["n2n", "superres", "subspace", "spectral"]
    """Method of inscan.models."""
    parameters: Mapping[str, Scalar | None] = {}
    """Further keyword arguments of the method."""
    weights: str | None = None
    """Weights to use in place of the shipped ones (n2n, superres): a safetensors file with its card
    beside it, read against the folder of the profile. Results name them. null: the shipped ones."""
    snapshot_rows: Annotated[int, Field(ge=0)] = 8
    """A result of the map so far every so many rows (energies for a stack). 0: only at the end."""
    fit_steps: Annotated[int, Field(ge=0)] = 0
    """Most steps of self-supervised training on the run itself (n2n), for a second result that
    follows the first one. 0: as many as ``fit_seconds`` allows; both 0: no second result."""
    fit_seconds: NotNegative = 0.0
    """Time granted to that training, in s. The steps that were done are reported; asked for as
    ``fit_steps`` alone they give the same result again. 0: ``fit_steps`` alone decides."""
    fit_from: Literal["last_run", "shipped"] = "last_run"
    """Where that training starts. ``last_run``: at the weights kept from the last run of the same
    sample and detector, if they predict counts held out of this run better than the shipped ones;
    the result names them. ``shipped``: never at those of another run."""

    @model_validator(mode="after")
    def _fittable(self) -> Method:
        if (self.fit_steps or self.fit_seconds) and self.name != "n2n":
            raise ValueError(f"fit_steps and fit_seconds are for n2n; {self.name} has neither")
        if self.weights is not None and self.name not in ("n2n", "superres"):
            raise ValueError(f"weights are for n2n and superres, not for {self.name}")
        own = sorted({"fit_steps", "fit_seconds", "weights"} & set(self.parameters))
        if own:
            raise ValueError(f"{own[0]} is a key of method itself, not one of its parameters")
        return self
