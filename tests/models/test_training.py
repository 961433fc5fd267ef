"""Training: reproducible, learning, never on what methods are judged by."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from inscan.models.batches import BatchRecipe, draw_batch
from inscan.models.infer import load_denoiser
from inscan.models.joint_batches import capped, draw_joint, joint_loss
from inscan.models.noise import anscombe_mean
from inscan.models.pool import training_pool
from inscan.models.train_n2n import train_n2n
from inscan.models.training import TrainingPlan, train_denoiser
from inscan.models.unet import UNetConfig

# Minutes on a machine that is busy with other tests.
pytestmark = pytest.mark.timeout(300)

TINY = TrainingPlan(steps=12, shapes=((4, 32),), network=UNetConfig((8, 12), 1))


@pytest.fixture(scope="module")
def pool():
    return training_pool(6, side=48, seed=5)


def test_samples_come_from_their_seed(pool):
    again = training_pool(6, side=48, seed=5)
    assert all(np.array_equal(a, b) for a, b in zip(pool, again, strict=True))
    for maps in pool:
        assert 2 <= len(maps) <= 5 and maps.shape[1:] == (48, 48)
        assert maps.min() >= 0 and maps.max() <= 1.001


def test_same_plan_same_weights(pool):
    first, second = (train_denoiser(pool, TINY) for _ in range(2))
    for key, value in first.tensors.items():
        assert torch.equal(value, second.tensors[key]), key
    other = train_denoiser(pool, replace(TINY, seed=1))
    assert not torch.equal(first.tensors["tail.weight"], other.tensors["tail.weight"])


def test_training_learns(pool):
    plan = replace(TINY, steps=300, rate=3e-3)
    losses = train_denoiser(pool, plan).losses
    assert len(losses) == 3
    assert losses[-1] < 0.9 * losses[0]


def test_checkpoints_are_called(pool):
    seen = []
    train_denoiser(pool, TINY, checkpoint=lambda step, _: seen.append(step), checkpoint_every=4)
    assert seen == [4, 8]


def test_bad_pools_are_refused(pool):
    with pytest.raises(ValueError, match="empty"):
        train_denoiser([], TINY)
    with pytest.raises(ValueError, match="at least 32"):
        train_denoiser([pool[0][:, :20]], TINY)
    with pytest.raises(ValueError, match="negative"):
        train_denoiser([pool[0] - 1], TINY)


def test_batches_hold_the_noise_they_declare(pool):
    rng = np.random.default_rng(0)
    flat = [np.full((2, 48, 48), 0.5, dtype=np.float32)]
    for poisson in (0.0, 1.0):
        recipe = BatchRecipe(poisson_share=poisson, peak=(50.0, 500.0))
        batch = draw_batch(flat, recipe, 24, 48, rng)
        assert bool(batch.poisson.all()) == (poisson == 1.0)
        noisy, sigma = batch.planes[:, :1], batch.planes[:, 1:2]
        clean = batch.truth
        if poisson:
            clean = 2 * torch.sqrt(batch.truth + 0.125) / batch.exposure.sqrt() / batch.scale
        z = (noisy - clean) / sigma
        assert float(z.std()) == pytest.approx(1, abs=0.03)


def test_joint_examples_are_elements_on_their_axes(pool):
    batch = draw_joint(pool, BatchRecipe(peak=(20.0, 200.0)), 12, 40, np.random.default_rng(3))
    places, elements = batch.planes.shape[:2]
    assert places == max(1, 12 // elements) and batch.planes.shape[2:] == (2, 40, 40)
    planes = batch.planes[:, :, 0] * batch.scale + batch.offset
    sigma = batch.planes[:, :, 1] * batch.scale
    # The noise is as strong as declared, in every plane.
    z = (planes - batch.stabilised) / sigma
    assert float(z.std()) == pytest.approx(1, abs=0.05)
    # The true planes, turned back, are the stabilised means of the true counts.
    turned = torch.einsum("pek,pkrc->perc", batch.basis, batch.stabilised)
    expected = torch.from_numpy(anscombe_mean(batch.counts.numpy())) / batch.typical.sqrt()
    assert float((turned - expected).abs().max()) < 1e-3


def test_joint_loss_is_least_for_the_truth(pool):
    batch = draw_joint(pool, BatchRecipe(peak=(20.0, 200.0)), 12, 40, np.random.default_rng(4))
    truth = ((batch.stabilised - batch.offset) / batch.scale).flatten(0, 1)

    class Answer(torch.nn.Module):
        def __init__(self, shift: float) -> None:
            super().__init__()
            self.shift = shift

        def forward(self, planes: torch.Tensor) -> torch.Tensor:
            return torch.stack([truth + self.shift * planes[:, 1], planes[:, 1]], dim=1)

    losses = [float(joint_loss(Answer(shift), batch, "cpu")[0]) for shift in (-0.5, 0.0, 0.5)]
    assert losses[1] < 0.02 * min(losses[0], losses[2])


def test_only_wild_losses_are_capped():
    losses = torch.tensor([0.0, 0.5, 1e4])
    assert capped(losses)[:2].tolist() == pytest.approx([0.0, 0.494], abs=1e-3)
    assert float(capped(losses)[2]) < 130


def test_from_samples_to_usable_weights(tmp_path):
    plans = (replace(TINY, steps=4, network=UNetConfig((8, 12), 1)),) * 2
    seen = []
    written = train_n2n(
        tmp_path,
        plans,
        samples=4,
        calibration=2,
        device="cpu",
        progress=lambda step, loss: seen.append(step),
    )
    assert written.card["training"]["plans"][1]["steps"] == 4
    assert written.card["calibration"]["scale"]
    read = load_denoiser("cpu", folder=tmp_path)
    assert read.weights.sha256 == written.sha256
