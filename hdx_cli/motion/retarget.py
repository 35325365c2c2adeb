"""Motion of one skeleton on another: world rotations with the two rest poses aligned, feet on the ground.

R_target = C S A: S is the world rotation of the source's joint since its rest pose, A the constant rotation that
takes the target's rest bone to the source's, C turns the source's axes to ours. Bones of the target thus point where
those of the source point, whatever the two rest poses and proportions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from ..bodies.base import BodyPose, RestBody
from ..errors import InputRejected, UsageError
from ..geometry import matrices_to_rotvecs, rotation_between, rotvecs_to_matrices
from .skeleton import FINGERS, SIDES, Skeleton, skeleton

NEEDED = ("upper_arm", "lower_arm", "upper_leg", "lower_leg", "foot")
# In units of the foot from the ankle to the middle of the toes' first joints, seen from above (Anny, 12 shapes): the
# heel behind the ankle, the tip of the toes before it, and the sole below the toes' first joints.
HEEL, TIP, SOLE = 0.40, 1.43, 0.19
# A sole's point is planted when it is lower and slower than the first of these, in metres and m/s for a leg of 0.9 m,
# and less and less so up to the second.
LOW_M, SLOW_M_S = (0.03, 0.06), (0.15, 0.45)


@dataclass(frozen=True)
class Motion:
    """What a motion file says, in its own axes and units.

    Attributes:
        names, parents: of S joints, -1 for the root; a parent always comes before its children.
        joints: rest positions [S 3].
        rotations: world rotation of every joint since the rest pose [T S 3 3].
        pelvis: where the pelvis is [T 3]; anything that all frames share does not matter.
        axes: rotation to our axes (+Y up) [3 3].
        fps: frames per second.
    """

    names: tuple[str, ...]
    parents: Int[np.ndarray, "S"]
    joints: Float[np.ndarray, "S 3"]
    rotations: Float[np.ndarray, "T S 3 3"]
    pelvis: Float[np.ndarray, "T 3"]
    axes: Float[np.ndarray, "3 3"]
    fps: float


@dataclass(frozen=True)
class Foot:
    """Points of a sole at rest, and what carries them.

    Attributes:
        points: heel, ball and tip of the toes [3 3] on the ground that the rest body stands on.
        joints: the joint that carries each [3].
        heading: unit vector from heel to toes, horizontal.
        length: from the ankle to the ball, horizontal.
    """

    points: Float[np.ndarray, "3 3"]
    joints: Int[np.ndarray, "3"]
    heading: Float[np.ndarray, "3"]
    length: float


@dataclass(frozen=True)
class Rig:
    """An avatar's rig prepared for motion: its skeleton, and the soles of its feet by side."""

    skeleton: Skeleton
    feet: dict[str, Foot]

    @property
    def joints(self) -> Float[np.ndarray, "J 3"]:
        return self.skeleton.joints


def rig(rest: RestBody, parents: Int[np.ndarray, "J"], joint_names: tuple[str, ...]) -> Rig:
    """The rig of a rest body.

    The soles lie at the lowest vertex; where the body has no vertices (an avatar file holds none), below the toes by a
    share of the foot's length.
    """
    body = skeleton(joint_names, parents, np.asarray(rest.joints, float))
    feet = {}
    for side in SIDES:
        ankle, toes = body.first(f"foot.{side}"), body.slots.get(f"toes.{side}")
        if ankle is None or toes is None:
            continue
        ball = body.joints[list(toes)].mean(0)
        forward = (ball - ankle) * [1.0, 0.0, 1.0]
        length = float(np.linalg.norm(forward))
        if length < 1e-6:
            continue
        ground = float(rest.vertices[:, 1].min()) if len(rest.vertices) else ball[1] - SOLE * length
        points = np.stack([ankle - HEEL * forward, ball, ankle + TIP * forward])
        points[:, 1] = ground
        foot = body.slots[f"foot.{side}"][0]
        feet[side] = Foot(points, np.array([foot, foot, toes[0]]), forward / length, length)
    return Rig(body, feet)


Alignment = dict[str, tuple[Float[np.ndarray, "3 3"], ...]]


