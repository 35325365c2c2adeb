"""Cameras for a moving avatar: one per frame, standing, walking along or going round."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter1d

from ..bodies.base import BodyPose, joint_transforms
from ..camera import Cameras
from .base import Avatar, blend, moved
from .turntable import cameras_round

CAMERAS = ("fixed", "follow", "orbit")
LOOKED_AT = 16  # frames and, of the Gaussians, every ... that the framing is chosen from
EVERY = 20
SMOOTH_S = 0.25  # how lazily the camera follows


def cameras_of(
    avatar: Avatar,
    pose: BodyPose,
    fps: float,
    width: int,
    height: int,
    camera: str = "fixed",
    elevation_rad: float = 0.0,
    azimuth_rad: float = 0.0,
) -> Cameras:
    """One camera per frame of ``pose`` [T], close enough and far enough to show the whole clip.

    ``fixed`` stands still and sees the whole way; ``follow`` goes along with the pelvis over the ground; ``orbit`` does
    that and goes round once. Azimuth 0 looks from world +Z.
    """
    count = len(pose.translations)
    rest = avatar.rest.joints
    pelvis = rest[0] + pose.translations  # the root turns about itself
    way = pelvis[:, [0, 2]]
    straight = way[:1] + np.linspace(0, 1, count)[:, None] * (way[-1:] - way[:1])  # else both ends would lag
    way = straight + gaussian_filter1d(way - straight, SMOOTH_S * fps, axis=0, mode="nearest")
    if camera == "fixed":
        way = np.zeros_like(way)
    indices, weights = avatar.joint_indices[::EVERY], avatar.joint_weights[::EVERY]
    points = avatar.canonical.means[::EVERY].numpy()
    shown = []
    for frame in np.unique(np.linspace(0, count - 1, LOOKED_AT).round().astype(int)):
        transforms = joint_transforms(pose.rotations[frame], rest, avatar.parents, pose.translations[frame])
        there = moved(points, blend(indices, weights, transforms))
        there[:, [0, 2]] -= way[frame]
        shown.append(there)
    means = torch.from_numpy(np.concatenate(shown).astype(np.float32))
    turned = torch.arange(count) * (2 * np.pi / count) if camera == "orbit" else torch.zeros(count)
    cameras = cameras_round(means, width, height, (azimuth_rad + turned).float(), elevation_rad)
    return replace(cameras, viewmats=carried(cameras.viewmats, torch.from_numpy(way.astype(np.float32))))


def carried(viewmats: Float[torch.Tensor, "T 4 4"], way: Float[torch.Tensor, "T 2"]) -> Float[torch.Tensor, "T 4 4"]:
    """View matrices of cameras carried along the ground by x and z [T 2] metres."""
    shift = torch.stack([way[:, 0], torch.zeros(len(way)), way[:, 1]], dim=1)
    moved = viewmats.clone()
    moved[:, :3, 3] -= (viewmats[:, :3, :3] @ shift[..., None])[..., 0]
    return moved
