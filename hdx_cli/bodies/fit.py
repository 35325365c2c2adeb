"""Body, pose and camera from one photo: a maximum-a-posteriori fit by Levenberg-Marquardt with closed-form Jacobians.

First the measured 3D directions pose the skeleton, then the camera's translation follows in closed form, then
landmarks, directions and gravity settle pose and shape, and last the outline is matched to the matte a few times.
Everything runs in camera axes; ``_place_in_world`` turns the result into the frame of ``bodies.base.BodyFit``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from ..camera import Cameras
from ..errors import InputRejected, UsageError
from ..geometry import angles_between, matrices_to_rotvecs, rotvecs_to_matrices
from ..observation import Keypoints, Observation
from .anny_rig import anny_rig
from .base import PARTS, Body, BodyFit, BodyModel, BodyPose
from .posterior import LIMIT_SIGMA_RAD, SHAPE_LIMIT_SIGMA, Evidence, OutlineTerms, Posterior, Terms
from .rig import (
    BODY_DIRECTIONS,
    DIRECTION_NAMES,
    DIRECTIONS,
    FACE,
    FACE_POINTS,
    HAND_LANDMARKS,
    LANDMARKS,
    LEFT_HAND,
    POSE_LANDMARKS,
    RIGHT_HAND,
    TORSO,
    FitRig,
    direction_matrix,
)  # fmt: skip
from .silhouette import Silhouette, match, render_outline, silhouette_of
from .smpl_rig import smpl_rig

RIGS: dict[str, Callable[[BodyModel], FitRig]] = {"anny": anny_rig, "smplx": smpl_rig, "smpl": smpl_rig}  # by family

# BlazePose's world landmarks describe people of this standing height; it turns their scale into px per body height.
BLAZEPOSE_HEIGHT_M = 1.72
DEFAULT_FOCAL = 1.5  # of the longer side: a phone held upright; the fit changes little between 1 and 3
PITCH_MEAN_RAD, PITCH_SIGMA_RAD = math.radians(4), math.radians(7)  # people photograph people slightly from above
ADULT_HEIGHT_M = {None: 1.70, "female": 1.64, "male": 1.77}
HEIGHT_SIGMA_M = 0.06
GENDERS = {"female": 0.95, "male": 0.05, "neutral": 0.5}
BUILDS = {"slim": (0.3, 0.45), "average": (0.5, 0.5), "athletic": (0.5, 0.8), "heavy": (0.8, 0.5)}  # weight, muscle
# Years to Anny's age axis: baby 0, child 1/3, young adult 2/3, old 1.
AGE_YEARS, AGE_PHENOTYPES = (1.0, 11.0, 25.0, 90.0), (0.0, 1 / 3, 2 / 3, 1.0)
GROWTH_YEARS, GROWTH_SHARE = (1.0, 5.0, 11.0, 15.0, 18.0), (0.43, 0.63, 0.83, 0.96, 1.0)
# Square-root weights of landmarks that repeat one another: face and hands of BlazePose, the finer hands and face.
POSE_FACE_WEIGHT, POSE_HAND_WEIGHT, HAND_WEIGHT, FACE_WEIGHT = 0.55, 0.6, 0.45, 0.45
# A body belongs inside its clothes: the outline may leave the mask far less than fall short of it (shares of height).
# On synthetic people this keeps the trunk's girth within 1 %; a tighter sigma makes everyone 5 % too stout.
OUTSIDE_SIGMA, CLOTHED_SIGMA, BARE_SIGMA = 0.008, 0.035, 0.020
OUTSIDE_REACH, INSIDE_REACH = 0.05, 0.02
BARE_PARTS = ("head", "hand", "foot")
OUTLINE_INFORMATION = 60.0  # independent measurements that the whole outline is worth
OUTLINE_WEIGHT = 2.0
OUTLINE_ROUNDS, OUTLINE_STEPS = 6, 3
DIRECTION_STEPS, LANDMARK_STEPS = 12, 15
HAND_AGREEMENT = 0.3  # cosine
SITTING_RAD = math.radians(50)
# of the mean absolute error that the lifting network tells (chosen on validation people)
LIFTED_SIGMA = 0.7
# How far a given pose is from the truth, radians for each joint and axis; and a given shape, of its prior's sigma.
GIVEN_SIGMA_RAD, GIVEN_SHAPE = 0.12, 0.3
# A body of which less than this lies inside the matte is fitted again without the network.
LIFTED_INSIDE = 0.8
# Nearly everybody whose trunk measures steeper than this stands upright; beyond, people run, bend or lean on something.
UPRIGHT_LIMIT_RAD = math.radians(18)


@dataclass(frozen=True)
class BodyPriors:
    """What a person may tell about the body, each None where they do not.

    Attributes:
        gender: ``female``, ``male`` or ``neutral``.
        height_m: standing height; one photo cannot tell it.
        build: ``slim``, ``average``, ``athletic`` or ``heavy``.
        age: years.
    """

    gender: str | None = None
    height_m: float | None = None
    build: str | None = None
    age: float | None = None

    def __post_init__(self) -> None:
        for name, choices in (("gender", GENDERS), ("build", BUILDS)):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise UsageError(f"{name}: {value!r} is none of {', '.join(choices)}")
        for name, low, high in (("height_m", 0.4, 2.6), ("age", 0, 120)):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UsageError(f"{name}: {value} is not between {low} and {high}")


@dataclass(frozen=True)
class GivenPose:
    """What another program says of the person.

    Attributes:
        rotations: of the body model's own joints relative to their parents, the root's in camera axes (x right, y down,
            z away) [J 3 3].
        shape: shape coefficients [S], or None where they are of another body model.
        final: the pose, and the shape where there is one, stay as they are, and only where the person stands is
            looked for; else the photo changes both a little.
    """

    rotations: Float[np.ndarray, "J 3 3"]
    shape: Float[np.ndarray, "S"] | None = None
    final: bool = False


def fit_body(
    model: BodyModel,
    observation: Observation,
    priors: BodyPriors = BodyPriors(),  # noqa: B008 - frozen
    focal_px: float | None = None,
    seed: int = 0,
    given: GivenPose | None = None,
) -> BodyFit:
    """Fit a body model to one person.

    Args:
        model: a body model that has a rig for fitting (``RIGS``).
        observation: the photo, its matte and the landmarks.
        priors: what is known of the person.
        focal_px: focal length in px of the photo's array; otherwise EXIF's, otherwise 1.5 times the longer side.
        seed: has no effect today; the fit draws no random numbers.
        given: pose and shape of another program, as the start or the final word.

    Raises:
        UsageError: for a body model that cannot be fitted.
        InputRejected: where too little of the person is seen to tell a pose.
    """
    rig = rig_of(model)
    if given is None:
        return fit_rig(rig, observation, priors, focal_px)[0]
    if given.shape is not None and len(given.shape) > len(rig.shape_mean):
        rig = smpl_rig(model, shapes=len(given.shape))
    if len(given.rotations) != len(model.parents):
        raise UsageError(f"--body {model.name}: a pose of {len(given.rotations)} joints for {len(model.parents)}")
    return _fit_given(rig, observation, priors, focal_px, given)


def rig_of(model: BodyModel) -> FitRig:
    """A body model prepared for fitting.

    Raises:
        UsageError: for a body model that cannot be fitted.
    """
    family = model.name.split("-")[0]
    if family not in RIGS:
        raise UsageError(f"--body {model.name}: this body model cannot be fitted to a photo")
    return RIGS[family](model)


def fit_rig(
    rig: FitRig, observation: Observation, priors: BodyPriors, focal_px: float | None = None
) -> tuple[BodyFit, Posterior, Float[np.ndarray, "n"]]:
    """``fit_body`` on a prepared rig; also returns the posterior and the parameters at its maximum."""
    found = _fit(rig, observation, priors, focal_px)
    if rig.lifting is not None and found[0].scores["inside_mask"] < LIFTED_INSIDE:
        # landmarks that contradict what the network sees, of a person found upside down for one
        found = max(found, _fit(replace(rig, lifting=None), observation, priors, focal_px),
                    key=lambda fit: fit[0].scores["silhouette_iou"])  # fmt: skip
    return found


def _fit(
    rig: FitRig, observation: Observation, priors: BodyPriors, focal_px: float | None
) -> tuple[BodyFit, Posterior, Float[np.ndarray, "n"]]:
    height, width = observation.alpha.shape
    focal_px = focal_px or observation.photo.focal_px or DEFAULT_FOCAL * max(height, width)
    evidence = gather_evidence(rig, observation, focal_px, priors)
    posterior = posterior_of(rig, evidence, priors)
    x = posterior.mean.copy()
    x[posterior.translation] = 0, 0, focal_px * BLAZEPOSE_HEIGHT_M / evidence.height_px
    pose_only = np.zeros(len(x), bool)
    pose_only[posterior.pose] = True
    everything = np.ones(len(x), bool)

    x[posterior.pose] = limb_guess(rig, evidence)
    x = posterior.maximise(x, pose_only, Terms(landmarks=False, gravity=False), DIRECTION_STEPS)
    x[posterior.translation] = _translation_to_landmarks(posterior, x)
    x = posterior.maximise(x, everything, Terms(), LANDMARK_STEPS)
    target = silhouette_of(observation.alpha, evidence.height_px)
    for _ in range(OUTLINE_ROUNDS):
        outline = outline_terms(posterior, x, target)
        x = posterior.maximise(x, everything, Terms(outline=outline), OUTLINE_STEPS)
    return _place_in_world(posterior, x, target, width, height), posterior, x


def _fit_given(
    rig: FitRig, observation: Observation, priors: BodyPriors, focal_px: float | None, given: GivenPose
) -> BodyFit:
    """The fit round a given pose: the detectors' depth is left out, the pose's priors are narrow and about it."""
    height, width = observation.alpha.shape
    focal_px = focal_px or observation.photo.focal_px or DEFAULT_FOCAL * max(height, width)
    turned = matrices_to_rotvecs(given.rotations.astype(float))
    turned[0] = 0  # the root's rotation is kept apart
    basis = rig.pose_basis.reshape(turned.size, -1)
    pose = np.linalg.lstsq(basis, turned.reshape(-1), rcond=None)[0]
    rig = replace(
        rig,
        lifting=None,
        pose_offset=turned - rig.pose_basis @ pose,
        pose_mean=pose,
        pose_sigma=np.minimum(rig.pose_sigma, GIVEN_SIGMA_RAD),
    )
    if given.shape is not None:
        shape = np.zeros_like(rig.shape_mean)
        shape[: len(given.shape)] = given.shape
        rig = replace(rig, shape_mean=shape, shape_sigma=GIVEN_SHAPE * rig.shape_sigma)
    evidence = gather_evidence(rig, observation, focal_px, priors)
    evidence = replace(evidence, root_rotation=given.rotations[0].astype(float))
    posterior = posterior_of(rig, evidence, priors)
    x = posterior.mean.copy()
    x[posterior.translation] = 0, 0, focal_px * BLAZEPOSE_HEIGHT_M / evidence.height_px
    x[posterior.translation] = _translation_to_landmarks(posterior, x)
    free = np.ones(len(x), bool)
    if given.final:
        free[posterior.pose] = False
        free[posterior.shape] = given.shape is None
    x = posterior.maximise(x, free, Terms(directions=False), LANDMARK_STEPS)
    target = silhouette_of(observation.alpha, evidence.height_px)
    for _ in range(OUTLINE_ROUNDS):
        outline = outline_terms(posterior, x, target)
        x = posterior.maximise(x, free, Terms(directions=False, outline=outline), OUTLINE_STEPS)
    return _place_in_world(posterior, x, target, width, height)


def gather_evidence(rig: FitRig, observation: Observation, focal_px: float, priors: BodyPriors) -> Evidence:
    """Landmarks, directions and a first orientation from what the detectors and the lifting network found."""
    keypoints, (height, width) = observation.keypoints, observation.alpha.shape
    pixels, points, confidence = landmark_arrays(keypoints)
    seen = confidence[:POSE_LANDMARKS] > 0.3
    if seen.sum() < 6:
        raise InputRejected(
            f"only {seen.sum()} of 33 body landmarks are visible: the pose cannot be told",
            hint="take a photo that shows more of the person",
        )
    world = keypoints.world.astype(float)
    root = body_axes(world)
    directions, sigma, direction_confidence = calibrated_directions(rig, points, confidence, root)
    if rig.lifting is not None:
        directions, sigma = directions.copy(), sigma.copy()
        lifted, noise = rig.lifting(observation, focal_px, directions[:BODY_DIRECTIONS])
        directions[:BODY_DIRECTIONS], sigma[:BODY_DIRECTIONS] = lifted, LIFTED_SIGMA * noise
    for side, first in (("left", LEFT_HAND), ("right", RIGHT_HAND)):
        # The hand model sometimes takes a hand for one of the other side; BlazePose then contradicts it.
        palm = DIRECTION_NAMES.index(f"{side}_palm_across")
        if directions[palm] @ directions[DIRECTION_NAMES.index(f"{side}_knuckles")] < HAND_AGREEMENT:
            confidence[first : first + HAND_LANDMARKS] = 0
            direction_confidence[[palm, DIRECTION_NAMES.index(f"{side}_palm")]] = 0
    height_px = BLAZEPOSE_HEIGHT_M * px_per_m(keypoints.pixels[seen, :2].astype(float), world[seen, :2])
    thighs = directions[[DIRECTION_NAMES.index(f"{side}_upper_leg") for side in ("left", "right")]]
    sitting = (np.arccos(np.clip(thighs[:, 1], -1, 1)) > SITTING_RAD).all()
    upright = math.acos(np.clip(-directions[TORSO, 1], -1, 1)) < UPRIGHT_LIMIT_RAD
    feet_seen = confidence[[27, 28, 31, 32]].min() > 0.4
    return Evidence(
        focal_px=focal_px,
        cx=width / 2,
        cy=height / 2,
        height_px=height_px,
        pixels=pixels,
        confidence=np.where(confidence > 0.3, confidence, 0) * _repetition_weights(),
        directions=directions,
        direction_sigma=sigma,
        direction_confidence=direction_confidence,
        root_rotation=root,
        balanced=bool(feet_seen and upright and not sitting),
        upright=upright,
        height_m=_expected_height_m(priors),
        height_sigma_m=0.005 if priors.height_m else HEIGHT_SIGMA_M,
    )


def landmark_arrays(keypoints: Keypoints):
    """All landmarks of a fit: pixels [L 2], 3D positions that are comparable within a group [L 3], confidence [L]."""
    pixels, points, confidence = np.zeros((LANDMARKS, 2)), np.zeros((LANDMARKS, 3)), np.zeros(LANDMARKS)
    pixels[:POSE_LANDMARKS] = keypoints.pixels[:, :2]
    points[:POSE_LANDMARKS] = keypoints.world
    confidence[:POSE_LANDMARKS] = keypoints.pixels[:, 2]
    face = None if keypoints.face is None else keypoints.face[list(FACE_POINTS)]
    for first, found in ((LEFT_HAND, keypoints.left_hand), (RIGHT_HAND, keypoints.right_hand), (FACE, face)):
        if found is not None:
            rows = slice(first, first + len(found))
            pixels[rows], points[rows], confidence[rows] = found[:, :2], found, 1.0
    return pixels, points, confidence


def _repetition_weights() -> Float[np.ndarray, "L"]:
    weights = np.ones(LANDMARKS)
    weights[:11] = POSE_FACE_WEIGHT
    weights[17:23] = POSE_HAND_WEIGHT
    weights[LEFT_HAND:FACE] = HAND_WEIGHT
    for first in (LEFT_HAND, RIGHT_HAND):
        weights[first + 3 : first + 5] = 0  # the thumb's end: the rig's thumb does not bend
    weights[FACE:] = FACE_WEIGHT
    return weights


def px_per_m(pixels: Float[np.ndarray, "P 2"], world: Float[np.ndarray, "P 2"]) -> float:
    """Scale between image and world landmarks by least squares."""
    pixels, world = pixels - pixels.mean(axis=0), world - world.mean(axis=0)
    return float(max((pixels * world).sum() / (world**2).sum(), 1e-3))


def body_axes(world: Float[np.ndarray, "33 3"]) -> Float[np.ndarray, "3 3"]:
    """Columns: the body's left, up and front in camera axes, from shoulders and hips."""
    left = world[11] - world[12] + world[23] - world[24]
    up = world[11] + world[12] - world[23] - world[24]
    left /= np.linalg.norm(left)
    front = np.cross(left, up)
    front /= np.linalg.norm(front)
    return np.stack([left, np.cross(front, left), front], axis=1)


