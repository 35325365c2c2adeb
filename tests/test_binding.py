"""Weights of hanging cloth on two poles that stand for legs."""

from __future__ import annotations

import numpy as np
import pytest

from hdx_cli.avatars.binding import NEAR_M, loosened
from hdx_cli.bodies.base import PARTS

LEG, HEAD = PARTS.index("upper_leg"), PARTS.index("head")


def skirt(part: int = LEG):
    """A sheet from x = -.2 to .2 in front of two poles at x = -.2 and .2, each of which owns the half next to it."""
    x, y = np.meshgrid(np.linspace(-0.2, 0.2, 81), np.linspace(0, 0.1, 21))
    means = np.stack([x.ravel(), y.ravel(), np.full(x.size, 0.005)], axis=1)
    heights = np.linspace(-0.02, 0.12, 57)
    vertices = np.concatenate([np.stack([np.full(57, side), heights, np.zeros(57)], 1) for side in (-0.2, 0.2)])
    indices, weights = np.zeros((x.size, 8), np.uint16), np.zeros((x.size, 8), np.float32)
    indices[:, 0], weights[:, 0] = np.where(means[:, 0] < 0, 3, 7), 1
    return means, vertices, indices, weights, np.full(x.size, part)


def of_joint(indices: np.ndarray, weights: np.ndarray, joint: int) -> np.ndarray:
    return (weights * (indices == joint)).sum(1)


def test_between_the_legs_weights_change_gradually_and_symmetrically() -> None:
    means, vertices, indices, weights, parts = skirt()
    new_indices, new_weights = loosened(means, vertices, indices, weights, parts)
    np.testing.assert_allclose(new_weights.sum(1), 1, atol=1e-5)
    left = of_joint(new_indices, new_weights, 3).reshape(21, 81)
    before = of_joint(indices, weights, 3).reshape(21, 81)
    assert np.abs(np.diff(before, axis=1)).max() == 1  # the tear
    assert np.abs(np.diff(left, axis=1)).max() < 0.15
    assert (np.diff(left[10]) <= 1e-6).all()
    # the middle column began on one side, and thirty rounds do not quite forget it
    np.testing.assert_allclose(left[10, ::-1], 1 - left[10], atol=0.1)


def test_what_lies_on_the_body_and_what_is_no_cloth_stays() -> None:
    means, vertices, indices, weights, parts = skirt()
    new_indices, new_weights = loosened(means, vertices, indices, weights, parts)
    on_body = 0.2 - np.abs(means[:, 0]) < 0.9 * NEAR_M
    assert on_body.any() and np.array_equal(new_indices[on_body], indices[on_body])
    for unchanged in (loosened(*skirt(HEAD)), loosened(vertices, vertices, indices[:114], weights[:114], parts[:114])):
        assert np.array_equal(unchanged[0], indices[: len(unchanged[0])])
        assert unchanged[1] == pytest.approx(weights[: len(unchanged[1])])
