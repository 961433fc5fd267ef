"""A beamline as data: which documents, data keys, elements, methods and limits are what.

A profile is one YAML file. Every key is described in its field's docstring, which is also what
``inscan config explain`` prints. Unknown keys are errors: a misspelt limit must never be ignored.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticUndefined

from inscan.callbacks.profile_sections import (
    TXM,
    DatumFile,
    Geometry,
    Method,
    NotNegative,
    Part,
    Scalar,
    ServiceAddress,
)
from inscan.callbacks.references import Reference, read_references
from inscan.callbacks.rescan_section import Rescan
from inscan.callbacks.xrf_sections import XRF
from inscan.callbacks.yaml_file import YamlError, read_yaml

__all__ = [
    "BeamlineProfile",
    "Present",
    "ProfileError",
    "agrees",
    "explain_errors",
    "explain_model",
    "load_profile",
    "matches",
    "profile_schema",
    "shipped_profiles",
    "start_value",
]


# Of the text of a list in a start document: a few numbers, too few brackets to nest deeply.
_LONGEST_LIST = 500
_SECRET = re.compile(r"(?:api_key|secret|token|password)$")


class ProfileError(ValueError):
    """A profile that cannot be used; says which file, which key, and what was expected."""


class Present(Part):
    """A key of the start document that is told by being there, whatever its value."""

    exists: bool = True
    """Whether there is such a key; false: the run must not have it."""
    kind: Literal["list", "number", "text", "mapping"] | None = None
    """What its value is, where it exists. null: anything."""

    def holds(self, value: Any) -> bool:
        """Return whether a start document's value (None: there is none) is what is asked for."""
        if value is None or not self.exists:
            return (value is not None) == self.exists
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        text, listed = isinstance(value, str), isinstance(value, Sequence | np.ndarray)
        kinds = {
            "list": listed and not text,
            "number": number,
            "text": text,
            "mapping": isinstance(value, Mapping),
        }
        return self.kind is None or kinds[self.kind]


