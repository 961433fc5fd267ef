"""Detector files of resource and datum documents, as older beamlines write them.

An event then holds a datum's id in place of an array. How a resource's ``spec`` stores its data is said by the profile
(`inscan.callbacks.profile_sections.DatumFile`), else known from the handlers of area-detector-handlers
(`inscan.callbacks.handlers`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np

from inscan.callbacks.external import DetectorFiles, FileRefused
from inscan.callbacks.file_sequences import read_array
from inscan.callbacks.handlers import FRAME_FILES, HDF5_LAYOUTS, known_specs, read_frame_files
from inscan.callbacks.profile_sections import DatumFile

__all__ = ["DatumFiles", "DatumUnknown"]


class DatumUnknown(LookupError):
    """A datum or resource document that has not come (yet)."""


class DatumFiles:
    """Resources and datums of one run.

    Parameters
    ----------
    files
        Reads the files, and knows where they may be.
    specs
        Resource spec -> how its files are laid out, before what the handlers know.
    """

    def __init__(self, files: DetectorFiles, specs: Mapping[str, DatumFile]) -> None:
        self._files = files
        self._specs = {**HDF5_LAYOUTS, **specs}
        self._described = tuple(specs)
        self._resources: dict[str, Mapping[str, Any]] = {}
        self._refused: set[str] = set()
        self._datums: dict[str, Mapping[str, Any]] = {}

    def add_resource(self, doc: Mapping[str, Any]) -> None:
        """Take a resource document; FileRefused when nobody knows its spec, or its path is outside.

        Of two of the same uid the first counts.
        """
        try:
            self._check(doc)
        except FileRefused:
            self._refused.add(str(doc["uid"]))
            raise
        self._resources.setdefault(doc["uid"], doc)

    def _check(self, doc: Mapping[str, Any]) -> None:
        spec, uid = doc["spec"], doc["uid"]
        if not isinstance(uid, str) or not isinstance(doc["resource_path"], str):
            raise FileRefused(f"a resource of spec {spec!r:.40} without uid and resource_path")
        if spec not in self._specs and spec not in FRAME_FILES and spec != "NPY_SEQ":
            described = ", ".join(self._described) or "none"
            raise FileRefused(
                f"resources of spec {spec!r:.40} are not read (profile knows {described}; without it"
                f" {', '.join(known_specs())}); describe it in datum_files"
            )
        self._files.roots.path(_path(doc), _semantics(doc))

    def add_datum(self, doc: Mapping[str, Any]) -> None:
        """Take a datum document."""
        if not isinstance(doc["datum_kwargs"], Mapping) or not isinstance(doc["resource"], str):
            raise TypeError(f"datum {doc['datum_id']!r:.60} without datum_kwargs and resource")
        self._datums[doc["datum_id"]] = doc

    def resource_of(self, datum_id: str) -> str | None:
        """Return the resource that a datum belongs to, None when its document has not come."""
        datum = self._datums.get(datum_id)
        return None if datum is None else datum["resource"]

    def read(self, datum_id: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return the array of a datum.

        Parameters
        ----------
        datum_id
            As the event has it.
        shape
            Declared in the descriptor.

        Raises
        ------
        DatumUnknown
            Its documents have not come, or its file was refused.
        NotReadable
            Its file is not there yet.
        FileRefused
            Outside the data roots, or of another shape.
        KeyError, TypeError, ValueError
            Its keywords are not what its spec needs.
        """
        datum = self._datums.get(datum_id)
        resource = None if datum is None else self._resources.get(datum["resource"])
        if datum is not None and datum["resource"] in self._refused and resource is None:
            raise DatumUnknown(
                f"datum {datum_id!r}: its file is not read, see the reason given for it"
            )
        if datum is None or resource is None:
            raise DatumUnknown(f"datum {datum_id!r}: its document or its resource has not come")
        wanted = datum["datum_kwargs"]
        layout = self._specs.get(resource["spec"])
        if layout is not None:
            return self._dataset(resource, wanted, layout, datum_id, shape)
        roots = self._files.roots
        if resource["spec"] == "NPY_SEQ":
            # The one spec of ophyd.sim: a file per event, ``<resource_path>_<index>.npy``.
            name = f"{_path(resource)}_{int(wanted['index'])}.npy"
            array = read_array(roots.path(name, _semantics(resource)), "application/x-npy", shape)
            return array.reshape(shape)
        folder = roots.path(_path(resource), _semantics(resource))
        return read_frame_files(resource, folder, wanted, shape, roots)

    def _dataset(
        self,
        resource: Mapping[str, Any],
        wanted: Mapping[str, Any],
        layout: DatumFile,
        datum_id: str,
        shape: tuple[int, ...],
    ) -> np.ndarray:
        dataset = layout.dataset or str(wanted[str(layout.dataset_from)])
        # The handler for whole files can be asked for another array beside the detector's.
        if layout.dataset is not None and layout.index_from is None and "target" in wanted:
            target = str(wanted["target"])
            if target != "data":
                dataset = f"{dataset.rpartition('/')[0]}/NDAttributes/{target}"
        index = None if layout.index_from is None else int(wanted[layout.index_from])
        channel = None if layout.channel_from is None else int(wanted[layout.channel_from])
        uid = self._resource(resource, dataset, datum_id)
        array = self._files.value(uid, index, channel, shape)
        if layout.nanoseconds is None:
            return array
        uid = self._resource(resource, layout.nanoseconds, datum_id)
        return array + self._files.value(uid, index, channel, shape) * 1e-9

    def _resource(self, resource: Mapping[str, Any], dataset: str, datum_id: str) -> str:
        """Return the uid of a file resource: a resource may hold several datasets, each is one."""
        uid = f"{resource['uid']}/{dataset}"
        if uid not in self._files:
            frames = (resource.get("resource_kwargs") or {}).get("frame_per_point")
            path = _path(resource).replace("\\", "/" if _semantics(resource) == "windows" else "\\")
            self._files.add(
                {
                    "uid": uid,
                    "data_key": datum_id,
                    "mimetype": "application/x-hdf5",
                    "uri": f"file://localhost{quote(path if path.startswith('/') else f'/{path}')}",
                    "parameters": {"dataset": dataset}
                    | ({} if frames is None else {"frame_per_point": frames}),
                }
            )
        return uid


def _path(resource: Mapping[str, Any]) -> str:
    """Return the path that a resource names on the machine that wrote it."""
    root, path = str(resource.get("root") or ""), str(resource["resource_path"])
    if not root:
        return path if path.startswith("/") or _semantics(resource) == "windows" else f"/{path}"
    return f"{root.rstrip('/')}/{path.lstrip('/')}"


def _semantics(resource: Mapping[str, Any]) -> str:
    return str(resource.get("path_semantics") or "posix").lower()
