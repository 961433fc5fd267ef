"""Detector files of resource and datum documents, as older beamlines write them.

An event then holds a datum's id in place of an array. How a resource's ``spec`` stores its data is
said by the profile (`inscan.callbacks.profile_sections.DatumFile`), not by handler classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from inscan.callbacks.external import DetectorFiles, FileRefused
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
        Resource spec -> how its files are laid out.
    """

    def __init__(self, files: DetectorFiles, specs: Mapping[str, DatumFile]) -> None:
        self._files = files
        self._specs = specs
        self._resources: dict[str, Mapping[str, Any]] = {}
        self._datums: dict[str, Mapping[str, Any]] = {}

    def add_resource(self, doc: Mapping[str, Any]) -> None:
        """Take a resource document; FileRefused when the profile does not know its spec."""
        if doc["spec"] not in self._specs:
            known = ", ".join(self._specs) or "none"
            raise FileRefused(
                f"resources of spec {doc['spec']!r} are not read (profile knows {known}); describe"
                f" it in datum_files"
            )
        self._resources[doc["uid"]] = doc

    def add_datum(self, doc: Mapping[str, Any]) -> None:
        """Take a datum document."""
        self._datums[doc["datum_id"]] = doc

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
            Its documents have not come.
        NotReadable
            Its file is not there yet.
        FileRefused
            Outside the data roots, or of another shape.
        """
        datum = self._datums.get(datum_id)
        resource = None if datum is None else self._resources.get(datum["resource"])
        if datum is None or resource is None:
            raise DatumUnknown(f"datum {datum_id!r}: its document or its resource has not come")
        layout, wanted = self._specs[resource["spec"]], datum["datum_kwargs"]
        dataset = layout.dataset or str(wanted[layout.dataset_from])
        # A resource may hold several datasets: each is a file resource of its own.
        uid = f"{resource['uid']}/{dataset}"
        if uid not in self._files:
            root = str(resource.get("root") or "/").rstrip("/")
            self._files.add(
                {
                    "uid": uid,
                    "data_key": datum_id,
                    "mimetype": "application/x-hdf5",
                    "uri": f"file://localhost{root}/{str(resource['resource_path']).lstrip('/')}",
                    "parameters": {"dataset": dataset},
                }
            )
        index = None if layout.index_from is None else int(wanted[layout.index_from])
        channel = None if layout.channel_from is None else int(wanted[layout.channel_from])
        return self._files.value(uid, index, channel, shape)
