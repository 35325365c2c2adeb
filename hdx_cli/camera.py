"""Pinhole cameras: the only holder of intrinsics, image size and the pixel-centre rule.

Frames: world right-handed, +Y up, metres. Cameras are OpenCV: x right, y down, z forward.
The centre of the top-left pixel is (0.5, 0.5); an image spans [0, width] x [0, height].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Cameras:
    """C pinhole cameras that share one image size.

    Attributes:
        viewmats: world to camera transforms, float32 [C 4 4].
        Ks: intrinsics in pixels, float32 [C 3 3], zero skew.
        width, height: image size in pixels.
    """

    viewmats: Float[Tensor, "C 4 4"]
    Ks: Float[Tensor, "C 3 3"]
    width: int
    height: int

    def __len__(self) -> int:
        return self.viewmats.shape[0]

    def __getitem__(self, index: int | slice) -> Cameras:
        if isinstance(index, int):
            index = slice(index, index + 1) if index != -1 else slice(-1, None)
        return Cameras(self.viewmats[index], self.Ks[index], self.width, self.height)

    def project(self, points: Float[Tensor, "P 3"]) -> tuple[Float[Tensor, "C P 2"], Float[Tensor, "C P"]]:
        """World points [P 3] in metres -> pixels [C P 2] and depths along the optical axis [C P] in metres."""
        in_camera = points @ self.viewmats[:, :3, :3].transpose(1, 2) + self.viewmats[:, None, :3, 3]
        homogeneous = in_camera @ self.Ks.transpose(1, 2)
        return homogeneous[..., :2] / homogeneous[..., 2:], in_camera[..., 2]

    def positions(self) -> Float[Tensor, "C 3"]:
        """Camera centres in the world, metres."""
        rotation, translation = self.viewmats[:, :3, :3], self.viewmats[:, :3, 3:]
        return -(rotation.transpose(1, 2) @ translation)[..., 0]

    def resampled(self, scale: float, x0_px: float, y0_px: float, width: int, height: int) -> Cameras:
        """The same cameras looking through a window of the image.

        The window's corner lies at (x0_px, y0_px) of this image; it is magnified by ``scale`` and measures
        ``width`` x ``height`` pixels after that. Intrinsics follow, so that pixel p becomes scale * (p - corner).
        """
        Ks = self.Ks.clone()
        Ks[:, 0, 2] -= x0_px
        Ks[:, 1, 2] -= y0_px
        Ks[:, :2] *= scale
        return Cameras(self.viewmats, Ks, width, height)


def look_at(eye: Float[Tensor, "C 3"], target: Float[Tensor, "3"]) -> Float[Tensor, "C 4 4"]:
    """View matrices [C 4 4] of cameras at ``eye`` (metres) that look at ``target`` with world +Y up.

    ``eye`` straight above or below ``target`` has no defined roll and gives NaN.
    """
    forward = torch.nn.functional.normalize(target - eye, dim=-1)
    up = torch.tensor([0.0, 1.0, 0.0], dtype=eye.dtype).expand_as(forward)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=-1)
    down = torch.linalg.cross(forward, right)
    viewmats = torch.zeros(eye.shape[0], 4, 4, dtype=eye.dtype)
    viewmats[:, 0, :3], viewmats[:, 1, :3], viewmats[:, 2, :3] = right, down, forward
    viewmats[:, :3, 3] = -(viewmats[:, :3, :3] @ eye[..., None])[..., 0]
    viewmats[:, 3, 3] = 1.0
    return viewmats


def turn_about_up(azimuths_rad: Float[Tensor, "C"]) -> Float[Tensor, "C 4 4"]:
    """Rotations [C 4 4] about world +Y; azimuth +90 degrees takes +Z to +X."""
    cos, sin = torch.cos(azimuths_rad), torch.sin(azimuths_rad)
    turns = torch.eye(4, dtype=azimuths_rad.dtype).repeat(len(azimuths_rad), 1, 1)
    turns[:, 0, 0], turns[:, 0, 2], turns[:, 2, 0], turns[:, 2, 2] = cos, sin, -sin, cos
    return turns


def orbit_of(camera: Cameras, views: int = 18) -> Cameras:
    """The orbit d_0..d_{N-1} of the paper's Eq. 2: one camera carried about world +Y in ``views`` equal steps.

    View 0 is ``camera`` itself (C = 1), so that an image it took is view 0 exactly. View i sees the person from azimuth
    i * 360/views degrees: growing azimuths move the camera towards world +X, the side of the person's left hand.
    """
    if len(camera) != 1:
        raise ValueError(f"an orbit starts from one camera, got {len(camera)}")
    azimuths = torch.arange(views, dtype=camera.viewmats.dtype) * (2 * math.pi / views)
    viewmats = camera.viewmats @ turn_about_up(-azimuths)
    return Cameras(viewmats, camera.Ks.expand(views, 3, 3).contiguous(), camera.width, camera.height)


def turntable(
    centre: Float[Tensor, "3"],
    span_m: float,
    width: int,
    height: int,
    azimuths_rad: Float[Tensor, "C"],
    elevation_rad: float = 0.0,
    fov_y_rad: float = math.radians(25.0),
    fill: float = 0.88,
) -> Cameras:
    """Cameras on a circle about ``centre`` such that ``span_m`` metres fill ``fill`` of the shorter relevant side.

    Azimuth 0 looks from world +Z. ``elevation_rad`` lifts the cameras above the horizon.
    """
    focal = 0.5 * height / math.tan(0.5 * fov_y_rad)
    distance = span_m * focal / (fill * height)
    cos = math.cos(elevation_rad)
    offsets = torch.stack(
        [
            torch.sin(azimuths_rad) * cos,
            torch.full_like(azimuths_rad, math.sin(elevation_rad)),
            torch.cos(azimuths_rad) * cos,
        ],
        dim=-1,
    )
    Ks = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=azimuths_rad.dtype)
    return Cameras(look_at(centre + distance * offsets, centre), Ks.repeat(len(azimuths_rad), 1, 1), width, height)
