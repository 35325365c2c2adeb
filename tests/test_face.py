"""The face crop: upright, over white, and none where there is no face."""

from __future__ import annotations

import numpy as np
import pytest

from hdx_cli.observation import Keypoints, Observation, Photo
from hdx_cli.preprocess.face import SIZE, face_crop


def portrait(angle_rad: float = 0.0, nose: float = 1.0, scale: float = 20.0) -> Observation:
    """A grey head with blue eyes, red mouth and the landmarks of both; the background is green and not of the person."""
    pixels = np.zeros((33, 3), np.float32)
    pixels[:, 2] = 1.0
    turn = np.array([[np.cos(angle_rad), -np.sin(angle_rad)], [np.sin(angle_rad), np.cos(angle_rad)]])
    middle = np.array([150.0, 120.0])
    spots = {0: (0, 0.4), 2: (0.5, 0), 5: (-0.5, 0), 7: (1.1, 0.2), 8: (-1.1, 0.2), 9: (0.3, 1), 10: (-0.3, 1)}
    for index, spot in spots.items():
        pixels[index, :2] = middle + turn @ (np.array(spot) * scale)
    pixels[0, 2] = nose
    y, x = np.mgrid[0:240, 0:300] + 0.5
    distance = np.hypot(x - middle[0], y - middle[1])
    alpha = (distance < 2.2 * scale).astype(np.float32)
    rgb = np.where(alpha[..., None] > 0, 0.5, [0.0, 1.0, 0.0]).astype(np.float32)
    for index, colour in ((2, (0, 0, 1)), (5, (0, 0, 1)), (9, (1, 0, 0)), (10, (1, 0, 0))):
        rgb[np.hypot(x - pixels[index, 0], y - pixels[index, 1]) < 0.15 * scale] = colour
    keypoints = Keypoints(pixels, np.zeros((33, 3), np.float32))
    return Observation(Photo(rgb), alpha, rgb, keypoints)


@pytest.mark.parametrize("angle_rad", [0.0, 0.6, -1.2])
@pytest.mark.parametrize("scale", [8.0, 20.0])
def test_faces_come_out_upright_and_of_one_size(angle_rad: float, scale: float) -> None:
    crop = face_crop(portrait(angle_rad, scale=scale)).astype(int)
    assert crop.shape == (SIZE, SIZE, 3)
    blue = np.argwhere(crop[..., 2] - crop[..., 0] > 60).mean(0)
    red = np.argwhere(crop[..., 0] - crop[..., 2] > 60).mean(0)
    assert blue[1] == pytest.approx(SIZE / 2, abs=2) and red[1] == pytest.approx(SIZE / 2, abs=2)
    assert red[0] - blue[0] == pytest.approx(SIZE / 3.6, abs=3)  # eyes to mouth
    assert not (crop[..., 1] - crop[..., 0] > 100).any()  # nothing of the background


def test_no_face_no_crop() -> None:
    assert face_crop(portrait(nose=0.2)) is None
    assert face_crop(portrait(scale=1.0)) is None  # too small to tell anything
