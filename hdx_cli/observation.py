"""What one photo tells: plain data that preprocessing writes and the body fit and avatars read.

Images are [H W 3] float32 in [0, 1], sRGB-encoded; alpha is kept apart and straight. Pixel (0.5, 0.5) is the centre of
the top-left pixel. "Left" and "right" are the person's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32


@dataclass(frozen=True)
class Photo:
    """An upright decoded photo.

    Attributes:
        rgb: [H W 3] float32 in [0, 1], sRGB.
        alpha: [H W] float32 in [0, 1] where the file brought a real cut-out, else None.
        focal_px: focal length in pixels of this array where EXIF told it, else None.
    """

    rgb: Float32[np.ndarray, "H W 3"]
    alpha: Float32[np.ndarray, "H W"] | None = None
    focal_px: float | None = None


@dataclass(frozen=True)
class Keypoints:
    """Landmarks of one person in one photo.

    Attributes:
        pixels: the 33 BlazePose landmarks [33 3]: x px, y px, confidence in [0, 1] (visible and inside the image).
        world: the same 33 in metres, camera axes (x right, y down, z away), origin at mid-hip, [33 3].
        left_hand, right_hand: 21 MediaPipe hand landmarks [21 3] (x px, y px, relative depth in px), or None.
        face: 468 MediaPipe face-mesh landmarks [468 3] (x px, y px, relative depth in px), or None.
    """

    pixels: Float32[np.ndarray, "33 3"]
    world: Float32[np.ndarray, "33 3"]
    left_hand: Float32[np.ndarray, "21 3"] | None = None
    right_hand: Float32[np.ndarray, "21 3"] | None = None
    face: Float32[np.ndarray, "468 3"] | None = None


@dataclass(frozen=True)
class Observation:
    """A photo with its person found, matted and measured.

    Attributes:
        photo: the photo; its size is the size of every array here.
        alpha: matte of the chosen person [H W] float32 in [0, 1].
        foreground: colours with the background's share removed at soft edges [H W 3].
        keypoints: the chosen person's landmarks.
    """

    photo: Photo
    alpha: Float32[np.ndarray, "H W"]
    foreground: Float32[np.ndarray, "H W 3"]
    keypoints: Keypoints
