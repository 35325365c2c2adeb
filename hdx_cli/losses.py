"""How alike two images are."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

_RADIUS = 5
_SIGMA = 1.5


def psnr(
    image: Float[Tensor, "*C H W 3"],
    target: Float[Tensor, "*C H W 3"],
    mask: Float[Tensor, "*C H W"] | Bool[Tensor, "*C H W"] | None = None,
) -> Float[Tensor, ""]:
    """Peak signal-to-noise ratio in dB of images in [0, 1]: -10 log10 of the mean squared error; infinite if equal.

    ``mask`` weighs the pixels; one that is 0 everywhere gives NaN.
    """
    squared = (image - target).square().mean(-1)
    if mask is None:
        return -10 * torch.log10(squared.mean())
    mask = mask.to(squared.dtype)
    return -10 * torch.log10((squared * mask).sum() / mask.sum())


def ssim(image: Float[Tensor, "*C H W 3"], target: Float[Tensor, "*C H W 3"]) -> Float[Tensor, ""]:
    """Mean structural similarity of images in [0, 1] (Wang et al. 2004, eq. 13), differentiable in ``image``.

    Local statistics under an 11 x 11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, per channel. Outside of the
    image both images are taken to be zero, and the mean goes over all pixels. Rows and columns in which the images are
    equal cost next to nothing.

    Raises:
        ValueError: the shapes differ or there are not three channels.
    """
    return _Ssim.apply(image, target.detach())


def _window() -> np.ndarray:
    offsets = np.arange(-_RADIUS, _RADIUS + 1)
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    return (weights / weights.sum()).astype(np.float32)


class _Ssim(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image, target):
        from .ssim_kernel import ssim_rows  # numba is slow to import, and PSNR does without
        from .threads import Threads

        if image.shape != target.shape or image.shape[-1] != 3:
            shapes = f"{list(image.shape)} and {list(target.shape)}"
            raise ValueError(f"two images [... H W 3] of one shape are needed, not {shapes}")
        wanted = ctx.needs_input_grad[0]
        height, width, channels = image.shape[-3:]
        rows = [t.detach().to("cpu", torch.float32).reshape(-1, height * width * channels) for t in (image, target)]
        gradient = torch.empty_like(rows[0]) if wanted else torch.empty(len(rows[0]), 0)
        sums = np.empty((len(rows[0]), height))
        scale = np.float32(1 / max(1, image.numel()))
        with Threads(torch.get_num_threads() if image.numel() > 100_000 else 1) as threads:
            for a, b, v, row_sums in zip(*rows, gradient, sums, strict=True):
                threads.run(ssim_rows, [
                    (a.numpy(), b.numpy(), height, width * channels, channels, _window(), *bounds, wanted, scale,
                     v.numpy(), row_sums) for bounds in threads.ranges(height, 1)
                ])  # fmt: skip
        if wanted:
            ctx.save_for_backward(gradient.reshape(image.shape).to(image))
        return torch.tensor(sums.sum() / max(1, image.numel()), dtype=image.dtype, device=image.device)

    @staticmethod
    @once_differentiable
    def backward(ctx, v_mean):
        return ctx.saved_tensors[0] * v_mean, None
