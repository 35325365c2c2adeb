"""Differentiable rendering of 3D Gaussians: one function, on the CPU or on a CUDA device, as the tensors are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..camera import Cameras
from ..gaussians import SH_C0, Gaussians


@dataclass(frozen=True)
class Rendered:
    """C images of Gaussians.

    Attributes:
        rgb: colours composited over the background, sRGB-encoded as the Gaussians' are, [C H W 3].
        alpha: how much of the background is covered, in [0, 1), [C H W].
        depth: expected depth along the optical axis in metres, sum(w z) / sum(w); 0 where alpha is 0, [C H W].
    """

    rgb: Float[Tensor, "C H W 3"]
    alpha: Float[Tensor, "C H W"]
    depth: Float[Tensor, "C H W"]


def rasterize(
    gaussians: Gaussians,
    cameras: Cameras,
    *,
    background: Float[Tensor, 3] | Float[Tensor, "C 3"] | None = None,
    antialiased: bool = False,
    supersample: int = 1,
    near_m: float = 0.01,
) -> Rendered:
    """Renders Gaussians (3D Gaussian Splatting, Kerbl et al. 2023) as gsplat 1.5 defines the result.

    Differentiable in all five tensors of ``gaussians`` and in ``background``, not in the cameras. The device of
    ``gaussians`` chooses the implementation. On the CPU results do not depend on the number of threads
    (``torch.set_num_threads``), and a Gaussian with any value that is not finite, or with a zero quaternion, is left
    out and has zero gradients.

    Args:
        gaussians: N Gaussians, N may be 0; ``sh`` of degree 0 to 3.
        cameras: C views of one size.
        background: colour per image or for all of them; black if None.
        antialiased: fade what is smaller than the 0.3 px^2 low-pass instead of thickening it (Mip-Splatting,
            Yu et al. 2024).
        supersample: render that many times as many rows and columns and take means, premultiplied. The low-pass, made for
            images as fine as those the Gaussians were fitted to, thickens every outline of a smaller one.
        near_m: Gaussians whose centre is nearer to the camera's plane than this are left out.

    Raises:
        ValueError: the number of SH bases is not 1, 4, 9 or 16.
        ResourceError: more pairs of Gaussians and tiles than can be numbered.
    """
    if gaussians.sh.shape[1] not in (1, 4, 9, 16):
        raise ValueError(f"spherical harmonics have 1, 4, 9 or 16 bases, not {gaussians.sh.shape[1]}")
    if supersample > 1:
        finer = cameras.resampled(supersample, 0, 0, supersample * cameras.width, supersample * cameras.height)
        return _reduced(
            rasterize(gaussians, finer, background=background, antialiased=antialiased, near_m=near_m), supersample
        )
    if background is None:
        background = gaussians.means.new_zeros(3)
    background = background.to(gaussians.means).expand(len(cameras), 3)
    if gaussians.means.is_cuda:
        from .cuda import rasterize_cuda as rasterize_on_device
    else:
        from .cpu import rasterize_cpu as rasterize_on_device
    return Rendered(*rasterize_on_device(gaussians, cameras, background, antialiased, near_m))


def _reduced(rendered: Rendered, factor: int) -> Rendered:
    alpha, depth = rendered.alpha[..., None], (rendered.alpha * rendered.depth)[..., None]
    planes = torch.cat([rendered.rgb, alpha, depth], dim=-1).permute(0, 3, 1, 2)
    means = torch.nn.functional.avg_pool2d(planes, factor).permute(0, 2, 3, 1)
    alpha = means[..., 3].contiguous()
    depth = torch.where(alpha > 0, means[..., 4] / alpha.clamp(min=1e-12), 0.0)
    return Rendered(means[..., :3].contiguous(), alpha, depth)


def visibility(gaussians: Gaussians, cameras: Cameras, *, antialiased: bool = False) -> Float[Tensor, "C N"]:
    """How much of each image each Gaussian makes: the sum over pixels of its blending weights alpha_i T_i, in pixels.

    0 means that the view does not see it. The weights are what the gradient of the image with respect to a colour is,
    so one backward pass per camera gives them exactly.
    """
    weights = []
    for c in range(len(cameras)):
        grey = torch.zeros_like(gaussians.sh[:, :1]).requires_grad_()
        with torch.enable_grad():
            image = (
                rasterize(replace(gaussians.detach(), sh=grey), cameras[c], antialiased=antialiased).rgb[..., 0].sum()
            )
        (gradient,) = torch.autograd.grad(image, grey)
        weights.append(gradient[:, 0, 0] / SH_C0)
    return torch.stack(weights) if weights else gaussians.means.new_zeros(0, len(gaussians))


def morton_order(means: Float[Tensor, "N 3"]) -> Int[Tensor, "N"]:
    """Indices that put points in order along a Z-curve (Morton 1966) through their bounding cube, 1024 cells per axis.

    Neighbours in space become neighbours in memory: a render of 100 000 Gaussians in this order costs a quarter less.
    Points that are not finite come first.
    """
    points = torch.nan_to_num(means.detach().to(torch.float64), 0.0, 0.0, 0.0)
    if len(points) == 0:
        return torch.zeros(0, dtype=torch.long, device=means.device)
    low = points.amin(0)
    side = (points.amax(0) - low).max().clamp(min=torch.finfo(torch.float64).tiny)
    cells = ((points - low) / side * 1023).long()
    code = torch.zeros_like(cells[:, 0])
    for bit in range(10):
        for axis in range(3):
            code |= ((cells[:, axis] >> bit) & 1) << (3 * bit + axis)
    return torch.argsort(code, stable=True)
