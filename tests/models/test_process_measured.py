"""Files that beamlines and microscopes really wrote, where they lie beside the project: processed, or a reason."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inscan.service.archive_options import asked_for
from inscan.service.archive_process import Answer, describe, process_file
from inscan.service.archive_types import ArchiveError
from inscan.service.offline import Wanted
from inscan.service.result_file import read_result

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

pytestmark = [
    pytest.mark.measured,
    pytest.mark.skipif(not DATA.is_dir(), reason="the measured data (../shared/data) are not here"),
]
APS = {"dims": "row,col,channel,bin", "dataset": "spectra", "ev_per_bin": 9.6}
PIXL = {"ev_per_bin": 7.862, "ev_offset": -18.5, "live_time": "live_s", "dataset": "spectra"}
LINES = {"lines": "Ca_K,Fe_K"}
# File, options, method, verdicts that are right for it.
CASES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "aps step": ("aps2ide_axo_std_11x11_4det.npz", APS | LINES, "n2n", "pass"),
    "aps film": ("aps2ide_thinfilm_11x11_4det.npz", APS | LINES, "n2n", "pass warn"),
    "aps fly": (
        "aps2ide_fly_11x9_4det_MAPS_RAW.h5",
        {"ev_per_bin": 9.6, **LINES},
        "n2n",
        "pass warn",
    ),
    # Two detectors that see the rock from two sides.
    "pixl": (
        "pixl_beaujeu_sol138_15x15_2det.npz",
        PIXL | LINES | {"dims": "row,col,channel,bin"},
        "n2n",
        "warn block",
    ),
    "pixl line": (
        "pixl_naltsos_line121_2det.npz",
        PIXL | LINES | {"dims": "col,channel,bin"},
        "n2n",
        "warn block",
    ),
    # Corrected and fitted values are no counts: taken because the method is named, and never passed.
    "i18": ("dls_i18_fluo_18x18x512.nxs", {"method": "spectral"}, "spectral", "warn block"),
    "xspress3": (
        "dls_i18_xspress3_2x2x10det_4096.nxs",
        {"method": "n2n", "lines": "Ti_K,Co_K", "ev_per_bin": 10},
        "n2n",
        "warn block",
    ),
    "hxn": (
        "hxn_xrf_160x160_5el_and_chemmap.npz",
        {"method": "n2n", "crop": "40:88,40:88"},
        "n2n",
        "warn block",
    ),
    "zagami": (
        "zagami_wds_6el_1000x1000_u8.npz",
        {"crop": "200:248,160:208"},
        "n2n",
        "warn block",
    ),
    "stxm": (
        "stxm_als_FeL_123x150x150.npz",
        {"quantity": "counts", "crop": "30:60,30:60"},
        "subspace",
        "warn block",
    ),
    "ssrl": (
        "txm_ssrl_NCA_8324eV_512crop.npz",
        {
            "dataset": "sample_reps",
            "dims": "energy,row,col",
            "energies": "8324,8324,8324",
            "flat": "flat_reps",
            "flat_factor": 5 / 3,
            "crop": "100:164,100:164",
        },
        "subspace",
        "pass warn",
    ),
    "aps txm": (
        "txm_aps_NCA_2E_384_decimated.npz",
        {
            "dataset": "fov03_xanessoc02_8250_0eV,fov03_xanessoc01_8353_0eV",
            "flat": "ref_xanessoc01_8250_0eV,ref_xanessoc01_8353_0eV",
            "dims": "energy,row,col",
            "energies": "8250,8353",
            "crop": "100:164,100:164",
        },
        "subspace",
        "pass warn",
    ),
    "velox": (
        "eds_velox_superx_4det_2frames_16x16.npz",
        {"dims": "channel,sum,row,col,bin", "ev_per_bin": 10, "bins": 256},
        "spectral",
        "pass warn",
    ),
    "repeats": (
        "xrf_spectra_32repeats_4096ch.csv.gz",
        {"dims": "col,bin", "ev_per_bin": 5, "bins": 256},
        "spectral",
        "pass warn",
    ),
} | {
    name: (f"{name}.npz", {"crop": "4:28,4:28", "bins": 128}, "spectral", "pass warn")
    for name in (
        "eds_88ES_80x80",
        "eds_fept_core_shell_64x64",
        "eds_sio2_particles_128x128",
        "eds_bruker_50x50",
        "eds_bruker_30x30_highcounts",
        "eds_ncem_idp_t0_256x256",
    )
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def processed(name: str, options: dict[str, Any], out: Path) -> Answer:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{name} is not among the measured data")
    return process_file(path, asked_for(**options), Wanted((), out))


@pytest.mark.parametrize("case", CASES)
def test_a_measured_file_becomes_a_result_and_a_picture(case: str, tmp_path: Path) -> None:
    name, options, method, verdicts = CASES[case]
    answer = processed(name, options, tmp_path)
    assert answer.record.state == "done", answer.record.reason
    assert answer.record.recipe == method
    assert answer.record.verdict in verdicts.split(), answer.record.notes
    assert answer.said
    arrays = {a.name: a.values for a in read_result(Path(answer.record.path)).processed.arrays}
    assert {"values", "sigma", "lower", "upper", "raw"} <= set(arrays)
    assert np.isfinite(arrays["values"]).any()
    assert Path(answer.png).read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("aps2ide_axo_std_11x11_4det.npz", "--dims row,col,channel,bin"),
        ("pixl_naltsos_line121_2det.npz", "--dims col,channel,bin"),
        ("hxn_xrf_160x160_5el_and_chemmap.npz", "these maps are no counts"),
        ("dls_i18_fluo_18x18x512.nxs", "these spectra are no counts"),
        ("stxm_als_FeL_123x150x150.npz", "--empty"),
        ("txm_ssrl_NCA_8324eV_512crop.npz", "flat_reps"),
        ("xanes_V_aps13ide_4det_12scans.h5", "12 spectra of single points"),
        ("sio2_haadf_128x128.npy", "--dims row,col"),
    ],
)
def test_what_a_measured_file_does_not_say_is_asked_for(
    name: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(ArchiveError, match=told):
        processed(name, {}, tmp_path)
    assert told in describe(DATA / name, asked_for())
    assert list(tmp_path.iterdir()) == []
