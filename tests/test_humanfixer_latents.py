"""Latents: what is lost, what is not, and what is zero."""

import numpy as np
import pytest
import torch
from PIL import Image

from hdx_cli.humanfixer.latents import BlockDct
from hdx_cli.losses import psnr


@pytest.fixture(scope="module")
def photo():
    """The sample photo with a soft disc for alpha, over white [1 4 H W]; its sides are no multiples of 8."""
    from hdx_cli import samples

    with Image.open(samples.__path__[0] + "/sample.jpg") as image:
        image.thumbnail((203, 203))
        rgb = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1) / 255
    y, x = (torch.linspace(-1, 1, side) for side in rgb.shape[1:])
    alpha = ((0.8 - (y[:, None] ** 2 + x**2).sqrt()) * 20).clamp(0, 1)
    return torch.cat([rgb * alpha + 1 - alpha, alpha[None]])[None]


def decibels(image, target):
    return float(psnr(image[:, :3].permute(0, 2, 3, 1), target[:, :3].permute(0, 2, 3, 1)))


def test_all_frequencies_are_exact(photo):
    codec = BlockDct((8, 8, 8, 8))
    assert codec.channels == 256
    torch.testing.assert_close(codec.decode(codec.encode(photo), *photo.shape[2:]), photo, atol=1e-5, rtol=0)


def test_the_default_loses_little(photo):
    codec = BlockDct()
    latents = codec.encode(photo)
    assert latents.shape[1:] == (codec.channels, -(-photo.shape[2] // 8), -(-photo.shape[3] // 8))
    decoded = codec.decode(latents, *photo.shape[2:])
    assert decibels(decoded, photo) > 36
    assert (decoded[:, 3] - photo[:, 3]).abs().mean() < 0.01
    torch.testing.assert_close(codec.encode(decoded), latents, atol=0.1, rtol=0.01)


def test_it_is_orthonormal():
    codec = BlockDct()
    torch.testing.assert_close(codec.basis @ codec.basis.T, torch.eye(codec.channels), atol=1e-6, rtol=0)
    noise = torch.randn(1, 4, 16, 24)
    kept = codec.decode(codec.encode(noise), 16, 24) - codec.decode(torch.zeros(1, codec.channels, 2, 3), 16, 24)
    white = torch.tensor([1.0, 1, 1, 0])[None, :, None, None]
    torch.testing.assert_close(kept.square().sum(), codec.encode(noise).square().sum(), rtol=1e-4, atol=0)
    assert (codec.encode(white.expand(-1, -1, 8, 8)) == 0).all()
    assert "basis" not in codec.state_dict()
