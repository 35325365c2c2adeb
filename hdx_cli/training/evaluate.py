"""Scoring an avatar against true views of the same person."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..camera import Cameras
from ..losses import psnr, ssim

FRONT_DEG, BACK_DEG = 40.0, 140.0  # view bins by distance from the photo's azimuth


def true_cameras_in_avatar_world(
    truth: Cameras, photo_camera: Cameras, true_centre: Float[Tensor, "3"], centre: Float[Tensor, "3"]
) -> Cameras:
    """The true cameras, expressed in the world of an avatar that was made from true view 0.

    A single photo fixes neither scale nor depth: both worlds are joined at the photo's camera and scaled so that the
    person's centre lies at the same depth; view i then differs from view 0 by the true rotation.

    Args:
        truth: true cameras (C views), view 0 took the photo.
        photo_camera: the avatar's camera of the photo (C = 1).
        true_centre: centre of the person in the true world, metres; centre: the same point in the avatar's world.
    """
    relative = truth.viewmats.double() @ torch.linalg.inv(truth.viewmats[0].double())
    true_depth_m = float(truth[0].project(true_centre[None])[1])
    depth_m = float(photo_camera.project(centre[None])[1])
    relative[:, :3, 3] *= depth_m / true_depth_m
    viewmats = (relative @ photo_camera.viewmats[0].double()).float()
    return Cameras(viewmats, truth.Ks, truth.width, truth.height)


def view_scores(
    image: Float[Tensor, "H W 3"],
    alpha: Float[Tensor, "H W"],
    true_image: Float[Tensor, "H W 3"],
    true_alpha: Float[Tensor, "H W"],
) -> dict[str, float]:
    """Scores of one view over white: PSNR over the frame and inside the union of both masks (dB), SSIM, mask IoU."""
    union: Bool[Tensor, "H W"] = (alpha > 0.5) | (true_alpha > 0.5)
    both = (alpha > 0.5) & (true_alpha > 0.5)
    return {
        "psnr_full_db": float(psnr(image, true_image)),
        "psnr_union_db": float(psnr(image, true_image, union)),
        "ssim": float(ssim(image, true_image)),
        "iou": float(both.sum() / union.sum().clamp(min=1)),
    }


def by_side(scores: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Means over views 1.. of an even orbit: all, front (up to 40 degrees away from the photo), side, back (from 140 on)."""
    views = len(scores)
    away = np.abs((np.arange(views) * 360.0 / views + 180.0) % 360.0 - 180.0)
    bins = {
        "all": away > 0,
        "front": (away > 0) & (away <= FRONT_DEG),
        "side": (away > FRONT_DEG) & (away < BACK_DEG),
        "back": away >= BACK_DEG,
    }
    return {
        name: {key: float(np.mean([scores[i][key] for i in np.nonzero(chosen)[0]])) for key in scores[0]}
        for name, chosen in bins.items()
    }