class BeamlineProfile(Part):
    """One beamline (or one instrument of it)."""

    name: str
    """Short name, used in results and reports."""
    description: str = ""
    """What it is, for people."""
    technique: Literal["xrf", "txm"]
    """``xrf``: fluorescence maps. ``txm``: full-field energy stacks."""
    match: Annotated[Mapping[str, Scalar | tuple[Scalar, ...] | Present], Field(min_length=1)]
    """Which runs are ours: dotted path in the start document and its value (or a list of values), or
    ``{exists: true, kind: list}`` where any value of a kind will do. All must agree. Do not use
    plan_name: it is only the outermost plan."""
    data_roots: tuple[Path, ...] = ()
    """Absolute folders under which detector files may be read, added to the service's own. Files
    elsewhere are refused. Empty: only the service's."""
    root_map: Mapping[str, Path] = {}
    """Where folders that documents name are mounted here: ``/nsls2/data``, ``C:/data`` of a Windows
    machine, or ``//host/share`` of another host. The longest that fits counts; the result must lie
    under a data root. Empty: paths are taken as they are."""
    read_deadline: NotNegative = 10.0
    """Time that the end of a run waits for detector files to become readable, in s. 0: none."""
    datum_files: Mapping[str, DatumFile] = {}
    """Layout of HDF5 files of resource and datum documents, by resource ``spec``, where no handler of
    area-detector-handlers knows it (AD_HDF5, AD_TIFF, XSP3, XSP3_FLY, TPX_HDF5, ... need none) or
    the files differ from what it expects. Empty: only what those handlers know is read."""
    service: ServiceAddress = ServiceAddress()
    """Where the service listens."""
    geometry: Geometry = Geometry()
    """Where the layout of a map is found (technique xrf)."""
    xrf: XRF | None = None
    """Keys and elements; needed for technique xrf, forbidden otherwise."""
    txm: TXM | None = None
    """Keys and edge; needed for technique txm, forbidden otherwise."""
    method: Method
    """What is computed."""
    rescan: Rescan = Rescan()
    """What may be measured again."""
    folder: Path | None = Field(default=None, exclude=True)
    """Folder of the profile file, against which ``references.file`` is read. Set on loading; null:
    the current folder."""

    @field_validator("data_roots")
    @classmethod
    def _absolute(cls, roots: tuple[Path, ...]) -> tuple[Path, ...]:
        for root in roots:
            if not root.is_absolute():
                raise ValueError(f"{root} is not an absolute folder; write it from / on")
        return roots

    @field_validator("root_map")
    @classmethod
    def _mapped(cls, root_map: Mapping[str, Path]) -> Mapping[str, Path]:
        for key, folder in root_map.items():
            if not key.startswith("/") and key[1:2] != ":":
                raise ValueError(
                    f"{key!r} is not absolute; write /folder, C:/folder or //host/share"
                )
            if not folder.is_absolute():
                raise ValueError(f"{folder} is not an absolute folder; write it from / on")
        return root_map

    @model_validator(mode="after")
    def _one_technique(self) -> BeamlineProfile:
        for name in ("xrf", "txm"):
            given = getattr(self, name) is not None
            if given != (name == self.technique):
                want = "missing" if not given else "given"
                raise ValueError(f"technique is {self.technique}, but the section {name} is {want}")
        if (self.method.name == "spectral") != (self.xrf is not None and self.xrf.cube is not None):
            raise ValueError(
                "the method spectral works on spectra kept pixel by pixel: give both"
                " method.name: spectral and xrf.cube, or neither"
            )
        return self

    def weights_file(self) -> Path | None:
        """Return the file of the weights that the profile names; None where it names none."""
        if self.method.weights is None:
            return None
        return (self.folder or Path()) / self.method.weights

    def references(self) -> list[Reference]:
        """Read the XANES standards; an empty list when the profile names none."""
        if self.txm is None or self.txm.references is None:
            return []
        path = (self.folder or Path()) / self.txm.references.file
        return read_references(path, self.txm.references.energy_units)


def matches(profile: BeamlineProfile, start: Mapping[str, Any]) -> bool:
    """Return whether a start document belongs to the profile."""
    return all(agrees(wanted, start_value(start, path)) for path, wanted in profile.match.items())


def agrees(wanted: Any, value: Any) -> bool:
    """Return whether a value of a start document is what an entry of ``match`` wants."""
    if isinstance(wanted, Present):
        return wanted.holds(value)
    if isinstance(value, np.ndarray):
        return False  # comparing it with a value gives no single answer
    return value in (wanted if isinstance(wanted, tuple) else (wanted,))


