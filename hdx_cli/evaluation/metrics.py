"""Scores of pictures against true views of the same person: how right, how sharp, how even; their means."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..camera import Cameras
from ..losses import psnr, ssim

FRONT_DEG, BACK_DEG = 40.0, 140.0  # view bins by distance from the photo's azimuth


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


def even_orbit(views: int, input_view: int = 0) -> Float[np.ndarray, "V"]:
    """How far the views of an even orbit lie from the input view, degrees in [0, 180]."""
    return np.abs(((np.arange(views) - input_view) * 360.0 / views + 180.0) % 360.0 - 180.0)


def away_from(rotations: Float[np.ndarray, "V 3 3"], input_view: int = 0) -> Float[np.ndarray, "V"]:
    """The same of cameras with these rotations (world to camera): the angle between each and that of the input view."""
    relative = rotations.astype(np.float64) @ rotations[input_view].T
    cosines = (np.trace(relative, axis1=1, axis2=2) - 1) / 2
    return np.degrees(np.arccos(np.clip(cosines, -1, 1)))


def sides_of(away_deg: Float[np.ndarray, "V"]) -> dict[str, Bool[np.ndarray, "V"]]:
    """Which views lie in front (up to 40 degrees away from the input view), aside and behind (from 140 on).

    The input view itself is in none of them; ``all`` are the others. A tenth of a degree does not count.
    """
    away = np.round(away_deg, 1)
    return {
        "all": away > 0,
        "front": (away > 0) & (away <= FRONT_DEG),
        "side": (away > FRONT_DEG) & (away < BACK_DEG),
        "back": away >= BACK_DEG,
    }


def sides_of_orbit(views: int) -> dict[str, Bool[np.ndarray, "V"]]:
    """``sides_of`` an even orbit whose view 0 is the input."""
    return sides_of(even_orbit(views))


def by_side(scores: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Means over views 1.. of an even orbit: all, front, side, back as ``sides_of_orbit`` has them."""
    return {
        name: {key: float(np.mean([scores[i][key] for i in np.nonzero(chosen)[0]])) for key in scores[0]}
        for name, chosen in sides_of_orbit(len(scores)).items()
    }


