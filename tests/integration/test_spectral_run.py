"""A run with full spectra, from the simulated detector to a denoised cube in Tiled."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from bluesky import RunEngine
from tiled.client import from_uri

from inscan.callbacks.assembly import open_assembler
from inscan.callbacks.profile import load_profile, shipped_profiles
from inscan.profiles.samples import cells
from inscan.profiles.simulation import sim_xrf
from inscan.profiles.xrf_plans import fly_raster
from inscan.service import derived
from inscan.service.commit import Committer
from inscan.service.messages import InferenceJob, InferenceResult, job_key
from inscan.service.result_file import write_result
from inscan.service.result_view import describe
from inscan.service.results import Results, from_file
from inscan.service.spool import Spool, load
from inscan.service.tiled_http import PROCESSED, TiledHTTP
from inscan.service.tiled_server import EmbeddedTiled

LINES = ["Ca_K", "Fe_K", "Zn_K"]
ROWS, COLS, BINS = 14, 16, 60


@pytest.mark.timeout(240)
def test_spectra_become_a_denoised_cube_and_maps_of_its_lines(
    tiled: EmbeddedTiled, folder: Path, tmp_path: Path
) -> None:
    from inscan.service.recipes import process

    profile = yaml.safe_load(shipped_profiles()["sim_xrf"].read_text(encoding="utf-8"))
    profile["xrf"]["elements"] |= {"source": "spectrum", "lines": LINES}
    profile["xrf"]["cube"] = {"bins": BINS, "low_ev": 2000}
    profile["method"] = {"name": "spectral", "snapshot_rows": 0}
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))

    devices = sim_xrf(cells(2), tmp_path, channels=2, time_scale=0, bins=1024, energy_per_bin=16.0)
    devices.xs_fly.spectra.put(1)
    engine = RunEngine({"beamline_id": "sim_xrf"}, context_managers=[])
    documents: list[tuple[str, dict[str, Any]]] = []
    engine.subscribe(lambda name, doc: documents.append((name, dict(doc))))
    axes = (devices.sample_y, -5.0, 5.0, ROWS, devices.sample_x, -5.0, 5.0, COLS)
    scan = {"type": "XRF_FLY", "energy": 12.0, "dwell": 0.05}
    engine(fly_raster(devices.xs_fly, *axes, dwell=0.05, md={"scan": scan}))

    start = documents[0][1]
    spool = Spool(tmp_path / "spool", budget=1 << 30, min_free=0).run(start["uid"])
    assembler = open_assembler(
        start, [load_profile(tmp_path / "profile.yaml")], spool.allocate, data_roots=[tmp_path]
    )
    final = [update for name, doc in documents for update in assembler(name, doc)][-1]
    assert final.kind == "final" and final.meta["complete"], final.meta
    key = job_key(start["uid"], "primary", "spectral", {})
    path = folder / "results" / f"{key}.h5"
    job = InferenceJob(
        key=key,
        run_uid=start["uid"],
        stream="primary",
        kind="final",
        recipe="spectral",
        parameters={},
        meta=final.meta,
        spool=str(spool.folder),
        arrays={name: spool.spec(name, values) for name, values in final.arrays.items()},
        input_digest="sha256:0",
        result_path=str(path),
        host_id="here",
    )
    told: list[float] = []
    processed = process(job, load(spool.folder, job.arrays), told.append)
    assert told == sorted(told) and len(told) > 4
    by_name = {array.name: array for array in processed.arrays}
    bins = len(final.meta["bin_energies_ev"])
    assert bins <= BINS
    assert by_name["spectra"].values.shape == (ROWS, COLS, bins)
    assert by_name["spectra"].dims == ("row", "col", "bin")
    for name in ("values", "sigma", "lower", "upper", "raw"):
        assert by_name[name].values.shape == (3, ROWS, COLS)
        assert np.isfinite(by_name[name].values).all()
    assert by_name["values"].labels == LINES
    # The same light in the maps as in the counts, and less scatter between neighbours.
    values, raw = by_name["values"].values, by_name["raw"].values
    np.testing.assert_allclose(values.sum(axis=(1, 2)), raw.sum(axis=(1, 2)), rtol=0.1)
    assert np.abs(np.diff(values, axis=2)).mean() < np.abs(np.diff(raw, axis=2)).mean()

    digest = write_result(path, processed, {"run_uid": start["uid"], "assembled": final.meta})
    result = InferenceResult(
        key=key,
        fence=1,
        result_path=str(path),
        digest=digest,
        report=processed.report,
        regions=[],
        timings={},
    )
    run = derived.compose(job, result, describe(path), start, time.time())
    with TiledHTTP(tiled.uri, tiled.api_key) as http:
        committer = Committer(http, readable=[folder / "results"])
        axes_found = derived.axes_of(job.meta, result.report, run.arrays)
        assert committer.commit(run, axes_found, path, digest) == "written"
        committer.close()
    client: Any = from_uri(tiled.uri, api_key=tiled.api_key.get_secret_value())
    stream = client[PROCESSED][run.uid]["primary"]
    keys = stream.metadata["data_keys"]
    assert keys["spectra"]["dims"] == ["y", "x", "bin"] and keys["bin"]["units"] == "eV"
    np.testing.assert_allclose(stream["bin"].read(), final.meta["bin_energies_ev"])
    np.testing.assert_array_equal(stream["spectra"].read(), by_name["spectra"].values)
    client.context.http_client.close()
    with Results(tiled.uri, tiled.api_key) as results:
        shown = results.read(results.latest(run.uid))
    assert shown.labels == LINES and shown.arrays["values"].shape == (3, ROWS, COLS)
    assert from_file(path).labels == LINES
