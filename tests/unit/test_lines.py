"""Lines, edges and overlaps come from a database, and agree with what every spectroscopist knows."""

import numpy as np
import pytest

from inscan.callbacks.lines import EmissionLine, excitable, fwhm_ev, line_window, overlaps
from inscan.callbacks.windows import spectrum_windows


def windows(*names, resolution=150.0):
    lines = [EmissionLine.parse(name) for name in names]
    return [(line, *line_window(line, resolution, 1.0)) for line in lines]


@pytest.mark.parametrize(
    ("text", "name", "energy", "edge"),
    [
        ("Fe_K", "Fe_K", 6400, 7112),
        ("Fe_Ka", "Fe_K", 6400, 7112),
        ("Fe Kb1", "Fe_Kb", 7058, 7112),
        ("Pb-L", "Pb_L", 10541, 13035),
        ("S_K", "S_K", 2307, 2472),
        ("Au_M", "Au_M", 2120, 2206),
    ],
)
def test_energies_and_edges(text, name, energy, edge):
    line = EmissionLine.parse(text)
    assert line.name == name
    assert line.energy_ev == pytest.approx(energy, abs=12)
    assert line.edge_ev == pytest.approx(edge, abs=5)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("Fx_K", "Fe_K"),
        ("fe_k", "Fe_K"),
        ("Fe_X", "Fe_K"),
        ("Fe", "Fe_"),
        ("Fe_Kz", "it has Fe_K, Fe_Kb"),
        ("", "not a line"),
        ("scatter", "not a line"),
    ],
)
def test_an_unknown_line_suggests_a_known_one(text, hint):
    with pytest.raises(ValueError, match=hint):
        EmissionLine.parse(text)


def test_lines_above_the_incident_energy_are_refused_with_both_energies():
    assert excitable(EmissionLine.parse("Fe_K"), 12_000.0) is None
    assert excitable(EmissionLine.parse("Pb_L"), None) is None
    said = excitable(EmissionLine.parse("Pb_L"), 12_000.0)
    assert said is not None
    assert "13035 eV" in said
    assert "12000 eV" in said


def test_known_overlaps_are_found():
    found = {
        (o.source, o.window): o
        for o in overlaps(windows("Mn_K", "Fe_K", "As_K", "Pb_L"), 150.0, threshold=0.02)
    }
    assert set(found) == {("Mn_K", "Fe_K"), ("As_K", "Pb_L"), ("Pb_L", "As_K")}
    assert found["Mn_K", "Fe_K"].member.startswith("Kb")
    assert 0.05 < found["Mn_K", "Fe_K"].share < 0.2
    assert found["As_K", "Pb_L"].share == pytest.approx(1.0, abs=0.05)
    assert str(found["Mn_K", "Fe_K"]).startswith("Mn Kb overlaps Fe Ka: ")
    assert str(found["As_K", "Pb_L"]).startswith("As Ka overlaps Pb La: ")


def test_lines_far_apart_do_not_overlap():
    assert overlaps(windows("S_K", "Ca_K", "Fe_K", "Zn_K"), 150.0, threshold=0.02) == []


def test_a_better_detector_has_fewer_overlaps():
    pair = ("Mn_K", "Fe_K")
    shares = [
        overlaps(windows(*pair, resolution=r), r, threshold=1e-9)[0].share
        for r in (125.0, 150.0, 200.0)
    ]
    assert shares[0] < shares[1] < shares[2]


def test_a_line_that_is_not_excited_overlaps_nothing():
    found = overlaps(windows("As_K", "Pb_L"), 150.0, threshold=0.02, incident_energy_ev=12_000.0)
    assert [(o.source, o.window) for o in found] == [("As_K", "Pb_L")]


def test_resolution_at_its_reference_and_elsewhere():
    assert fwhm_ev(5895.0, 150.0) == pytest.approx(150.0)
    assert fwhm_ev(1740.0, 150.0) < 150.0 < fwhm_ev(17_440.0, 150.0)


def axis(*names, background=True, incident=12_000.0, n_bins=1200):
    return spectrum_windows(
        [EmissionLine.parse(name) for name in names],
        n_bins=n_bins,
        ev_per_bin=10.0,
        offset_ev=0.0,
        resolution_ev=150.0,
        half_width_fwhm=1.0,
        incident_energy_ev=incident,
        background=background,
    )


def test_a_straight_line_is_its_own_background():
    found = axis("Ca_K", "Fe_K", "Zn_K")
    slope = 1000.0 - 0.5 * np.arange(1200.0)
    counts, background, variance = found.sums(slope[None, None])
    np.testing.assert_allclose(background, counts, rtol=1e-12)
    assert (variance > 0).all()
    assert found.without_background == ()


def test_side_windows_keep_clear_of_peaks_and_scatter():
    found = axis("Cr_K", "Mn_K", "Fe_K", "Co_K", "Ni_K", "Cu_K", "Zn_K", "As_K")
    peaks = np.zeros(1200, bool)
    for start, stop in found.peak:
        peaks[start:stop] = True
    peaks[1180:1200] = True
    for sides in (found.left, found.right):
        for start, stop in sides:
            assert not peaks[start:stop].any()


def test_without_background_there_is_none():
    found = axis("Fe_K", background=False)
    assert not found.has_background
    _, background, variance = found.sums(np.ones((1, 1, 1200)))
    assert (background == 0).all()
    assert (variance == 0).all()


@pytest.mark.parametrize("bad", [np.nan, -1.0, np.inf])
def test_bad_values_anywhere_in_a_spectrum_spoil_only_that_spectrum(bad):
    spectra = np.ones((2, 3, 1200))
    spectra[1, 2, 17] = bad
    counts, background, variance = axis("Fe_K").sums(spectra)
    for array in (counts, background, variance):
        assert np.isnan(array[1, 2]).all()
        assert np.isfinite(np.delete(array.reshape(6, 1), 5, axis=0)).all()


def test_sums_do_not_depend_on_how_many_come_at_once():
    rng = np.random.default_rng(0)
    spectra = rng.poisson(5, (700, 2, 1200)).astype(np.uint16)
    found = axis("Ca_K", "Fe_K", "Zn_K")
    together = found.sums(spectra)
    one_by_one = [
        np.concatenate(parts) for parts in zip(*(found.sums(s[None]) for s in spectra), strict=True)
    ]
    for a, b in zip(together, one_by_one, strict=True):
        assert a.tobytes() == b.tobytes()


def test_a_window_outside_the_spectrum_is_an_error():
    with pytest.raises(ValueError, match="Zn_K: its window .* is outside the spectrum"):
        axis("Zn_K", n_bins=800)
