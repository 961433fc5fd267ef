"""The network itself: what its shape promises whatever its weights."""

import pytest
import torch

from inscan.models.unet import INPUTS, UNet, UNetConfig


def random_net(widths=(8, 12, 16)):
    torch.manual_seed(0)
    net = UNet(UNetConfig(widths, 1))
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():  # the starts at zero would hide what is tested here
                parameter.normal_(std=0.1)
    return net.eval().requires_grad_(False)


def test_starts_as_the_identity():
    planes = torch.rand(2, len(INPUTS), 16, 24)
    assert torch.equal(UNet().eval()(planes)[:, :1], planes[:, :1])


@pytest.mark.parametrize("shape", [(1, 1), (1, 37), (13, 8), (16, 16), (33, 70)])
def test_any_size(shape):
    out = random_net()(torch.rand(1, len(INPUTS), *shape))
    assert out.shape == (1, 2, *shape)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("factor", [1e-3, 7.0, 1e4])
def test_scaling_the_input_scales_the_output(factor):
    planes = torch.rand(1, len(INPUTS), 24, 24)
    net = random_net()
    torch.testing.assert_close(net(planes * factor), net(planes) * factor, rtol=5e-4, atol=1e-6)


def test_spread_is_positive():
    assert (random_net()(torch.randn(3, len(INPUTS), 20, 20).abs())[:, 1] > 0).all()


def test_every_input_is_used():
    net = random_net()
    planes = torch.rand(1, len(INPUTS), 16, 16)
    for plane in range(len(INPUTS)):
        changed = planes.clone()
        changed[:, plane] += 0.5
        assert not torch.allclose(net(changed), net(planes)), INPUTS[plane]


def test_size_of_the_shipped_network():
    assert sum(p.numel() for p in UNet().parameters()) == 1_275_376
