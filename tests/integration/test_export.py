"""`inscan export`: a result in a real Tiled, written out and read back as other programs read it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from inscan.service.cli import app
from inscan.service.export import export_run, proposal_folder
from inscan.service.export_result import NotExportable
from inscan.service.show import TiledAccess
from inscan.service.tiled_server import EmbeddedTiled

Commit = Any
FE = np.random.default_rng(0).random((1, 4, 5), "f4")  # what `commit` puts there for seed 0


@pytest.fixture
def access(tiled: EmbeddedTiled) -> Iterator[TiledAccess]:
    yield TiledAccess(tiled.uri, tiled.api_key)


def opened(path: str) -> Any:
    """h5py's types do not know what is where."""
    return h5py.File(path)


def exported(access: TiledAccess, wanted: str, form: Any, folder: Path) -> dict[str, Any]:
    told: list[tuple[int, int]] = []
    answer = export_run(access, wanted, [form], lambda start: folder, lambda *at: told.append(at))
    assert told[-1][0] == told[-1][1]
    return answer


def test_nexus_readers_find_signal_axes_and_errors(
    access: TiledAccess, commit: Commit, tmp_path: Path
) -> None:
    uid = commit("raw-of-7101", 7101)
    (path,) = exported(access, "7101", "nexus", tmp_path)["files"]
    with opened(path) as file:
        # As the NeXus manual tells a reader to find what to plot.
        entry = file[file.attrs["default"]]
        data = entry[entry.attrs["default"]]
        assert (entry.attrs["NX_class"], data.attrs["NX_class"]) == ("NXentry", "NXdata")
        signal = data[data.attrs["signal"]]
        np.testing.assert_array_equal(signal[()], FE)
        assert data[f"{data.attrs['signal']}_errors"].shape == signal.shape
        axes = [data[name] for name in data.attrs["axes"]]
        assert [axis.shape[0] for axis in axes] == list(signal.shape)
        assert axes[0].asstr()[0] == "Fe_K"
        np.testing.assert_allclose(axes[2][()], [0, 1, 2, 3, 4])
        assert axes[2].attrs["units"] == "um"
        process = entry["process"]
        assert process.attrs["NX_class"] == "NXprocess"
        provenance = json.loads(process["provenance/data"].asstr()[()])
        assert provenance["method"] == "n2n"
        assert entry["entry_identifier_uuid"].asstr()[()] == uid
        assert entry["measured/measured"].dtype == np.uint8


def test_xrf_maps_files_have_old_and_new_names_of_the_same_data(
    access: TiledAccess, commit: Commit, tmp_path: Path
) -> None:
    commit("raw-of-7102", 7102)
    (path,) = exported(access, "7102", "maps", tmp_path)["files"]
    with opened(path) as file:
        for name in ("MAPS/XRF_roi", "MAPS/XRF_Analyzed/ROI/Counts_Per_Sec"):
            np.testing.assert_array_equal(file[name][()], FE)
        assert file["MAPS/XRF_roi"].id == file["MAPS/XRF_Analyzed/ROI/Counts_Per_Sec"].id
        assert list(file["MAPS/channel_names"].asstr()) == ["Fe_K"]
        np.testing.assert_allclose(file["MAPS/y_axis"][()], [0, 1, 2, 3])


def test_pyxrf_files_have_maps_names_and_positions(
    access: TiledAccess, commit: Commit, tmp_path: Path
) -> None:
    commit("raw-of-7103", 7103)
    (path,) = exported(access, "7103", "pyxrf", tmp_path)["files"]
    with opened(path) as file:
        total = file["xrfmap/detsum"]
        np.testing.assert_array_equal(total["xrf_roi"][()], FE)
        assert total["xrf_roi_name"][0].decode() == "Fe_K"
        x, y = file["xrfmap/positions/pos"][()]
        assert [name.decode() for name in file["xrfmap/positions/name"]] == ["x_pos", "y_pos"]
        assert (x[0, 4], y[0, 4], x[3, 0], y[3, 0]) == (4, 0, 0, 3)


def test_a_stack_as_tiff_has_its_energies_beside_it(
    access: TiledAccess, commit: Commit, tmp_path: Path
) -> None:
    commit("raw-of-7104", 7104, recipe="subspace")
    answer = exported(access, "7104", "tiff", tmp_path)
    by_name = {Path(path).name.split("_", 3)[-1]: Path(path) for path in answer["files"]}
    values = tifffile.imread(by_name["values.tif"])
    np.testing.assert_array_equal(values, np.random.default_rng(3).random((6, 4, 5), "f4"))
    energies = np.loadtxt(by_name["energies.txt"])
    np.testing.assert_allclose(energies, [8300.0 + 10 * i for i in range(6)])
    assert tifffile.imread(by_name["edge_energy.tif"]).shape == (4, 5)


@pytest.mark.parametrize("form", ["maps", "pyxrf"])
def test_a_stack_is_no_map_of_elements(
    access: TiledAccess, commit: Commit, tmp_path: Path, form: str
) -> None:
    commit("raw-of-7105", 7105, recipe="subspace")
    with pytest.raises(NotExportable, match=r"energy stack: take nexus or tiff"):
        exported(access, "7105", form, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_the_files(
    access: TiledAccess, commit: Commit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit("raw-of-7106", 7106)
    assert access.api_key is not None
    monkeypatch.setenv("INSCAN_TILED_API_KEY", access.api_key.get_secret_value())
    arguments = ["export", "7106", "--format", "nexus", "--format", "tiff"]
    arguments += ["--out", str(tmp_path), "--tiled", access.uri, "--state", str(tmp_path / "state")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    files = [Path(line) for line in done.stdout.splitlines()]
    assert {path.suffix for path in files} == {".nxs", ".tif", ".txt"}
    assert all(path.is_file() for path in files)


def test_a_run_chooses_a_folder_only_under_the_roots(tmp_path: Path) -> None:
    here = tmp_path / "here"
    allowed = [tmp_path / "proposals"]
    named = {"proposal_path": str(tmp_path / "proposals" / "pass-1")}
    assert proposal_folder({}, "proposal_path", allowed, here) == here
    assert (
        proposal_folder(named, "proposal_path", allowed, here)
        == tmp_path / "proposals" / "pass-1" / "inscan"
    )
    for wrong in ("/etc", str(tmp_path / "proposals" / ".." / "other")):
        with pytest.raises(NotExportable, match=r"export\.roots"):
            proposal_folder({"proposal_path": wrong}, "proposal_path", allowed, here)
