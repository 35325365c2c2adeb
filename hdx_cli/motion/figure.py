"""Procedural movement: where trunk, arms and feet go over time, put on a rig with the feet exactly where they belong.

A figure is described in the axes of an upright person facing +Z in a T-pose with palms down; lengths are in units of
the leg (thigh plus shin), so one description serves every body. Legs are solved for the feet: thigh, shin and the
distance from hip to ankle make a triangle, and the knee lies towards the toes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ..bodies.base import BodyPose
from ..geometry import rotvecs_to_matrices
from .retarget import Foot, Rig, alignment, joint_positions, pose_rotations, sole_points
from .skeleton import FINGERS, SIDES, Skeleton

STRETCH = 0.998  # of the leg at most: a straight knee flickers


@dataclass(frozen=True)
class Arm:
    """One arm over T frames, as of the left arm; the right one is its mirror image.

    Attributes:
        direction: of the upper arm in the chest's axes, +X away from the body [T 3].
        bend: where the elbow takes the forearm, roughly; the palm faces direction x bend [T 3].
        elbow: flexion, radians [T].
        turn: of the palm about the forearm, positive thumb up from a T-pose, radians [T].
        wrist: flexion towards the palm, radians [T].
        curl: flexion of each finger joint besides that at rest, radians [T].
        lift: of the shoulder, radians [T].
    """

    direction: Float[np.ndarray, "T 3"]
    bend: Float[np.ndarray, "T 3"]
    elbow: Float[np.ndarray, "T"]
    turn: Float[np.ndarray, "T"]
    wrist: Float[np.ndarray, "T"]
    curl: Float[np.ndarray, "T"]
    lift: Float[np.ndarray, "T"]


@dataclass(frozen=True)
class Step:
    """One foot over T frames.

    Attributes:
        place: x, z of the ankle of the flat foot, leg lengths, besides half the width of the hips beside it [T 2].
        lift: of the whole foot above the ground, leg lengths [T].
        yaw: about the vertical, positive to the person's left, radians [T].
        pitch: positive lifts the heel about the ball, negative the toes about the heel, radians [T].
    """

    place: Float[np.ndarray, "T 2"]
    lift: Float[np.ndarray, "T"]
    yaw: Float[np.ndarray, "T"]
    pitch: Float[np.ndarray, "T"]


@dataclass(frozen=True)
class Figure:
    """A person over T frames.

    Attributes:
        pelvis, chest, head: world rotations [T 3 3].
        hips: x, y, z of the pelvis in leg lengths; y = 1 is the height with straight legs [T 3].
        arms, feet: left and right.
    """

    pelvis: Float[np.ndarray, "T 3 3"]
    chest: Float[np.ndarray, "T 3 3"]
    head: Float[np.ndarray, "T 3 3"]
    hips: Float[np.ndarray, "T 3"]
    arms: tuple[Arm, Arm]
    feet: tuple[Step, Step]


def turned(
    pitch: Float[np.ndarray, "T"], yaw: Float[np.ndarray, "T"], roll: Float[np.ndarray, "T"]
) -> Float[np.ndarray, "T 3 3"]:
    """Rotations [T 3 3]: roll about +Z (towards the right), then pitch about +X (forward), then yaw about +Y (left)."""
    return _about("y", yaw) @ _about("x", pitch) @ _about("z", roll)


def placed(figure: Figure, target: Rig) -> tuple[BodyPose, float]:
    """The figure on a rig: the pose, and by how much the hips had to give way to what the legs reach, at most, metres.

    On a rig without known legs or feet the trunk, head and arms move and the root stays in place.
    """
    body, frames = target.skeleton, len(figure.hips)
    align = alignment(body, _t_pose())
    world = {"pelvis": [figure.pelvis], "spine": [figure.chest], "head": [figure.head]}
    for side, arm in zip(SIDES, figure.arms, strict=True):
        world |= _arm_rotations(arm, side, figure.chest)
    root = np.tile(body.joints[0], (frames, 1))
    length, given_way = body.leg_length(), 0.0
    if length and len(target.feet) == 2:
        root, given_way = _legs(figure, target, align, world, length)
    local, total = pose_rotations(body, align, world)
    travel = root - body.joints[0]
    if len(target.feet) == 2:
        # soles bend a little differently from the rule's: what is lowest stands on the ground, jumps apart
        places = joint_positions(total, body.joints, body.parents, root)
        lowest = sole_points(target, total, places)[..., 1].min(axis=1)
        wanted = length * np.minimum(figure.feet[0].lift, figure.feet[1].lift)
        travel[:, 1] += np.where(lowest < wanted, wanted - lowest, 0.0)
    else:
        travel[:, 1] -= body.joints[:, 1].min()
    return BodyPose(local, travel.astype(np.float32)), given_way


def _legs(
    figure: Figure, target: Rig, align: dict, world: dict, length: float
) -> tuple[Float[np.ndarray, "T 3"], float]:
    """Adds the legs' rotations to ``world``; returns the root's places [T 3] and how far the hips were lowered."""
    body = target.skeleton
    pelvis = body.slots["pelvis"][0]
    hips = [body.first(f"upper_leg.{side}") for side in SIDES]
    middle = (hips[0] + hips[1]) / 2
    feet = [target.feet[side] for side in SIDES]
    # straight legs under level hips, feet flat
    ankles = [body.first(f"foot.{side}") for side in SIDES]
    ankle_height = float(np.mean([a[1] - foot.points[0, 1] for a, foot in zip(ankles, feet, strict=True)]))
    stance = float(abs(hips[0][0] - hips[1][0]) / 2)
    wanted, forwards, rolls = [], [], []
    for side, step, foot in zip(SIDES, figure.feet, feet, strict=True):
        sign = 1.0 if side == "L" else -1.0
        ankle, heading, roll = _foot_places(step, foot, ankle_height, sign * stance, length)
        wanted.append(ankle)
        forwards.append(heading)
        rolls.append(roll)
    centre = figure.hips * length
    centre[:, 1] += ankle_height
    arms = [figure.pelvis @ (align["pelvis"][0] @ (hip - middle)) for hip in hips]
    thighs = [float(np.linalg.norm(body.first(f"lower_leg.{s}") - body.first(f"upper_leg.{s}"))) for s in SIDES]
    shins = [float(np.linalg.norm(body.first(f"foot.{s}") - body.first(f"lower_leg.{s}"))) for s in SIDES]
    lowered = np.zeros(len(centre))
    for ankle, arm, thigh, shin in zip(wanted, arms, thighs, shins, strict=True):
        away = centre + arm - ankle
        reach = np.sqrt(np.maximum((STRETCH * (thigh + shin)) ** 2 - (away[:, [0, 2]] ** 2).sum(1), 0.0))
        lowered = np.maximum(lowered, away[:, 1] - reach)
    centre[:, 1] -= lowered
    for index, side in enumerate(SIDES):
        thigh, shin = _knee(centre + arms[index], wanted[index], thighs[index], shins[index], forwards[index])
        world[f"upper_leg.{side}"], world[f"lower_leg.{side}"] = [thigh], [shin]
        world[f"foot.{side}"], world[f"toes.{side}"] = [rolls[index][0]], [rolls[index][1]]
    # from the middle of the hips to the pelvis joint, and on up to the root, which does not turn by itself
    pelvis_place = centre + figure.pelvis @ (align["pelvis"][0] @ (body.joints[pelvis] - middle))
    return pelvis_place - (body.joints[pelvis] - body.joints[0]), float(lowered.max())


def _foot_places(step: Step, foot: Foot, ankle_height: float, stance: float, length: float):
    """Ankle [T 3], heading [T 3], and rotations of foot and toes [T 3 3] of one foot."""
    frames = len(step.lift)
    flat = np.zeros((frames, 3))
    yaw = _about("y", step.yaw)
    heading = yaw[:, :, 2]
    flat[:, [0, 2]] = step.place * length
    flat += yaw[:, :, 0] * stance
    # the pivot from the flat ankle along the foot: ball for a lifted heel, heel for lifted toes
    along = np.where(step.pitch > 0, foot.length, -0.4 * foot.length)
    pitch = _about("x", step.pitch)
    arm = np.stack([np.zeros(frames), np.full(frames, ankle_height), -along], axis=1)
    pivot = flat + heading * along[:, None]
    ankle = pivot + ((yaw @ pitch) @ arm[..., None])[..., 0]
    ankle[:, 1] += step.lift * length
    # toes stay flat under a lifted heel and give way in the air
    toes = yaw @ _about("x", np.where(step.pitch > 0, step.pitch * np.clip(step.lift / 0.08, 0, 1), step.pitch))
    return ankle, heading, (yaw @ pitch, toes)


def _knee(
    hip: Float[np.ndarray, "T 3"],
    ankle: Float[np.ndarray, "T 3"],
    thigh: float,
    shin: float,
    forward: Float[np.ndarray, "T 3"],
) -> tuple[Float[np.ndarray, "T 3 3"], Float[np.ndarray, "T 3 3"]]:
    """Rotations of thigh and shin, straight down at rest, from the triangle of the leg; the knee bends forward."""
    away = ankle - hip
    far = np.clip(np.linalg.norm(away, axis=1), abs(thigh - shin) + 1e-6, thigh + shin)
    down = away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-9)
    out = forward - down * (forward * down).sum(1, keepdims=True)
    out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)
    cosine = np.clip((far**2 + thigh**2 - shin**2) / (2 * far * thigh), -1, 1)
    knee = hip + thigh * (cosine[:, None] * down + np.sqrt(1 - cosine**2)[:, None] * out)
    side = np.cross(out, down)  # to the person's left for a leg that hangs down
    turns = []
    for bone in (knee - hip, ankle - knee):
        y = -bone / np.maximum(np.linalg.norm(bone, axis=1, keepdims=True), 1e-9)
        turns.append(np.stack([side, y, np.cross(side, y)], axis=2))
    return turns[0], turns[1]


def _arm_rotations(arm: Arm, side: str, chest: Float[np.ndarray, "T 3 3"]) -> dict[str, list]:
    """World rotations of the slots of one arm since the T-pose."""
    sign = 1.0 if side == "L" else -1.0
    mirror = np.array([sign, 1.0, 1.0])
    along = arm.direction * mirror
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    bend = arm.bend * mirror
    bend -= along * (bend * along).sum(1, keepdims=True)
    bend /= np.maximum(np.linalg.norm(bend, axis=1, keepdims=True), 1e-9)
    # at rest the arm runs along sign * x and the elbow bends to +z
    upper = np.stack([sign * along, np.cross(bend, sign * along), bend], axis=2)
    lower = upper @ _about("y", -sign * arm.elbow)
    hand = lower @ _about("x", -arm.turn) @ _about("z", -sign * arm.wrist)
    lift = _about("z", sign * arm.lift)
    found = {"clavicle": [chest @ lift], "upper_arm": [chest @ upper], "lower_arm": [chest @ lower]}
    found["hand"] = [chest @ hand]
    for finger in FINGERS[1:]:
        found[finger] = [chest @ hand @ _about("z", -sign * arm.curl * (k + 1)) for k in range(3)]
    found["thumb"] = [chest @ hand @ _about("y", sign * 0.5 * arm.curl * k) for k in range(3)]
    return {f"{slot}.{side}": rotations for slot, rotations in found.items()}


def _t_pose() -> Skeleton:
    """Bone directions of the T-pose that figures are described from: limbs alone, nothing below knuckles and toes."""
    joints, slots = [[0.0, 0, 0]], {"pelvis": (0,)}

    def put(slot: str, *place: float) -> None:
        slots[slot] = (len(joints),)
        joints.append(list(place))

    put("neck", 0, 1, 0)
    for side, sign in (("L", 1.0), ("R", -1.0)):
        for slot, x in (("upper_arm", 0.2), ("lower_arm", 0.5), ("hand", 0.7)):
            put(f"{slot}.{side}", sign * x, 1, 0)
        put(f"index.{side}", sign * 0.8, 1, 0.03)
        put(f"pinky.{side}", sign * 0.8, 1, -0.03)
        for slot, y, z in (("upper_leg", 0, 0), ("lower_leg", -0.5, 0), ("foot", -1, 0), ("toes", -1, 0.2)):
            put(f"{slot}.{side}", sign * 0.1, y, z)
    return Skeleton(np.full(len(joints), -1), np.array(joints), slots)


def _about(axis: str, angles: Float[np.ndarray, "T"]) -> Float[np.ndarray, "T 3 3"]:
    """Rotations about a coordinate axis, radians."""
    return rotvecs_to_matrices(np.eye(3)["xyz".index(axis)] * np.asarray(angles, float)[:, None])
