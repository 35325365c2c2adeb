"""The face of the chosen person, cut out for the identity tokens of HumanFixer."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import UInt8

from ..observation import Observation

SIZE = 64
VISIBLE = 0.5  # confidence of the nose below which the face is turned away
NOSE, EYES, EARS, MOUTH, SHOULDERS = 0, (2, 5), (7, 8), (9, 10), (11, 12)
SPAN = 3.6  # side of the crop in distances between eyes and mouth: chin to hair
SMALLEST_PX = 6.0


def face_crop(observation: Observation) -> UInt8[np.ndarray, "64 64 3"] | None:
    """The head, upright and over white, or None where the photo shows no face."""
    pixels = observation.keypoints.pixels
    if pixels[NOSE, 2] < VISIBLE:
        return None
    eyes, mouth = pixels[list(EYES), :2].mean(0), pixels[list(MOUTH), :2].mean(0)
    down = mouth - eyes
    tall = float(np.linalg.norm(down))
    across = 0.9 * float(np.linalg.norm(pixels[EARS[0], :2] - pixels[EARS[1], :2]))
    span = SPAN * max(tall, 0.45 * across)
    if span < SMALLEST_PX or tall < 1e-3:
        return None
    down /= tall
    right = np.array([down[1], -down[0]])
    centre = eyes + 0.1 * span * down
    rotation = np.stack([right, down]) * SIZE / span
    matrix = np.concatenate([rotation, (SIZE / 2 - rotation @ centre)[:, None]], axis=1)
    picture = observation.foreground * observation.alpha[..., None] + 1 - observation.alpha[..., None]
    if span > SIZE:  # blur first what warpAffine would skip
        picture = cv2.GaussianBlur(picture, (0, 0), 0.4 * span / SIZE)
    crop = cv2.warpAffine(picture, matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderValue=(1.0, 1.0, 1.0))
    return np.round(255 * np.clip(crop, 0, 1)).astype(np.uint8)
