"""The network is SVD's: same names, same function; what is added begins without effect."""

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel

from hdx_cli.humanfixer.unet import (
    SIZES,
    SVD,
    TIME_IDS,
    TINY,
    TemporalConvolution,
    add_condition_channels,
    build_unet,
    temporal_parameters,
    without_time,
)


def call(unet, sample, sigma=0.5):
    context = torch.linspace(-1, 1, 4 * 64).reshape(1, 4, 64)
    with torch.inference_mode():
        return unet(sample, torch.tensor([sigma]), context, torch.tensor([TIME_IDS])).sample


def noise(channels=6, frames=5):
    return torch.randn(1, frames, channels, 4, 4, generator=torch.Generator().manual_seed(3))


def test_it_is_the_stock_network_with_other_convolutions():
    torch.manual_seed(0)
    stock = UNetSpatioTemporalConditionModel(in_channels=6, out_channels=4, **TINY).eval()
    ours = build_unet(TINY, 6, 4, from_scratch=False).eval()
    ours.load_state_dict(stock.state_dict())  # strictly: the same names
    assert any(isinstance(module, TemporalConvolution) for module in ours.modules())
    torch.testing.assert_close(call(ours, noise()), call(stock, noise()), rtol=1e-4, atol=1e-5)


def test_temporal_convolution_is_the_three_dimensional_one():
    convolution = torch.nn.Conv3d(3, 5, (3, 1, 1), padding=(1, 0, 0))
    x = torch.randn(2, 3, 7, 4, 2)
    expected = convolution(x)
    convolution.__class__ = TemporalConvolution
    torch.testing.assert_close(convolution(x), expected)
    torch.testing.assert_close(convolution(x.transpose(3, 4).contiguous().transpose(3, 4)), expected)


def test_condition_channels_begin_without_effect():
    torch.manual_seed(0)
    unet = build_unet(TINY, 6, 4, from_scratch=False).eval()
    before = call(unet, noise())
    add_condition_channels(unet, 2)
    assert unet.config.in_channels == 8
    torch.testing.assert_close(call(unet, torch.cat([noise(), torch.ones(1, 5, 2, 4, 4)], 2)), before)


def test_from_scratch_it_begins_frame_by_frame():
    torch.manual_seed(0)
    unet = build_unet(TINY, 6, 4).eval()
    x = noise()
    together = call(unet, x)
    with without_time(unet):
        torch.testing.assert_close(call(unet, x), together, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(call(unet, x.flip(1)).flip(1), together, rtol=1e-4, atol=1e-5)
    for parameter in temporal_parameters(unet):
        torch.nn.init.normal_(parameter, std=0.1)
    learned = call(unet, x)
    assert not torch.allclose(learned, together, atol=1e-3)
    with without_time(unet):  # what has been learned is put aside, not lost
        torch.testing.assert_close(call(unet, x), together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(call(unet, x), learned)


@pytest.mark.parametrize("size", [name for name in SIZES if name != "svd"])
def test_sizes(size):
    with torch.device("meta"):
        unet = build_unet(SIZES[size], 269, 132, from_scratch=False)
    millions = sum(parameter.numel() for parameter in unet.parameters()) / 1e6
    assert {"tiny": 1.5, "small": 10.6, "medium": 30.0}[size] == pytest.approx(millions, rel=0.3)


@pytest.mark.slow
def test_svd_is_one_more_configuration():
    with torch.device("meta"):
        unet = build_unet(SVD, 8, 4, from_scratch=False)
    assert sum(parameter.numel() for parameter in unet.parameters()) / 1e6 == pytest.approx(1524.6, abs=0.1)