def yaw_frame(root: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3 3"]:
    """Rotation about the camera's vertical axis that takes x to the body's left."""
    left, right_to_left = root[0, 0], root[2, 0]
    norm = max(math.hypot(left, right_to_left), 1e-9)
    cos, sin = left / norm, right_to_left / norm
    return np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])


def calibrated_directions(
    rig: FitRig, points: Float[np.ndarray, "L 3"], confidence: Float[np.ndarray, "L"], root: Float[np.ndarray, "3 3"]
) -> tuple[Float[np.ndarray, "N 3"], Float[np.ndarray, "N 3"], Float[np.ndarray, "N"]]:
    """Measured directions freed of the detectors' biases: unit vectors, noise along camera axes, confidence."""
    vectors = direction_matrix() @ points
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    turn = yaw_frame(root)
    corrected = rig.calibration.corrected(units @ turn)
    certainty = np.zeros(len(DIRECTIONS))
    for index, (_, start, end) in enumerate(DIRECTIONS):
        lowest = min(confidence[[*start, *end]].min(), 1.0)
        if max(start) < POSE_LANDMARKS:
            # BlazePose guesses what it does not see, and its guess is better than none
            lowest = 0.35 + 0.65 * lowest
        certainty[index] = lowest
    return corrected @ turn.T, rig.calibration.direction_sigma, certainty


