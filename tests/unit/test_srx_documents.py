"""Maps of NSLS-II SRX, from documents as it writes them, are what was measured."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from event_model import compose_run, pack_datum_page, pack_event_page
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inscan.callbacks.assembly import open_assembler
from inscan.callbacks.profile import BeamlineProfile, load_profile, shipped_profiles
from inscan.profiles.srx_documents import fly, hf2dxrf, step
from inscan.profiles.srx_truth import SRXMap

NAMES = ("srx", "srx_step", "srx_hf2dxrf")
LINES = ["Ca_K", "Fe_K", "Zn_K"]
Documents = list[tuple[str, Any]]


def adapted(name: str, change: Callable[[dict[str, Any]], None] | None = None) -> BeamlineProfile:
    """The shipped profile, for the elements that the samples have."""
    content = load_profile(name).model_dump(mode="json")
    content["xrf"]["elements"]["lines"] = LINES
    content["data_roots"] = []
    content["read_deadline"] = 0.0
    if change is not None:
        change(content)
    return BeamlineProfile.model_validate(content)


PROFILES = [adapted(name) for name in NAMES]


def truth(rows: int = 4, cols: int = 5, channels: int = 3, bins: int = 1024, **more) -> SRXMap:
    return SRXMap.make((rows, cols), channels, bins, **more)


def assemble(
    documents: Documents, folder: Path, profiles: list[BeamlineProfile] | None = None
) -> list[Any]:
    updates: list[Any] = []
    start = next(doc for name, doc in documents if name == "start")
    assembler = open_assembler(start, profiles or PROFILES, data_roots=[folder])
    for name, doc in documents:
        updates += assembler(name, doc)
    if documents[-1][0] != "stop":
        updates += assembler.finish("no more documents")
    return updates


def final(updates: list[Any]) -> Any:
    assert updates[-1].kind == "final", updates[-1].meta
    json.dumps(updates[-1].meta, allow_nan=False)
    return updates[-1]


def expected_counts(sample: SRXMap, update: Any) -> np.ndarray:
    """Window sums of the truth, (channel, element, row, col)."""
    sums = []
    for low, high in update.meta["windows_ev"]:
        first, stop = (int(np.ceil(edge / 10)) for edge in (low, high))
        sums.append(sample.spectra[..., first:stop].sum(axis=-1))
    return np.stack(sums).transpose(3, 0, 1, 2)


def agrees(update: Any, sample: SRXMap, measured: np.ndarray | None = None) -> None:
    """The map is the truth where it was measured, and nothing elsewhere."""
    rows, cols = sample.i0.shape
    there = np.ones((rows, cols), bool) if measured is None else measured
    arrays = update.arrays
    np.testing.assert_array_equal(arrays["measured"], there)
    np.testing.assert_array_equal(
        arrays["counts"], np.where(there, expected_counts(sample, update), 0)
    )
    relative = sample.i0 / np.median(sample.i0[there].astype(np.float64))
    np.testing.assert_allclose(
        arrays["exposure"],
        np.broadcast_to(np.where(there, sample.dwell * relative, 0), arrays["exposure"].shape),
        rtol=1e-5,
    )
    assert np.isnan(arrays["position"][:, ~there]).all()
    assert update.meta["elements"] == LINES


def positions_agree(update: Any, sample: SRXMap) -> None:
    there = update.arrays["measured"]
    for axis, positions in enumerate((sample.slow, sample.fast)):
        np.testing.assert_allclose(
            update.arrays["position"][axis][there], positions[there], atol=1e-6
        )


def same(one: Any, other: Any) -> None:
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        assert array.tobytes() == other.arrays[name].tobytes(), name


def test_the_profiles_come_with_inscan() -> None:
    assert set(NAMES) <= set(shipped_profiles())
    for name in NAMES:
        assert load_profile(name).name == name


@pytest.mark.parametrize("names", ["new", "old"])
@pytest.mark.parametrize("snake", [True, False])
@pytest.mark.parametrize("axes", [("sx", "sy"), ("sy", "sx"), ("sz", "sy")])
def test_fly_maps_are_what_was_measured(tmp_path, axes, snake, names) -> None:
    sample = truth()
    fast, slow = (f"nano_stage_{axis}" for axis in axes)
    update = final(
        assemble(
            list(fly(tmp_path, sample, fast=fast, slow=slow, snake=snake, names=names)), tmp_path
        )
    )
    agrees(update, sample)
    positions_agree(update, sample)
    meta = update.meta
    assert meta["warnings"] == []
    assert (meta["complete"], meta["exit_status"], meta["rows_done"]) == (True, "success", 4)
    assert meta["profile"] == "srx" and meta["stream"] == "stream0"
    geometry = meta["geometry"]
    assert geometry["shape"] == [4, 5]
    assert (geometry["slow_motor"], geometry["fast_motor"]) == (slow, fast)
    assert (geometry["slow_units"], geometry["fast_units"]) == ("um", "um")
    assert ((geometry["slow_first"], geometry["slow_last"]) == sample.ends[0]) and geometry[
        "snaking"
    ] is snake
    assert meta["incident_energy_ev"] == 12_000.0


def test_an_image_may_be_given_as_the_truth(tmp_path) -> None:
    image = np.outer([100.0, 300.0], [1.0, 2.0, 3.0])
    sample = SRXMap.make((2, 3), 4, 1024, peaks_ev={6400.0: image})
    update = final(assemble(list(fly(tmp_path, sample)), tmp_path))
    agrees(update, sample)
    net = (update.arrays["counts"] - update.arrays["background"])[:, LINES.index("Fe_K")]
    # The least are 4 x 100 counts, with a standard error of 5 %.
    np.testing.assert_allclose(net.mean(axis=0), image, rtol=0.15)


def test_lines_of_the_shipped_profile_are_refused_by_name_where_they_cannot_be(tmp_path) -> None:
    update = final(assemble(list(fly(tmp_path, truth(2, 2))), tmp_path, [load_profile("srx")]))
    assert "edge at 13035 eV is above" in update.meta["refused"]["Pb_L"]
    assert "outside the spectrum" in update.meta["refused"]["As_K"]
    assert "Fe_K" in update.meta["elements"] and "As_K" not in update.meta["elements"]


def test_rows_that_are_stored_by_position_are_not_turned_round(tmp_path) -> None:
    def by_position(content: dict[str, Any]) -> None:
        content["xrf"]["rows"]["order"] = "position"

    sample = truth()
    # In the order of position a snaking map looks like one that does not snake.
    documents = list(fly(tmp_path, sample, snake=False))
    documents[0][1]["scan"]["snake"] = 1
    agrees(final(assemble(documents, tmp_path, [adapted("srx", by_position)])), sample)
    with pytest.raises(AssertionError):
        agrees(final(assemble(documents, tmp_path)), sample)


def test_coarse_stages_have_a_slow_position_per_row_or_a_computed_one(tmp_path) -> None:
    sample = truth()
    documents = list(fly(tmp_path, sample, fast="nano_stage_x", slow="nano_stage_y"))
    update = final(assemble(documents, tmp_path))
    agrees(update, sample)
    slow, fast = update.arrays["position"]
    np.testing.assert_allclose(slow, np.repeat(sample.slow.mean(axis=1)[:, None], 5, 1), rtol=1e-6)
    np.testing.assert_allclose(fast, np.broadcast_to(np.linspace(*sample.ends[1], 5), (4, 5)))
    (line,) = update.meta["warnings"]
    assert "no positions of nano_stage_x are recorded" in line

    primary = next(d["uid"] for n, d in documents if n == "descriptor" and d["name"] == "primary")
    events = [d for n, d in documents if n == "event" and d["descriptor"] == primary]
    lost = [pair for pair in documents if pair[1] not in events[1:3]]
    update = final(assemble(lost, tmp_path))
    planned = np.linspace(*sample.ends[0], 4)
    np.testing.assert_allclose(update.arrays["position"][0][1:3, 0], planned[1:3])
    np.testing.assert_allclose(update.arrays["position"][0][0], sample.slow[0].mean(), rtol=1e-6)
    assert any(
        "rows without a recorded position of nano_stage_y" in line and "[2 times]" in line
        for line in update.meta["warnings"]
    )


@pytest.mark.parametrize(("units", "used"), [("mm", True), ("deg", False)])
def test_slow_positions_in_other_units_are_converted_or_not_used(tmp_path, units, used) -> None:
    sample = truth()
    documents = list(fly(tmp_path, sample, slow="nano_stage_y"))
    for name, doc in documents:
        if name == "descriptor" and doc["name"] == "primary":
            doc["data_keys"]["nano_stage_y"] = doc["data_keys"]["nano_stage_y"] | {"units": units}
        if name == "event" and "nano_stage_y" in doc["data"]:
            doc["data"]["nano_stage_y"] /= 1000
    update = final(assemble(documents, tmp_path))
    planned = np.linspace(*sample.ends[0], 4)
    expected = sample.slow.mean(axis=1) if used else planned
    np.testing.assert_allclose(update.arrays["position"][0][:, 0], expected, rtol=1e-6)
    assert any("cannot convert" in line for line in update.meta["warnings"]) is not used


def test_positions_may_come_after_the_rows_or_twice(tmp_path) -> None:
    sample = truth()
    documents = list(fly(tmp_path, sample, slow="nano_stage_y"))
    stop = documents.pop()
    first = final(assemble([*documents, stop], tmp_path))
    order = sorted(documents, key=lambda pair: "nano_stage_y" in pair[1].get("data", {}))
    second = final(assemble([*order, *order[-2:], stop], tmp_path))
    same(first, second)
    assert first.meta == second.meta


def test_an_aborted_run_ends_with_the_rows_it_has(tmp_path) -> None:
    sample = truth()
    update = final(assemble(list(fly(tmp_path, sample, stop_after=2)), tmp_path))
    agrees(update, sample, np.arange(4)[:, None] < 2 * np.ones(5))
    assert (update.meta["exit_status"], update.meta["reason"]) == ("abort", "beam dump")
    assert not update.meta["complete"]


def filled(documents: Documents) -> Documents:
    """The same documents with arrays in the events, as a Filler leaves them."""
    resources = {d["uid"]: d for n, d in documents if n == "resource"}
    datums = {d["datum_id"]: d for n, d in documents if n == "datum"}

    def value(datum_id: str) -> np.ndarray:
        datum = datums[datum_id]
        resource = resources[datum["resource"]]
        name = datum["datum_kwargs"].get("column", "entry/instrument/detector/data")
        with h5py.File(resource["root"] + resource["resource_path"], "r") as file:
            dataset: Any = file[name]
            return dataset[...]

    out: Documents = []
    for name, doc in documents:
        if name == "event":
            data = {k: value(v) if v in datums else v for k, v in doc["data"].items()}
            out.append((name, doc | {"data": data}))
        elif name not in ("resource", "datum"):
            out.append((name, doc))
    return out


@pytest.mark.parametrize("in_events", [True, False])
@pytest.mark.parametrize("snake", [True, False])
def test_rows_that_were_cut_short_are_masked_where_they_end(tmp_path, snake, in_events) -> None:
    sample = truth()
    lengths = {1: 2, 3: 6}
    documents = list(fly(tmp_path, sample, snake=snake, lengths=lengths))
    update = final(assemble(filled(documents) if in_events else documents, tmp_path))
    measured = np.ones((4, 5), bool)
    measured[1] = [False, False, False, True, True] if snake else [True, True, False, False, False]
    agrees(update, sample, measured)
    positions_agree(update, sample)
    short, long = sorted(update.meta["warnings"])
    assert "fewer pixels than the 5 planned" in short and "more pixels than the 5" in long
    assert update.meta["rows_done"] == 3


def test_a_row_that_was_taken_again_is_the_later_one(tmp_path) -> None:
    sample = truth()
    documents = filled(list(fly(tmp_path, sample)))
    rows = [d for n, d in documents if n == "event" and "xs_fluor" in d["data"]]
    cut = rows[2] | {
        "time": rows[2]["time"] - 0.5,
        "data": {k: v[:2] * 2 if np.ndim(v) else v for k, v in rows[2]["data"].items()},
        "uid": "interrupted",
    }
    stop = documents.pop()
    last = final(assemble([*documents, ("event", cut), stop], tmp_path))
    at = next(i for i, (_, doc) in enumerate(documents) if doc is rows[2])
    first = final(assemble([*documents[:at], ("event", cut), *documents[at:], stop], tmp_path))
    agrees(last, sample)
    same(first, last)
    assert first.meta == last.meta


def test_bad_values_of_a_row_mask_their_pixels(tmp_path) -> None:
    sample = truth()
    documents = filled(list(fly(tmp_path, sample)))
    rows = [d for n, d in documents if n == "event" and "xs_fluor" in d["data"]]
    rows[0]["data"]["i0"][1] = 0.0
    rows[1]["data"]["i0_time"][2] = np.nan
    spectra = rows[2]["data"]["xs_fluor"].astype(np.float64)
    spectra[3, 1, 400] = np.nan
    rows[2]["data"]["xs_fluor"] = spectra
    rows[3]["data"]["xs_fluor"] = rows[3]["data"]["xs_fluor"].astype(np.int16).tolist()
    update = final(assemble(documents, tmp_path))
    measured = np.ones((4, 5), bool)
    measured[0, 1] = measured[1, 2] = False
    np.testing.assert_array_equal(update.arrays["measured"], measured)
    # One channel is lost there, the others did measure.
    assert update.arrays["exposure"][1, 2, 3] == 0 and update.arrays["exposure"][0, 2, 3] > 0
    counts = expected_counts(sample, update)
    counts[1, :, 2, 3] = 0
    np.testing.assert_array_equal(update.arrays["counts"], np.where(measured, counts, 0))
    assert len(update.meta["warnings"]) == 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data.pop("xs_fluor"),
        lambda data: data.update(xs_fluor=np.zeros((5, 3, 900), np.uint32)),
        lambda data: data.update(xs_fluor=np.zeros((5, 1024), np.uint32)),
        lambda data: data.update(i0=None),
        lambda data: data.update(i0=np.zeros((5, 2))),
        lambda data: data.update(xs_fluor=np.array(["a"] * 5)),
    ],
)
def test_a_row_of_another_shape_is_left_out_and_the_rest_stays(tmp_path, spoil) -> None:
    sample = truth()
    documents = filled(list(fly(tmp_path, sample)))
    rows = [d for n, d in documents if n == "event" and "xs_fluor" in d["data"]]
    spoil(rows[1]["data"])
    update = final(assemble(documents, tmp_path))
    agrees(update, sample, np.arange(4)[:, None] != 1 + np.zeros(5))
    (line,) = update.meta["warnings"]
    assert "left out" in line and "row 2" in line


@pytest.mark.parametrize("bins", [512, 1024, 2048, 4096])
def test_spectra_of_any_length(tmp_path, bins) -> None:
    sample = truth(2, 3, 2, bins)
    update = final(assemble(list(fly(tmp_path, sample)), tmp_path))
    kept = [line for line in LINES if bins > 512 or line == "Ca_K"]
    assert update.meta["elements"] == kept
    np.testing.assert_array_equal(update.arrays["counts"], expected_counts(sample, update))


def test_spectra_that_change_their_length_are_refused_by_name(tmp_path) -> None:
    documents = list(fly(tmp_path, truth(bins=2048), bins_change=2))
    update = assemble(documents, tmp_path)[-1]
    assert update.kind == "rejected"
    assert "xs_fluor has 1024 bins, xs_fluor had 2048" in update.meta["reason"]


def test_windows_that_are_read_when_the_row_is_over_are_no_pixels(tmp_path) -> None:
    def windows(content: dict[str, Any]) -> None:
        content["xrf"]["rows"]["mcaroi"] = "xs_channel{channel:02d}_mcaroi{mcaroi:02d}_total_rbv"
        content["xrf"]["elements"] |= {"source": "mcaroi", "lines": ["Fe_K"]}

    documents = list(fly(tmp_path, truth()))
    update = assemble(documents, tmp_path, [adapted("srx", windows)])[-1]
    assert update.kind == "rejected"
    assert "one value per row, not one per pixel" in update.meta["reason"]


def test_a_clock_of_another_unit_is_noticed(tmp_path) -> None:
    def seconds(content: dict[str, Any]) -> None:
        content["xrf"]["rows"]["live_time_s"] = 1.0

    documents = list(fly(tmp_path, truth()))
    update = final(assemble(documents, tmp_path, [adapted("srx", seconds)]))
    assert any("live_time_s" in line for line in update.meta["warnings"])


@pytest.mark.parametrize("order", [["channel", "pixel", "bin"], ["bin", "channel", "pixel"]])
def test_axes_may_come_in_another_order(tmp_path, order) -> None:
    def axes(content: dict[str, Any]) -> None:
        content["xrf"]["rows"]["axes"] = {"spectrum": order}

    sample = truth()
    documents = filled(list(fly(tmp_path, sample, snake=True)))
    usual = ["pixel", "channel", "bin"]
    at = [usual.index(axis) for axis in order]
    for name, doc in documents:
        if name == "event" and "xs_fluor" in doc["data"]:
            doc["data"]["xs_fluor"] = doc["data"]["xs_fluor"].transpose(at)
        elif name == "descriptor" and "xs_fluor" in doc["data_keys"]:
            key = doc["data_keys"]["xs_fluor"]
            key["shape"] = [key["shape"][axis] for axis in at]
    agrees(final(assemble(documents, tmp_path, [adapted("srx", axes)])), sample)


@pytest.mark.parametrize("order", [["pixel", "channel", "bin"], ["channel", "pixel", "bin"]])
def test_rows_may_be_announced_by_stream_datum(tmp_path, order) -> None:
    """One index of a growing file is a row; the slow position is one number per row."""
    sample = truth()
    rows, cols, _, _ = sample.spectra.shape
    at = [1 + ["pixel", "channel", "bin"].index(axis) for axis in order]
    backwards = np.arange(rows) % 2 == 1

    def in_time(values: np.ndarray) -> np.ndarray:
        turned = values.copy()
        turned[backwards] = turned[backwards, ::-1]
        return turned

    columns = {
        "xs_fluor": in_time(sample.spectra).transpose(0, *at),
        "i0": in_time(sample.i0),
        "i0_time": np.full((rows, cols), sample.dwell * 50e6),
        "enc1": in_time(sample.fast),
        "enc2": sample.slow.mean(axis=1),
    }
    metadata = dict(next(fly(tmp_path, sample, snake=True))[1])
    run: Any = compose_run(metadata={k: v for k, v in metadata.items() if k not in ("uid", "time")})
    keys = {
        key: {"dtype": "array", "shape": list(v.shape[1:]), "source": "sim", "external": "STREAM:"}
        for key, v in columns.items()
    }
    stream = run.compose_descriptor(name="stream0", data_keys=keys)
    documents: Documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        for key, values in columns.items():
            file[key] = values
            resource = run.compose_stream_resource(
                mimetype="application/x-hdf5",
                uri=f"file://localhost{tmp_path}/rows.h5",
                data_key=key,
                parameters={"dataset": key},
            )
            documents.append(("stream_resource", resource.stream_resource_doc))
            for part in ((0, 1), (1, rows)):
                indices = {"start": part[0], "stop": part[1]}
                datum = resource.compose_stream_datum(
                    indices=indices, descriptor=stream.descriptor_doc
                )
                documents.append(("stream_datum", datum))
    documents.append(("stop", run.compose_stop()))

    def axes(content: dict[str, Any]) -> None:
        content["xrf"]["rows"]["axes"] = {"spectrum": order}

    update = final(assemble(documents, tmp_path, [adapted("srx", axes)]))
    agrees(update, sample)
    assert update.meta["warnings"] == []
    slow, fast = update.arrays["position"]
    np.testing.assert_allclose(fast, sample.fast)
    np.testing.assert_allclose(slow, np.repeat(sample.slow.mean(axis=1)[:, None], cols, 1))


def test_axes_that_do_not_fit_are_named(tmp_path) -> None:
    def axes(content: dict[str, Any]) -> None:
        content["xrf"]["rows"]["axes"] = {"spectrum": ["channel", "bin"]}

    update = assemble(list(fly(tmp_path, truth())), tmp_path, [adapted("srx", axes)])[-1]
    assert update.kind == "rejected"
    assert "axes.spectrum" in update.meta["reason"] and "'pixel'" in update.meta["reason"]


def test_spectra_are_kept_pixel_by_pixel_too(tmp_path) -> None:
    def cube(content: dict[str, Any]) -> None:
        content["xrf"]["cube"] = {"bins": 128, "low_ev": 1000, "high_ev": 10_000}
        content["method"] = {"name": "spectral", "snapshot_rows": 2}

    sample = truth()
    updates = assemble(list(fly(tmp_path, sample, snake=True)), tmp_path, [adapted("srx", cube)])
    update = final(updates)
    kept, width = update.arrays["cube"].shape[-1], 8
    part = sample.spectra[..., 100 : 100 + kept * width].reshape(4, 5, 3, kept, width).sum(axis=-1)
    np.testing.assert_array_equal(update.arrays["cube"], part.transpose(2, 0, 1, 3))
    assert [(u.kind, u.meta["rows_done"]) for u in updates] == [("snapshot", 2), ("final", 4)]


@pytest.mark.parametrize("names", ["new", "old"])
@pytest.mark.parametrize("snake", [True, False])
@pytest.mark.parametrize("scan", [step, hf2dxrf])
def test_step_maps_are_what_was_measured(tmp_path, scan, snake, names) -> None:
    sample = truth()
    update = final(assemble(list(scan(tmp_path, sample, snake=snake, names=names)), tmp_path))
    agrees(update, sample)
    positions_agree(update, sample)
    assert update.meta["complete"] and update.meta["dwell"] == sample.dwell
    assert [line for line in update.meta["warnings"] if "live time" not in line] == []
    assert update.meta["incident_energy_ev"] == 12_000.0
    assert update.meta["geometry"]["shape"] == [4, 5]


def test_step_maps_from_the_windows_of_the_detector(tmp_path) -> None:
    def windows(content: dict[str, Any]) -> None:
        keys = content["xrf"]["step"]
        keys["mcaroi"] = "xs_channel{channel:02d}_mcaroi{mcaroi:02d}_total_rbv"
        content["xrf"]["elements"] |= {"source": "mcaroi", "lines": ["Ca_K", "Fe_K"]}

    sample = truth()
    documents = list(step(tmp_path, sample, mcarois=2, stop_after=13))
    update = final(assemble(documents, tmp_path, [adapted("srx_step", windows)]))
    assert update.meta["elements"] == ["Ca_K", "Fe_K"]
    assert update.arrays["measured"].sum() == 13
    for k in (1, 2):
        sums = sample.spectra[..., 100 * k : 100 * k + 20].sum(axis=-1).transpose(2, 0, 1)
        np.testing.assert_array_equal(
            update.arrays["counts"][:, k - 1].reshape(3, -1)[:, :13], sums.reshape(3, -1)[:, :13]
        )


def test_maps_at_several_energies_are_a_series(tmp_path) -> None:
    def meta(sample: SRXMap, **more: Any) -> dict[str, Any]:
        return final(assemble(list(fly(tmp_path, sample, **more)), tmp_path)).meta["series"]

    sample = truth(2, 2)
    series = [meta(replace(sample, energy_kev=energy)) for energy in (11.0, 11.1, 11.2)]
    assert [one["energy_ev"] for one in series] == pytest.approx([11_000.0, 11_100.0, 11_200.0])
    assert len({one["key"] for one in series}) == 1
    others = [
        meta(replace(sample, sample="other")),
        meta(replace(sample, ends=((2.0, 3.0), (-3.0, -2.0)))),
        meta(truth(2, 3)),
        meta(sample, fast="nano_stage_sy", slow="nano_stage_sx"),
        meta(sample, metadata={"proposal": {"proposal_num": "000001"}}),
    ]
    assert len({one["key"] for one in others} | {series[0]["key"]}) == 1 + len(others)
    no_energy = list(fly(tmp_path, sample))
    del no_energy[0][1]["scan"]["energy"]
    assert final(assemble(no_energy, tmp_path)).meta["series"] is None


KINDS = {
    "fly": lambda folder, sample: fly(folder, sample, snake=True, slow="nano_stage_y"),
    "step": lambda folder, sample: step(folder, sample, snake=True),
    "hf2dxrf": lambda folder, sample: hf2dxrf(folder, sample),
}


@pytest.fixture(scope="module", params=list(KINDS))
def recorded(request, tmp_path_factory) -> Iterator[tuple[Documents, SRXMap, Path, Any]]:
    folder = tmp_path_factory.mktemp(request.param)
    sample = truth(3, 4, 2)
    documents = list(KINDS[request.param](folder, sample))
    yield documents, sample, folder, final(assemble(documents, folder))


@settings(
    deadline=None,
    max_examples=15,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(order=st.randoms(use_true_random=False), lose=st.booleans())
def test_any_order_gap_and_duplicate_gives_the_same_map_and_a_true_mask(
    recorded, order: random.Random, lose: bool
) -> None:
    documents, sample, folder, whole = recorded
    start, stop = documents[0], documents[-1]
    rest = list(documents[1:-1])
    counts = {
        d["uid"]
        for n, d in documents
        if n == "descriptor" and any("fluor" in k or "channel" in k for k in d["data_keys"])
    }
    events = [d for n, d in rest if n == "event" and d["descriptor"] in counts]
    lost: set[int] = set()  # seq_nums
    if lose:
        kind = order.choice(["event", "datum", "resource"])
        victims = order.sample([pair for pair in rest if pair[0] == kind], 1)
        for victim in victims:
            rest.remove(victim)
            ids = _ids(victim, documents)
            lost |= {d["seq_num"] for d in events if ids & _needs(d)}
    rest += order.sample(rest, len(rest) // 4)
    order.shuffle(rest)
    packed: Documents = []
    while rest:
        name, doc = rest.pop()
        if name == "event" and order.random() < 0.3:
            packed.append(("event_page", pack_event_page(doc)))
        elif name == "datum" and order.random() < 0.3:
            packed.append(("datum_page", pack_datum_page(doc)))
        else:
            packed.append((name, doc))
    update = assemble([start, *packed, stop], folder)[-1]
    rows, cols = sample.i0.shape
    measured = np.ones((rows, cols), bool)
    if whole.meta["profile"] == "srx":
        for seq in lost:
            measured[seq - 1] = False
    else:
        for seq in lost:
            row, col = divmod(seq - 1, cols)
            measured[row, cols - 1 - col if row % 2 else col] = False
    if not measured.any():
        assert update.kind == "rejected"
        return
    agrees(final([update]), sample, measured)
    if not lost and not lose:
        same(update, whole)
        assert update.meta == whole.meta


def _ids(pair: tuple[str, Any], documents: Documents) -> set[str]:
    """What an event cannot do without that is lost with a document."""
    name, doc = pair
    if name == "datum":
        return {doc["datum_id"]}
    if name == "resource":
        return {d["datum_id"] for n, d in documents if n == "datum" and d["resource"] == doc["uid"]}
    return {doc["uid"]}


def _needs(event: dict[str, Any]) -> set[str]:
    unused = ("zebra_time", "enc2", "enc3", "im", "it")
    ids = {v for k, v in event["data"].items() if isinstance(v, str) and k not in unused}
    return {event["uid"]} | ids


@settings(
    deadline=None,
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(order=st.randoms(use_true_random=False))
def test_whatever_a_document_holds_the_run_ends_and_what_is_measured_is_true(
    recorded, order: random.Random, spoiled: Any
) -> None:
    documents, _, folder, whole = recorded
    rest = list(documents[1:-1])
    for index in order.sample(range(len(rest)), order.randint(1, 3)):
        name, doc = rest[index]
        rest[index] = (name, spoiled(doc, order))
    update = assemble([documents[0], *rest, documents[-1]], folder)[-1]
    json.dumps(update.meta, allow_nan=False)
    assert update.kind in ("final", "rejected")
    if update.kind == "final":
        arrays = update.arrays
        assert np.isfinite(arrays["counts"]).all() and (arrays["exposure"] >= 0).all()
        assert (arrays["exposure"] > 0).any(axis=0)[arrays["measured"]].all()
        assert not arrays["counts"][:, :, ~arrays["measured"]].any()
        assert arrays["measured"].sum() <= whole.arrays["measured"].sum()