def alignment(target: Skeleton, source: Skeleton) -> Alignment:
    """For every joint of every slot of the target the rotation A from its rest to the source's.

    The trunk's is that between the bodies' frames. Down a limb each bone adds the smallest rotation that is still
    missing, so that a knee bent at rest unbends about its hinge. Feet turn about the vertical alone: both rest bodies
    are taken to stand flat, wherever their ankles are.
    """
    ours, theirs = target.frame(), source.frame()
    whole = theirs @ ours.T
    found: dict[str, list] = {slot: [whole] * len(joints) for slot, joints in target.slots.items()}
    for side in SIDES:
        for limb in (("upper_arm", "lower_arm", "hand"), ("upper_leg", "lower_leg", "foot")):
            turn = whole
            for name in limb:
                slot = f"{name}.{side}"
                have, want = target.direction(slot), source.direction(slot)
                if name == "hand" and want is None:
                    want = source.direction(f"lower_arm.{side}")
                if name == "foot" and have is not None and want is not None:
                    have_here, want_here = ours.T @ have, theirs.T @ want
                    if np.linalg.norm(want_here[[0, 2]]) > 0.5:
                        yaw = np.arctan2(want_here[0], want_here[2]) - np.arctan2(have_here[0], have_here[2])
                        turn = theirs @ rotvecs_to_matrices(np.array([0.0, yaw, 0.0])) @ ours.T
                        have = None
                elif name == "foot":
                    turn = whole
                if have is not None and want is not None:
                    turn = rotation_between(turn @ have, want) @ turn
                    have_across, want_across = target.across(side), source.across(side)
                    if name == "hand" and have_across is not None and want_across is not None:
                        turn = rotation_between(_beside(turn @ have_across, want), _beside(want_across, want)) @ turn
                found[slot] = [turn] * len(target.slots.get(slot, ()))
            if limb[2] == "foot":
                found[f"toes.{side}"] = [turn] * len(target.slots.get(f"toes.{side}", ()))
                continue
            for finger in FINGERS:
                slot, bent = f"{finger}.{side}", turn
                wanted = source.finger_directions(slot) if slot in source.slots else []
                for index, have in enumerate(target.finger_directions(slot) if slot in target.slots else []):
                    if index < len(wanted) and have is not None and wanted[index] is not None:
                        bent = rotation_between(bent @ have, wanted[index]) @ bent
                    found[slot][index] = bent
    return {slot: tuple(turns) for slot, turns in found.items()}


def pose_rotations(
    target: Skeleton, align: Alignment, world: Mapping[str, Sequence[Float[np.ndarray, "T 3 3"]]]
) -> tuple[Float[np.ndarray, "T J 3 3"], Float[np.ndarray, "T J 3 3"]]:
    """Joint rotations relative to their parents, and in the world, from what the slots do, both [T J 3 3] float32.

    Args:
        target: the avatar's skeleton.
        align: what ``alignment`` says.
        world: by slot the world rotations [T 3 3] of the source's joints, from parent to child, already in our axes;
            a slot that is left out follows its parent. The spine and the neck share out theirs evenly over the
            target's joints.
    """
    frames = len(world["pelvis"][0])
    turned: dict[int, Float[np.ndarray, "T 3 3"]] = {}

    def follow(slot: str, rotations: Sequence[Float[np.ndarray, "T 3 3"]]) -> None:
        for index, joint in enumerate(target.slots.get(slot, ())):
            turned[joint] = rotations[min(index, len(rotations) - 1)] @ align[slot][index]

    for slot, rotations in world.items():
        if slot not in ("spine", "neck", "pelvis"):
            follow(slot, rotations)
    trunk = [world["pelvis"][-1], *world.get("spine", ())]
    spine = len(target.slots.get("spine", ()))
    follow("spine", [_along(trunk, (k + 1) / spine) for k in range(spine)])
    if "head" in world:
        neck = len(target.slots.get("neck", ()))
        upper = [trunk[-1], *world.get("neck", ()), world["head"][0]]
        follow("neck", [_along(upper, (k + 1) / (neck + 1)) for k in range(neck)])
    follow("pelvis", world["pelvis"][-1:])
    for side in SIDES:
        _share_twist(target, align, world, turned, side)

    parents = target.parents
    local = np.tile(np.eye(3, dtype=np.float32), (frames, len(parents), 1, 1))
    total = np.empty_like(local)
    for joint, parent in enumerate(parents):
        above = total[:, parent] if parent >= 0 else np.broadcast_to(np.eye(3, dtype=np.float32), (frames, 3, 3))
        if joint in turned:
            total[:, joint] = turned[joint]
            local[:, joint] = np.swapaxes(above, 1, 2) @ turned[joint]
        else:
            total[:, joint] = above
    return local, total