def limb_guess(rig: FitRig, evidence: Evidence) -> Float[np.ndarray, "D"]:
    """Pose parameters with arms and legs along their measured directions, the rest at the prior's mean.

    The hinge takes the angle between the two bones; the ball's rotation is the least-squares one (Kabsch 1976) between
    the limb's rest directions and the measured ones, with a slight pull to no rotation, which settles the twist of a
    straight limb. Without this a bent limb can end straight in a wrong local minimum.
    """
    guess = rig.pose_mean.copy()
    measured = evidence.directions @ evidence.root_rotation  # in the body's axes
    for limb in rig.limbs:
        upper, lower = measured[limb.upper], measured[limb.lower]
        rest_bend = math.asin(np.clip(np.cross(limb.upper_rest, limb.lower_rest) @ limb.axis, -1, 1))
        bend = float(angles_between(upper, lower)) - rest_bend
        guess[limb.hinge] = np.clip(bend, *rig.pose_limits[limb.hinge])
        bent = rotvecs_to_matrices(limb.axis * guess[limb.hinge]) @ limb.lower_rest
        weak = 0.1 * np.eye(3)
        moment = np.outer(upper, limb.upper_rest) + np.outer(lower, bent) + weak
        u, _, vt = np.linalg.svd(moment)
        turn = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
        guess[limb.ball : limb.ball + 3] = matrices_to_rotvecs(turn)
    return guess


