"""Posed points and their Jacobian: against plain skinning, and against differences."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from hdx_cli.bodies import anny
from hdx_cli.bodies.anny_rig import anny_rig, skinned_vertices
from hdx_cli.bodies.base import joint_transforms, skin
from hdx_cli.bodies.kinematics import pose_skeleton, posed_points, posed_points_jacobian
from hdx_cli.geometry import rotvecs_to_matrices


@lru_cache
def rig():
    return anny_rig(anny.load())


def random_parameters(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    pose = rig().pose_mean + 0.3 * generator.normal(size=len(rig().pose_mean))
    shape = rig().shape_mean + 0.1 * generator.normal(size=len(rig().shape_mean))
    return pose, shape, generator.normal(size=3)


def posed(pose, shape, translation, root_rotation):
    coefficients = rig().coefficients(shape)
    joints = rig().joints + np.tensordot(coefficients, rig().joints_blend, 1)
    rotvecs = rig().pose_basis @ pose
    return coefficients, pose_skeleton(rotvecs, root_rotation, joints, translation, rig().model.parents)


def test_posed_vertices_equal_skinning():
    pose, shape, translation = random_parameters(0)
    root_rotation = rotvecs_to_matrices(np.array([0.1, 2.0, -0.3]))
    indices = np.arange(0, len(rig().model.template), 97)
    coefficients, skeleton = posed(pose, shape, translation, root_rotation)
    points = posed_points(skinned_vertices(rig().model, indices), coefficients, skeleton)

    rest = rig().model.rest(shape)
    rotations = rotvecs_to_matrices(rig().pose_basis @ pose)
    rotations[0] = rotations[0] @ root_rotation
    transforms = joint_transforms(rotations, rest.joints.astype(float), rig().model.parents, translation)
    expected, _ = skin(rest.vertices[indices], rig().model.weights[indices], transforms)
    np.testing.assert_allclose(points, expected, atol=2e-5)  # float32 blend shapes and weights


def test_landmarks_and_centre_of_mass_follow_a_rigid_motion():
    pose, shape, _ = random_parameters(1)
    coefficients, still = posed(pose, shape, np.zeros(3), np.eye(3))
    turned_pose = pose.copy()
    turn = np.array([0.2, -0.4, 0.1])
    turned_pose[:3] = 0
    root = rotvecs_to_matrices(pose[:3])
    _, moved = posed(turned_pose, shape, np.array([1.0, 2, 3]), rotvecs_to_matrices(turn) @ root)
    pelvis = still.centres[0]
    for points in (rig().landmarks, rig().centre_of_mass):
        before, after = (posed_points(points, coefficients, s) for s in (still, moved))
        expected = (before - pelvis) @ rotvecs_to_matrices(turn).T + pelvis + [1, 2, 3]
        np.testing.assert_allclose(after, expected, atol=1e-6)  # key-point masses are stored in float32


def test_jacobian_equals_differences():
    """Blend shapes are float32, so differences of steps of 1e-4 carry noise of about 1e-3."""
    pose, shape, translation = random_parameters(2)
    root_rotation = rotvecs_to_matrices(np.array([0.1, 2.0, -0.3]))
    points = rig().landmarks
    coefficients, skeleton = posed(pose, shape, translation, root_rotation)
    coefficients_jacobian = rig().coefficients_jacobian(shape)
    blend = rig().joints_blend.reshape(len(rig().joints_blend), -1)
    joints_jacobian = (blend.T @ coefficients_jacobian).reshape(*rig().joints.shape, -1)
    jacobian = posed_points_jacobian(
        points, coefficients, coefficients_jacobian, skeleton, joints_jacobian, rig().pose_basis, rig().model.parents
    )
    both = np.concatenate([pose, shape])
    for index in range(len(both)):
        sides = []
        for step in (1e-4, -1e-4):
            moved = both.copy()
            moved[index] += step
            c, s = posed(moved[: len(pose)], moved[len(pose) :], translation, root_rotation)
            sides.append(posed_points(points, c, s))
        difference = (sides[0] - sides[1]) / 2e-4
        tolerance = 1e-6 if index < len(pose) else 2e-3
        np.testing.assert_allclose(jacobian[:, :, index], difference, atol=tolerance)
