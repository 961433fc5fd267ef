"""Measured maps as samples: what is a map, what is left out, and what is refused."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from inscan.profiles.measured import line_name
from inscan.profiles.samples import load_measured

DATA = Path(__file__).parents[3] / "shared" / "data"
MAP = np.arange(30.0).reshape(5, 6)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Fe", "Fe_K"),
        ("Fe_K", "Fe_K"),
        ("Fe_Ka", "Fe_K"),
        ("FeKa1", "Fe_K"),
        ("Fe-K", "Fe_K"),
        ("Fe_Kb", "Fe_Kb"),
        ("Ca_3", "Ca_K"),
        ("K_2", "K_K"),
        ("P", "P_K"),
        ("Pb", "Pb_L"),
        ("Au_L", "Au_L"),
        ("Pb_M", "Pb_M"),
        ("CP_6", None),
        ("O", None),
        ("Xx", None),
        ("chemical_map", None),
        ("", None),
    ],
)
def test_names_of_maps_become_lines(text, line):
    assert line_name(text) == line


def test_npz_takes_maps_and_says_what_it_leaves_out(tmp_path):
    path = tmp_path / "cut.npz"
    bad = MAP.copy()
    bad[0, 0], bad[1, 1] = np.nan, -5
    np.savez(path, Fe=bad, Zn_K=MAP, cube=np.zeros((2, 5, 6)), CP_6=MAP, Ca=np.zeros((5, 6)))
    sample = load_measured(path, width=12.0, peak_rate=100.0)
    assert sample.name == "cut"
    assert sample.elements == ("Fe_K", "Zn_K")
    assert sample.pixel_size == 2.0
    np.testing.assert_allclose(sample.field, [(-5, 5), (-6, 6)])
    assert sample.maps.max() == pytest.approx(100, rel=0.01)
    assert sample.maps[0, 0, 0] == sample.maps[0, 1, 1] == 0
    assert len(sample.skipped) == 3
    assert any("(2, 5, 6)" in text for text in sample.skipped)


def test_hdf5_takes_2d_datasets_at_any_depth(tmp_path):
    path = tmp_path / "maps.h5"
    with h5py.File(path, "w") as file:
        file["entry/maps/Ni"] = MAP
        file["entry/maps/Pb"] = MAP.astype("u2")
        file["entry/energy"] = np.arange(5.0)
        file["entry/title"] = "text"
    sample = load_measured(path)
    assert set(sample.elements) == {"Ni_K", "Pb_L"}


def test_tiff_names_come_from_pages_or_the_file(tmp_path):
    pages = tmp_path / "both.tif"
    with tifffile.TiffWriter(pages) as writer:
        for name in ("Fe", "Zn"):
            writer.write(MAP.astype(np.float32), description=name, metadata=None)
    assert load_measured(pages).elements == ("Fe_K", "Zn_K")
    labelled = tmp_path / "imagej.tif"
    stack = np.stack([MAP, MAP]).astype(np.float32)
    tifffile.imwrite(labelled, stack, imagej=True, metadata={"Labels": ["Cu_K", "Mn_K"]})
    assert load_measured(labelled).elements == ("Cu_K", "Mn_K")
    single = tmp_path / "slice12_Fe_K.tif"
    tifffile.imwrite(single, MAP.astype(np.uint8), metadata=None)
    assert load_measured(single).elements == ("Fe_K",)


def test_refusals_say_what_was_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_measured(tmp_path / "nothing.npz")
    text = tmp_path / "maps.csv"
    text.write_text("1,2")
    with pytest.raises(ValueError, match="expected one of .npz, .h5"):
        load_measured(text)
    for name in ("broken.npz", "broken.h5", "broken.tif"):
        (tmp_path / name).write_bytes(b"not what it says")
        with pytest.raises(ValueError, match="not a readable"):
            load_measured(tmp_path / name)
    np.savez(tmp_path / "none.npz", cube=np.zeros((2, 3, 4)), other=MAP)
    with pytest.raises(ValueError, match=r"no element map.*\(2, 3, 4\).*other"):
        load_measured(tmp_path / "none.npz")
    np.savez(tmp_path / "sizes.npz", Fe=MAP, Zn=MAP[:4])
    with pytest.raises(ValueError, match="one size"):
        load_measured(tmp_path / "sizes.npz")


def test_python_objects_are_never_unpickled(tmp_path):
    path = tmp_path / "objects.npz"
    np.savez(path, Fe=np.array([[{}, {}], [{}, {}]], dtype=object), Zn=MAP)
    sample = load_measured(path)
    assert sample.elements == ("Zn_K",)
    assert any(text.startswith("Fe") for text in sample.skipped)


@pytest.mark.measured
@pytest.mark.parametrize(
    ("name", "elements"),
    [
        ("zagami_wds_6el_1000x1000_u8.npz", {"Ca_K", "Fe_K", "Si_K", "Mg_K", "K_K"}),
        ("hxn_xrf_160x160_5el_and_chemmap.npz", {"Fe_K", "Cr_K", "S_K", "P_K", "Si_K"}),
    ],
)
def test_real_measured_maps(name, elements):
    if not (DATA / name).is_file():
        pytest.skip(f"{DATA / name} is not on this machine")
    sample = load_measured(DATA / name)
    assert set(sample.elements) == elements
    assert len(sample.skipped) == 1