def sharpness_ratio(
    image: Float[Tensor, "H W 3"],
    alpha: Float[Tensor, "H W"],
    true_image: Float[Tensor, "H W 3"],
    true_alpha: Float[Tensor, "H W"],
) -> float:
    """Fine detail of the prediction as a share of the truth's: 1 = as sharp, 0.2 = a blur, above 1 = grain or sharper.

    The ratio of root mean squares of the Laplacian (3 x 3, four neighbours) of luma (Rec. 601), both over the same
    pixels: where both masks hold and have held for 1/160 of the height around, so that no silhouette counts. 0 where
    there is no such pixel. It says how much detail there is, not whether it is the right one.
    """
    inside = ((alpha > 0.5) & (true_alpha > 0.5)).numpy().astype(np.uint8)
    reach = max(2, round(inside.shape[0] / 160))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    inside = cv2.erode(inside, disc, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    if not inside.any():
        return 0.0
    energies = []
    for picture in (image, true_image):
        luma = cv2.cvtColor(np.ascontiguousarray(picture.numpy(), np.float32), cv2.COLOR_RGB2GRAY)
        energies.append(float(np.square(cv2.Laplacian(luma, cv2.CV_32F, ksize=1)[inside], dtype=np.float64).mean()))
    return math.sqrt(energies[0] / max(energies[1], 1e-12))


def loop_gap_db(frames: Float[Tensor, "F H W 3"]) -> float:
    """PSNR in dB between the first and the last frame of a closed orbit, which show the same view (F = views + 1)."""
    return float(psnr(frames[0], frames[-1]))


def seam_gap_db(frames: Float[Tensor, "V H W 3"]) -> float:
    """``seam_of`` the views of an even orbit, V at least 3."""
    following = torch.roll(frames, -1, 0)
    return seam_of([float(psnr(frame, after)) for frame, after in zip(frames, following, strict=True)])


def seam_of(neighbours_db: list[float]) -> float:
    """PSNR in dB of the neighbours (last, first) of an even orbit, given last, less the mean of all other neighbours.

    Below 0 the orbit breaks where it closes. The true views have a value of their own, to which it should be compared.
    """
    return neighbours_db[-1] - float(np.mean(neighbours_db[:-1]))


def blurred(
    image: Float[Tensor, "H W 3"], alpha: Float[Tensor, "H W"], sigma_px: float
) -> tuple[Float[Tensor, "H W 3"], Float[Tensor, "H W"]]:
    """A view over white and its alpha under a Gaussian of ``sigma_px``: what averaging alone gains, untrained."""
    if sigma_px <= 0:
        return image, alpha
    stacked = np.concatenate([image.numpy(), alpha.numpy()[..., None]], axis=2).astype(np.float32)
    stacked = torch.from_numpy(cv2.GaussianBlur(stacked, (0, 0), sigma_px, borderType=cv2.BORDER_REPLICATE))
    return stacked[..., :3], stacked[..., 3]


def person_box(alpha: Float[Tensor, "H W"], margin: float = 0.04) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 in px of the mask's bounding box, widened by a share of its height and kept inside the image."""
    rows, columns = (np.nonzero((alpha > 0.5).any(dim=axis).numpy())[0] for axis in (1, 0))
    if len(rows) == 0:
        return 0, 0, alpha.shape[1], alpha.shape[0]
    edge = round(margin * (rows[-1] - rows[0] + 1))
    return (
        max(0, int(columns[0]) - edge),
        max(0, int(rows[0]) - edge),
        min(alpha.shape[1], int(columns[-1]) + 1 + edge),
        min(alpha.shape[0], int(rows[-1]) + 1 + edge),
    )


def square_round(alpha: Float[Tensor, "H W"]) -> tuple[int, int, int]:
    """x0, y0 and side in px of the square about a mask's bounding box, 50 px (at a height of 1024) wider on each side.

    It may reach over the image. Of an empty mask it is the square about the image.
    """
    height, width = alpha.shape
    x0, y0, x1, y1 = person_box(alpha, 0.0)
    side = max(x1 - x0, y1 - y0) + 2 * round(50 * height / 1024)
    return (x0 + x1 - side) // 2, (y0 + y1 - side) // 2, side


def square_crop(image: Float[Tensor, "H W 3"], square: tuple[int, int, int], size_px: int) -> Float[Tensor, "S S 3"]:
    """What a square shows at another size, white outside of the image; cubic, with antialiasing where it shrinks."""
    x0, y0, side = square
    height, width = image.shape[:2]
    crop = torch.ones(side, side, 3)
    top, left, bottom, right = max(0, y0), max(0, x0), min(height, y0 + side), min(width, x0 + side)
    crop[top - y0 : bottom - y0, left - x0 : right - x0] = image[top:bottom, left:right]
    resized = torch.nn.functional.interpolate(
        crop.permute(2, 0, 1)[None], (size_px, size_px), mode="bicubic", antialias=True, align_corners=False
    )
    return resized[0].permute(1, 2, 0).clamp(0, 1).contiguous()


def bootstrap_interval(values: Float[np.ndarray, "P"], seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """95 % interval of the mean over people: percentiles of the means of people drawn with replacement."""
    generator = np.random.default_rng(seed)
    means = values[generator.integers(len(values), size=(draws, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def true_cameras_in_avatar_world(
    truth: Cameras, photo_camera: Cameras, true_centre: Float[Tensor, "3"], centre: Float[Tensor, "3"]
) -> Cameras:
    """The true cameras, expressed in the world of an avatar that was made from true view 0.

    A single photo fixes neither scale nor depth nor focal length: both worlds are joined at the photo's camera, through
    which both show the same picture. The true centre is where the photo shows it, at the depth of the avatar's centre;
    view i turns about it by the true rotation, and how far it lies off the orbit's axis is scaled with the person.

    Args:
        truth: true cameras (C views), view 0 took the photo.
        photo_camera: the avatar's camera of the photo (C = 1), looking through the window of ``truth``.
        true_centre: centre of the person in the true world, metres; centre: the same point in the avatar's world.
    """
    true_rows, rows = truth.viewmats.double(), photo_camera.viewmats[0].double()
    relative = true_rows @ torch.linalg.inv(true_rows[0])
    rotations, shifts = relative[:, :3, :3], relative[:, :3, 3]
    true_at = true_rows[0, :3, :3] @ true_centre.double() + true_rows[0, :3, 3]
    depth_m = rows[2, :3] @ centre.double() + rows[2, 3]
    to_rays = torch.linalg.inv(photo_camera.Ks[0].double()) @ truth.Ks[0].double()
    at = depth_m * (to_rays @ (true_at / true_at[2]))
    size = float(depth_m / true_at[2] * truth.Ks[0, 0, 0] / photo_camera.Ks[0, 0, 0])
    relative[:, :3, 3] = at - rotations @ at + size * (rotations @ true_at + shifts - true_at)
    Ks = photo_camera.Ks.expand(len(truth), 3, 3).contiguous()
    return Cameras((relative @ rows).float(), Ks, photo_camera.width, photo_camera.height)
