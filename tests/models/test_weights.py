"""Weights and cards: what was saved is what is loaded, and damage is noticed."""

import json

import pytest
import torch

from inscan.models.infer import load_denoiser, network_of
from inscan.models.trust import CountTable
from inscan.models.unet import INPUTS, UNet, UNetConfig
from inscan.models.weights import SHIPPED, WeightsError, load_weights, save_weights

CARD = {
    "licence": "BSD-3-Clause",
    "training": {"seed": 0},
    "architecture": {"widths": [8, 16], "blocks": 1},
}


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    net = UNet(UNetConfig((8, 16), 1))
    return net, save_weights(tmp_path, "small", net.state_dict(), CARD), tmp_path


def test_round_trip(saved):
    net, written, folder = saved
    read = load_weights("small", folder)
    assert read.card == written.card
    assert len(read.sha256) == 64
    for key, value in net.state_dict().items():
        torch.testing.assert_close(read.tensors[key], value, rtol=1e-3, atol=1e-4)
    assert network_of(read)(torch.rand(1, len(INPUTS), 8, 8)).shape == (1, 2, 8, 8)


def test_no_half_written_files_stay(saved):
    assert sorted(p.name for p in saved[2].iterdir()) == ["small.json", "small.safetensors"]


def test_damage_is_noticed(saved):
    path = saved[2] / "small.safetensors"
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(blob)
    with pytest.raises(WeightsError, match="SHA-256"):
        load_weights("small", saved[2])


def test_incomplete_card_is_refused(saved, tmp_path):
    card = json.loads((tmp_path / "small.json").read_text())
    del card["training"]
    (tmp_path / "small.json").write_text(json.dumps(card))
    with pytest.raises(WeightsError, match="training"):
        load_weights("small", tmp_path)
    with pytest.raises(WeightsError, match="licence"):
        save_weights(tmp_path, "other", {}, {"training": {}, "architecture": {}})


def test_missing_weights_say_what_is_there(saved):
    with pytest.raises(FileNotFoundError, match="small"):
        load_weights("large", saved[2])


def test_uncalibrated_card_has_no_sigma(saved):
    with pytest.raises(ValueError, match="never calibrated"):
        CountTable.from_card(saved[1].card)


def test_shipped_card_tells_where_the_weights_come_from():
    card = load_weights("denoiser").card
    assert card["licence"] == "BSD-3-Clause"
    assert "never seen" in card["training"]["data"]
    assert all(plan["steps"] > 0 and "seed" in plan for plan in card["training"]["plans"])
    assert card["figures"]["training_families_dwell_factor"]["peak_10"] > 5
    assert (SHIPPED / "denoiser.safetensors").stat().st_size < 3_000_000
    assert load_denoiser("cpu").weights.sha256 == card["sha256"]
