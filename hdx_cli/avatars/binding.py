"""Skinning weights for what hangs off the body: sleeves and coats."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Integer
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from ..bodies.base import PARTS
from .base import strongest

NEAR_M, FAR_M = 0.02, 0.05  # from the body: cloth nearer than the first follows it, beyond the second its neighbours
NEIGHBOURS, REACH_M, ROUNDS = 8, 0.02, 30
HANGING = tuple(PARTS.index(part) for part in ("torso", "upper_arm", "lower_arm", "upper_leg", "lower_leg"))


def loosened(
    means: Float[np.ndarray, "N 3"],
    vertices: Float[np.ndarray, "V 3"],
    joint_indices: Integer[np.ndarray, "N 8"],
    joint_weights: Float[np.ndarray, "N 8"],
    parts: Integer[np.ndarray, "N"],
) -> tuple[Integer[np.ndarray, "N 8"], Float[np.ndarray, "N 8"]]:
    """Weights that change smoothly over cloth, which the nearest triangle of the body alone tears between two limbs.

    Jacobi rounds on the graph of neighbours: w <- (1 - f) w_0 + f mean(w), with f rising from 0 to 1 with the distance
    from the body. Where f = 1 that is harmonic interpolation between the limbs round it.

    Args:
        means: Gaussians in the rest pose, metres, where limbs are apart; vertices: the body's, likewise.
        joint_indices, joint_weights: what each follows now; parts: indices into ``PARTS``.
    """
    distance, _ = cKDTree(vertices).query(means)
    free = np.clip((distance - NEAR_M) / (FAR_M - NEAR_M), 0, 1) * np.isin(parts, HANGING)
    moving = np.flatnonzero(free > 0.05)
    if not len(moving):
        return joint_indices, joint_weights
    gap, near = cKDTree(means).query(means[moving], k=min(NEIGHBOURS + 1, len(means)))
    closeness = np.exp(-((gap[:, 1:] / REACH_M) ** 2)).astype(np.float32) + 1e-4
    closeness /= closeness.sum(1, keepdims=True)
    around, places = np.unique(np.concatenate([moving, near[:, 1:].ravel()]), return_inverse=True)
    row, near = places[: len(moving)], places[len(moving) :].reshape(len(moving), -1)
    joints = np.unique(joint_indices[around])
    weights = np.zeros((len(around), len(joints)), np.float32)
    columns = np.searchsorted(joints, joint_indices[around])
    np.add.at(weights, (np.arange(len(around))[:, None], columns), joint_weights[around])
    share = free[moving, None].astype(np.float32)
    rows = np.repeat(np.arange(len(moving)), near.shape[1])
    mean = csr_matrix(((share * closeness).ravel(), (rows, near.ravel())), (len(moving), len(around)))
    kept = (1 - share) * weights[row]
    for _ in range(ROUNDS):
        weights[row] = kept + mean @ weights
    indices, values = strongest(weights[row])
    joint_indices, joint_weights = joint_indices.copy(), joint_weights.copy()
    joint_indices[moving], joint_weights[moving] = joints[indices].astype(joint_indices.dtype), values
    return joint_indices, joint_weights
