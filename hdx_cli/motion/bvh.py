"""Biovision hierarchies: the skeleton, and Euler angles of every joint in every frame.

Rotations multiply in the order in which the channels stand (Meredith and Maddock 2001, "Motion Capture File Formats
Explained"). The rest pose is the one of the offsets. Its up axis is the coordinate axis nearest to the way from the
feet to the head, its forward the one nearest to that of the body; the world of the motion is taken to have the same
axes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ..errors import InputRejected
from ..geometry import matrices_to_rotvecs
from .retarget import Motion
from .skeleton import skeleton

MAX_JOINTS, MAX_ROTATIONS = 1000, 2_500_000
MAX_HEADER, MAX_LINE = 4 * 2**20, 10_000
FEWEST_JOINTS = 14  # of a skeleton with all that retargeting needs
_CHANNELS = {f"{axis}{kind}": (kind, index) for kind in ("position", "rotation") for index, axis in enumerate("xyz")}


@dataclass
class _Joint:
    """A joint while it is being read: ``channels`` are (kind, axis), ``column`` is that of the first."""

    name: str
    parent: int
    offset: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    channels: list[tuple[str, int]] = field(default_factory=list)
    column: int = 0


def read(path: Path) -> Motion:
    """The motion of a .bvh file.

    A first frame that is a rest pose far from the second one, as CMU's conversions have it, is left out.

    Raises:
        InputRejected: it is not one, damaged, cut short or too large.
    """
    content = path.read_bytes()
    start = content.find(b"MOTION")
    if start < 0 or b"HIERARCHY" not in content[: min(start, 1000)]:
        raise _rejected(path, "not a .bvh file: no HIERARCHY or no MOTION")
    if start > MAX_HEADER:
        raise _rejected(path, "the hierarchy is too long")
    joints = _hierarchy(path, content[:start].decode("utf-8", "replace"))
    width = sum(len(joint.channels) for joint in joints)
    frames, fps, values = _values(path, content[start:], width, len(joints))
    names = tuple(joint.name for joint in joints)
    parents = np.array([joint.parent for joint in joints])
    offsets = np.array([joint.offset for joint in joints])
    rest = offsets.copy()
    for joint, parent in enumerate(parents):
        if parent >= 0:
            rest[joint] += rest[parent]
    body = skeleton(names, parents, rest)
    rotations, pelvis = _forward(joints, offsets, values, body.slots["pelvis"][0])
    if frames > 2 and _begins_with_rest(rotations):
        rotations, pelvis = rotations[1:], pelvis[1:]
    return Motion(names, parents, rest, rotations, pelvis, _to_our_axes(body.frame()), fps)


def _hierarchy(path: Path, text: str) -> list[_Joint]:
    """Joints and end sites; a parent always comes before its children."""
    joints: list[_Joint] = []
    open_joints: list[int] = []
    pending = False  # a joint was named and its brace is still to come
    column = 0
    for line in text.splitlines():
        if len(line) > MAX_LINE:  # words are taken from the front of a line, each time with a copy of the rest
            raise _rejected(path, f"a line of {len(line)} characters in the hierarchy")
        # braces may share a line with other words
        words = line.replace("{", " { ").replace("}", " } ").split()
        while words:
            word = words[0].upper()
            if word in ("ROOT", "JOINT", "END"):
                name = "" if word == "END" else " ".join(words[1:]).split("{")[0].strip()
                words = words[words.index("{") :] if "{" in words else []
                if len(joints) >= MAX_JOINTS:
                    raise _rejected(path, f"more than {MAX_JOINTS} joints")
                if (word == "ROOT") != (not open_joints) or pending or (word == "ROOT" and joints):
                    raise _rejected(path, f"{word} {name[:40]} at a place where it cannot be")
                joints.append(_Joint(name[:100], open_joints[-1] if open_joints else -1))
                pending = True
            elif word == "{":
                if not pending:
                    raise _rejected(path, "a brace that no joint belongs to")
                open_joints.append(len(joints) - 1)
                pending, words = False, words[1:]
            elif word == "}":
                if not open_joints:
                    raise _rejected(path, "braces do not match")
                open_joints.pop()
                words = words[1:]
            elif word == "OFFSET" and open_joints and len(words) >= 4:
                joints[open_joints[-1]].offset = _numbers(path, words[1:4])
                words = words[4:]
            elif word == "CHANNELS" and open_joints and len(words) >= 2 and words[1].isdigit():
                count, joint = int(words[1][:4]), joints[open_joints[-1]]
                kinds = [_CHANNELS.get(kind.lower()) for kind in words[2 : 2 + count]]
                if len(kinds) != count or None in kinds or len(set(kinds)) != count or joint.channels:
                    raise _rejected(path, f"channels of {joint.name[:40]} that cannot be")
                joint.channels, joint.column = [kind for kind in kinds if kind], column
                column += count
                words = words[2 + count :]
            elif word == "HIERARCHY":
                words = words[1:]
            else:
                raise _rejected(path, f"the hierarchy says {' '.join(words)[:60]!r}")
    if open_joints or pending or not joints:
        raise _rejected(path, "the hierarchy is cut short")
    if not column:
        raise _rejected(path, "no joint has channels")
    return joints


def _values(path: Path, content: bytes, width: int, joints: int) -> tuple[int, float, Float[np.ndarray, "T C"]]:
    """Number of frames, frames per second and the channels' values."""
    lines = [line for line in content[:2000].splitlines() if line.strip()][:3]
    try:
        frames = int(lines[1].split(b":")[1])
        seconds = float(lines[2].split(b":")[1])
    except (IndexError, ValueError):
        raise _rejected(path, "no number of frames or no frame time") from None
    if not (1e-3 <= seconds <= 10):
        raise _rejected(path, f"a frame time of {seconds} s")
    if frames < 1:
        raise _rejected(path, f"{frames} frames")
    if frames * max(joints, FEWEST_JOINTS) > MAX_ROTATIONS:
        raise _rejected(path, f"{frames} frames of {joints} joints are too many: cut it into parts")
    if frames * width > len(content) // 2 + 1:
        raise _rejected(path, f"says {frames} frames of {width} numbers, which do not fit into it: cut short")
    body = content[content.index(lines[2]) + len(lines[2]) :]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy warns where the text stops being numbers
        try:
            # not with its count: for text that ends early it then returns memory that nobody has written
            values = np.fromstring(body, dtype=float, sep=" ")
        except (DeprecationWarning, ValueError):
            raise _rejected(path, "something that is no number among the frames") from None
    if len(values) < frames * width:
        raise _rejected(path, f"{len(values)} numbers instead of {frames} frames of {width}: cut short")
    values = values[: frames * width]
    if not (np.abs(values) < 1e9).all():
        raise _rejected(path, "numbers that are not finite, or beyond reason")
    return frames, 1.0 / seconds, values.reshape(frames, width)