def joint_positions(
    rotations: Float[np.ndarray, "T J 3 3"],
    joints: Float[np.ndarray, "J 3"],
    parents: Int[np.ndarray, "J"],
    root: Float[np.ndarray, "T 3"],
) -> Float[np.ndarray, "T J 3"]:
    """Where the joints are, from their world rotations, rest positions and the root's position."""
    places = np.empty((*rotations.shape[:2], 3))
    for joint, parent in enumerate(parents):
        if parent < 0:
            places[:, joint] = root
        else:
            places[:, joint] = places[:, parent] + rotations[:, parent] @ (joints[joint] - joints[parent])
    return places


def sole_points(target: Rig, rotations: Float[np.ndarray, "T J 3 3"], places: Float[np.ndarray, "T J 3"]) -> np.ndarray:
    """Heel, ball and toe tip of every foot in the world [T P 3], from world rotations and positions of the joints."""
    points = [np.zeros((len(places), 0, 3))]
    for foot in target.feet.values():
        arms = foot.points - target.joints[foot.joints]
        points.append(places[:, foot.joints] + np.einsum("tpab,pb->tpa", rotations[:, foot.joints], arms))
    return np.concatenate(points, axis=1)


def retarget(motion: Motion, target: Rig, name: str) -> BodyPose:
    """The motion on a rig, starting over the origin, feet on y = 0.

    The root's travel is scaled by the legs' lengths, which also settles the file's units, and corrected so that planted
    feet stay where they are.

    Raises:
        InputRejected: joints that are needed have no known name.
    """
    source = skeleton(motion.names, motion.parents, motion.joints)
    missing = [f"{slot}.{side}" for slot in NEEDED for side in SIDES if f"{slot}.{side}" not in source.slots]
    length = source.leg_length()
    if missing or length < 1e-6:
        what = f"no joint that is known as {missing[0]}" if missing else "legs without length"
        shown = "".join(letter if letter.isprintable() else "?" for letter in ", ".join(motion.names[:8])[:200])
        raise InputRejected(f"{name}: {what} among {shown} ...", code="E_MOTION_SKELETON")
    world = {
        slot: [motion.axes @ motion.rotations[:, joint] for joint in joints] for slot, joints in source.slots.items()
    }
    local, total = pose_rotations(target.skeleton, alignment(target.skeleton, source), world)
    ours = target.skeleton.leg_length()
    travel = (motion.pelvis - motion.pelvis[0]) @ motion.axes.T * ((ours or 1.0) / length)
    # the root carries the travel of the pelvis below it
    places = joint_positions(total, target.joints, target.skeleton.parents, target.joints[0] + travel)
    pelvis = target.skeleton.slots["pelvis"][0]
    shift = target.joints[0] + travel - places[:, pelvis]
    places += shift[:, None]
    travel = travel + shift
    points = sole_points(target, total, places)
    if points.shape[1]:
        travel = travel + planting(points, motion.fps, ours)
    else:
        travel[:, 1] -= target.joints[:, 1].min()
    travel[:, [0, 2]] -= travel[0, [0, 2]]
    return BodyPose(local, travel.astype(np.float32))


def cut(motion: Motion, frames: tuple[int, int] | None, name: str, limit: int) -> Motion:
    """Frames first up to, but not including, last of a motion; all of them for None.

    Raises:
        UsageError: there are no such frames, or more than ``limit``.
    """
    total = len(motion.pelvis)
    first, last = frames or (0, total)
    if not 0 <= first < last <= total:
        raise UsageError(f"--frames {first}:{last}: {name} has frames 0:{total}")
    if last - first > limit:
        raise UsageError(f"{name}: {last - first} frames, more than {limit}", hint=f"--frames {first}:{first + limit}")
    return replace(motion, rotations=motion.rotations[first:last], pelvis=motion.pelvis[first:last])


