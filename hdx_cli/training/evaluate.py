"""Scoring avatars of synthetic people: linear controls fitted to the truth, and what covers the back of a head.

What is not about synthetic people is in ``hdx_cli.evaluation``; it can be had from here as well.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..avatars.unseen import cielab as lab
from ..camera import Cameras
from ..evaluation.metrics import (
    blurred,
    bootstrap_interval,
    by_side,
    loop_gap_db,
    person_box,
    seam_gap_db,
    sharpness_ratio,
    sides_of_orbit,
    true_cameras_in_avatar_world,
    view_scores,
)  # fmt: skip
from ..evaluation.perceptual import PERCEPTUAL_NAME, feature_distance, perceptual_network, person_crop

__all__ = [
    "PERCEPTUAL_NAME", "blur_stack", "blurred", "bootstrap_interval", "by_side", "combined", "disc", "feature_distance",
    "head_back_verdict", "lab", "linear_weights", "loop_gap_db", "normal_equations", "perceptual_network", "person_box",
    "person_crop", "seam_gap_db", "sharpness_ratio", "sides_of_orbit", "true_cameras_in_avatar_world", "view_scores",
]  # fmt: skip

SAME_LAB = 15.0  # colours nearer than this in CIE Lab (1976) pass for the same material in different light


def blur_stack(
    image: Float[Tensor, "H W 3"], alpha: Float[Tensor, "H W"], sigmas_px: tuple[float, ...]
) -> Float[Tensor, "K H W 4"]:
    """K blurs of one view as differences from an empty white one: rgb - 1 and alpha."""
    return torch.stack([torch.cat([rgb - 1, a[..., None]], dim=-1)
                        for rgb, a in (blurred(image, alpha, sigma) for sigma in sigmas_px)])  # fmt: skip


def normal_equations(
    stack: Float[Tensor, "K H W 4"],
    true_image: Float[Tensor, "H W 3"],
    true_alpha: Float[Tensor, "H W"],
) -> tuple[Float[np.ndarray, "K K"], Float[np.ndarray, "K"]]:
    """One view's share of the least squares A w = b.

    They fit sum_k w_k stack_k to the truth in colour, inside the union of the masks. ``stack`` is of ``blur_stack``
    with sigma 0 first. Shares of many views add up.
    """
    union = (stack[0, ..., 3] > 0.5) | (true_alpha > 0.5)
    columns = stack[..., :3][:, union].reshape(len(stack), -1).double().numpy()
    wanted = (true_image - 1)[union].reshape(-1).double().numpy()
    return columns @ columns.T, columns @ wanted


def linear_weights(
    a: Float[np.ndarray, "K K"], b: Float[np.ndarray, "K"], ridge: float = 1e-3
) -> Float[np.ndarray, "K"]:
    """Weights w of A w = b, with a ridge relative to the mean of A's diagonal: neighbouring blurs are much alike."""
    return np.linalg.solve(a + ridge * np.trace(a) / len(a) * np.eye(len(a)), b)


def combined(
    stack: Float[Tensor, "K H W 4"], weights: Float[np.ndarray, "K"]
) -> tuple[Float[Tensor, "H W 3"], Float[Tensor, "H W"]]:
    """The view that the weights make of its blurs: a Wiener filter whose transfer function is a sum of Gaussians."""
    mixed = torch.einsum("k,khwc->hwc", torch.from_numpy(np.asarray(weights, np.float32)), stack)
    return (mixed[..., :3] + 1).clamp(0, 1), mixed[..., 3].clamp(0, 1)


def disc(camera: Cameras, centre: Float[np.ndarray, "3"], radius_m: float) -> Bool[np.ndarray, "H W"]:
    """Pixels of one camera (C = 1) within ``radius_m`` of a point of the world, measured at its depth."""
    pixel, depth = camera.project(torch.from_numpy(np.asarray(centre, np.float32))[None])
    (x, y), radius_px = pixel[0, 0].tolist(), radius_m * float(camera.Ks[0, 0, 0]) / float(depth)
    rows, columns = np.arange(camera.height)[:, None] + 0.5, np.arange(camera.width)[None] + 0.5
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius_px**2


def head_back_verdict(
    predicted: Float[np.ndarray, "P 3"],
    true: Float[np.ndarray, "Q 3"],
    skin: Float[np.ndarray, "S 3"],
    bald: bool = False,
) -> dict[str, float]:
    """Whether the back of a head is covered by what covers it in truth, hair as a rule, and not by the face again.

    Medians in CIE Lab and distances between them (CIE 1976). ``passed`` is 1 where the predicted colour is nearer to
    the truth than to the face's skin, or within 15 of the truth; for a bald head where it is within 15 of the skin or
    of the truth. Where hair and skin are of one colour this says little; hence the shares of skin (pixels within 15 of
    the face's), of the prediction and of the truth.

    Args:
        predicted, true: sRGB pixels of the head's back, of the prediction and of the truth.
        skin: sRGB pixels of the face in the photo.
        bald: nothing covers the head.
    """
    face = np.median(lab(skin), axis=0)
    true_lab = lab(true)
    target = np.median(true_lab, axis=0)
    shares = {"true_skin_share": float((np.linalg.norm(true_lab - face, axis=1) <= SAME_LAB).mean())}
    if len(predicted) == 0:
        return {"passed": 0.0, "to_truth_lab": math.inf, "to_skin_lab": math.inf, "skin_share": 0.0, **shares}
    predicted_lab = lab(predicted)
    median = np.median(predicted_lab, axis=0)
    to_truth, to_skin = (float(np.linalg.norm(median - other)) for other in (target, face))
    passed = to_truth <= SAME_LAB or (to_skin <= SAME_LAB if bald else to_truth < to_skin)
    skin_share = float((np.linalg.norm(predicted_lab - face, axis=1) <= SAME_LAB).mean())
    return {
        "passed": float(passed),
        "to_truth_lab": to_truth,
        "to_skin_lab": to_skin,
        "skin_share": skin_share,
        **shares,
    }
