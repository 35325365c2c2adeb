"""Rotations: round trips, hand-worked values and the alignment against a known motion."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm

from hdx_cli.geometry import (
    angles_between,
    matrices_to_quats,
    matrices_to_rotvecs,
    quats_to_matrices,
    rigid_alignment,
    rotation_between,
    rotvecs_to_matrices,
)

TIGHT = 1e-9  # a handful of float64 operations on numbers of order one


def random_rotvecs(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    rotvecs = np.random.default_rng(seed).normal(size=(*shape, 3))
    lengths = np.linalg.norm(rotvecs, axis=-1, keepdims=True)
    return rotvecs / lengths * np.minimum(lengths, 3.1)  # below pi, where the rotation vector is unique


def test_rotvec_equals_matrix_exponential():
    rotvec = np.array([0.3, -1.1, 0.7])
    x, y, z = rotvec
    np.testing.assert_allclose(rotvecs_to_matrices(rotvec), expm([[0, -z, y], [z, 0, -x], [-y, x, 0]]), atol=TIGHT)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_round_trips_keep_leading_shape(seed):
    rotvecs = random_rotvecs(seed, (2, 3))
    matrices = rotvecs_to_matrices(rotvecs)
    assert matrices.shape == (2, 3, 3, 3)
    np.testing.assert_allclose(matrices_to_rotvecs(matrices), rotvecs, atol=1e-7)  # near pi the inverse loses digits
    np.testing.assert_allclose(quats_to_matrices(matrices_to_quats(matrices)), matrices, atol=TIGHT)


def test_quarter_turn_about_y_takes_z_to_x():
    half = np.sqrt(0.5)
    matrix = quats_to_matrices(np.array([half, 0, half, 0]))
    np.testing.assert_allclose(matrix @ [0, 0, 1], [1, 0, 0], atol=TIGHT)
    np.testing.assert_allclose(matrices_to_quats(matrix), [half, 0, half, 0], atol=TIGHT)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.5, np.pi - 1e-9, np.pi])
def test_angles_between_is_exact_at_the_ends(angle):
    other = np.array([np.cos(angle), np.sin(angle), 0])
    assert angles_between(np.array([2.0, 0, 0]), 3 * other) == pytest.approx(angle, abs=1e-15)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1.0, -1.0, 0.0]))
def test_rotation_between_takes_one_direction_to_the_other(seed, along):
    generator = np.random.default_rng(seed)
    a = generator.normal(size=3)
    b = along * a if along else generator.normal(size=3)
    rotation = rotation_between(a, b)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=TIGHT)
    np.testing.assert_allclose(rotation @ a / np.linalg.norm(a), b / np.linalg.norm(b), atol=1e-7)


def test_rigid_alignment_undoes_a_similarity():
    generator = np.random.default_rng(3)
    points = generator.normal(size=(7, 3))
    moved = 1.7 * points @ rotvecs_to_matrices(np.array([0.4, 1.0, -0.2])).T + [1, 2, 3]
    np.testing.assert_allclose(rigid_alignment(points, moved), moved, atol=TIGHT)


def test_rigid_alignment_never_mirrors():
    points = np.random.default_rng(4).normal(size=(6, 3))
    aligned = rigid_alignment(points, points * [-1, 1, 1], with_scale=False)
    volume = np.linalg.det(points[1:4] - points[0])
    assert np.linalg.det(aligned[1:4] - aligned[0]) == pytest.approx(volume, rel=1e-9)