def _expected_height_m(priors: BodyPriors) -> float:
    if priors.height_m:
        return priors.height_m
    grown = 1.0 if priors.age is None else float(np.interp(priors.age, GROWTH_YEARS, GROWTH_SHARE))
    return grown * ADULT_HEIGHT_M.get(priors.gender, ADULT_HEIGHT_M[None])


def posterior_of(rig: FitRig, evidence: Evidence, priors: BodyPriors) -> Posterior:
    """Priors of all parameters: pose, shape (narrowed by what is known of the person), pitch, translation."""
    shape_mean, shape_sigma = rig.shape_mean.copy(), rig.shape_sigma.copy()
    names = list(getattr(rig.model, "shape_names", ()))
    known: dict[str, float] = {}
    if priors.gender is not None:
        known["gender"] = GENDERS[priors.gender]
    if priors.build is not None:
        known["weight"], known["muscle"] = BUILDS[priors.build]
    if priors.age is not None:
        known["age"] = float(np.interp(priors.age, AGE_YEARS, AGE_PHENOTYPES))
    for name, value in known.items():
        if name in names:
            shape_mean[names.index(name)] = value
            shape_sigma[names.index(name)] = 0.05
    free = np.full((4, 2), (-np.inf, np.inf))
    return Posterior(
        rig=rig,
        evidence=evidence,
        mean=np.concatenate([rig.pose_mean, shape_mean, [PITCH_MEAN_RAD, 0, 0, 0]]),
        sigma=np.concatenate([rig.pose_sigma, shape_sigma, [PITCH_SIGMA_RAD, 1e3, 1e3, 1e3]]),
        limits=np.concatenate([rig.pose_limits, rig.shape_limits, free]),
        limit_sigma=np.concatenate(
            [np.full(len(rig.pose_mean), LIMIT_SIGMA_RAD), np.full(len(shape_mean), SHAPE_LIMIT_SIGMA), np.ones(4)]
        ),
    )


