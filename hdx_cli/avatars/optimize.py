"""Fitting Gaussians to images through the rasteriser."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..camera import Cameras
from ..gaussians import SH_C0, Gaussians
from ..losses import ssim
from ..progress import Progress, Silent
from ..rasterize import rasterize


@dataclass(frozen=True)
class Rates:
    """Adam step sizes per kind of parameter; scales and means move relative to a Gaussian's own size."""

    sh: float = 0.03
    opacities: float = 0.08
    scales: float = 0.02
    means: float = 0.02


def fit_image(
    gaussians: Gaussians,
    camera: Cameras,
    rgb: Float[Tensor, "H W 3"],
    alpha: Float[Tensor, "H W"],
    iterations: int,
    generator: torch.Generator,
    free: Bool[Tensor, "N"],
    rates: Rates = Rates(),
    ssim_weight: float = 0.2,
    alpha_weight: float = 0.5,
    progress: Progress = Silent(),
) -> Gaussians:
    """Gaussians that reproduce one image: minimises (1 - w) L1 + w (1 - SSIM) plus L1 of alpha (3DGS, Kerbl et al. 2023, Eq. 7).

    Image and render lie over the same random grey in every step, so that holes and haloes cost something whatever
    the colour of the person. Means move within their own size only: the geometry stays where the body put it.

    Args:
        camera: the image's camera (C = 1).
        rgb: foreground colours, sRGB [H W 3]; alpha: matte [H W].
        free: Gaussians that may change; the others stay as they are [N].
        progress: advanced once per iteration.
    """
    sh = gaussians.sh.clone().requires_grad_()
    logits = torch.logit(gaussians.opacities.clamp(0.01, 0.99)).requires_grad_()
    log_scales = torch.zeros_like(gaussians.scales).requires_grad_()
    offsets = torch.zeros_like(gaussians.means).requires_grad_()
    size = gaussians.scales.max(dim=1, keepdim=True).values
    optimizer = torch.optim.Adam(
        [
            {"params": [sh], "lr": rates.sh / SH_C0 * 0.3},
            {"params": [logits], "lr": rates.opacities},
            {"params": [log_scales], "lr": rates.scales},
            {"params": [offsets], "lr": rates.means},
        ],
        betas=(0.9, 0.99),
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, iterations), eta_min=0.0)

    def current() -> Gaussians:
        return Gaussians(
            gaussians.means + size * offsets.clamp(-1.0, 1.0),
            gaussians.quats,
            gaussians.scales * torch.exp(log_scales.clamp(-0.7, 0.4)),
            torch.sigmoid(logits),
            sh,
        )

    for _ in range(iterations):
        background = torch.rand(1, generator=generator).expand(3).contiguous()
        target = rgb * alpha[..., None] + background * (1 - alpha[..., None])
        rendered = rasterize(current(), camera, background=background)
        loss = (1 - ssim_weight) * (rendered.rgb[0] - target).abs().mean()
        loss = loss + ssim_weight * (1 - ssim(rendered.rgb[0], target))
        loss = loss + alpha_weight * (rendered.alpha[0] - alpha).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # Adam takes full steps along gradients of any size, so what hardly shows through would be stirred up too
        for parameter in (sh, logits, log_scales, offsets):
            parameter.grad *= free.view(-1, *([1] * (parameter.ndim - 1)))
        optimizer.step()
        schedule.step()
        progress.advance()
    return current().detach()
