"""The calibration that ships, and the regression that makes it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hdx_cli.bodies.anny_rig import landmark_bases, load_calibration
from hdx_cli.bodies.rig import BODY_DIRECTIONS, DIRECTIONS, LANDMARKS, mirrored_directions, mirrored_landmarks
from hdx_cli.training.calibrate_body import _robust_ridge
from hdx_cli.training.synthetic_people import random_camera

MIRROR = np.array([-1.0, 1, 1])
ROUNDING = 2e-4  # the file keeps five decimals; a corrected direction sums 72 of them


def random_directions(seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(len(DIRECTIONS), 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_every_landmark_has_a_base_and_a_plausible_offset():
    offsets, calibration = load_calibration()
    assert len(landmark_bases()) == len(offsets) == len(calibration.sigma) == LANDMARKS
    assert np.linalg.norm(offsets, axis=1).max() < 0.15  # metres; the temples lie farthest from their base, the nose
    assert (calibration.sigma > 0.001).all() and (calibration.sigma < 0.02).all()


def test_left_and_right_are_calibrated_alike():
    offsets, calibration = load_calibration()
    np.testing.assert_allclose(offsets[mirrored_landmarks()] * MIRROR, offsets, atol=ROUNDING)
    mirror, sign = mirrored_directions()
    directions = random_directions(0)
    mirrored = directions[mirror] * sign[:, None] * MIRROR
    expected = calibration.corrected(directions)[mirror] * sign[:, None] * MIRROR
    np.testing.assert_allclose(calibration.corrected(mirrored), expected, atol=10 * ROUNDING)


def test_corrections_do_not_extrapolate():
    _, calibration = load_calibration()
    directions = random_directions(1)
    body = directions[:BODY_DIRECTIONS].reshape(-1)
    added = []
    for reach in (0.5, 1e9):
        limited = replace(calibration, body_reach=reach, body_bias=np.zeros(len(body)))
        # before normalising, a correction is gain @ (clipped distance from the mean)
        corrected = limited.corrected(directions)[:BODY_DIRECTIONS]
        added.append(np.linalg.norm(corrected - directions[:BODY_DIRECTIONS]))
    assert added[0] < added[1]


def test_regression_finds_the_map_despite_gross_errors():
    generator = np.random.default_rng(2)
    features = generator.normal(size=(600, 4))
    gain, bias = 0.1 * generator.normal(size=(3, 4)), np.array([0.1, -0.2, 0.05])
    targets = features @ gain.T + bias + 0.005 * generator.normal(size=(600, 3))
    targets[:30] += 2.0
    found_gain, found_bias = _robust_ridge(features, targets, ridge=1e-6)
    # 570 samples of noise 0.005 give 2e-4; gross errors keep a weight of (1 + 12 / 0.09)^-2 each
    np.testing.assert_allclose(found_gain, gain, atol=3e-3)
    np.testing.assert_allclose(found_bias, bias, atol=3e-3)


def test_random_cameras_see_the_person():
    points = np.random.default_rng(3).uniform((-0.3, 0, -0.2), (0.3, 1.7, 0.2), (200, 3))
    for seed in range(20):
        view = ("front", "side", "back")[seed % 3]
        K, viewmat, width, height = random_camera(points, view, np.random.default_rng(seed))
        camera = points @ viewmat[:3, :3].T + viewmat[:3, 3]
        pixels = camera @ K.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        assert (camera[:, 2] > 0).all()
        assert ((pixels > 0) & (pixels < (width, height))).all(axis=1).mean() > 0.45  # a crop shows the upper half
        np.testing.assert_allclose(np.linalg.det(viewmat[:3, :3]), 1, atol=1e-9)
