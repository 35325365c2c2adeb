"""Pictures of Gaussians from all round: where the cameras stand, and frames one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, UInt8

from ..camera import Cameras, orbit_of, turntable
from ..gaussians import Gaussians
from ..rasterize import rasterize

# Stray Gaussians must not shrink the person: this share of them may lie outside the frame at each end.
STRAY = 0.0005


def cameras_round(
    gaussians: Gaussians, width: int, height: int, azimuths_rad: Float[torch.Tensor, "C"], elevation_rad: float = 0.0
) -> Cameras:
    """Cameras [C] on a circle about the vertical axis through the Gaussians' middle that show all of them.

    Azimuth 0 looks from world +Z, where the photo was taken from.
    """
    share = torch.tensor([STRAY, 1 - STRAY])
    bounds = torch.stack([_quantiles(gaussians.means[:, axis], share) for axis in range(3)])
    centre = bounds.mean(1)
    radius = float(_quantiles((gaussians.means[:, [0, 2]] - centre[[0, 2]]).norm(dim=1), share)[1])
    tall = float(bounds[1, 1] - bounds[1, 0])
    # seen from above, a standing cylinder is as high as its side and its lid together
    tall = tall * math.cos(elevation_rad) + 2 * radius * abs(math.sin(elevation_rad))
    span_m = max(tall, 2 * radius * height / width)
    return turntable(centre, span_m, width, height, azimuths_rad, elevation_rad)


def views_of(
    gaussians: Gaussians, camera: Cameras, views: int, height_px: int = 960
) -> tuple[Cameras, Iterator[UInt8[np.ndarray, "H W 4"]]]:
    """The orbit of the photo's camera (Eq. 2 of HumanDreamer-X), closed in on the person, and RGBA pictures from it.

    One window serves all views: it holds the upright cylinder round the person, which looks the same from every azimuth.
    """
    radius = float(_quantiles(gaussians.means[:, [0, 2]].norm(dim=1), torch.tensor([1 - STRAY]))[0])
    low, high = _quantiles(gaussians.means[:, 1], torch.tensor([STRAY, 1 - STRAY]))
    angles = torch.linspace(0, 2 * math.pi, 65)[:-1]
    rim = torch.stack([radius * torch.sin(angles), torch.zeros_like(angles), radius * torch.cos(angles)], dim=1)
    pixels, _ = camera.project(torch.cat([rim + torch.tensor([0, low, 0]), rim + torch.tensor([0, high, 0])]))
    (x0, y0), (x1, y1) = pixels[0].min(0).values, pixels[0].max(0).values
    margin = 0.05 * float(y1 - y0)
    x0, y0, x1, y1 = float(x0) - margin, float(y0) - margin, float(x1) + margin, float(y1) + margin
    scale = height_px / (y1 - y0)
    width = 2 * math.ceil((x1 - x0) * scale / 2)
    cameras = orbit_of(camera.resampled(scale, x0, y0, width, height_px), views)
    return cameras, frames(gaussians, cameras, None)


def frames(
    gaussians: Gaussians, cameras: Cameras, background: Float[torch.Tensor, "3"] | None
) -> Iterator[UInt8[np.ndarray, "H W C"]]:
    """Render one camera after the other: [H W 3] on ``background`` (sRGB in [0, 1]), or straight RGBA where it is None."""
    backdrop = torch.zeros(3) if background is None else background
    for index in range(len(cameras)):
        with torch.no_grad():
            rendered = rasterize(gaussians, cameras[index], background=backdrop)
        rgb, alpha = rendered.rgb[0], rendered.alpha[0]
        if background is None:
            rgb = torch.cat([rgb / alpha.clamp(min=1e-4)[..., None], alpha[..., None]], dim=-1)
        yield (rgb.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def _quantiles(values: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    # torch.quantile refuses more than 16 million values; numpy does not
    return torch.from_numpy(np.quantile(values.numpy(), shares.numpy())).to(values.dtype)