def _translation_to_landmarks(posterior: Posterior, x: Float[np.ndarray, "n"]) -> Float[np.ndarray, "3"]:
    """The translation under which the posed landmarks project best, by linear least squares."""
    e = posterior.evidence
    landmarks = posterior.state(x).landmarks - x[posterior.translation]
    seen = e.confidence > 0
    weight = e.confidence[seen]
    u, v = ((e.pixels[seen] - (e.cx, e.cy)) / e.focal_px).T
    a, b, c = landmarks[seen].T
    zero, one = np.zeros_like(u), np.ones_like(u)
    matrix = np.concatenate([np.stack([one, zero, -u], axis=1), np.stack([zero, one, -v], axis=1)])
    target = np.concatenate([u * c - a, v * c - b])
    weights = np.concatenate([weight, weight])
    return np.linalg.lstsq(matrix * weights[:, None], target * weights, rcond=None)[0]


def vertices_in_camera(posterior: Posterior, x: Float[np.ndarray, "n"]) -> Float[np.ndarray, "V 3"]:
    """All vertices in camera axes."""
    state, model = posterior.state(x), posterior.rig.model
    rest = model.rest(x[posterior.shape].astype(np.float32)).vertices
    posed = state.posed
    transforms = np.concatenate([posed.rotations, posed.translations[..., None]], axis=2)
    blended = (model.weights @ transforms.reshape(len(transforms), 12).astype(np.float32)).reshape(-1, 3, 4)
    return np.einsum("vab,vb->va", blended[..., :3], rest) + blended[..., 3]


