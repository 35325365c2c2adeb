import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from hdx_cli.avatars.base import (
    axes_of_factors,
    blend,
    inverse_matrices,
    inverse_transforms,
    posed,
    rotation_matrices,
    strongest,
)
from hdx_cli.gaussians import Gaussians


def covariances(quats, scales) -> np.ndarray:
    rotation = rotation_matrices(torch.as_tensor(quats).double()).numpy()
    return (rotation * np.asarray(scales, float)[:, None, :] ** 2) @ rotation.transpose(0, 2, 1)


@pytest.mark.parametrize("flat", [0, 1, 2])
def test_axes_reproduce_the_covariance_of_any_factor(flat):
    factors = np.random.default_rng(flat).normal(size=(500, 3, 3)) * np.exp(
        np.random.default_rng(9).normal(size=(500, 1, 3))
    )
    factors[:, :, 3 - flat :] = 0.0
    quats, scales = axes_of_factors(factors)
    expected = factors @ factors.transpose(0, 2, 1)
    size = np.abs(expected).max(axis=(1, 2), keepdims=True)
    # float32 output: relative 1e-6 of the largest entry
    assert (np.abs(covariances(quats, scales) - expected) / size).max() < 3e-6
    assert (scales > 0).all()


def test_axes_of_reflections_are_still_rotations():
    factors = np.stack([np.diag([1.0, 2.0, -3.0]), np.diag([-1.0, 2.0, 3.0]), -np.eye(3), np.zeros((3, 3))])
    quats, _ = axes_of_factors(factors)
    np.testing.assert_allclose(np.linalg.norm(quats, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(rotation_matrices(torch.from_numpy(quats)).numpy()), 1.0, atol=1e-5)


def random_gaussians(count: int) -> Gaussians:
    generator = torch.Generator().manual_seed(0)
    return Gaussians(
        torch.randn(count, 3, generator=generator),
        torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=-1),
        torch.rand(count, 3, generator=generator) * 0.02 + 0.001,
        torch.rand(count, generator=generator),
        torch.randn(count, 1, 3, generator=generator),
    )


def test_posing_and_unposing_returns_the_same_gaussians():
    rng = np.random.default_rng(1)
    gaussians = random_gaussians(200)
    linear = Rotation.random(200, random_state=2).as_matrix() * rng.uniform(0.7, 1.3, (200, 1, 1)) + rng.normal(
        0, 0.1, (200, 3, 3)
    )
    transforms = np.concatenate([linear, rng.normal(size=(200, 3, 1))], axis=2)
    there = posed(gaussians, transforms)
    back = posed(there, inverse_transforms(transforms))
    torch.testing.assert_close(back.means, gaussians.means, atol=2e-5, rtol=0)  # float32, condition number < 10
    before, after = covariances(gaussians.quats, gaussians.scales), covariances(back.quats, back.scales)
    assert np.abs(before - after).max() < 1e-7  # largest entry is 4e-4
    expected = linear @ before @ linear.transpose(0, 2, 1)
    assert np.abs(covariances(there.quats, there.scales) - expected).max() < 1e-8


def test_rigid_motion_keeps_scales():
    gaussians = random_gaussians(50)
    rotation = np.tile(Rotation.from_rotvec([0.3, -1.0, 0.5]).as_matrix(), (50, 1, 1))
    moved = posed(gaussians, np.concatenate([rotation, np.ones((50, 3, 1))], axis=2))
    torch.testing.assert_close(moved.scales.sort(1).values, gaussians.scales.sort(1).values, rtol=1e-5, atol=1e-8)


def test_strongest_keeps_the_largest_weights_in_order():
    weights = np.zeros((2, 12))
    weights[0, [3, 7]] = 0.25, 0.75
    weights[1] = np.arange(12) / 66.0
    joints, kept = strongest(weights)
    assert joints[0, :2].tolist() == [7, 3] and kept[0, :2].tolist() == [0.75, 0.25]
    assert (joints[0, 2:] == 0).all() and (kept[0, 2:] == 0).all()
    assert joints[1].tolist() == [11, 10, 9, 8, 7, 6, 5, 4]
    np.testing.assert_allclose(kept.sum(1), 1.0, atol=1e-6)


def test_blend_with_one_joint_is_that_joint():
    transforms = np.random.default_rng(0).normal(size=(5, 4, 4))
    joints, weights = strongest(np.pad(np.eye(5), ((0, 0), (0, 4)))[[2, 4]])
    np.testing.assert_allclose(blend(joints, weights, transforms), transforms[[2, 4], :3].astype(np.float32), rtol=1e-6)


def test_inverses_are_those_of_lapack() -> None:
    matrices = torch.randn(200, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(inverse_matrices(matrices), torch.linalg.inv(matrices), rtol=1e-9, atol=1e-9)
