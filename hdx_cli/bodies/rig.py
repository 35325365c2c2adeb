"""What the body fit must know about a body model: which joints move and how, and where its landmarks lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from ..observation import Observation
from .base import BodyModel
from .kinematics import RiggedPoints

# Landmarks of a fit, in this order: 33 BlazePose, 21 left hand, 21 right hand, chosen points of the face mesh.
POSE_LANDMARKS, HAND_LANDMARKS = 33, 21
# Points of MediaPipe's face mesh that hold still when a face moves: nose, forehead, chin, eye corners, mouth, temples.
FACE_POINTS = (1, 4, 6, 10, 152, 33, 263, 133, 362, 61, 291, 234, 454, 127, 356)
LANDMARKS = POSE_LANDMARKS + 2 * HAND_LANDMARKS + len(FACE_POINTS)
LEFT_HAND, RIGHT_HAND = POSE_LANDMARKS, POSE_LANDMARKS + HAND_LANDMARKS
FACE = POSE_LANDMARKS + 2 * HAND_LANDMARKS


def _face(*points: int) -> list[int]:
    return [FACE + FACE_POINTS.index(point) for point in points]


# Directions that tell how a body stands in depth: name, landmarks it starts between, landmarks it ends between. The
# trunk's three come first. BlazePose measures its 33 in metres; hands and the face have relative depths, so a direction
# stays within its group.
DIRECTIONS: tuple[tuple[str, list[int], list[int]], ...] = (
    ("hips", [24], [23]),
    ("shoulders", [12], [11]),
    ("torso", [23, 24], [11, 12]),
    ("neck", [11, 12], [7, 8]),
    ("ears", [8], [7]),
    ("gaze", [7, 8], [0]),
    ("left_upper_arm", [11], [13]),
    ("right_upper_arm", [12], [14]),
    ("left_lower_arm", [13], [15]),
    ("right_lower_arm", [14], [16]),
    ("left_hand", [15], [17, 19]),
    ("right_hand", [16], [18, 20]),
    ("left_knuckles", [17], [19]),
    ("right_knuckles", [18], [20]),
    ("left_thumb", [15], [21]),
    ("right_thumb", [16], [22]),
    ("left_upper_leg", [23], [25]),
    ("right_upper_leg", [24], [26]),
    ("left_lower_leg", [25], [27]),
    ("right_lower_leg", [26], [28]),
    ("left_foot", [29], [31]),
    ("right_foot", [30], [32]),
    ("left_instep", [27], [31]),
    ("right_instep", [28], [32]),
    ("left_palm", [LEFT_HAND], [LEFT_HAND + 9]),
    ("right_palm", [RIGHT_HAND], [RIGHT_HAND + 9]),
    ("left_palm_across", [LEFT_HAND + 17], [LEFT_HAND + 5]),
    ("right_palm_across", [RIGHT_HAND + 17], [RIGHT_HAND + 5]),
    ("face_across", _face(234, 127), _face(454, 356)),
    ("face_up", _face(152), _face(10)),
    ("face_forward", _face(234, 454), _face(1, 4)),
)
DIRECTION_NAMES = tuple(name for name, _, _ in DIRECTIONS)
BODY_DIRECTIONS = DIRECTION_NAMES.index("left_palm")  # those of BlazePose come first
TORSO = DIRECTION_NAMES.index("torso")
# The far-side partner of every landmark and direction: swaps left and right.
_POSE_PAIRS = [(1, 4), (2, 5), (3, 6), (7, 8), (9, 10)] + [(i, i + 1) for i in range(11, 33, 2)]
_FACE_PAIRS = [(33, 263), (133, 362), (61, 291), (234, 454), (127, 356)]


def mirrored_landmarks() -> Int[np.ndarray, "L"]:
    """Index of every landmark's mirror image [L]."""
    index = np.arange(LANDMARKS)
    pairs = [*_POSE_PAIRS, *((LEFT_HAND + i, RIGHT_HAND + i) for i in range(HAND_LANDMARKS))]
    for a, b in [*pairs, *((_face(p)[0], _face(q)[0]) for p, q in _FACE_PAIRS)]:
        index[a], index[b] = b, a
    return index


