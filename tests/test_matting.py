"""Matting against its definitions: dense sums over windows and pixels, and pictures whose alpha is known exactly."""

from itertools import product

import numpy as np
import pytest

from hdx_cli.preprocess import matting
from hdx_cli.preprocess.matting import EDGE_SMOOTHNESS, EPSILON, SMOOTHNESS, closed_form_alpha, multilevel_foreground


def dense_laplacian(rgb):
    """The matting Laplacian as Levin et al. 2008, Eq. 12 states it, one pair of pixels of one window at a time."""
    height, width = rgb.shape[:2]
    laplacian = np.zeros((height * width, height * width))
    for top, left in product(range(height - 2), range(width - 2)):
        window = [(top + dy, left + dx) for dy, dx in product(range(3), range(3))]
        colours = np.array([rgb[place] for place in window])
        mean, covariance = colours.mean(axis=0), np.cov(colours.T, bias=True)
        inverse = np.linalg.inv(covariance + EPSILON / 9 * np.eye(3))
        for (i, one), (j, other) in product(enumerate(window), enumerate(window)):
            tie = (1 + (colours[i] - mean) @ inverse @ (colours[j] - mean)) / 9
            laplacian[one[0] * width + one[1], other[0] * width + other[1]] += (one == other) - tie
    return laplacian


def dense_foreground(rgb, alpha):
    """Colours that minimise Germer et al. 2020, Eq. 4, by one dense system for all pixels of one channel."""
    height, width = alpha.shape
    count = height * width
    matrix = np.zeros((2 * count, 2 * count))
    right = np.zeros((2 * count, 3))
    for y, x in product(range(height), range(width)):
        here, a = y * width + x, alpha[y, x]
        shares = np.zeros(2 * count)
        shares[here], shares[count + here] = a, 1 - a
        matrix += np.outer(shares, shares)
        right += np.outer(shares, rgb[y, x])
        for v, u in ((y + 1, x), (y, x + 1)):
            if v < height and u < width:
                difference = np.zeros(2 * count)
                difference[here], difference[v * width + u] = 1, -1
                tie = SMOOTHNESS + EDGE_SMOOTHNESS * abs(a - alpha[v, u])
                for pair in (difference, np.roll(difference, count)):
                    matrix += tie * np.outer(pair, pair)
    return np.linalg.solve(matrix, right)[:count].reshape(height, width, 3)


def test_alpha_minimises_the_dense_laplacian():
    random = np.random.default_rng(0)
    rgb = random.random((9, 11, 3))
    trimap = np.full((9, 11), 0.5)
    trimap[random.random((9, 11)) < 0.2] = 0
    trimap[random.random((9, 11)) < 0.2] = 1
    trimap[0], trimap[:, -1] = 0, 1  # unknown pixels reach the other two edges of the picture
    unknown, expected = (trimap == 0.5).ravel(), trimap.ravel().copy()
    rows = dense_laplacian(rgb)[unknown]
    expected[unknown] = np.linalg.solve(rows[:, unknown], -rows[:, ~unknown] @ expected[~unknown])
    solved = closed_form_alpha(rgb, trimap)
    assert ((expected > 0) & (expected < 1))[unknown].mean() > 0.5  # the comparison is not one of clipped numbers
    np.testing.assert_allclose(solved.ravel(), np.clip(expected, 0, 1), atol=1e-5)  # float32, and the tie of 1e-9


def test_a_blend_of_two_colours_is_found_exactly():
    """Alpha is then affine in colour everywhere, so the true alpha has energy 0 but for EPSILON."""
    alpha = np.clip((np.arange(40) - 10) / 20, 0, 1)[None].repeat(12, axis=0)
    rgb = alpha[..., None] * [0.9, 0.4, 0.1] + (1 - alpha[..., None]) * [0.1, 0.3, 0.8]
    trimap = np.where((alpha > 0) & (alpha < 1), 0.5, alpha)
    # A step of 0.05 in alpha changes colour by 0.06: its variance of 2e-3 in a window is 2e5 times EPSILON / 9.
    np.testing.assert_allclose(closed_form_alpha(rgb, trimap), alpha, atol=1e-3)


def test_what_nothing_tells_keeps_the_trimap():
    grey = np.full((8, 8, 3), 0.5, np.float32)
    known = np.eye(8)
    np.testing.assert_array_equal(closed_form_alpha(grey, known), known.astype(np.float32))
    # No known pixel at all: only the tie of 1e-9 holds the solution, against rounding of 1e-15.
    np.testing.assert_allclose(closed_form_alpha(grey, np.full((8, 8), 0.3)), 0.3, atol=1e-4)


def test_foreground_converges_to_the_dense_minimum(monkeypatch):
    monkeypatch.setattr(matting, "SWEEPS", 3000)
    random = np.random.default_rng(1)
    alpha = (0.05 + 0.9 * random.random((7, 6))).astype(np.float32)
    ramp = np.linspace(0, 0.2, 7)[:, None, None]
    fore, back = np.array([0.7, 0.3, 0.2]) + ramp, np.array([0.2, 0.5, 0.7]) - ramp
    rgb = (alpha[..., None] * fore + (1 - alpha[..., None]) * back).astype(np.float32)
    expected = dense_foreground(rgb.astype(np.float64), alpha.astype(np.float64))
    assert expected.min() > 0 and expected.max() < 1  # clipping plays no part
    np.testing.assert_allclose(multilevel_foreground(rgb, alpha), expected, atol=1e-3)  # float32 sums, 3000 sweeps


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (40, 3)])
def test_foreground_of_odd_sizes_and_without_soft_edges_is_the_picture(size):
    rgb = np.random.default_rng(2).random((*size, 3)).astype(np.float32)
    np.testing.assert_array_equal(multilevel_foreground(rgb, np.ones(size, np.float32)), rgb)


def test_foreground_under_a_soft_edge_loses_the_background():
    alpha = np.clip((np.arange(64) - 24) / 16, 0, 1).astype(np.float32)[None].repeat(48, axis=0)
    rgb = (alpha[..., None] * [0.9, 0.1, 0.1] + (1 - alpha[..., None]) * [0.0, 1.0, 0.0]).astype(np.float32)
    colours = multilevel_foreground(rgb, alpha)
    seen = alpha > 0.1
    assert np.abs(colours[seen] - [0.9, 0.1, 0.1]).max() < 0.05  # five sweeps do not quite converge
    assert np.abs(rgb[seen] - [0.9, 0.1, 0.1]).max() > 0.7
