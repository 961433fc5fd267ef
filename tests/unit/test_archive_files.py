"""Files of data: what they say of themselves is taken, what they do not say is asked for."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from inscan.service.archive_choice import Naming, choose, parse_crop, values_of
from inscan.service.archive_files import natural, open_archive
from inscan.service.archive_options import asked_for
from inscan.service.archive_process import as_update, describe, prepare
from inscan.service.archive_request import Prepared
from inscan.service.archive_types import ArchiveError, Reading

ROWS, COLS, BINS = 5, 6, 1200
LINES = "Ca_K,Fe_K"


def spectra(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(2, shape).astype(np.uint16)


def taken(path: Path, **options: Any) -> Prepared:
    return prepare(path, asked_for(**options))


def chosen(path: Path, **naming: Any) -> Reading:
    with open_archive(path) as archive:
        return choose(archive, Naming(**naming))


def test_raw_maps_files_have_spectra_of_each_element(tmp_path: Path) -> None:
    path = tmp_path / "raw.h5"
    data = spectra(4, BINS, ROWS, COLS).astype(np.int16)
    live = np.random.default_rng(1).uniform(0.5, 1, (4, ROWS, COLS)).astype("f4")
    with h5py.File(path, "w") as file:
        for name, one in zip("abcd", data, strict=True):
            file[f"MAPS_RAW/data_{name}"] = one
        file["MAPS_RAW/livetime"] = live
    made = taken(path, lines=LINES, ev_per_bin=9.6)
    assert (made.kind, made.recipe) == ("spectra", "n2n")
    assert made.meta["elements"] == ["Ca_K", "Fe_K"]
    assert made.arrays["counts"].shape == (4, 2, ROWS, COLS)
    np.testing.assert_allclose(made.arrays["exposure"], live)
    # The windows are those that the file's energy axis gives: summed by hand here.
    low, high = made.meta["windows_ev"][1]
    inside = (np.arange(BINS) * 9.6 >= low) & (np.arange(BINS) * 9.6 < high)
    expected = data[:, inside].sum(axis=1)
    np.testing.assert_allclose(made.arrays["counts"][:, 1], expected)
    with pytest.raises(ArchiveError, match="--ev-per-bin"):
        taken(path, lines=LINES)
    # Without lines the spectra themselves are denoised.
    assert taken(path).recipe == "spectral"


def test_maps_files_have_spectra_windows_and_fits(tmp_path: Path) -> None:
    path = tmp_path / "maps.h5"
    counts = spectra(3, ROWS, COLS)
    with h5py.File(path, "w") as file:
        file["MAPS/mca_arr"] = spectra(BINS, ROWS, COLS)
        file["MAPS/energy"] = 0.01 * np.arange(BINS)
        file["MAPS/XRF_roi"] = counts
        file["MAPS/XRF_fits"] = counts * 0.7
        file["MAPS/channel_names"] = np.array([b"Ca", b"Fe", b"TFY"])
        file["MAPS/x_axis"], file["MAPS/y_axis"] = np.arange(COLS) * 2.0, np.arange(ROWS) * 1.0
        file["MAPS/scalers"] = np.stack([np.full((ROWS, COLS), 3.0), 1 + np.ones((ROWS, COLS))])
        file["MAPS/scaler_names"] = np.array([b"us_ic", b"ds_ic"])
    made = taken(path)
    assert made.recipe == "spectral" and any("MAPS/XRF_roi" in text for text in made.said)
    assert made.meta["geometry"]["fast_last"] == 2.0 * (COLS - 1)
    maps = taken(path, dataset="MAPS/XRF_roi", i0="MAPS/scalers[us_ic]")
    assert (maps.kind, maps.recipe, maps.meta["elements"]) == ("maps", "n2n", ["Ca_K", "Fe_K"])
    np.testing.assert_array_equal(maps.arrays["counts"][0], counts[:2])
    np.testing.assert_allclose(maps.arrays["exposure"], 1)
    assert any("left out" in text and "TFY" in text for text in maps.said)
    # Fitted peak areas are no counts: no method is chosen for them.
    with pytest.raises(ArchiveError, match=r"no counts: not whole numbers.*--method"):
        taken(path, dataset="MAPS/XRF_fits")
    assert taken(path, dataset="MAPS/XRF_fits", method="superres").meta["warnings"]
    with pytest.raises(ArchiveError, match="us_ic, ds_ic"):
        taken(path, dataset="MAPS/XRF_roi", i0="MAPS/scalers[nothing]")


def test_pyxrf_files_give_their_detectors_before_their_sum(tmp_path: Path) -> None:
    path = tmp_path / "pyxrf.h5"
    data = spectra(3, ROWS, COLS, BINS)
    with h5py.File(path, "w") as file:
        for k, one in enumerate(data, start=1):
            file[f"xrfmap/det{k}/counts"] = one
        file["xrfmap/detsum/counts"] = data.sum(axis=0)
        file["xrfmap/positions/name"] = np.array([b"x_pos", b"y_pos"])
        grid = np.meshgrid(np.arange(COLS) * 0.5, np.arange(ROWS) * 0.5)
        file["xrfmap/positions/pos"] = np.stack(grid)
    made = taken(path, lines=LINES, ev_per_bin=10)
    assert made.recipe == "n2n" and made.arrays["counts"].shape == (3, 2, ROWS, COLS)
    assert made.meta["geometry"]["slow_last"] == 0.5 * (ROWS - 1)
    summed = taken(path, dataset="xrfmap/detsum/counts", lines=LINES, ev_per_bin=10)
    assert summed.recipe == "spectral", "one detector: nothing to compare it with"
    np.testing.assert_allclose(
        summed.arrays["counts"].sum(axis=0), made.arrays["counts"].sum(axis=0)
    )


def test_xspress3_of_gda_is_told_by_its_sum(tmp_path: Path) -> None:
    path = tmp_path / "gda.nxs"
    data = spectra(2, 3, 4, BINS).astype("f8")
    with h5py.File(path, "w") as file:
        for group in ("entry1/instrument/xspress3", "entry1/xspress3"):
            file[f"{group}/MCAs"], file[f"{group}/AllElementSum"] = data, data.sum(axis=2)
    found = chosen(path)
    assert found.dims == ("row", "col", "channel", "bin")
    assert taken(path, lines=LINES, ev_per_bin=10).arrays["counts"].shape == (4, 2, 2, 3)


@pytest.mark.parametrize(
    ("axes", "interpretation", "dims"),
    [
        (["y", "x", "energy"], "spectrum", ("row", "col", "bin")),
        (["energy", "y", "x"], "image", ("energy", "row", "col")),
        (["channel", "y", "x", "bin"], "", ("channel", "row", "col", "bin")),
    ],
)
def test_nexus_data_say_their_axes(
    tmp_path: Path, axes: list[str], interpretation: str, dims: tuple[str, ...]
) -> None:
    path = tmp_path / "nexus.nxs"
    lengths = {"y": ROWS, "x": COLS, "energy": 40, "channel": 2, "bin": 50}
    with h5py.File(path, "w") as file:
        group = file.create_group("entry/data")
        group.attrs["NX_class"], group.attrs["signal"] = "NXdata", "data"
        group.attrs["axes"] = axes
        group["data"] = spectra(*(lengths[name] for name in axes))
        group["data"].attrs["interpretation"] = interpretation
        group["energy"] = np.linspace(7.0, 7.4, 40)
        group["energy"].attrs["units"] = "keV"
        group["y"] = np.arange(ROWS) * 0.1
        group["x"] = np.arange(COLS) * 0.1
    found = chosen(path)
    assert found.dims == dims
    assert any("by NXdata" in text for text in found.said)
    if "energy" in dims:
        assert found.energies_ev is not None
        np.testing.assert_allclose(found.energies_ev[[0, -1]], [7000, 7400])
        with pytest.raises(ArchiveError, match="frames alone are no transmission"):
            taken(path)
        assert taken(path, quantity="counts").recipe == "subspace"


def test_an_axis_that_is_not_explained_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "unclear.nxs"
    with h5py.File(path, "w") as file:
        group = file.create_group("entry/data")
        group.attrs["NX_class"], group.attrs["signal"] = "NXdata", "data"
        group.attrs["axes"] = ["y", "x", "energy"]
        group["data"] = spectra(ROWS, COLS, 40)
    with pytest.raises(ArchiveError, match=r"row, col, \?.*--dims"):
        taken(path)
    assert taken(path, dims="row,col,bin").recipe == "spectral"


def test_point_spectra_are_no_maps(tmp_path: Path) -> None:
    path = tmp_path / "points.h5"
    with h5py.File(path, "w") as file:
        for scan in range(1, 4):
            group = file.create_group(f"scan{scan}/plot")
            group.attrs["NX_class"], group.attrs["signal"] = "NXdata", "intensity"
            group.attrs["axes"] = "energy"
            group["intensity"], group["energy"] = np.arange(30.0), 5400 + np.arange(30.0)
    with pytest.raises(ArchiveError, match="3 spectra of single points.*no method here applies"):
        taken(path)
    energies = ",".join(str(5400 + k) for k in range(30))
    line = taken(
        path,
        dataset="scan*/plot/intensity",
        dims="col,energy",
        energies=energies,
        quantity="counts",
    )
    assert line.arrays["transmission"].shape == (30, 1, 3)


def test_npz_by_names(tmp_path: Path) -> None:
    maps = tmp_path / "maps.npz"
    np.savez(maps, Fe_K=spectra(ROWS, COLS), Zn=spectra(ROWS, COLS), haadf=np.ones((ROWS, COLS)))
    made = taken(maps)
    assert made.recipe == "n2n" and made.meta["elements"] == ["Fe_K", "Zn_K"]
    assert any("haadf" in text for text in made.said)
    assert taken(maps, elements="Zn").meta["elements"] == ["Zn_K"]
    stack = tmp_path / "stack.npz"
    frames = np.random.default_rng(0).uniform(0.5, 1, (7, ROWS, COLS))
    np.savez(stack, frames=frames, energy_eV=7000.0 - np.arange(7))
    made = taken(stack, quantity="transmission")
    assert made.meta["energies_ev"] == sorted(made.meta["energies_ev"])
    np.testing.assert_allclose(made.arrays["transmission"][0], frames[6], rtol=1e-6)


def test_sparse_spectra_are_put_together(tmp_path: Path) -> None:
    path = tmp_path / "eds.npz"
    dense = np.random.default_rng(0).poisson(0.3, (4, 3, 100)).astype("u2")
    idx = np.flatnonzero(dense).astype("u4")
    np.savez(path, idx=idx, val=dense.ravel()[idx], shape=dense.shape, keV0_dkeV=[-0.1, 0.02])
    made = taken(path)
    assert made.recipe == "spectral"
    energies = np.asarray(made.meta["bin_energies_ev"])
    kept = (-100 + 20 * np.arange(100)) >= 120
    assert energies[0] == pytest.approx(120) and len(energies) == kept.sum()
    np.testing.assert_array_equal(made.arrays["cube"][0], dense[..., kept])
    part = taken(path, crop="1:3,0:2")
    np.testing.assert_array_equal(part.arrays["cube"][0], dense[1:3, :2][..., kept])


def test_spectra_without_names_need_dims(tmp_path: Path) -> None:
    path = tmp_path / "plain.npz"
    data, live = spectra(ROWS, COLS, 2, BINS), np.random.default_rng(2).random((ROWS, COLS, 2))
    np.savez(path, spectra=data, live_s=live)
    with pytest.raises(
        ArchiveError, match="(?s)spectra .*for example: .*row,col,channel,bin"
    ) as error:
        taken(path)
    assert "live_s" in str(error.value)
    made = taken(path, dims="row,col,channel,bin", lines=LINES, ev_per_bin=10, live_time="live_s")
    np.testing.assert_allclose(made.arrays["exposure"], live.transpose(2, 0, 1), rtol=1e-6)
    with pytest.raises(ArchiveError, match="'colour' is none of the axes"):
        taken(path, dims="row,col,channel,colour")
    with pytest.raises(ArchiveError, match="names 3 axes|so have 0|so have 1"):
        taken(path, dataset="spectra", dims="row,col,bin")
    with pytest.raises(ArchiveError, match="outside the spectrum"):
        taken(path, dims="row,col,channel,bin", lines="Mo_K", ev_per_bin=10)


def test_frames_and_flats_make_transmission(tmp_path: Path) -> None:
    path = tmp_path / "txm.npz"
    rng = np.random.default_rng(0)
    light = 1000 + 50 * rng.random((2, ROWS, COLS))
    np.savez(
        path, **{f"s{k}": light[k] * (0.8 - 0.1 * k) + 10 for k in range(2)},
        **{f"f{k}": light[k] + 10 for k in range(2)}, dark=np.full((ROWS, COLS), 10.0),
    )  # fmt: skip
    options = {"dataset": "s0,s1", "dims": "energy,row,col", "energies": "8.25,8.35"}
    options["energy_units"] = "keV"
    made = taken(path, **options, flat="f*", dark="dark")
    assert made.recipe == "subspace" and made.meta["energies_ev"] == [8250, 8350]
    np.testing.assert_allclose(made.arrays["transmission"][1], 0.7, rtol=1e-5)
    assert any("one for each of the 2 energies" in text for text in made.said)
    empty = taken(path, **options, empty="0:1,0:6")
    np.testing.assert_allclose(empty.arrays["transmission"][:, 0].mean(axis=1), 1, rtol=1e-5)
    with pytest.raises(ArchiveError, match="more than one"):
        taken(path, **options, flat="f*", quantity="counts")
    with pytest.raises(ValueError, match="--energy-units keV"):
        asked_for(energies="8.25,8.35")


def test_tiff_stacks_take_energies_from_the_file_beside(tmp_path: Path) -> None:
    path = tmp_path / "run7_values.tif"
    frames = np.random.default_rng(0).uniform(0.4, 1, (3, ROWS, COLS)).astype("f4")
    tifffile.imwrite(path, frames, photometric="minisblack")
    with pytest.raises(ArchiveError, match="nothing in it says"):
        taken(path, quantity="transmission")
    (tmp_path / "run7_energies.txt").write_text("8320.0\n8330.0\n8340.0\n")
    made = taken(path, quantity="transmission")
    assert made.meta["energies_ev"] == [8320, 8330, 8340]
    assert any("run7_energies.txt" in text for text in made.said)
    labelled = tmp_path / "maps.tif"
    tifffile.imwrite(labelled, frames[:2], imagej=True, metadata={"Labels": ["Fe_K", "Zn_K"]})
    assert taken(labelled, method="n2n").meta["elements"] == ["Fe_K", "Zn_K"]


def test_tables_are_lists_of_spectra(tmp_path: Path) -> None:
    path = tmp_path / "repeats.csv"
    rows = spectra(8, 40)
    lines = [",".join(["", *map(str, range(40))])]
    lines += [",".join([str(k), *map(str, row)]) for k, row in enumerate(rows)]
    path.write_text("\n".join(lines))
    made = taken(path, dims="col,bin")
    assert made.recipe == "spectral"
    np.testing.assert_array_equal(made.arrays["cube"][0, 0], rows)


def test_what_was_not_measured_is_masked(tmp_path: Path) -> None:
    path = tmp_path / "holes.npz"
    counts = spectra(3, ROWS, COLS).astype("f8")
    counts[1, 2, 3], counts[0, 0, 0] = np.nan, -1
    np.savez(path, Fe=counts[0], Zn=counts[1], Ca=counts[2])
    made = taken(path)
    assert sorted(map(tuple, np.argwhere(~made.arrays["measured"]))) == [(0, 0), (2, 3)]
    assert np.isfinite(made.arrays["counts"]).all()


def test_broken_and_hostile_files_are_refused(tmp_path: Path) -> None:
    for name, content in (("a.h5", b"\x89HDF\r\n\x1a\nnothing"), ("b.npz", b"PK\x03\x04nothing")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArchiveError, match="not a readable"):
            taken(tmp_path / name)
    (tmp_path / "notes.txt").write_text("nothing to see here\n")
    with pytest.raises(ArchiveError, match="one line of text, no table of numbers"):
        taken(tmp_path / "notes.txt")
    (tmp_path / "c.exe").write_bytes(b"MZ")
    with pytest.raises(ArchiveError, match="no kind of file that is understood"):
        taken(tmp_path / "c.exe")
    objects = tmp_path / "objects.npz"
    np.savez(objects, Fe=np.array([{}, {}], dtype=object), Zn=spectra(ROWS, COLS))
    assert taken(objects).meta["elements"] == ["Zn_K"]
    # A shape that no memory holds is refused before anything is allocated.
    huge = tmp_path / "huge.npz"
    np.savez(huge, idx=np.zeros(1, "u4"), val=np.zeros(1, "u2"), shape=[1 << 20, 1 << 20, 4096])
    with pytest.raises(ArchiveError, match="none that can be read"):
        taken(huge)
    # Links that run in a circle, and one that leads out of the folder.
    linked, secret = tmp_path / "in" / "linked.h5", tmp_path / "secret.h5"
    linked.parent.mkdir()
    with h5py.File(secret, "w") as file:
        file["Fe"] = spectra(ROWS, COLS)
    with h5py.File(linked, "w") as file:
        file["maps/Zn"] = spectra(ROWS, COLS)
        file["maps/again"] = file["maps"]
        file["maps/Fe"] = h5py.ExternalLink("../secret.h5", "Fe")
    assert taken(linked).meta["elements"] == ["Zn_K"]


def test_the_key_follows_from_file_and_options(tmp_path: Path) -> None:
    path = tmp_path / "maps.npz"
    np.savez(path, Fe=spectra(ROWS, COLS), Zn=spectra(ROWS, COLS, seed=1))

    def uid(**options: Any) -> str:
        asked = asked_for(**options)
        return as_update(path, asked, prepare(path, asked)).run_uid

    first = uid()
    assert uid() == first and uid(elements="Fe") != first and uid(crop="0:2,0:2") != first
    np.savez(path, Fe=spectra(ROWS, COLS, seed=2), Zn=spectra(ROWS, COLS, seed=1))
    assert uid() != first
    assert "taken for maps, method n2n" in describe(path, asked_for())


@settings(max_examples=25, deadline=None, derandomize=True)
@given(order=st.permutations(("channel", "row", "col", "bin")))
def test_the_order_of_the_axes_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, order: list[str]
) -> None:
    lengths = {"channel": 2, "row": 3, "col": 4, "bin": 20}
    data = spectra(*lengths.values())
    path = tmp_path_factory.mktemp("order") / "cube.npz"
    axes = [list(lengths).index(name) for name in order]
    np.savez(path, data=data.transpose(axes))
    made = taken(path, dims=",".join(order), method="spectral")
    np.testing.assert_array_equal(made.arrays["cube"], data)
    np.testing.assert_array_equal(made.arrays["counts"][:, 0], data.sum(axis=3))


def test_small_things(tmp_path: Path) -> None:
    assert sorted(["scan10", "scan2", "a"], key=natural) == ["a", "scan2", "scan10"]
    assert parse_crop("1:3, 0:2") == (1, 3, 0, 2) and parse_crop(None) is None
    for text in ("1:3", "3:1,0:2", "a:b,c:d"):
        with pytest.raises(ValueError, match=r"R0:R1,C0:C1|an empty part"):
            parse_crop(text)
    path = tmp_path / "frames.npz"
    np.savez(path, data=np.full((300, 2, ROWS), 200, "u1"))
    with open_archive(path) as archive:
        reading = choose(archive, Naming(dims=("sum", "row", "col")))
        values, dims = values_of(reading, None)
    assert dims == ("row", "col") and (values == 60_000).all(), "no overflow of small types"