def mirrored_directions() -> tuple[Int[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """Index of every direction's mirror image [N], and -1 where mirroring also swaps its ends."""
    swap = mirrored_landmarks()
    ends = {(frozenset(a), frozenset(b)): i for i, (_, a, b) in enumerate(DIRECTIONS)}
    index, sign = np.zeros(len(DIRECTIONS), int), np.ones(len(DIRECTIONS))
    for i, (_, start, end) in enumerate(DIRECTIONS):
        key = frozenset(swap[start].tolist()), frozenset(swap[end].tolist())
        if key in ends:
            index[i] = ends[key]
        else:
            index[i], sign[i] = ends[key[::-1]], -1.0
    return index, sign


def direction_matrix() -> Float[np.ndarray, "N L"]:
    """Takes landmark positions [L 3] to (unnormalised) directions [N 3]."""
    matrix = np.zeros((len(DIRECTIONS), LANDMARKS))
    for row, (_, start, end) in zip(matrix, DIRECTIONS, strict=True):
        row[start] -= 1 / len(start)
        row[end] += 1 / len(end)
    return matrix


@dataclass(frozen=True)
class Calibration:
    """What a landmark detector means and how far it errs, measured on synthetic people (``training.calibrate_body``).

    Attributes:
        sigma: 2D noise of every landmark as a share of the body height [L].
        body_mean, body_gain, body_bias: what the B body directions need added, bias + gain @ (all of them - mean), as
            one vector, in axes turned about the vertical so that x is the body's left [B3], [B3 B3], [B3].
        body_reach: distance from the mean beyond which people were not measured; the gain does not extrapolate.
        fine_gain, fine_bias: the same for every direction of the hands and the face by itself [E 3 3], [E 3].
        direction_sigma: noise after that along camera x, y and depth [N 3].
    """

    sigma: Float[np.ndarray, "L"]
    body_mean: Float[np.ndarray, "B3"]
    body_gain: Float[np.ndarray, "B3 B3"]
    body_bias: Float[np.ndarray, "B3"]
    body_reach: float
    fine_gain: Float[np.ndarray, "E 3 3"]
    fine_bias: Float[np.ndarray, "E 3"]
    direction_sigma: Float[np.ndarray, "N 3"]

    def corrected(self, directions: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
        """Measured unit directions in yaw axes, freed of the detectors' biases."""
        body, fine = directions[:BODY_DIRECTIONS].reshape(-1), directions[BODY_DIRECTIONS:]
        away = body - self.body_mean
        away = away * min(1.0, self.body_reach / max(np.linalg.norm(away), 1e-9))
        body = (body + self.body_bias + self.body_gain @ away).reshape(-1, 3)
        fine = fine + self.fine_bias + np.einsum("nab,nb->na", self.fine_gain, fine)
        both = np.concatenate([body, fine])
        return both / np.maximum(np.linalg.norm(both, axis=1, keepdims=True), 1e-9)


# (observation, focal length in px, the detector's body directions [B 3]) -> body directions and their noise [B 3], [B 3],
# all in camera axes
Lifting = Callable[[Observation, float, np.ndarray], tuple[np.ndarray, np.ndarray]]


SIDES = {"left": "L", "right": "R"}


@dataclass(frozen=True)
class Limb:
    """Two bones with a ball joint above and a hinge between them.

    Attributes:
        upper, lower: the directions that measure the bones.
        ball, hinge: the ball's first pose parameter (of three) and the hinge's.
        upper_rest, lower_rest, axis: directions of the bones and of the hinge's axis in the rest body.
    """

    upper: int
    lower: int
    ball: int
    hinge: int
    upper_rest: Float[np.ndarray, "3"]
    lower_rest: Float[np.ndarray, "3"]
    axis: Float[np.ndarray, "3"]


def limbs_of(
    joint_names: tuple[str, ...],
    joints: Float[np.ndarray, "J 3"],
    bones: Mapping[str, tuple[str, str, str]],
    names: tuple[str, ...],
    basis: Float[np.ndarray, "J 3 D"],
) -> tuple[Limb, ...]:
    """Both arms and legs of a rest body.

    Args:
        joint_names, joints: of the model, metres; bones: the names of an ``arm``'s and a ``leg``'s three joints, with
            ``{side}`` (left, right) or ``{s}`` (L, R) in them.
        names, basis: of the pose parameters.
    """
    limbs = []
    for side, s in SIDES.items():
        for limb, ball, hinge in (("arm", "shoulder", "elbow"), ("leg", "hip", "knee")):
            start, middle, end = (joint_names.index(bone.format(side=side, s=s)) for bone in bones[limb])
            upper, lower = joints[middle] - joints[start], joints[end] - joints[middle]
            column = names.index(f"{side}_{hinge}")
            limbs.append(
                Limb(
                    upper=DIRECTION_NAMES.index(f"{side}_upper_{limb}"),
                    lower=DIRECTION_NAMES.index(f"{side}_lower_{limb}"),
                    ball=names.index(f"{side}_{ball}_x"),
                    hinge=column,
                    upper_rest=upper / np.linalg.norm(upper),
                    lower_rest=lower / np.linalg.norm(lower),
                    axis=basis[middle, :, column],
                )
            )
    return tuple(limbs)


@dataclass(frozen=True)
class FitRig:
    """A body model prepared for fitting: D pose parameters, S shape coefficients, L landmarks.

    Attributes:
        model: the body model.
        coefficients, coefficients_jacobian: of the model's linear blend shapes, from the shape: [K], [K S].
        joints, joints_blend: rest joints [J 3] and their change per coefficient [K J 3].
        pose_basis: rotation vectors of all joints per pose parameter [J 3 D]; the first three turn the root.
        pose_names: of the pose parameters.
        pose_mean, pose_sigma: everyday poses, radians [D].
        pose_limits: [D 2] radians, infinite where free.
        shape_mean, shape_sigma, shape_limits: of plausible people [S], [S], [S 2].
        landmarks: where the model has the L landmarks.
        centre_of_mass: one point.
        limbs: arms and legs, whose pose can be read off their directions.
        calibration: of the landmark detector.
        vertex_points: skinned vertices by index.
        top_and_sole: the top of the head and then points of the soles, which tell the standing height.
        lifting: better body directions from the picture, given the detector's, or None (``lifting.lifted_directions``).
        pose_offset: rotation vectors of all joints at zero pose parameters [J 3]; None for no rotation.
    """

    model: BodyModel
    coefficients: Callable[[Float[np.ndarray, "S"]], Float[np.ndarray, "K"]]
    coefficients_jacobian: Callable[[Float[np.ndarray, "S"]], Float[np.ndarray, "K S"]]
    joints: Float[np.ndarray, "J 3"]
    joints_blend: Float[np.ndarray, "K J 3"]
    pose_names: tuple[str, ...]
    pose_basis: Float[np.ndarray, "J 3 D"]
    pose_mean: Float[np.ndarray, "D"]
    pose_sigma: Float[np.ndarray, "D"]
    pose_limits: Float[np.ndarray, "D 2"]
    shape_mean: Float[np.ndarray, "S"]
    shape_sigma: Float[np.ndarray, "S"]
    shape_limits: Float[np.ndarray, "S 2"]
    landmarks: RiggedPoints
    centre_of_mass: RiggedPoints
    limbs: tuple[Limb, ...]
    calibration: Calibration
    vertex_points: Callable[[Int[np.ndarray, "N"]], RiggedPoints]
    top_and_sole: RiggedPoints
    lifting: Lifting | None = None
    pose_offset: Float[np.ndarray, "J 3"] | None = None

    def rotvecs(self, pose: Float[np.ndarray, "D"]) -> Float[np.ndarray, "J 3"]:
        """Rotation vectors of all joints [J 3] under pose parameters [D]."""
        turned = self.pose_basis @ pose
        return turned if self.pose_offset is None else turned + self.pose_offset
