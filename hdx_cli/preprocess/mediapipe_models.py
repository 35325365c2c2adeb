"""MediaPipe's models, one function each: opened, run and closed without a word on standard error.

Every function is a context manager that yields a callable, so that a caller can run one model on several images and
the graph is closed whatever happens. The weights are those in the mediapipe wheel (Apache-2.0); nothing is downloaded.
Images are uint8 RGB [H W 3]. All models run in static mode: a result depends on its own image only.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

_stderr_lock = threading.RLock()


@dataclass(frozen=True)
class PosePass:
    """What one run of BlazePose says, in units of the image it saw.

    Attributes:
        landmarks: [33 3]: x px, y px, visibility in [0, 1]; positions may lie outside the image.
        world: [33 3] metres, camera axes (x right, y down, z away), origin at mid-hip.
        probability: [H W], probability of belonging to the person.
    """

    landmarks: Float32[np.ndarray, "33 3"]
    world: Float32[np.ndarray, "33 3"]
    probability: Float32[np.ndarray, "H W"]


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Keep what native code writes to file descriptor 2 out of sight; it is shown after all if the block raises.

    TFLite and absl log to the descriptor itself and offer no switch before absl is initialised. Blocks of several
    threads wait for one another, for the descriptor belongs to the process.
    """
    with _stderr_lock:
        try:
            if sys.stderr is not None:
                sys.stderr.flush()
            saved = os.dup(2)
        except (OSError, ValueError):  # no standard error at all, as under a window manager
            yield
            return
        with tempfile.TemporaryFile() as log:
            os.dup2(log.fileno(), 2)
            try:
                yield
            except BaseException:
                log.seek(0)
                os.write(saved, log.read())
                raise
            finally:
                os.dup2(saved, 2)
                os.close(saved)


@contextmanager
def pose_model(min_confidence: float = 0.5) -> Iterator[Callable[[UInt8[np.ndarray, "H W 3"]], PosePass | None]]:
    """BlazePose "full" with its segmentation head: one person per image, or None.

    ``model_complexity=2`` would be better but is not in the wheel: mediapipe tries to download it.
    """
    with quiet_stderr():
        import mediapipe as mp

        model = mp.solutions.pose.Pose(
            static_image_mode=True,
            model_complexity=1,
            enable_segmentation=True,
            smooth_segmentation=False,
            min_detection_confidence=min_confidence,
        )
        try:

            def run(image: UInt8[np.ndarray, "H W 3"]) -> PosePass | None:
                height, width = image.shape[:2]
                found = model.process(np.ascontiguousarray(image))
                if found.pose_landmarks is None:
                    return None
                landmarks = [(p.x * width, p.y * height, p.visibility) for p in found.pose_landmarks.landmark]
                world = [(p.x, p.y, p.z) for p in found.pose_world_landmarks.landmark]
                probability = np.array(found.segmentation_mask, np.float32)
                return PosePass(np.array(landmarks, np.float32), np.array(world, np.float32), probability)

            yield run
        finally:
            model.close()


@contextmanager
def hand_model(
    min_confidence: float = 0.3,
) -> Iterator[Callable[[UInt8[np.ndarray, "H W 3"]], list[Float32[np.ndarray, "21 3"]]]]:
    """Hand landmarks of up to two hands: x px, y px, depth relative to the wrist in px (smaller is nearer).

    The side that the model names is not passed on: it takes every photo for a mirrored selfie.
    """
    with quiet_stderr():
        import mediapipe as mp

        model = mp.solutions.hands.Hands(
            static_image_mode=True, max_num_hands=2, min_detection_confidence=min_confidence
        )
        try:
            yield lambda image: _landmark_lists(model.process(image).multi_hand_landmarks, image)
        finally:
            model.close()


@contextmanager
def face_mesh_model(
    min_confidence: float = 0.3,
) -> Iterator[Callable[[UInt8[np.ndarray, "H W 3"]], list[Float32[np.ndarray, "468 3"]]]]:
    """The 468-point face mesh of at most one face: x px, y px, relative depth in px (smaller is nearer)."""
    with quiet_stderr():
        import mediapipe as mp

        model = mp.solutions.face_mesh.FaceMesh(
            static_image_mode=True, refine_landmarks=False, min_detection_confidence=min_confidence
        )
        try:
            yield lambda image: _landmark_lists(model.process(image).multi_face_landmarks, image)
        finally:
            model.close()


@contextmanager
def face_model(
    min_confidence: float = 0.5,
) -> Iterator[Callable[[UInt8[np.ndarray, "H W 3"]], Float32[np.ndarray, "F 5"]]]:
    """BlazeFace full range: boxes x0, y0, x1, y1 in px and score [F 5]; misses faces below 5 % of the image."""
    with quiet_stderr():
        import mediapipe as mp

        model = mp.solutions.face_detection.FaceDetection(model_selection=1, min_detection_confidence=min_confidence)
        try:

            def run(image: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "F 5"]:
                height, width = image.shape[:2]
                faces = []
                for detection in model.process(np.ascontiguousarray(image)).detections or []:
                    box = detection.location_data.relative_bounding_box
                    corners = box.xmin, box.ymin, box.xmin + box.width, box.ymin + box.height
                    faces.append([*np.multiply(corners, (width, height, width, height)), detection.score[0]])
                return np.array(faces, np.float32).reshape(-1, 5)

            yield run
        finally:
            model.close()


def _landmark_lists(found: list | None, image: UInt8[np.ndarray, "H W 3"]) -> list[Float32[np.ndarray, "P 3"]]:
    """Normalised landmark lists as pixels; MediaPipe scales depth like x."""
    height, width = image.shape[:2]
    scale = np.array([width, height, width], np.float32)
    return [np.array([(p.x, p.y, p.z) for p in points.landmark], np.float32) * scale for points in found or []]
