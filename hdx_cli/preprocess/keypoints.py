"""Landmarks of one person: body, hands and face from MediaPipe, steadied by mirrored and cropped passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from ..observation import Keypoints
from .mediapipe_models import PosePass, face_mesh_model, hand_model, pose_model

# The order of BlazePose's 33 landmarks (Bazarevsky et al. 2020); left and right are the person's own.
LANDMARKS = (
    "nose left_eye_inner left_eye left_eye_outer right_eye_inner right_eye right_eye_outer left_ear right_ear "
    "mouth_left mouth_right left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist left_pinky "
    "right_pinky left_index right_index left_thumb right_thumb left_hip right_hip left_knee right_knee left_ankle "
    "right_ankle left_heel right_heel left_foot_index right_foot_index"
).split()
INDEX = {name: index for index, name in enumerate(LANDMARKS)}
_OTHER_SIDE = {"left": "right", "right": "left"}
MIRRORED = np.array([INDEX["_".join(_OTHER_SIDE.get(word, word) for word in name.split("_"))] for name in LANDMARKS])

# Standing height of the person whom the world landmarks describe: measured over photos, metres.
BODY_HEIGHT_M = 1.72
# Two passes that differ by more than this share of the height have not seen the same pose: one of them is wrong.
AGREEMENT = 0.05
# A person whose crop is smaller than this share of the window is looked at again more closely before anything else.
SMALL = 0.6

Box = tuple[float, float, float, float]
PoseRunner = Callable[[UInt8[np.ndarray, "H W 3"]], PosePass | None]


@dataclass(frozen=True)
class Person:
    """One person as BlazePose sees them.

    Attributes:
        keypoints: landmarks; hands and face only where they were asked for.
        probability: probability of belonging to the person [H W].
        box: x0, y0, x1, y1 in px round the visible landmarks and the probable pixels.
    """

    keypoints: Keypoints
    probability: Float32[np.ndarray, "H W"]
    box: Box


def detect_keypoints(
    rgb: Float32[np.ndarray, "H W 3"],
    mask: Float32[np.ndarray, "H W"] | None = None,
    region: Box | None = None,
) -> Keypoints | None:
    """All landmarks of the most prominent person: body, and hands and face where they are found.

    Args:
        rgb: [H W 3] in [0, 1].
        mask: matte in [0, 1]; what lies outside is hidden from the models.
        region: x0, y0, x1, y1 in px; the person is sought in this window only.

    Returns:
        Landmarks in pixels of ``rgb``, or None where nobody is found. Equal input gives equal output.
    """
    person = detect_person(rgb, mask, region)
    return None if person is None else with_hands_and_face(person.keypoints, rgb, mask)


def detect_person(
    rgb: Float32[np.ndarray, "H W 3"],
    mask: Float32[np.ndarray, "H W"] | None = None,
    region: Box | None = None,
) -> Person | None:
    """The most prominent person's body landmarks and probability map; arguments as in ``detect_keypoints``.

    BlazePose runs on the window, on its mirror image, and both again on the padded crop of the person found. The
    largest set of passes that agree to within 5 % of the height is averaged. On synthetic renders that fill the frame
    this lowers the landmark error by 8 %, on renders a quarter of the frame high to less than a third.
    """
    image = to_bytes(rgb, mask)
    with pose_model() as run:
        return detect_in_window(run, image, region)


def detect_in_window(run: PoseRunner, image: UInt8[np.ndarray, "H W 3"], window: Box | None = None) -> Person | None:
    """``detect_person`` on an 8-bit image with a model that is open already; None is the whole image."""
    height, width = image.shape[:2]
    window = window or (0, 0, width, height)
    first = _pass(run, image, window)
    if first is None:
        return None
    crop = _crop_of(first)
    if max(crop[2] - crop[0], crop[3] - crop[1]) < SMALL * max(window[2] - window[0], window[3] - window[1]):
        closer = _pass(run, image, crop)
        if closer is not None and disagreement(first, closer) < 5 * AGREEMENT:
            first, window, crop = closer, crop, _crop_of(closer)
    others = [_pass(run, image, window, True), _pass(run, image, crop), _pass(run, image, crop, True)]
    agreed = _consensus([first] + [other for other in others if other is not None])
    landmarks = np.mean([one.landmarks for one in agreed], axis=0)
    world = np.mean([one.world for one in agreed], axis=0)
    probability = np.mean([one.probability for one in agreed], axis=0)
    inside = (landmarks[:, 0] >= 0) & (landmarks[:, 0] < width) & (landmarks[:, 1] >= 0) & (landmarks[:, 1] < height)
    landmarks[:, 2] *= inside
    keypoints = Keypoints(landmarks.astype(np.float32), world.astype(np.float32))
    return Person(keypoints, probability.astype(np.float32), person_box(landmarks, probability))


def _crop_of(found: PosePass) -> Box:
    """The window that shows the person found with a margin."""
    margin_px = 0.15 * body_height_px(found.landmarks, found.world)
    return padded(person_box(found.landmarks, found.probability), margin_px)


def _consensus(passes: list[PosePass]) -> list[PosePass]:
    """The passes that agree with the one that most agree with; of equally many, the later (closer crop) wins."""
    circles = [[other for other in passes if disagreement(one, other) < AGREEMENT] for one in passes]
    return max(reversed(circles), key=len)


def _pass(
    run: PoseRunner,
    image: UInt8[np.ndarray, "H W 3"],
    window: Box,
    mirrored: bool = False,
) -> PosePass | None:
    """One run of BlazePose on a window of the image, told in the image's own pixels and the person's own sides."""
    crop, corner = cut_out(image, window)
    if mirrored:
        crop = crop[:, ::-1]
    found = run(crop)
    if found is None:
        return None
    landmarks, world, probability = found.landmarks, found.world, found.probability
    if mirrored:
        landmarks = (landmarks * np.float32([-1, 1, 1]) + np.float32([crop.shape[1], 0, 0]))[MIRRORED]
        world = (world * np.float32([-1, 1, 1]))[MIRRORED]
        probability = probability[:, ::-1]
    landmarks = landmarks + np.float32([*corner, 0])
    return PosePass(landmarks, world, paste(probability, corner, image.shape[:2]))


def with_hands_and_face(
    keypoints: Keypoints, rgb: Float32[np.ndarray, "H W 3"], mask: Float32[np.ndarray, "H W"] | None = None
) -> Keypoints:
    """The same landmarks with those of hands and face added, from crops round the wrists and the head.

    On whole photos MediaPipe finds few hands and faces; on crops that the body landmarks point at it finds most.
    """
    image = to_bytes(rgb, mask)
    px_per_m = body_height_px(keypoints.pixels, keypoints.world) / BODY_HEIGHT_M
    with hand_model() as run:
        left, right = (_hand(run, image, keypoints.pixels, side, px_per_m) for side in ("left", "right"))
    with face_mesh_model() as run:
        face = _face(run, image, keypoints.pixels, px_per_m)
    return Keypoints(keypoints.pixels, keypoints.world, left, right, face)


def _hand(
    run: Callable[[UInt8[np.ndarray, "H W 3"]], list[Float32[np.ndarray, "21 3"]]],
    image: UInt8[np.ndarray, "H W 3"],
    pixels: Float32[np.ndarray, "33 3"],
    side: str,
    px_per_m: float,
) -> Float32[np.ndarray, "21 3"] | None:
    """The hand at one wrist, the mean of a plain and a mirrored run where they agree."""
    other = "right" if side == "left" else "left"
    wrist, other_wrist = pixels[INDEX[f"{side}_wrist"]], pixels[INDEX[f"{other}_wrist"]]
    if wrist[2] < 0.3:
        return None
    fingers = pixels[[INDEX[f"{side}_pinky"], INDEX[f"{side}_index"]], :2].mean(axis=0)
    crop, scale, corner = _square(image, fingers, half_side=max(24.0, 0.17 * px_per_m))
    hands = [hand * scale for hand in run(crop)]
    mirrored = [hand * scale * (-1, 1, 1) + (crop.shape[1] * scale, 0, 0) for hand in run(crop[:, ::-1].copy())]
    hand, twin = (_nearest(found, wrist[:2] - corner, 0.08 * px_per_m) for found in (hands, mirrored))
    if hand is not None and twin is not None and np.abs(hand - twin)[:, :2].mean() < 0.02 * px_per_m:
        hand = (hand + twin) / 2
    if hand is None:
        hand = twin
    if hand is None:
        return None
    hand = hand + (*corner, 0)
    if np.linalg.norm(hand[0, :2] - other_wrist[:2]) < np.linalg.norm(hand[0, :2] - wrist[:2]):
        return None  # the other hand, caught in the same crop
    return hand.astype(np.float32)


def _nearest(
    found: list[Float[np.ndarray, "P 3"]], wrist: Float[np.ndarray, 2], limit_px: float
) -> Float[np.ndarray, "P 3"] | None:
    """The hand whose wrist lies nearest, if it lies within ``limit_px``."""
    near = [hand for hand in found if np.linalg.norm(hand[0, :2] - wrist) < limit_px]
    return min(near, key=lambda hand: np.linalg.norm(hand[0, :2] - wrist), default=None)


def _face(
    run: Callable[[UInt8[np.ndarray, "H W 3"]], list[Float32[np.ndarray, "468 3"]]],
    image: UInt8[np.ndarray, "H W 3"],
    pixels: Float32[np.ndarray, "33 3"],
    px_per_m: float,
) -> Float32[np.ndarray, "468 3"] | None:
    """The face mesh at the head, if its middle lies where the body landmarks put the face."""
    head = pixels[: INDEX["left_shoulder"]]
    if head[:, 2].max() < 0.3:
        return None
    centre = head[:, :2].mean(axis=0)
    crop, scale, corner = _square(image, centre, half_side=max(32.0, 0.21 * px_per_m))
    for face in run(crop):
        face = face * scale + (*corner, 0)
        if np.linalg.norm(face[:, :2].mean(axis=0) - centre) < 0.1 * px_per_m:
            return face.astype(np.float32)
    return None


def body_height_px(landmarks: Float[np.ndarray, "33 3"], world: Float[np.ndarray, "33 3"]) -> float:
    """Height in pixels that the person would have standing upright, whatever is visible of them.

    The scale between image and world landmarks comes from least squares over the torso and face, which are nearly
    always in the image.
    """
    weights = np.clip(landmarks[:, 2:], 0.05, 1)
    image_spread = landmarks[:, :2] - (landmarks[:, :2] * weights).sum(axis=0) / weights.sum()
    world_spread = world[:, :2] - (world[:, :2] * weights).sum(axis=0) / weights.sum()
    px_per_m = (weights * image_spread * world_spread).sum() / (weights * world_spread**2).sum()
    return float(max(px_per_m, 1e-3) * BODY_HEIGHT_M)


def disagreement(first: PosePass, other: PosePass) -> float:
    """Mean distance of the landmarks that both passes see, as a share of the body height."""
    seen = np.minimum(first.landmarks[:, 2], other.landmarks[:, 2]) > 0.5
    if seen.sum() < 5:
        return np.inf
    distances = np.linalg.norm(first.landmarks[seen, :2] - other.landmarks[seen, :2], axis=1)
    return float(distances.mean() / body_height_px(first.landmarks, first.world))


def person_box(landmarks: Float[np.ndarray, "33 3"], probability: Float[np.ndarray, "H W"]) -> Box:
    """x0, y0, x1, y1 in px round the confident landmarks and the probable pixels, in the image."""
    height, width = probability.shape
    rows, columns = (np.flatnonzero((probability > 0.5).any(axis=axis)) for axis in (1, 0))
    points = landmarks[landmarks[:, 2] > 0.5, :2]
    if len(rows):
        points = np.concatenate([points, [(columns[0], rows[0]), (columns[-1] + 1, rows[-1] + 1)]])
    if not len(points):
        points = landmarks[:, :2]
    (x0, y0), (x1, y1) = (
        np.clip(points.min(axis=0), 0, (width, height)),
        np.clip(points.max(axis=0), 0, (width, height)),
    )
    return float(x0), float(y0), float(x1), float(y1)


def padded(box: Box, margin_px: float) -> Box:
    """The box grown by a margin on all sides; it may leave the image."""
    return box[0] - margin_px, box[1] - margin_px, box[2] + margin_px, box[3] + margin_px


def to_bytes(
    rgb: Float32[np.ndarray, "H W 3"], mask: Float32[np.ndarray, "H W"] | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """8-bit image for the models; what a mask hides becomes mid grey."""
    if mask is not None:
        rgb = rgb * mask[..., None] + 0.5 * (1 - mask[..., None])
    return np.round(np.clip(rgb, 0, 1) * 255).astype(np.uint8)


def cut_out(image: UInt8[np.ndarray, "H W 3"], window: Box) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]]:
    """A window of the image and its corner in px; outside the image the border pixels are repeated."""
    height, width = image.shape[:2]
    x0, y0 = int(np.floor(window[0])), int(np.floor(window[1]))
    x1, y1 = max(int(np.ceil(window[2])), x0 + 1), max(int(np.ceil(window[3])), y0 + 1)
    columns = np.clip(np.arange(x0, x1), 0, width - 1)
    rows = np.clip(np.arange(y0, y1), 0, height - 1)
    return np.ascontiguousarray(image[rows[:, None], columns[None]]), (x0, y0)


def paste(
    part: Float32[np.ndarray, "h w"], corner: tuple[int, int], shape: tuple[int, int]
) -> Float32[np.ndarray, "H W"]:
    """A map of a window put back into a map of the image, zero elsewhere."""
    whole = np.zeros(shape, np.float32)
    x0, y0 = corner
    top, left = max(y0, 0), max(x0, 0)
    bottom, right = min(y0 + part.shape[0], shape[0]), min(x0 + part.shape[1], shape[1])
    if bottom > top and right > left:
        whole[top:bottom, left:right] = part[top - y0 : bottom - y0, left - x0 : right - x0]
    return whole


def _square(
    image: UInt8[np.ndarray, "H W 3"], centre: Float[np.ndarray, 2], half_side: float, side_px: int = 448
) -> tuple[UInt8[np.ndarray, "448 448 3"], float, Float[np.ndarray, 2]]:
    """A square window at the size the small models like: pixels, image px per crop px, corner in px."""
    window = centre[0] - half_side, centre[1] - half_side, centre[0] + half_side, centre[1] + half_side
    crop, corner = cut_out(image, window)
    side = min(crop.shape[:2])
    crop = crop[:side, :side]
    interpolation = cv2.INTER_AREA if side > side_px else cv2.INTER_CUBIC
    return cv2.resize(crop, (side_px, side_px), interpolation=interpolation), side / side_px, np.array(corner, float)
