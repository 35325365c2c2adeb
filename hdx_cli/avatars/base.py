"""Gaussians bound to a body: what every backbone makes and every later stage uses."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from ..bodies.base import Body, BodyPose, RestBody, joint_transforms
from ..gaussians import Gaussians
from ..jit import jit

INFLUENCES = 8


@dataclass(frozen=True)
class Avatar:
    """N Gaussians in the rest pose of a body, with the weights that make them follow it.

    Attributes:
        canonical: the Gaussians in rest pose, world axes of the body model (+Y up, facing +Z), metres.
        joint_indices, joint_weights: up to 8 joints per Gaussian [N 8]; rows of weights sum to one.
        body, rest, parents, joint_names: the rig.
        photo_pose: the pose in the photo (T = 1); posing with it reproduces the photo.
        visibility: how much of the photo each Gaussian made, [N] in [0, 1]; 0 = the photo never saw it.
        parts: body part of each Gaussian [N], an index into ``bodies.base.PARTS``.
        scores: what the fit measured, by name.
    """

    canonical: Gaussians
    joint_indices: Integer[np.ndarray, "N 8"]
    joint_weights: Float[np.ndarray, "N 8"]
    body: Body
    rest: RestBody
    parents: Int[np.ndarray, "J"]
    joint_names: tuple[str, ...]
    photo_pose: BodyPose
    visibility: Float[np.ndarray, "N"]
    parts: Integer[np.ndarray, "N"]
    scores: dict[str, float] = field(default_factory=dict)

    def gaussians(self, pose: BodyPose | None = None, frame: int = 0) -> Gaussians:
        """The Gaussians in one frame of ``pose``, in world coordinates; the photo's pose where none is given.

        Linear blend skinning moves the means; covariances follow the blended linear part A: A Sigma A^T.
        """
        pose = pose or self.photo_pose
        transforms = joint_transforms(pose.rotations[frame], self.rest.joints, self.parents, pose.translations[frame])
        return posed(self.canonical, blend(self.joint_indices, self.joint_weights, transforms))


def standing_at_rest(avatar: Avatar) -> BodyPose:
    """The rest pose (T = 1) with the avatar's lowest Gaussians on y = 0; one in two thousand may lie below."""
    low = float(np.quantile(avatar.canonical.means[:, 1].numpy(), 0.0005))
    rotations = np.tile(np.eye(3, dtype=np.float32), (1, len(avatar.parents), 1, 1))
    return BodyPose(rotations, np.array([[0.0, -low, 0.0]], np.float32))


def strongest(weights: Float[np.ndarray, "P J"]) -> tuple[Int[np.ndarray, "P 8"], Float[np.ndarray, "P 8"]]:
    """The 8 largest skinning weights of every row, renormalised, and their joints; joint 0 where a weight is zero."""
    if weights.shape[1] < INFLUENCES:
        weights = np.pad(weights, ((0, 0), (0, INFLUENCES - weights.shape[1])))
    order = np.argpartition(-weights, INFLUENCES - 1, axis=1)[:, :INFLUENCES]
    kept = np.take_along_axis(weights, order, axis=1)
    rank = np.argsort(-kept, axis=1, kind="stable")
    order, kept = np.take_along_axis(order, rank, axis=1), np.take_along_axis(kept, rank, axis=1)
    kept = kept / np.maximum(kept.sum(1, keepdims=True), 1e-12)
    return np.where(kept > 0, order, 0).astype(np.uint16), kept.astype(np.float32)


def blend(
    joint_indices: Int[np.ndarray, "N 8"],
    joint_weights: Float[np.ndarray, "N 8"],
    transforms: Float[np.ndarray, "J 4 4"],
) -> Float[np.ndarray, "N 3 4"]:
    """Blended skinning transforms [N 3 4] of every Gaussian (linear blend skinning)."""
    return np.einsum("nk,nkab->nab", joint_weights, transforms[:, :3].astype(np.float32)[joint_indices])


