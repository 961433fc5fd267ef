"""What bluesky's `TiledWriter` must be told of detector files that it does not know: how old runs are written."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from inscan.callbacks.handlers import HDF5_LAYOUTS
from inscan.callbacks.profile import BeamlineProfile
from inscan.callbacks.profile_sections import DatumFile

__all__ = ["layouts_of", "writer_options"]

_KNOWN = ("AD_HDF5", "AD_HDF5_SWMR")  # the writer has them right by itself
_HDF5 = "application/x-hdf5"
Patch = Callable[[dict[str, Any]], dict[str, Any]]


def layouts_of(profiles: Iterable[BeamlineProfile]) -> dict[str, DatumFile]:
    """Layouts of the specs that area-detector-handlers or a profile knows."""
    known = {spec: layout for spec, layout in HDF5_LAYOUTS.items() if spec not in _KNOWN}
    for profile in profiles:
        known |= profile.datum_files
    return {spec: layout for spec, layout in known.items() if spec not in _KNOWN}


def writer_options(layouts: Mapping[str, DatumFile]) -> dict[str, Any]:
    """Keyword arguments of `TiledWriter`: mimetypes, and patches that put in the dataset of a file.

    Parameters
    ----------
    layouts : mapping
        Resource spec -> layout.
    """

    def resource(doc: dict[str, Any]) -> dict[str, Any]:
        layout = layouts.get(str(doc.get("spec")))
        if layout is not None and layout.dataset is not None:
            doc["resource_kwargs"]["dataset"] = layout.dataset
        return doc

    def datum(doc: dict[str, Any]) -> dict[str, Any]:
        kwargs = doc["datum_kwargs"]
        layout = layouts.get(str(kwargs.get("_resource_spec")))
        if layout is None:
            return doc
        if layout.dataset_from in kwargs:
            kwargs["dataset"] = kwargs.pop(layout.dataset_from)
        if layout.channel_from in kwargs:
            kwargs["slice"] = f":,{kwargs.pop(layout.channel_from) - 1},:"
        return doc

    patches: dict[str, Patch] = {"resource": resource, "datum": datum}
    return {"spec_to_mimetype": dict.fromkeys(layouts, _HDF5), "patches": patches}