def outline_terms(posterior: Posterior, x: Float[np.ndarray, "n"], target: Silhouette) -> OutlineTerms | None:
    """Match the body's outline to the mask's and weigh every pair; None where nothing matches."""
    e = posterior.evidence
    camera = target.camera(e.focal_px, e.cx, e.cy)
    vertices = vertices_in_camera(posterior, x)
    rendered = render_outline(vertices, posterior.rig.model.faces, camera)
    index, pairs = match(rendered, target.outline, target.height_px)
    if not len(index):
        return None
    K = camera.Ks[0].double().numpy()
    pixels = vertices[index, :2] / vertices[index, 2:] * K[0, 0] + K[:2, 2]
    apart = ((pixels - pairs.points) * pairs.normals).sum(axis=1) / target.height_px
    outside = apart > 0
    bare = np.isin(posterior.rig.model.parts[index], [PARTS.index(part) for part in BARE_PARTS])
    sigma = np.where(outside, OUTSIDE_SIGMA, np.where(bare, BARE_SIGMA, CLOTHED_SIGMA))
    reach = np.where(outside, OUTSIDE_REACH, INSIDE_REACH)
    robust = reach**2 / (reach**2 + apart**2)
    weights = robust / sigma * math.sqrt(OUTLINE_INFORMATION / len(index)) * OUTLINE_WEIGHT
    unique, inverse = np.unique(index, return_inverse=True)
    from_margin = K[:2, 2] - np.array([e.cx, e.cy]) * target.scale
    return OutlineTerms(
        points=posterior.rig.vertex_points(unique),
        index=inverse,
        targets=(pairs.points - from_margin) / target.scale,
        normals=pairs.normals,
        weights=weights,
    )