def moved(points: Float[np.ndarray, "N 3"], transforms: Float[np.ndarray, "N 3 4"]) -> Float[np.ndarray, "N 3"]:
    """Points [N 3] carried by one affine transform each."""
    return np.einsum("nab,nb->na", transforms[:, :, :3], points) + transforms[:, :, 3]


def posed(gaussians: Gaussians, transforms: Float[np.ndarray, "N 3 4"]) -> Gaussians:
    """Gaussians carried by one affine transform each [N 3 4]: means A m + t, covariances A Sigma A^T."""
    linear = torch.from_numpy(np.ascontiguousarray(transforms[:, :, :3], dtype=np.float32))
    shift = torch.from_numpy(np.ascontiguousarray(transforms[:, :, 3], dtype=np.float32))
    quats, scales = transformed_axes(gaussians.quats, gaussians.scales, linear)
    means = (linear @ gaussians.means[..., None])[..., 0] + shift
    return Gaussians(means, quats, scales, gaussians.opacities, gaussians.sh)


def inverse_transforms(transforms: Float[np.ndarray, "N 3 4"]) -> Float[np.ndarray, "N 3 4"]:
    """Inverses of affine transforms [N 3 4], in float64."""
    linear = inverse_matrices(torch.from_numpy(transforms[:, :, :3].astype(np.float64))).numpy()
    return np.concatenate([linear, -linear @ transforms[:, :, 3:]], axis=2)


def inverse_matrices(matrices: Float[Tensor, "N 3 3"]) -> Float[Tensor, "N 3 3"]:
    """Inverses: their rows are the cross products of the columns over the determinant (Cramer).

    LAPACK would wake its threads for every one of a hundred thousand such matrices, which takes minutes on a machine
    that has other work.
    """
    x, y, z = matrices.unbind(-1)
    rows = torch.stack([torch.linalg.cross(y, z), torch.linalg.cross(z, x), torch.linalg.cross(x, y)], dim=-2)
    return rows / (x * rows[:, 0]).sum(-1)[:, None, None]


