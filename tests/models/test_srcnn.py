"""The comparisons of super-resolution: SRCNN and the published recipe, trained and run."""

import numpy as np
import pytest
import torch

from inscan.models import superres
from inscan.models.srcnn import SRCNN, load_srcnn, save_srcnn, srcnn_upscale, train_srcnn
from inscan.models.superres_input import bicubic
from inscan.models.superres_paper import (
    PaperNetwork,
    network_of_paper,
    paper_upscale,
    save_paper,
    train_paper,
)
from inscan.models.superres_samples import draw_pool
from inscan.models.train_superres import calibrate
from inscan.models.weights import load_weights


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_srcnn_is_the_published_network():
    sizes = [tuple(p.shape) for p in SRCNN().parameters() if p.ndim == 4]
    assert sizes == [(64, 1, 9, 9), (32, 64, 1, 1), (1, 32, 5, 5)]


def test_srcnn_learns_and_reproduces(tmp_path, monkeypatch):
    monkeypatch.setattr("inscan.models.srcnn._POOL", 2)
    seen = []
    first, second = (
        train_srcnn(2, steps=3, seed=1, progress=lambda step, loss: seen.append((step, loss)))
        for _ in range(2)
    )
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert seen[0] == seen[1] and seen[0][0] == 3
    save_srcnn(first, 2, tmp_path, {"steps": 3})
    counts = np.random.default_rng(0).poisson(30, (2, 8, 9)).astype(np.float32)
    found = srcnn_upscale(load_srcnn(2, tmp_path), counts, 2)
    assert found.shape == (2, 16, 18) and found.min() >= 0


@pytest.mark.parametrize("factor", [2, 4])
def test_shipped_srcnn_removes_noise(factor):
    flat = np.random.default_rng(0).poisson(50, (1, 24, 24)).astype(np.float32)
    found = srcnn_upscale(load_srcnn(factor), flat, factor)
    assert abs(found.mean() / 50 - 1) < 0.1
    rough = bicubic(torch.from_numpy(flat)[None], factor)[0].numpy()
    assert found.std() < 0.8 * rough.std()


def test_the_published_network_has_sixteen_normalised_blocks():
    net = PaperNetwork(4, elements=3, width=8)
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules()) == 32
    assert sum(isinstance(m, torch.nn.PixelShuffle) for m in net.modules()) == 2
    # A correction of bicubic, which it starts from.
    x = torch.rand(2, 3, 6, 7)
    assert torch.allclose(net.eval()(x), bicubic(x, 4), atol=1e-6)
    with pytest.raises(ValueError, match="factor"):
        PaperNetwork(3)


def test_the_published_recipe_trains_and_serves(tmp_path):
    pool = draw_pool(2, 64, np.random.default_rng(0))
    losses = []
    net = train_paper(
        2, steps=2, width=8, pool=pool, progress=lambda step, loss: losses.append(loss)
    )
    assert np.isfinite(losses).all()
    device = torch.device("cpu")
    trust = {
        "calibration": load_weights("superres_x2").card["calibration"],
        "familiarity": load_weights("superres_x2").card["familiarity"],
    }
    weights = save_paper(net, tmp_path, {"steps": 2}, trust)
    again = network_of_paper(weights, 2)
    counts = np.random.default_rng(0).poisson(40, (8, 12, 10)).astype(np.float32)
    assert paper_upscale(again, counts, device).shape == (8, 24, 20)
    estimate = superres.upscale(counts, factor=2, recipe="paper", weights=weights)
    assert estimate.report["recipe"] == "paper" and np.isfinite(estimate.sigma).all()
    assert estimate.report["weights"] == "superres_paper_x2"
    with pytest.raises(ValueError, match="published recipe"):
        network_of_paper(load_weights("superres_x2"), 2)
    with pytest.raises(ValueError, match="pool"):
        train_paper(2, steps=1, pool=pool[:, :, :32, :32])


def test_calibration_holds_on_what_it_was_made_from(monkeypatch):
    """A network that is right up to known noise gets factors of about one."""
    monkeypatch.setattr("inscan.models.train_superres._CALIBRATION_MAPS", 3)
    rng = np.random.default_rng(0)

    def run(maps, symmetries):
        spread = np.full((len(maps), maps.shape[1] * 2, maps.shape[2] * 2), 1.0, np.float32)
        return maps.repeat(2, 1).repeat(2, 2) + rng.normal(size=spread.shape), spread

    card = calibrate(run, 2, 0)
    assert len(card["calibration"]["rms"]) == 144 and len(card["familiarity"]["mean"]) == 5
