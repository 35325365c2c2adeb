"""SSIM and PSNR against slow independent versions."""

from __future__ import annotations

import math

import jaxtyping
import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from hdx_cli.losses import psnr, ssim


def photos(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth random picture and a noisy copy of it, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(2, *shape, generator=generator)
    ramp = torch.linspace(0, 1, shape[-2])[:, None]
    return (0.5 * ramp + 0.5 * noise[0]), (0.5 * ramp + 0.3 * noise[0] + 0.2 * noise[1])


def filtered(image: np.ndarray) -> np.ndarray:
    """Gaussian of sigma 1.5 over 11 x 11 pixels, zero outside of the image [H W 3]."""
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    for axis in (0, 1):
        image = correlate1d(image, taps / taps.sum(), axis, mode="constant", cval=0.0)
    return image


def slow_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Wang et al. 2004, eq. 13, averaged."""
    mx, my = filtered(x), filtered(y)
    vx, vy, cxy = filtered(x * x) - mx**2, filtered(y * y) - my**2, filtered(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return float(((2 * mx * my + c1) * (2 * cxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())


SIZES = [(40, 33), (64, 64), (7, 5), (1, 1), (3, 200), (200, 3), (12, 16)]


@pytest.mark.parametrize("height, width", SIZES)
def test_ssim_equals_scipy(height, width):
    image, target = photos(height, width, 3)
    # variances are differences of float32 numbers up to 1, over c2 = 9e-4: 1e-7 / 9e-4 at worst, less on average
    assert float(ssim(image, target)) == pytest.approx(
        slow_ssim(image.double().numpy(), target.double().numpy()), abs=1e-5
    )


def test_ssim_gradient_equals_central_differences():
    image, target = photos(13, 17, 3, seed=1)
    leaf = image.clone().requires_grad_()
    ssim(leaf, target).backward()
    x, y = image.double().numpy(), target.double().numpy()
    numeric = np.empty_like(x)
    step = 1e-5
    for index in np.ndindex(*x.shape):
        kept = x[index]
        x[index] = kept + step
        above = slow_ssim(x, y)
        x[index] = kept - step
        numeric[index] = (above - slow_ssim(x, y)) / (2 * step)
        x[index] = kept
    # 5e-7 is float32; differences of step 1e-5 add about as much
    assert np.linalg.norm(leaf.grad.numpy() - numeric) < 3e-6 * np.linalg.norm(numeric)


def test_ssim_of_several_images_is_their_mean():
    images, targets = photos(3, 20, 24, 3)
    leaf = images.clone().requires_grad_()
    together = ssim(leaf, targets)
    (2 * together).backward()
    apart = torch.stack([ssim(a, b) for a, b in zip(images, targets, strict=True)])
    torch.testing.assert_close(together.detach(), apart.mean())
    single = images[1].clone().requires_grad_()
    ssim(single, targets[1]).backward()
    # two thirds: one of three images, and the factor of two; scaling rounds once more
    torch.testing.assert_close(leaf.grad[1], single.grad * 2 / 3, rtol=1e-5, atol=1e-9)


def test_ssim_where_the_images_are_equal_around_a_patch():
    image, target = photos(60, 50, 3)
    image[:] = target
    image[20:30, 25:28] = 0.5
    leaf = image.clone().requires_grad_()
    value = ssim(leaf, target)
    value.backward()
    expected = slow_ssim(image.double().numpy(), target.double().numpy())
    assert float(value.detach()) == pytest.approx(expected, abs=1e-5)
    far = torch.ones(60, 50, dtype=torch.bool)
    far[10:40, 15:38] = False  # two radii from the patch
    # equal images have gradient zero; what is left of it in float32, against gradients of 1e-3 in the patch
    assert leaf.grad[far].abs().max() < 1e-6 * leaf.grad.abs().max() + 1e-9
    assert float(ssim(target, target)) == pytest.approx(1.0, abs=1e-6)


def test_ssim_does_not_depend_on_the_number_of_threads():
    image, target = photos(190, 190, 3)
    image[:, :70] = target[:, :70]
    image[80:, :] = target[80:, :]
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaf = image.clone().requires_grad_()
            value = ssim(leaf, target)
            value.backward()
            results.append((value.detach(), leaf.grad))
    finally:
        torch.set_num_threads(threads)
    for value, gradient in results[1:]:
        assert torch.equal(value, results[0][0]) and torch.equal(gradient, results[0][1])


def test_ssim_takes_views_and_refuses_what_does_not_match():
    image, target = photos(30, 40, 3)
    crop = ssim(image[3:20, 5:31], target[3:20, 5:31])
    torch.testing.assert_close(crop, ssim(image[3:20, 5:31].contiguous(), target[3:20, 5:31].contiguous()))
    with pytest.raises((ValueError, jaxtyping.TypeCheckError)):  # whichever looks first; the latter only in tests
        ssim(image, target[:10])


def test_psnr_by_hand():
    black, grey = torch.zeros(4, 5, 3), torch.full((4, 5, 3), 0.1)
    assert float(psnr(grey, black)) == pytest.approx(20.0, abs=1e-5)  # -10 log10 0.01
    assert float(psnr(black, black)) == math.inf
    half = torch.zeros(4, 5)
    half[:2] = 1
    mixed = torch.cat([grey[:2], 10 * grey[2:]])
    assert float(psnr(mixed, black, half)) == pytest.approx(20.0, abs=1e-5)
    assert float(psnr(mixed, black, half > 0)) == pytest.approx(20.0, abs=1e-5)
    assert math.isnan(float(psnr(mixed, black, torch.zeros(4, 5))))