def rotation_matrices(quats: Float[Tensor, "N 4"]) -> Float[Tensor, "N 3 3"]:
    """Rotation matrices of quaternions wxyz of any non-zero length."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
    ]
    return torch.stack(rows, -2)


def transformed_axes(
    quats: Float[Tensor, "N 4"], scales: Float[Tensor, "N 3"], linear: Float[Tensor, "N 3 3"]
) -> tuple[Float[Tensor, "N 4"], Float[Tensor, "N 3"]]:
    """Rotation and scales of the covariances A Sigma A^T, through the singular values of A R diag(s)."""
    factor = linear @ (rotation_matrices(quats) * scales[:, None, :])
    out_quats, out_scales = axes_of_factors(factor.double().numpy())
    return torch.from_numpy(out_quats), torch.from_numpy(out_scales)


def axes_of_factors(
    factors: Float[np.ndarray, "N 3 3"],
) -> tuple[Float[np.ndarray, "N 4"], Float[np.ndarray, "N 3"]]:
    """Quaternions wxyz [N 4] and scales [N 3], float32, of the covariances M M^T of factors M.

    One-sided Jacobi (Hestenes 1958): rotating the columns of M until they are orthogonal leaves M M^T as it is; their
    lengths are then the scales and their directions the axes. It stays accurate for flat Gaussians, where the eigenvalues
    of M M^T would lose half of the digits.
    """
    quats = np.empty((len(factors), 4), np.float32)
    scales = np.empty((len(factors), 3), np.float32)
    _orthogonalise(np.ascontiguousarray(factors, dtype=np.float64), quats, scales)
    return quats, scales


@jit
def _orthogonalise(factors, quats, scales):
    # Elements one by one: numba takes seconds to compile what copies, compares or reduces whole arrays.
    m, lengths = np.empty((3, 3)), np.empty(3)
    for n in range(factors.shape[0]):
        for r in range(3):
            for k in range(3):
                m[r, k] = factors[n, r, k]
        for _ in range(6):
            largest = 0.0
            for p in range(2):
                for q in range(p + 1, 3):
                    alpha = m[0, p] ** 2 + m[1, p] ** 2 + m[2, p] ** 2
                    beta = m[0, q] ** 2 + m[1, q] ** 2 + m[2, q] ** 2
                    gamma = m[0, p] * m[0, q] + m[1, p] * m[1, q] + m[2, p] * m[2, q]
                    if abs(gamma) <= 1e-12 * np.sqrt(alpha * beta) + 1e-300:
                        continue
                    largest = max(largest, abs(gamma) / np.sqrt(alpha * beta))
                    zeta = (beta - alpha) / (2.0 * gamma)
                    t = (1.0 if zeta >= 0 else -1.0) / (abs(zeta) + np.sqrt(1.0 + zeta * zeta))
                    c = 1.0 / np.sqrt(1.0 + t * t)
                    s = c * t
                    for r in range(3):
                        a, b = m[r, p], m[r, q]
                        m[r, p] = c * a - s * b
                        m[r, q] = s * a + c * b
            if largest < 1e-9:
                break
        for k in range(3):
            lengths[k] = np.sqrt(m[0, k] ** 2 + m[1, k] ** 2 + m[2, k] ** 2)
        # the two longest axes carry the rotation, the third follows: a vanishing axis then needs no direction of its own
        i, j = 0, -1
        for k in range(1, 3):
            if lengths[k] > lengths[i]:
                i = k
        for k in range(3):
            if k != i and (j < 0 or lengths[k] > lengths[j]):
                j = k
        k = 3 - i - j
        if lengths[i] < 1e-12:
            quats[n, 0], quats[n, 1], quats[n, 2], quats[n, 3] = 1.0, 0.0, 0.0, 0.0
            scales[n, 0], scales[n, 1], scales[n, 2] = 1e-12, 1e-12, 1e-12
            continue
        for r in range(3):
            m[r, i] /= lengths[i]
        if lengths[j] > 1e-12:
            for r in range(3):
                m[r, j] /= lengths[j]
        else:
            axis = 0
            for r in range(1, 3):
                if abs(m[r, i]) < abs(m[axis, i]):
                    axis = r
            dot = m[axis, i]
            for r in range(3):
                m[r, j] = (1.0 if r == axis else 0.0) - dot * m[r, i]
            size = np.sqrt(m[0, j] ** 2 + m[1, j] ** 2 + m[2, j] ** 2)
            for r in range(3):
                m[r, j] /= size
        sign = 1.0 if (j - i) % 3 == 1 else -1.0
        m[0, k] = sign * (m[1, i] * m[2, j] - m[2, i] * m[1, j])
        m[1, k] = sign * (m[2, i] * m[0, j] - m[0, i] * m[2, j])
        m[2, k] = sign * (m[0, i] * m[1, j] - m[1, i] * m[0, j])
        for r in range(3):
            scales[n, r] = max(lengths[r], 1e-12)
        _quaternion(m, quats, n)


@jit
def _quaternion(m, quats, n):
    """Rotation matrix to wxyz, dividing by the largest of the four components (Shepperd 1978)."""
    trace = m[0, 0] + m[1, 1] + m[2, 2]
    if trace > max(m[0, 0], m[1, 1], m[2, 2]):
        s = 2.0 * np.sqrt(1.0 + trace)
        quats[n, 0] = 0.25 * s
        quats[n, 1] = (m[2, 1] - m[1, 2]) / s
        quats[n, 2] = (m[0, 2] - m[2, 0]) / s
        quats[n, 3] = (m[1, 0] - m[0, 1]) / s
        return
    i = 0
    if m[1, 1] > m[0, 0]:
        i = 1
    if m[2, 2] > m[i, i]:
        i = 2
    j, k = (i + 1) % 3, (i + 2) % 3
    s = 2.0 * np.sqrt(max(1e-30, 1.0 + m[i, i] - m[j, j] - m[k, k]))
    quats[n, 0] = (m[k, j] - m[j, k]) / s
    quats[n, 1 + i] = 0.25 * s
    quats[n, 1 + j] = (m[j, i] + m[i, j]) / s
    quats[n, 1 + k] = (m[k, i] + m[i, k]) / s