def _forward(
    joints: list[_Joint], offsets: Float[np.ndarray, "S 3"], values: Float[np.ndarray, "T C"], pelvis: int
) -> tuple[Float[np.ndarray, "T S 3 3"], Float[np.ndarray, "T 3"]]:
    """World rotations of all joints, and where the pelvis goes."""
    frames = len(values)
    world = np.empty((frames, len(joints), 3, 3))
    places: dict[int, np.ndarray] = {}
    above, joint = set(), pelvis
    while joint >= 0:
        above.add(joint)
        joint = joints[joint].parent
    for index, joint in enumerate(joints):
        local = None
        place = np.tile(offsets[index], (frames, 1))
        for column, (kind, axis) in enumerate(joint.channels, joint.column):
            if kind == "position":
                place[:, axis] = values[:, column]
            else:
                turn = _about(axis, np.radians(values[:, column]))
                local = turn if local is None else local @ turn
        parent = joint.parent
        if parent < 0:
            world[:, index] = np.eye(3) if local is None else local
        else:
            world[:, index] = world[:, parent] if local is None else world[:, parent] @ local
        if index in above:
            places[index] = place if parent < 0 else places[parent] + (world[:, parent] @ place[..., None])[..., 0]
    return world, places[pelvis]


def _about(axis: int, angles: Float[np.ndarray, "T"]) -> Float[np.ndarray, "T 3 3"]:
    turn = np.zeros((len(angles), 3, 3))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    turn[:, axis, axis] = 1.0
    turn[:, i, i] = turn[:, j, j] = np.cos(angles)
    turn[:, j, i] = np.sin(angles)
    turn[:, i, j] = -turn[:, j, i]
    return turn


def _begins_with_rest(rotations: Float[np.ndarray, "T S 3 3"]) -> bool:
    """Whether the first frame is a pose of its own: the step after it is large, and unlike those that follow."""
    first = rotations[: min(len(rotations), 12)]
    steps = np.linalg.norm(matrices_to_rotvecs(np.swapaxes(first[:-1], -1, -2) @ first[1:]), axis=-1).mean(axis=1)
    return bool(steps[0] > 0.15 and steps[0] > 8 * np.median(steps[1:]))


def _to_our_axes(frame: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3 3"]:
    """The rotation by quarter turns that takes the rest body's up to +Y and its forward to +Z as nearly as it can."""
    up = _nearest_axis(frame[:, 1])
    forward = frame[:, 2] * (up == 0)
    forward = _nearest_axis(forward) if np.abs(forward).max() > 0 else np.roll(np.abs(up), 1)
    return np.stack([np.cross(up, forward), up, forward])


def _nearest_axis(vector: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
    axis = int(np.argmax(np.abs(vector)))
    return np.eye(3)[axis] * np.sign(vector[axis])


def _numbers(path: Path, words: list[str]) -> list[float]:
    try:
        found = [float(word) for word in words]
    except ValueError:
        found = [np.inf]
    if not all(abs(value) < 1e9 for value in found):
        raise _rejected(path, f"an offset of {' '.join(words)[:60]!r}")
    return found


def _rejected(path: Path, reason: str) -> InputRejected:
    shown = "".join(letter if letter.isprintable() else "?" for letter in reason)
    return InputRejected(f"{path}: {shown}", code="E_MOTION_FORMAT")
