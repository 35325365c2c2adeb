"""Posed points of a skinned body and their derivatives, in closed form.

A point is a sum over entries, one per joint that moves it: mass * (R_j source + t_j), where (R_j, t_j) is the joint's
skinning transform (``bodies.base.joint_transforms``) and the source is a rest position that depends on the shape.
Skinned vertices, regressed key points and centres of mass are all such points.

The rotation of a joint is exp(w), with w linear in the pose parameters. A change dw turns everything below the joint
about the joint's centre c by the angular velocity R_parent J_l(w) dw, with J_l the left Jacobian of SO(3) (Sola et al.
2018, Eq. 145), so d(point) = sum over the chain of (R_parent J_l dw) x (share of the point below the joint - c).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from ..jit import jit


@dataclass(frozen=True)
class RiggedPoints:
    """P points made of E entries over N sources.

    Attributes:
        point, joint, source: what an entry belongs to [E].
        mass: share of the joint's translation [E]; the masses of a point sum to one.
        weight: share of the source [E]; equal to ``mass`` for skinned vertices, one for ready-made moments.
        rest: rest positions or moments of the sources at zero blend-shape coefficients [N 3].
        blend: their change per blend-shape coefficient [K N 3].
        count: P.
    """

    point: Int[np.ndarray, "E"]
    joint: Int[np.ndarray, "E"]
    source: Int[np.ndarray, "E"]
    mass: Float[np.ndarray, "E"]
    weight: Float[np.ndarray, "E"]
    rest: Float[np.ndarray, "N 3"]
    blend: Float[np.ndarray, "K N 3"]
    count: int

    def sources(self, coefficients: Float[np.ndarray, "K"]) -> Float[np.ndarray, "N 3"]:
        """Rest positions of the sources [N 3]."""
        return self.rest + np.tensordot(coefficients.astype(self.blend.dtype), self.blend, 1)

    def sources_jacobian(self, jacobian: Float[np.ndarray, "K S"]) -> Float[np.ndarray, "N 3 S"]:
        """d sources / d shape [N 3 S], from d coefficients / d shape."""
        flat = self.blend.reshape(len(self.blend), -1).T @ jacobian.astype(self.blend.dtype)
        return flat.reshape(*self.rest.shape, -1).astype(float)


@dataclass(frozen=True)
class Posed:
    """A posed skeleton.

    Attributes:
        rotations, translations: skinning transforms [J 3 3], [J 3].
        turning: [J 3 3], takes a change of the joint's rotation vector to an angular velocity in the world.
        centres: posed joint positions [J 3].
    """

    rotations: Float[np.ndarray, "J 3 3"]
    translations: Float[np.ndarray, "J 3"]
    turning: Float[np.ndarray, "J 3 3"]
    centres: Float[np.ndarray, "J 3"]


# Plain loops that write into their last argument: numba compiles array expressions and assignments ten times slower.
@jit
def _product(a, b, out):
    """out = a @ b."""
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            total = 0.0
            for k in range(a.shape[1]):
                total += a[i, k] * b[k, j]
            out[i, j] = total


@jit
def _exponential(w, rotation, left):
    """exp(w) and the left Jacobian of SO(3) at w (Sola et al. 2018, Eq. 132 and 145)."""
    squared = w[0] * w[0] + w[1] * w[1] + w[2] * w[2]
    if squared < 1e-10:
        a, b, c = 1 - squared / 6, 0.5 - squared / 24, 1 / 6 - squared / 120
    else:
        angle = np.sqrt(squared)
        a, b, c = np.sin(angle) / angle, (1 - np.cos(angle)) / squared, (angle - np.sin(angle)) / (squared * angle)
    for i in range(3):
        for j in range(3):
            # the square of the cross-product matrix is w w^T - |w|^2 I
            one = 1.0 if i == j else 0.0
            square = w[i] * w[j] - squared * one
            cross = 0.0
            if i != j:
                cross = w[3 - i - j] * (1.0 if (j - i) % 3 == 2 else -1.0)
            rotation[i, j] = one + a * cross + b * square
            left[i, j] = one + b * cross + c * square


@jit
def _pose(rotvecs, root_rotation, joints, translation, parents, rotations, translations, turning, centres):
    turn, left = np.empty((3, 3)), np.empty((3, 3))
    for j in range(len(parents)):
        _exponential(rotvecs[j], turn, left)
        parent = parents[j]
        if parent < 0:
            _product(turn, root_rotation, rotations[j])
        else:
            _product(rotations[parent], turn, rotations[j])
            _product(rotations[parent], left, turning[j])
        for a in range(3):
            centres[j, a] = joints[j, a] + translation[a] if parent < 0 else translations[parent, a]
            for b in range(3):
                if parent < 0:
                    turning[j, a, b] = left[a, b]
                else:
                    centres[j, a] += rotations[parent, a, b] * joints[j, b]
            translations[j, a] = centres[j, a]
            for b in range(3):
                translations[j, a] -= rotations[j, a, b] * joints[j, b]


@jit
def _points(point, joint, source, mass, weight, positions, rotations, translations, count):
    out = np.zeros((count, 3))
    for e in range(len(point)):
        j = joint[e]
        for a in range(3):
            total = mass[e] * translations[j, a]
            for b in range(3):
                total += weight[e] * rotations[j, a, b] * positions[source[e], b]
            out[point[e], a] += total
    return out


@jit
def _translations_jacobian(rotations, joints_jacobian, parents, out):
    """d translations / d shape [J 3 S] of the skinning transforms at a fixed pose.

    A joint's transform holds the joint's own position in its parent: t_j = t_p + (R_p - R_j) h_j.
    """
    for j in range(len(parents)):
        parent = parents[j]
        for a in range(3):
            for s in range(joints_jacobian.shape[2]):
                total = out[parent, a, s] if parent >= 0 else joints_jacobian[j, a, s]
                for b in range(3):
                    above = rotations[parent, a, b] if parent >= 0 else 0.0
                    total += (above - rotations[j, a, b]) * joints_jacobian[j, b, s]
                out[j, a, s] = total


@jit
def _points_jacobian(
    point, joint, source, mass, weight, positions, positions_jacobian, rotations, translations, translations_jacobian,
    centres, velocities, first_parameter, parameter_count, parents, count, pose_size,
):  # fmt: skip
    joints, shapes = len(parents), positions_jacobian.shape[2]
    out = np.zeros((count, 3, pose_size + shapes))
    lever, share = np.zeros((count, joints, 3)), np.empty(3)
    touched = np.zeros((count, joints), np.bool_)
    for e in range(len(point)):
        p, j = point[e], joint[e]
        for a in range(3):
            share[a] = mass[e] * translations[j, a]
            for b in range(3):
                share[a] += weight[e] * rotations[j, a, b] * positions[source[e], b]
        for a in range(3):
            for s in range(shapes):
                total = mass[e] * translations_jacobian[j, a, s]
                for b in range(3):
                    total += weight[e] * rotations[j, a, b] * positions_jacobian[source[e], b, s]
                out[p, a, pose_size + s] += total
        ancestor = j
        while ancestor >= 0:
            if parameter_count[ancestor] > 0:
                touched[p, ancestor] = True
                for a in range(3):
                    lever[p, ancestor, a] += share[a] - mass[e] * centres[ancestor, a]
            ancestor = parents[ancestor]
    for p in range(count):
        for j in range(joints):
            if touched[p, j]:
                x, y, z = lever[p, j, 0], lever[p, j, 1], lever[p, j, 2]
                for k in range(first_parameter[j], first_parameter[j] + parameter_count[j]):
                    u, v, w = velocities[j, 0, k], velocities[j, 1, k], velocities[j, 2, k]
                    out[p, 0, k] += v * z - w * y
                    out[p, 1, k] += w * x - u * z
                    out[p, 2, k] += u * y - v * x
    return out


def pose_skeleton(
    rotvecs: Float[np.ndarray, "J 3"],
    root_rotation: Float[np.ndarray, "3 3"],
    joints: Float[np.ndarray, "J 3"],
    translation: Float[np.ndarray, "3"],
    parents: Int[np.ndarray, "J"],
) -> Posed:
    """The skeleton under joint rotations exp(rotvecs); the root turns by exp(rotvecs[0]) @ root_rotation."""
    count = len(parents)
    rotations, turning = np.empty((count, 3, 3)), np.empty((count, 3, 3))
    translations, centres = np.empty((count, 3)), np.empty((count, 3))
    arguments = (np.ascontiguousarray(a, float) for a in (rotvecs, root_rotation, joints, translation))
    _pose(*arguments, parents, rotations, translations, turning, centres)
    return Posed(rotations, translations, turning, centres)


def posed_points(points: RiggedPoints, coefficients: Float[np.ndarray, "K"], posed: Posed) -> Float[np.ndarray, "P 3"]:
    """Positions [P 3] of rigged points."""
    positions = np.ascontiguousarray(points.sources(coefficients), float)
    return _points(
        points.point, points.joint, points.source, points.mass, points.weight, positions,
        posed.rotations, posed.translations, points.count,
    )  # fmt: skip


def posed_points_jacobian(
    points: RiggedPoints,
    coefficients: Float[np.ndarray, "K"],
    coefficients_jacobian: Float[np.ndarray, "K S"],
    posed: Posed,
    joints_jacobian: Float[np.ndarray, "J 3 S"],
    pose_basis: Float[np.ndarray, "J 3 D"],
    parents: Int[np.ndarray, "J"],
) -> Float[np.ndarray, "P 3 D+S"]:
    """d points / d (pose parameters, shape) [P 3 D+S].

    Args:
        pose_basis: rotation vectors per pose parameter [J 3 D]; the parameters of one joint are consecutive.
    """
    velocities = posed.turning @ pose_basis
    used = np.abs(pose_basis).max(axis=1) > 0
    parameter_count = used.sum(axis=1)
    first_parameter = used.argmax(axis=1)
    translations_jacobian = np.empty(joints_jacobian.shape)
    _translations_jacobian(posed.rotations, joints_jacobian, parents, translations_jacobian)
    return _points_jacobian(
        points.point, points.joint, points.source, points.mass, points.weight,
        np.ascontiguousarray(points.sources(coefficients), float),
        np.ascontiguousarray(points.sources_jacobian(coefficients_jacobian)),
        posed.rotations, posed.translations, translations_jacobian, posed.centres, velocities,
        first_parameter, parameter_count, parents, points.count, pose_basis.shape[2],
    )  # fmt: skip