def planting(points: Float[np.ndarray, "T P 3"], fps: float, leg_m: float) -> Float[np.ndarray, "T 3"]:
    """The shift [T 3] that puts the soles on y = 0 and keeps planted points of them where they are.

    A point is planted when it is low and slow. Each step of the root then loses the mean horizontal step of the planted
    points; between contacts the height is interpolated, so that jumps stay jumps.

    Args:
        points: of the soles, in the world, metres.
        leg_m: the leg's length, which scales what counts as low and slow.
    """
    size = max(leg_m, 1e-3) / 0.9
    lowest = points[..., 1].min(axis=1)
    ground = float(np.percentile(lowest, 5))
    shift = np.zeros((len(points), 3))
    shift[:, 1] = -ground
    if len(points) == 1:
        return shift
    steps = np.diff(points, axis=0)
    speed = np.linalg.norm(steps, axis=-1) * fps
    height = (points[1:, :, 1] + points[:-1, :, 1]) / 2 - ground
    weight = _fade(height, LOW_M, size) * _fade(speed, SLOW_M_S, size)
    slide = np.einsum("tp,tpa->ta", weight, steps[..., [0, 2]]) / np.maximum(weight.sum(1), 1.0)[:, None]
    shift[1:, [0, 2]] = -np.cumsum(slide, axis=0)
    planted = np.concatenate([weight[:1], weight]).max(axis=1) > 0.5
    if planted.any():
        times = np.nonzero(planted)[0]
        rise = np.interp(np.arange(len(points)), times, -lowest[times])
        width = 2 * round(0.05 * fps) + 1
        padded = np.pad(rise, width // 2, mode="edge")
        shift[:, 1] = np.convolve(padded, np.ones(width) / width, mode="valid")
    return shift


def _fade(values: np.ndarray, between: tuple[float, float], size: float) -> np.ndarray:
    """1 below the first bound, 0 above the second."""
    low, high = between[0] * size, between[1] * size
    return np.clip((high - values) / (high - low), 0.0, 1.0)


def _beside(vector: Float[np.ndarray, "3"], axis: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
    """What of a vector is at right angles to a unit axis."""
    return vector - axis * (vector @ axis)


def _along(chain: Sequence[Float[np.ndarray, "T 3 3"]], share: float) -> Float[np.ndarray, "T 3 3"]:
    """Rotation at ``share`` in [0, 1] of the way along a chain of rotations, each step on the shortest arc."""
    place = share * (len(chain) - 1)
    index = min(int(place + 1e-9), len(chain) - 1)
    rest = place - index
    if rest < 1e-9 or index + 1 == len(chain):
        return chain[index]
    return chain[index] @ _part_of(np.swapaxes(chain[index], 1, 2) @ chain[index + 1], rest)


def _part_of(rotations: Float[np.ndarray, "T 3 3"], share: float) -> Float[np.ndarray, "T 3 3"]:
    return rotvecs_to_matrices(matrices_to_rotvecs(rotations) * share)


def _share_twist(target: Skeleton, align: Alignment, world: Mapping, turned: dict, side: str) -> None:
    """Half of a hand's twist to the end of the forearm, half of an upper arm's away from its beginning.

    Only where the target has two joints for a bone and the source one; the bone itself keeps its direction.
    """
    for bone, near, far in (("lower_arm", "lower_arm", "hand"), ("upper_arm", "clavicle", "upper_arm")):
        slot = f"{bone}.{side}"
        joints, axis = target.slots.get(slot, ()), target.direction(slot)
        if len(joints) < 2 or len(world.get(slot, ())) != 1 or axis is None or f"{far}.{side}" not in world:
            continue
        base = world.get(f"{near}.{side}", [*world["pelvis"], *world.get("spine", ())][-1:])
        base = base[-1] @ align[f"{near}.{side}"][-1] if f"{near}.{side}" in align else base[-1] @ align["pelvis"][0]
        end = world[f"{far}.{side}"][0] @ align[f"{far}.{side}"][0]
        # twist about the bone in the turn from base to end (swing after twist)
        turn = np.swapaxes(base, 1, 2) @ end
        angle = _twist(turn, axis)
        half = (
            np.where(abs(angle) <= np.pi / 2, angle, np.sign(angle) * (np.pi - abs(angle))) / 2
        )  # no jump at half turns
        if bone == "lower_arm":
            turned[joints[-1]] = base @ rotvecs_to_matrices(axis * half[:, None])
        else:
            turned[joints[0]] = end @ rotvecs_to_matrices(axis * -half[:, None])


def _twist(rotations: Float[np.ndarray, "T 3 3"], axis: Float[np.ndarray, "3"]) -> Float[np.ndarray, "T"]:
    """Angles in (-pi, pi] about a unit axis of rotations = swing times twist."""
    skew = np.stack(
        [
            rotations[:, 2, 1] - rotations[:, 1, 2],
            rotations[:, 0, 2] - rotations[:, 2, 0],
            rotations[:, 1, 0] - rotations[:, 0, 1],
        ],
        axis=1,
    )
    # the quaternion is (1 + trace, skew) up to a factor, but for half turns
    angle = 2 * np.arctan2(skew @ axis, 1 + np.trace(rotations, axis1=1, axis2=2))
    return (angle + np.pi) % (2 * np.pi) - np.pi
