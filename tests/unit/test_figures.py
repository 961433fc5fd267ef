"""Pictures: the same scale for raw and result, missing pixels missing, axes in motor units."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image as matplotlib_image

from inscan.service.figures import (
    MOST_PLANES,
    Picture,
    Plane,
    common_limits,
    draw,
    render_run,
    write_page,
)
from inscan.service.pictures import picture_of
from inscan.service.processed import Processed, ResultArray
from inscan.service.result_file import write_result
from inscan.service.results import Shown, from_file

GEOMETRY = {
    "shape": [5, 8],
    "slow_motor": "sample_y",
    "fast_motor": "sample_x",
    "slow_units": "um",
    "fast_units": "um",
    "slow_first": -2.0,
    "slow_last": 2.0,
    "fast_first": 10.0,
    "fast_last": 17.0,
    "snaking": True,
}


def picture(*planes: Plane) -> Picture:
    return Picture(
        "scan 3", ("few counts",), planes, (0, 8, 5, 0), "sample_x (um)", "sample_y (um)"
    )


def plane(**changes: Any) -> Plane:
    rng = np.random.default_rng(1)
    result = rng.random((5, 8)) * 10
    raw = result + rng.normal(size=(5, 8))
    fields = {
        "title": "Fe_K",
        "raw": raw,
        "result": result,
        "sigma": raw * 0 + 1,
        "units": "counts",
    }
    return Plane(**{**fields, **changes})


def snapshot(folder: Path, **meta: Any) -> Path:
    rng = np.random.default_rng(0)
    measured = np.ones((5, 8), bool)
    measured[3:] = False
    names = ("element", "row", "col")
    arrays = [
        ResultArray(name, names, "counts", rng.random((2, 5, 8), dtype="f4"), ["Fe_K", "Ca_K"])
        for name in ("values", "sigma", "raw")
    ]
    arrays.append(ResultArray("measured", ("row", "col"), "", measured))
    assembled = {"scan_id": 12, "geometry": GEOMETRY, "rows_done": 3, "complete": False, **meta}
    report = {"verdict": "warn", "reasons": ["dead time is unknown"]}
    path = folder / "live.h5"
    write_result(path, Processed(arrays, report), {"run_uid": "abcdefgh", "assembled": assembled})
    return path


def test_raw_and_result_share_their_colours() -> None:
    figure = draw(picture(plane(raw=plane().result * 3)))
    raw, result, sigma, difference = [ax for ax in figure.axes if ax.get_images()]
    assert raw.get_images()[0].get_clim() == result.get_images()[0].get_clim()
    assert sigma.get_images()[0].get_clim()[0] == 0
    low, high = difference.get_images()[0].get_clim()
    assert low == -high
    assert raw.get_xlabel() == "sample_x (um)"
    assert raw.get_images()[0].get_extent() == [0, 8, 5, 0]
    labels = [ax.get_ylabel() for ax in figure.axes if not ax.get_images()]
    assert labels == ["counts"] * 4, "every colour bar has its units"


def test_missing_pixels_are_grey_not_zero(tmp_path: Path) -> None:
    result = plane().result.copy()
    result[2:] = np.nan
    figure = draw(picture(plane(result=result)))
    drawn = [ax.get_images()[0] for ax in figure.axes if ax.get_images()]
    assert np.ma.getmaskarray(np.ma.asarray(drawn[1].get_array()))[2:].all()
    assert drawn[1].to_rgba(np.ma.masked_invalid([np.nan]))[0].tolist() == [0.75, 0.75, 0.75, 1.0]
    assert np.ma.getmaskarray(np.ma.asarray(drawn[3].get_array()))[2:].all()


def test_pictures_of_nothing_but_holes_are_drawn(tmp_path: Path) -> None:
    empty = np.full((5, 8), np.nan)
    path = render_run(picture(plane(raw=empty, result=empty, sigma=None)), tmp_path / "a.png")
    assert matplotlib_image.imread(path).shape[1] == 15 * 80
    assert list(tmp_path.iterdir()) == [path]


def test_constant_and_absent_maps_have_limits() -> None:
    assert common_limits([None]) == (0.0, 1.0)
    low, high = common_limits([np.full((2, 2), 3.0)])
    assert low < 3.0 < high
    assert common_limits([np.array([[np.nan, 1.0]]), np.array([[5.0]])])[1] <= 5.0


def test_one_hot_pixel_does_not_hide_the_rest() -> None:
    values = np.ones((50, 50))
    values[::2] = 2.0
    values[3, 3] = 1e9
    assert common_limits([values])[1] == pytest.approx(2.0)


def test_long_results_are_cut_and_say_so(tmp_path: Path) -> None:
    figure = draw(picture(*[plane()] * (MOST_PLANES + 2)))
    suptitle = figure.get_suptitle()
    assert "2 more maps are in the result" in suptitle
    assert "few counts" in suptitle
    with pytest.raises(ValueError, match="holds no map"):
        draw(picture())


def test_a_page_escapes_what_people_wrote(tmp_path: Path) -> None:
    wild = Picture("<script>", ("a & b",), (), (0, 1, 1, 0), "x", "y")
    text = write_page(
        wild, tmp_path / "p.png", tmp_path / "p.html", refresh_s=2, stamp="7"
    ).read_text()
    assert "<script>" not in text
    assert "a &amp; b" in text
    assert 'http-equiv="refresh" content="2"' in text
    assert 'src="p.png?7"' in text


def test_a_snapshot_says_how_far_it_is(tmp_path: Path) -> None:
    shown = from_file(snapshot(tmp_path))
    found = picture_of(shown)
    assert found.title == "scan 12, run abcdefgh, so far (3 rows), verdict: warn"
    assert found.notes == ("dead time is unknown",)
    assert [one.title for one in found.planes] == ["Fe_K", "Ca_K"]
    assert found.extent == (9.5, 17.5, 2.5, -2.5)
    assert (found.xlabel, found.ylabel) == ("sample_x (um)", "sample_y (um)")
    for one in found.planes:
        assert one.raw is not None
        assert np.isnan(one.result[3:]).all(), "estimates of unmeasured pixels are not shown"
        assert np.isfinite(one.result[:3]).all()


def test_a_final_does_not_claim_to_be_unfinished(tmp_path: Path) -> None:
    assert "so far" not in picture_of(from_file(snapshot(tmp_path, complete=True))).title


def test_a_stack_shows_some_energies_and_its_chemistry() -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.random((3, 4, 6)) for name in ("values", "raw", "sigma")}
    arrays |= {"measured": np.ones((3, 4, 6), bool)}
    arrays |= {"edge_energy": rng.random((4, 6)), "edge_energy_raw": rng.random((4, 6))}
    arrays |= {"fractions": rng.random((2, 4, 6)), "fractions_sigma": rng.random((2, 4, 6))}
    start = {"uid": "0123456789", "raw_uid": "raw", "reference_labels": ["NiO", "LiNiO2"]}
    labels = ["8300.00 eV", "8340.00 eV", "8400.00 eV"]
    found = picture_of(Shown(start, arrays, {"values": "transmission"}, labels))
    titles = [one.title for one in found.planes]
    assert titles == [*labels, "edge energy", "fraction of NiO", "fraction of LiNiO2"]
    assert [one.units for one in found.planes] == ["transmission"] * 3 + ["eV"] + ["fraction"] * 2
    assert found.planes[3].sigma is None
    assert found.xlabel == "column (pixel)"
    assert found.extent == (-0.5, 5.5, 3.5, -0.5)
    draw(found)


def test_doubt_is_drawn_over_the_result_and_its_share_said(tmp_path):
    doubtful = np.zeros((5, 8), bool)
    clean = draw(picture(plane(doubtful=doubtful)))
    doubtful[1:3, 2:4] = True
    drawn = draw(picture(plane(doubtful=doubtful)))
    panels = {ax.get_title(): ax for ax in drawn.axes if ax.get_title()}
    (title,) = [title for title in panels if "in doubt" in title]
    assert "result" in title and "10 %" in title and len(panels[title].images) == 2
    assert not any("in doubt" in ax.get_title() for ax in clean.axes)
    doubtful[:] = True
    everything = draw(picture(plane(doubtful=doubtful)))
    assert any("(red: 100 % in doubt)" in ax.get_title() for ax in everything.axes)


def test_a_picture_has_the_doubt_of_the_result_and_its_reasons():
    values = np.ones((1, 5, 8), np.float32)
    doubtful = np.zeros((1, 5, 8), bool)
    doubtful[0, 2, :2] = True
    measured = np.ones((5, 8), bool)
    measured[2, 0] = False
    report = {"doubt": {"share": 0.05, "reasons": ["far from the training data"]}}
    shown = Shown(
        {"uid": "u", "raw_uid": "r", "report": report},
        {"values": values, "sigma": values, "doubtful": doubtful, "measured": measured},
        {"values": "counts"},
        ["Fe_K"],
    )
    made = picture_of(shown)
    (one,) = made.planes
    assert one.doubtful is not None and one.doubtful.sum() == 1 and one.doubtful[2, 1]
    assert any("5 % of the values are in doubt: far from" in note for note in made.notes)
