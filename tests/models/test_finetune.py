"""Fine-tuning on the run itself: it learns, it never makes things worse, and it can be repeated."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from inscan.models import n2n
from inscan.models.counting import only
from inscan.models.finetune import fine_tune
from inscan.models.infer import load_denoiser
from inscan.models.unet import UNet, UNetConfig

SHAPE = (48, 56)


@pytest.fixture(scope="module")
def shipped():
    return load_denoiser("cpu")


@pytest.fixture(scope="module")
def untaught(shipped):
    """A small network that has learned nothing: it gives back what it sees."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return replace(shipped, net=UNet(UNetConfig((8, 12), 1)).eval())


@pytest.fixture(scope="module")
def run():
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    mean = 6.0 * np.stack([0.1 + (np.hypot(y - 20, x - 25) < 12), 0.2 + (x > 30)])
    counts = np.random.default_rng(0).poisson(mean).astype(np.float32)
    return mean, counts, np.ones_like(counts)


def test_learns_from_the_run_alone(untaught, run):
    mean, counts, light = run
    found = fine_tune(untaught, counts, light, only("alone", 2), steps=60)
    assert found.nll < found.nll_shipped - 0.01
    assert 0 < found.steps <= found.steps_done == 60
    assert found.started_from == "shipped" and found.nll_start is None
    assert found.nll == min(score for _, score in found.history)
    unchanged = untaught.net.state_dict()["tail.weight"]
    assert (unchanged == 0).all() and (found.tensors["tail.weight"] != 0).any()


def test_starts_where_held_out_counts_say(shipped, untaught, run):
    _, counts, light = run
    for given, offered, origin in ((untaught, shipped, "start"), (shipped, untaught, "shipped")):
        found = fine_tune(given, counts, light, only("alone", 2), steps=1, start=offered)
        assert found.started_from == origin
        assert found.nll_start is not None
        assert found.nll <= min(found.nll_shipped, found.nll_start)


def test_steps_that_time_allowed_can_be_repeated(untaught, run):
    _, counts, light = run
    timed = fine_tune(untaught, counts, light, only("together", 2), steps=400, seconds=1.5)
    assert timed.steps_done < 400
    again = fine_tune(untaught, counts, light, only("together", 2), steps=timed.steps_done)
    assert again.steps == timed.steps and again.nll == timed.nll
    for name, tensor in again.tensors.items():
        assert torch.equal(tensor, timed.tensors[name]), name


def test_no_time_leaves_all_as_it_was(untaught, run):
    _, counts, light = run
    found = fine_tune(untaught, counts, light, only("alone", 2), steps=5, seconds=0.0)
    assert found.steps == found.steps_done == 0 and found.denoiser is untaught


def test_weights_are_kept_with_where_they_come_from(shipped, untaught, run):
    _, counts, _ = run
    kept = []
    estimate = n2n.denoise(
        counts[None], fit_steps=40, denoiser=untaught, keep=lambda *given: kept.append(given)
    )
    (tensors, card), account = kept[0], estimate.report["figures"]["fine_tuning"]
    assert card["parent_sha256"] == shipped.weights.sha256
    assert card["figures"] == account and account["steps_kept"] == estimate.report["fit_steps"] > 0
    assert set(tensors) == set(untaught.net.state_dict())
    assert card["architecture"] and card["calibration"]
    net = UNet(UNetConfig((8, 12), 1))
    net.load_state_dict(dict(tensors))
    again = n2n.denoise(
        counts[None],
        fit_steps=1,
        fit_seconds=0.0,
        denoiser=untaught,
        start=replace(untaught, net=net.eval()),
        keep=lambda *given: kept.append(given),
    )
    assert len(kept) == 1  # nothing was learned, nothing is kept
    account = again.report["figures"]["fine_tuning"]
    assert account["started_from"] == "start"
    assert account["heldout_nll_start"] < account["heldout_nll_zero_shot"]
