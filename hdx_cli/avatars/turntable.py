"""Pictures of Gaussians from all round: where the cameras stand, and frames one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8

from ..bodies.base import PARTS
from ..camera import Cameras, orbit_of, turntable
from ..gaussians import Gaussians, sh_from_rgb
from ..rasterize import rasterize, visibility
from .base import Avatar

# Stray Gaussians must not shrink the person: this share of them may lie outside the frame at each end.
STRAY = 0.0005
# Gaussians are fitted to photos of about this many rows and look their best in images that are not much coarser.
FULL_ROWS, MOST_SAMPLES = 816, 4


def samples_per_pixel(height_px: int) -> int:
    """Along each side, for a picture of a whole person of that height (``supersample`` of ``rasterize``)."""
    return min(MOST_SAMPLES, math.ceil(FULL_ROWS / height_px))


def cameras_round(
    means: Float[torch.Tensor, "N 3"],
    width: int,
    height: int,
    azimuths_rad: Float[torch.Tensor, "C"],
    elevation_rad: float = 0.0,
) -> Cameras:
    """Cameras [C] on a circle about the vertical axis through the Gaussians' middle that show all of them.

    Azimuth 0 looks from world +Z, where the photo was taken from.
    """
    share = torch.tensor([STRAY, 1 - STRAY])
    bounds = torch.stack([_quantiles(means[:, axis], share) for axis in range(3)])
    centre = bounds.mean(1)
    radius = float(_quantiles((means[:, [0, 2]] - centre[[0, 2]]).norm(dim=1), share)[1])
    tall = float(bounds[1, 1] - bounds[1, 0])
    # seen from above, a standing cylinder is as high as its side and its lid together
    tall = tall * math.cos(elevation_rad) + 2 * radius * abs(math.sin(elevation_rad))
    span_m = max(tall, 2 * radius * height / width)
    return turntable(centre, span_m, width, height, azimuths_rad, elevation_rad)


def views_of(
    gaussians: Gaussians, camera: Cameras, views: int, height_px: int = 960
) -> tuple[Cameras, Iterator[UInt8[np.ndarray, "H W 4"]]]:
    """The orbit of the photo's camera (Eq. 2 of HumanDreamer-X), closed in on the person, and RGBA pictures.

    One window serves all views: it holds the upright cylinder round the person, which looks the same from all sides.
    """
    x0, y0, x1, y1 = _window(gaussians.means, camera)
    scale = height_px / (y1 - y0)
    width = 2 * math.ceil((x1 - x0) * scale / 2)
    cameras = orbit_of(camera.resampled(scale, x0, y0, width, height_px), views)
    return cameras, frames(gaussians, cameras, None)


def closed_in(points: Float[torch.Tensor, "P 3"], camera: Cameras, width: int, height: int) -> Cameras:
    """The photo's camera (C = 1) looking through a window of width x height px that shows ``points`` all round.

    What such a camera sees on its orbit is what HumanFixer restores: the same size for everybody.
    """
    x0, y0, x1, y1 = _window(points, camera)
    scale = min(height / (y1 - y0), width / (x1 - x0))
    x, y = 0.5 * (x0 + x1 - width / scale), 0.5 * (y0 + y1 - height / scale)
    return camera.resampled(scale, x, y, width, height)


def views_to_restore(
    gaussians: Gaussians, visibility: Float[np.ndarray, "N"], cameras: Cameras
) -> tuple[Float[torch.Tensor, "C H W 3"], Float[torch.Tensor, "C H W"], Float[torch.Tensor, "C H W"]]:
    """What HumanFixer is given: colours over white [C H W 3], alpha and the photo's share of every pixel [C H W].

    Args:
        visibility: how much of the photo each Gaussian made, in [0, 1].
    """
    marks = torch.from_numpy(visibility.astype(np.float32))[:, None].expand(-1, 3)
    marked, samples = replace(gaussians, sh=sh_from_rgb(marks)), samples_per_pixel(cameras.height)
    white, views = torch.ones(3), range(len(cameras))
    with torch.no_grad():
        made = [rasterize(gaussians, cameras[index], background=white, supersample=samples) for index in views]
        seen = [rasterize(marked, cameras[index], supersample=samples).rgb[0, ..., 0] for index in views]
    rgb, alpha = torch.cat([view.rgb for view in made]), torch.cat([view.alpha for view in made])
    return rgb.clamp(0, 1), alpha.clamp(0, 1), torch.stack(seen).clamp(0, 1)


def seen_by_part(avatar: Avatar, views: int = 8, height_px: int = 240) -> dict[str, float]:
    """Of what one sees of each body part all round, the share that the photo showed, in [0, 1]; absent parts are left out.

    A Gaussian counts by the pixels that it makes in ``views`` pictures round the avatar in the photo's pose.
    """
    gaussians = avatar.gaussians()
    azimuths = torch.arange(views) * (2 * math.pi / views)
    cameras = cameras_round(gaussians.means, 2 * height_px // 3, height_px, azimuths)
    pixels = visibility(gaussians, cameras).sum(0).numpy()
    shares = {}
    for index, part in enumerate(PARTS):
        here = avatar.parts == index
        if pixels[here].sum() > 0:
            shares[part] = float((pixels * avatar.visibility)[here].sum() / pixels[here].sum())
    return shares


def straight(rgb: Float[torch.Tensor, "C H W 3"], alpha: Float[torch.Tensor, "C H W"]) -> UInt8[np.ndarray, "C H W 4"]:
    """Straight RGBA pictures of colours over white and alpha."""
    alpha = alpha[..., None]
    colours = (rgb - 1 + alpha) / alpha.clamp(min=1e-3)
    return (torch.cat([colours, alpha], dim=-1).clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def through_window(
    rgb: Float[np.ndarray, "H W 3"], alpha: Float[np.ndarray, "H W"], source: Cameras, window: Cameras
) -> tuple[Float[torch.Tensor, "h w 3"], Float[torch.Tensor, "h w"]]:
    """An image seen through another window of the camera that took it (C = 1 each): straight colours and alpha."""
    (fx, _, cx), (_, fy, cy) = source.Ks[0, :2].tolist()
    (gx, _, dx), (_, gy, dy) = window.Ks[0, :2].tolist()
    picture = np.concatenate([rgb * alpha[..., None], alpha[..., None]], axis=2).astype(np.float32)
    if gx < fx:  # blur first what warpAffine would skip
        picture = cv2.GaussianBlur(picture, (0, 0), 0.4 * fx / gx)
    # our pixel centres lie at halves, warpAffine's at whole numbers
    matrix = np.array([[gx / fx, 0, dx - gx / fx * (cx - 0.5) - 0.5], [0, gy / fy, dy - gy / fy * (cy - 0.5) - 0.5]])
    picture = cv2.warpAffine(picture, matrix, (window.width, window.height), flags=cv2.INTER_LINEAR)
    picture = torch.from_numpy(picture).clamp(0, 1)
    return (picture[..., :3] / picture[..., 3:].clamp(min=1e-4)).clamp(0, 1), picture[..., 3].contiguous()


def _window(points: Float[torch.Tensor, "P 3"], camera: Cameras) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 in px of what holds the upright cylinder round the points, with a margin."""
    radius = float(_quantiles(points[:, [0, 2]].norm(dim=1), torch.tensor([1 - STRAY]))[0])
    low, high = _quantiles(points[:, 1], torch.tensor([STRAY, 1 - STRAY]))
    angles = torch.linspace(0, 2 * math.pi, 65)[:-1]
    rim = torch.stack([radius * torch.sin(angles), torch.zeros_like(angles), radius * torch.cos(angles)], dim=1)
    pixels, _ = camera.project(torch.cat([rim + torch.tensor([0, low, 0]), rim + torch.tensor([0, high, 0])]))
    (x0, y0), (x1, y1) = pixels[0].min(0).values, pixels[0].max(0).values
    margin = 0.05 * float(y1 - y0)
    return float(x0) - margin, float(y0) - margin, float(x1) + margin, float(y1) + margin


def frames(
    gaussians: Gaussians, cameras: Cameras, background: Float[torch.Tensor, "3"] | None
) -> Iterator[UInt8[np.ndarray, "H W C"]]:
    """Render one camera after the other: [H W 3] on ``background`` (sRGB in [0, 1]), or straight RGBA for None."""
    backdrop, samples = torch.zeros(3) if background is None else background, samples_per_pixel(cameras.height)
    for index in range(len(cameras)):
        with torch.no_grad():
            rendered = rasterize(gaussians, cameras[index], background=backdrop, supersample=samples)
        rgb, alpha = rendered.rgb[0], rendered.alpha[0]
        if background is None:
            rgb = torch.cat([rgb / alpha.clamp(min=1e-4)[..., None], alpha[..., None]], dim=-1)
        yield (rgb.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def _quantiles(values: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    # torch.quantile refuses more than 16 million values; numpy does not
    return torch.from_numpy(np.quantile(values.numpy(), shares.numpy())).to(values.dtype)
