"""Rotations as matrices, rotation vectors and quaternions (wxyz), between directions, and between point sets."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation


def rotvecs_to_matrices(rotvecs: Float[np.ndarray, "*N 3"]) -> Float[np.ndarray, "*N 3 3"]:
    """Rotation vectors (axis times angle in radians) to matrices."""
    rotvecs = np.asarray(rotvecs)
    return Rotation.from_rotvec(rotvecs.reshape(-1, 3)).as_matrix().reshape(*rotvecs.shape, 3)


def matrices_to_rotvecs(matrices: Float[np.ndarray, "*N 3 3"]) -> Float[np.ndarray, "*N 3"]:
    """Rotation matrices to rotation vectors with angles in [0, pi] radians."""
    matrices = np.asarray(matrices)
    return Rotation.from_matrix(matrices.reshape(-1, 3, 3)).as_rotvec().reshape(matrices.shape[:-1])


def quats_to_matrices(quats: Float[np.ndarray, "*N 4"]) -> Float[np.ndarray, "*N 3 3"]:
    """Quaternions wxyz, of any length but zero, to matrices."""
    quats = np.asarray(quats)
    return Rotation.from_quat(quats.reshape(-1, 4), scalar_first=True).as_matrix().reshape(*quats.shape[:-1], 3, 3)


def matrices_to_quats(matrices: Float[np.ndarray, "*N 3 3"]) -> Float[np.ndarray, "*N 4"]:
    """Rotation matrices to unit quaternions wxyz with w >= 0."""
    matrices = np.asarray(matrices)
    quats = Rotation.from_matrix(matrices.reshape(-1, 3, 3)).as_quat(canonical=True, scalar_first=True)
    return quats.reshape(*matrices.shape[:-2], 4)


def angles_between(a: Float[np.ndarray, "*N 3"], b: Float[np.ndarray, "*N 3"]) -> Float[np.ndarray, "*N"]:
    """Angles in [0, pi] radians between vectors; exact near 0 and pi, unlike the arc cosine."""
    return np.asarray(np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (np.asarray(a) * b).sum(axis=-1)))


def rotation_between(a: Float[np.ndarray, "3"], b: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """The smallest rotation that takes the direction of ``a`` to that of ``b``."""
    axis = np.cross(a, b)
    length = np.linalg.norm(axis)
    if length < 1e-12 * np.linalg.norm(a) * np.linalg.norm(b):
        if np.dot(a, b) > 0:
            return np.eye(3)
        axis = np.cross(a, np.eye(3)[np.argmin(np.abs(a))])  # opposite: half a turn about any normal
        length = np.linalg.norm(axis)
    return rotvecs_to_matrices(axis / length * angles_between(a, b))


def rigid_alignment(
    source: Float[np.ndarray, "P 3"], target: Float[np.ndarray, "P 3"], with_scale: bool = True
) -> Float[np.ndarray, "P 3"]:
    """``source`` moved onto ``target`` by the best rotation, translation and (by default) scale.

    Least squares after Umeyama 1991, Eq. 34-43.
    """
    source_centre, target_centre = source.mean(axis=0), target.mean(axis=0)
    a, b = source - source_centre, target - target_centre
    u, singular, vt = np.linalg.svd(b.T @ a)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    scale = (singular * signs).sum() / (a**2).sum() if with_scale else 1.0
    return scale * a @ ((u * signs) @ vt).T + target_centre