def _place_in_world(
    posterior: Posterior, x: Float[np.ndarray, "n"], target: Silhouette, width: int, height: int
) -> BodyFit:
    """From camera axes to the world of ``BodyFit``: gravity along -y, feet on y = 0, the pelvis on the y axis."""
    rig, e = posterior.rig, posterior.evidence
    state, shape = posterior.state(x), x[posterior.shape].astype(np.float32)
    pitch = x[posterior.pitch]
    forward = np.array([0.0, -np.sin(pitch), np.cos(pitch)])
    up = np.array([0.0, -np.cos(pitch), -np.sin(pitch)])
    to_world = np.stack([np.array([1.0, 0, 0]), up, -forward])
    vertices = vertices_in_camera(posterior, x)
    pelvis = state.posed.centres[0]
    # turn about the vertical so that the camera comes to lie at x = 0, z > 0
    camera_at = to_world @ -pelvis
    azimuth = math.atan2(camera_at[0], camera_at[2])
    cos, sin = math.cos(azimuth), math.sin(azimuth)
    to_world = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]]) @ to_world
    floor = ((vertices - pelvis) @ to_world.T)[:, 1].min()
    origin = pelvis + floor * to_world[1]  # of the world, in camera axes

    rotations = rotvecs_to_matrices(rig.rotvecs(x[posterior.pose]))
    rotations[0] = to_world @ rotations[0] @ e.root_rotation
    translation = np.array([0.0, -floor, 0.0]) - state.joints[0]
    viewmat = np.eye(4)
    viewmat[:3, :3], viewmat[:3, 3] = to_world.T, origin
    K = np.array([[e.focal_px, 0, e.cx], [0, e.focal_px, e.cy], [0, 0, 1]])
    camera = Cameras(
        torch.tensor(viewmat[None], dtype=torch.float32), torch.tensor(K[None], dtype=torch.float32), width, height
    )
    pose = BodyPose(rotations[None].astype(np.float32), translation[None].astype(np.float32))
    return BodyFit(Body(rig.model.name, shape), pose, camera, _scores(posterior, x, target, vertices, to_world))


def _scores(
    posterior: Posterior, x: Float[np.ndarray, "n"], target: Silhouette, vertices: Float[np.ndarray, "V 3"], to_world
) -> dict[str, float]:
    """How well the body explains the photo; see ``BodyFit``. Errors are over the body landmarks that are seen."""
    e, state = posterior.evidence, posterior.state(x)
    body = [0, 7, 8, *range(11, 17), *range(23, 33)]
    seen = [i for i in body if e.confidence[i] > 0.25]
    error = np.linalg.norm(posterior.project(state.landmarks[seen]) - e.pixels[seen], axis=1) / e.height_px * 100
    rendered = render_outline(vertices, posterior.rig.model.faces, target.camera(e.focal_px, e.cx, e.cy))
    covered, mask = rendered.mask & target.inside, target.mask & target.inside
    both = (covered & mask).sum()
    hips, shoulders, torso = posterior.directions(state.landmarks)[:3] @ to_world.T
    front = np.cross(hips + shoulders, (0.0, 1.0, 0.0))
    front /= max(np.linalg.norm(front), 1e-9)
    return {
        "kp_mean_pct": float(error.mean()) if len(seen) else float("nan"),
        "kp_max_pct": float(error.max()) if len(seen) else float("nan"),
        "silhouette_iou": float(both / max(1, (covered | mask).sum())),
        "inside_mask": float(both / max(1, covered.sum())),
        "lean_deg": math.degrees(math.atan2(torso @ front, torso[1])),  # of the trunk, forwards from upright
        "pitch_deg": math.degrees(x[posterior.pitch]),
        "height_m": posterior.height_m(x)[0],
    }