def start_value(start: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path of a start document, None where there is none.

    A number in the path is the place in a list, from 0: ``scan.scan_input.6``; also in the text of
    one, which some plans write.
    """
    value: Any = start
    for part in path.split("."):
        if isinstance(value, str) and value.startswith("[") and len(value) <= _LONGEST_LIST:
            try:
                value = json.loads(value)
            except ValueError:
                return None
        if isinstance(value, list | tuple) and part.isascii() and part.isdigit():
            if int(part) >= len(value):
                return None
            value = value[int(part)]
        elif isinstance(value, Mapping) and part in value:
            value = value[part]
        else:
            return None
    return value


def shipped_profiles() -> dict[str, Path]:
    """Return name and file of the profiles that come with inscan.

    ``srx/profile.yaml`` is named ``srx``; a beamline's others, ``srx/step.yaml``, ``srx_step``.
    """
    # A namespace of folders: the package has a file, its parent has none.
    import inscan.profiles

    (root,) = list(inscan.profiles.__path__)[:1]
    found = {}
    for path in sorted(Path(root).glob("*/*.yaml")):
        own = "" if path.stem == "profile" else f"_{path.stem}"
        found[f"{path.parent.name}{own}"] = path
    return found


def load_profile(name_or_path: str | Path) -> BeamlineProfile:
    """Load a profile that comes with inscan by its name, or any by its file.

    Raises
    ------
    FileNotFoundError
        No such name and no such file.
    ProfileError
        Not YAML, a wrong key, or a wrong value: the message names the file, the key and, for an
        unknown key, the closest known one.
    """
    shipped = shipped_profiles()
    path = shipped.get(str(name_or_path), Path(name_or_path))
    if not path.is_file():
        near = difflib.get_close_matches(str(name_or_path), shipped, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise FileNotFoundError(
            f"no profile {str(name_or_path)!r}{hint}: give the path of a YAML file, or one of"
            f" {', '.join(shipped)}"
        )
    try:
        content = read_yaml(path)
    except YamlError as error:
        raise ProfileError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ProfileError(f"{path}: expected keys and values, got {type(content).__name__}")
    if "folder" in content:
        raise ProfileError(f"{path}: unknown key 'folder'; it is set on loading, remove it")
    try:
        return BeamlineProfile(**content, folder=path.parent.resolve())
    except ValidationError as error:
        raise ProfileError(explain_errors(path, BeamlineProfile, error)) from error
    except TypeError as error:
        raise ProfileError(f"{path}: every key must be text: {error}") from error


def explain_errors(path: Path, model: type[BaseModel], error: ValidationError) -> str:
    """Say file, dotted key, what was wrong, and the closest valid key for an unknown one."""
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "(whole file)"
        if item["type"] == "extra_forbidden":
            known = [name for name in _fields_at(model, item["loc"][:-1]) if name != "folder"]
            near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            lines.append(f"{path}: unknown key {where!r}; {hint}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{path}: {where}: {message}{_given(item['type'], where, item['input'])}")
    return "\n".join(lines)


def _given(kind: str, where: str, value: Any) -> str:
    """What was written there, unless it may be a secret, or a section that holds one."""
    last = where.rpartition(".")[2]
    if kind == "missing" or isinstance(value, Mapping) or _SECRET.search(last):
        return ""
    text = f"{value!r:.60}"
    return "" if "api_key=" in text or "@" in text else f" (got {text})"


def _fields_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    for part in loc:
        field = model.model_fields.get(str(part))
        inner = [] if field is None else _sections(field.annotation)
        if inner:
            model = inner[0]
    return list(model.model_fields)


def profile_schema() -> dict[str, Any]:
    """Return the JSON schema of a profile, descriptions included."""
    return BeamlineProfile.model_json_schema()


def explain_model(model: type[BaseModel] = BeamlineProfile) -> str:
    """Return every key of a settings model with type, default and meaning, as text for people."""
    return "\n".join(_explain(model, ""))


def _explain(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if field.exclude:
            continue
        inner = _sections(field.annotation)
        if field.is_required():
            default = "required"
        elif inner:
            default = "section" if field.default is not None else "section, default null"
        else:
            default = f"default {_plain(field.default)}"
        kind = "" if inner else f"{_type_name(field.annotation)}, "
        yield f"{prefix}{name} ({kind}{default})"
        yield f"    {' '.join((field.description or '').split())}"
        for part in inner:
            mapping = get_origin(field.annotation) is Mapping
            yield from _explain(part, f"{prefix}{name}.{'<name>.' if mapping else ''}")


def _plain(value: Any) -> str:
    if value is PydanticUndefined or value is None:
        return "null"
    if isinstance(value, tuple):
        return str(list(value))
    return str(value) or '""'


def _type_name(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _type_name(get_args(annotation)[0])
    if origin is Literal:
        return "|".join(map(str, get_args(annotation)))
    if origin in (Union, UnionType):
        names = (_type_name(a) for a in get_args(annotation) if a is not type(None))
        return "|".join(dict.fromkeys(names))
    if origin is tuple:
        return f"list of {_type_name(get_args(annotation)[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "mapping"
    return "path" if annotation is Path else getattr(annotation, "__name__", str(annotation))


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that an annotation holds, however nested."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for arg in get_args(annotation) for model in _sections(arg)]
