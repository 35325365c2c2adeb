"""Motion of the SMPL family: AMASS, SMPL(-H, -X) parameters as .npz, .smpl, .json, .pkl or .pt. No model file is
needed.

Rest joints are a nominal T-pose: directions of limbs are what counts, and the leg's length for the scale. Body
parameters are one rotation vector (or matrix) per joint relative to its parent, as SMPL has them (Loper et al. 2015).
AMASS has z up (Mahmood et al. 2019); of other files the up axis is found: the one of +y, +z and -y (a camera's) along
which most of the trunks stand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ..errors import InputRejected
from ..geometry import rotvecs_to_matrices
from . import archive
from .retarget import Motion, alignment, pose_rotations
from .skeleton import FINGERS, Skeleton, skeleton

MAX_FRAMES, MAX_ROTATIONS, MAX_FRAME_FILE, MAX_JSON = 100_000, 2_500_000, 2**20, 2**25
MAX_UNPACKED = 256 * 2**20
DEFAULT_FPS = 30.0
# name, parent, nominal rest position in metres, +Y up, facing +Z, +X left (rounded by eye, not of any model file)
_BODY = (
    ("pelvis", -1, (0.0, 0.0, 0.0)),
    ("left_hip", 0, (0.07, -0.09, 0.0)), ("right_hip", 0, (-0.07, -0.09, 0.0)), ("spine1", 0, (0.0, 0.11, 0.0)),
    ("left_knee", 1, (0.09, -0.47, 0.0)), ("right_knee", 2, (-0.09, -0.47, 0.0)), ("spine2", 3, (0.0, 0.25, 0.0)),
    ("left_ankle", 4, (0.09, -0.87, -0.02)), ("right_ankle", 5, (-0.09, -0.87, -0.02)), ("spine3", 6, (0.0, 0.30, 0.0)),
    ("left_foot", 7, (0.11, -0.92, 0.10)), ("right_foot", 8, (-0.11, -0.92, 0.10)), ("neck", 9, (0.0, 0.50, 0.0)),
    ("left_collar", 9, (0.08, 0.41, 0.0)), ("right_collar", 9, (-0.08, 0.41, 0.0)), ("head", 12, (0.0, 0.58, 0.0)),
    ("left_shoulder", 13, (0.17, 0.45, 0.0)), ("right_shoulder", 14, (-0.17, 0.45, 0.0)),
    ("left_elbow", 16, (0.43, 0.45, 0.0)), ("right_elbow", 17, (-0.43, 0.45, 0.0)),
    ("left_wrist", 18, (0.68, 0.45, 0.0)), ("right_wrist", 19, (-0.68, 0.45, 0.0)),
)  # fmt: skip
BODY = len(_BODY)
_HAND = ("index", "middle", "pinky", "ring", "thumb")  # in the order of SMPL-H and SMPL-X
# names under which different programs keep the same thing
_ROOT = ("global_orient", "root_orient", "root_pose", "globalorient", "smplx_root_pose", "body_pose_root")
_BODY_POSE = ("body_pose", "pose_body", "bodypose", "smplx_body_pose")
_LEFT, _RIGHT = ("left_hand_pose", "lhand_pose", "lefthandpose"), ("right_hand_pose", "rhand_pose", "righthandpose")
_TRAVEL = ("transl", "trans", "trans_world", "translation", "bodytranslation", "smplx_trans")
_WHOLE = ("poses", "pose_world", "fullpose", "pose")
_FPS = ("mocap_framerate", "mocap_frame_rate", "fps", "frame_rate", "framerate")
_KNOWN = {*_ROOT, *_BODY_POSE, *_LEFT, *_RIGHT, *_TRAVEL, *_WHOLE, *_FPS, "pose_hand"}
# groups in which a file may hold its parameters, best first: the world's before a camera's
_GROUPS = (
    "smpl_params_global",
    "smplx_params",
    "smpl_params",
    "params",
    "pred_smpl_params_global",
    "smpl_params_incam",
)


def read_npz(path: Path) -> Motion:
    """The motion of an .npz or a .smpl, which is one.

    Raises:
        InputRejected: it is not one, holds objects, is damaged or too large.
    """
    return _motion(path, archive.read_npz(path, lambda name: name.lower() in _KNOWN, MAX_UNPACKED))


def read_json(path: Path) -> Motion:
    """The motion of one .json: parameters over all frames, or a list with those of one frame each."""
    content = _json(path)
    if isinstance(content, dict) and isinstance(content.get("frames"), list):
        content = content["frames"]
    return _of_frames(path, content) if isinstance(content, list) else _motion(path, _arrays(path, content))


def read_folder(path: Path) -> Motion:
    """The motion of a folder with one .json of SMPL-X parameters per frame, in the order of their names.

    Raises:
        InputRejected: there are none, or one of them is not of a frame.
    """
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".json" and not file.name.startswith("."))
    if not files:
        raise InputRejected(f"{path}: a folder without .json files", code="E_MOTION_FORMAT")
    if len(files) > MAX_FRAMES:
        raise InputRejected(f"{path}: more than {MAX_FRAMES} frames", code="E_MOTION_SIZE")
    return _of_frames(path, (_json(file, MAX_FRAME_FILE) for file in files))


def read_pickle(path: Path) -> Motion:
    """The motion of a .pkl or .pt; only numbers and their containers are built of it, nothing in it is run."""
    from .pickled import read_arrays

    return _motion(path, _arrays(path, read_arrays(path)))


def on_own_joints(motion: Motion, joints: Float[np.ndarray, "J 3"], joint_names: tuple[str, ...]) -> Motion:
    """The motion with the rest joints of a rig that has all of its joints by name; any other motion as it is.

    Retargeting then takes an avatar of the family through the file's own rotations, joint by joint.
    """
    if not set(motion.names) <= set(joint_names):
        return motion
    own = [joint_names.index(name) for name in motion.names]
    return replace(motion, joints=np.asarray(joints, float)[own])


def on_rig(rotations: Mapping[str, Float[np.ndarray, "3 3"]], target: Skeleton) -> Float[np.ndarray, "J 3 3"]:
    """One pose of the family on another rig: joint rotations [J 3 3] relative to their parents, float32.

    Args:
        rotations: by the family's joint names, relative to their parents, the root's in any axes; those of the fingers
            may be left out and then follow the hands.
        target: the other rig. Its root takes the rotation of its pelvis, wherever in the rig that is.
    """
    names, parents, joints = [list(column) for column in zip(*_BODY, strict=True)]
    if "left_index1" in rotations and "right_index1" in rotations:
        _add_hands(names, parents, joints)
    source = skeleton(names, np.array(parents), np.array(joints, float))
    world: list[np.ndarray] = []
    for name, parent in zip(names, parents, strict=True):
        own = rotations.get(name, np.eye(3))[None]
        world.append(world[parent] @ own if parent >= 0 else own)
    by_slot = {slot: [world[joint] for joint in chain] for slot, chain in source.slots.items()}
    local, total = pose_rotations(target, alignment(target, source), by_slot)
    root, pelvis = int(np.argmax(target.parents < 0)), target.slots["pelvis"][0]
    if root != pelvis:
        whole = total[:, pelvis]
        for joint, parent in enumerate(target.parents):
            # what hangs on the root turns with it now
            if parent == root:
                local[:, joint] = np.swapaxes(whole, 1, 2) @ total[:, joint]
        local[:, root] = whole
    return local[0]


def _json(path: Path, max_bytes: int = MAX_JSON) -> Any:
    if not path.is_file() or path.stat().st_size > max_bytes:  # reading a pipe would wait for ever
        raise InputRejected(f"{path}: larger than {max_bytes >> 20} MB, or no plain file", code="E_MOTION_SIZE")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputRejected(f"{path}: not JSON ({_short(error)})", code="E_MOTION_FORMAT") from None


def _arrays(path: Path, content: Any, depth: int = 0, left: list[int] | None = None) -> dict[str, np.ndarray]:
    """The numeric arrays of (nested) dictionaries of numbers and lists; of several people the one with most frames.

    ``left`` is how many bytes all of them may still take: a pickle can hold one array under many names.
    """
    left = [MAX_UNPACKED] if left is None else left
    if not isinstance(content, Mapping) or depth > 5:
        raise InputRejected(f"{path}: no parameters by name in it", code="E_MOTION_FORMAT")
    for group in _GROUPS:
        if isinstance(content.get(group), Mapping):
            rate = {name: value for name, value in content.items() if str(name).lower() in _FPS}
            return _arrays(path, {**rate, **content[group]}, depth + 1, left)
    people = [value for value in content.values() if isinstance(value, Mapping)]
    if people and not {str(name).lower() for name in content} & {*_WHOLE, *_BODY_POSE}:
        found = [_arrays(path, person, depth + 1, left) for person in people[:100]]
        return max(found, key=lambda arrays: max((len(value) for value in arrays.values() if value.ndim), default=0))
    arrays = {}
    for name, value in content.items():
        if str(name).lower() in _KNOWN:
            left[0] -= 8 * getattr(value, "size", 0)
            if left[0] < 0:
                raise InputRejected(f"{path}: larger than {MAX_UNPACKED >> 20} MB", code="E_MOTION_SIZE")
            try:
                arrays[str(name)] = np.asarray(value, dtype=float)
            except (ValueError, TypeError, RecursionError, OverflowError):
                raise InputRejected(f"{path}: {name} is not numbers", code="E_MOTION_FORMAT") from None
    return arrays


def _of_frames(path: Path, frames: Iterable[Any]) -> Motion:
    """The motion of one set of parameters per frame."""
    rows: list[dict[str, np.ndarray]] = []
    for frame in frames:
        rows.append(_arrays(path, frame))
        if any(value.size > 1000 for value in rows[-1].values()) or len(rows) > MAX_FRAMES:
            raise InputRejected(f"{path}: more than one frame needs, or more than {MAX_FRAMES}", code="E_MOTION_SIZE")
        if {name: value.size for name, value in rows[-1].items()} != {name: v.size for name, v in rows[0].items()}:
            raise InputRejected(
                f"{path}: frame {len(rows) - 1} has other parameters than the first", code="E_MOTION_FORMAT"
            )
    kept = {name: np.stack([row[name].reshape(-1) for row in rows]) for name in (rows[0] if rows else {})}
    return _motion(path, {name: value[0] if name.lower() in _FPS else value for name, value in kept.items()})


def _motion(path: Path, arrays: Mapping[str, np.ndarray]) -> Motion:
    """The motion that arrays of known names hold."""
    lower = {name.lower(): value for name, value in arrays.items()}

    def first(names: tuple[str, ...]) -> np.ndarray | None:
        return next((lower[name] for name in names if name in lower and lower[name].size), None)

    body, root, whole = first(_BODY_POSE), first(_ROOT), first(_WHOLE)
    hands: list[np.ndarray | None] = [None, None]
    if body is not None:
        turns = _rotations(path, "body pose", body)
        if root is not None:
            top = _rotations(path, "root orientation", root)
            if top.shape[:2] != (len(turns), 1):
                raise _rejected(path, f"{len(top)} root orientations for {len(turns)} body poses")
            turns = np.concatenate([top, turns], axis=1)
    elif whole is not None:
        turns = _rotations(path, "pose", whole)
    else:
        shown = _short(", ".join(sorted(arrays)) or "nothing")
        raise _rejected(path, f"no poses or body_pose among {shown}")
    count = turns.shape[1]
    if count not in (21, 22, 23, 24, 52, 55):
        raise _rejected(path, f"{count} joints, which no model of the SMPL family has")
    if count in (21, 23):
        raise _rejected(path, "no root orientation beside the body pose")
    if count in (52, 55):
        hands = [turns[:, count - 30 : count - 15], turns[:, count - 15 :]]
    both = lower.get("pose_hand")
    if both is not None and both.size == len(turns) * 90:
        both = both.reshape(len(turns), 2, 45)
        given: tuple[np.ndarray | None, np.ndarray | None] = (both[:, 0], both[:, 1])
    else:
        given = (first(_LEFT), first(_RIGHT))
    for side, value in enumerate(given):
        if value is not None and value.size == len(turns) * 45:
            hands[side] = _rotations(path, "hand pose", value.reshape(len(turns), 45))
    turns = turns[:, :BODY]
    frames = len(turns)
    travel = first(_TRAVEL)
    travel = np.zeros((frames, 3)) if travel is None else np.asarray(travel, float).reshape(-1)
    if travel.size != 3 * frames:
        raise _rejected(path, f"{travel.size} numbers of translation for {frames} frames")
    travel = travel.reshape(frames, 3)
    if not (np.abs(travel) < 1e6).all():
        raise _rejected(path, "translations that are not finite, or beyond reason")
    fps = first(_FPS)
    rate = DEFAULT_FPS if fps is None else float(fps.reshape(-1)[0])
    if not 0.5 <= rate <= 1000:
        raise _rejected(path, f"{rate} frames per second")
    names, parents, joints = [list(column) for column in zip(*_BODY, strict=True)]
    moved = [turn for turn in hands if turn is not None and np.abs(turn - np.eye(3)).max() > 1e-3]
    if len(moved) == 2:  # hands that never move say nothing: the avatar's own are more relaxed than flat ones
        _add_hands(names, parents, joints)
        turns = np.concatenate([turns, *moved], axis=1)
    world = turns.copy()
    for joint, parent in enumerate(parents):
        if parent >= 0:
            world[:, joint] = world[:, parent] @ turns[:, joint]
    amass = bool({"mocap_framerate", "mocap_frame_rate"} & set(lower))
    axes = _AXES["+z"] if amass else _AXES[_up_axis(world[:, 0, :, 1])]
    return Motion(tuple(names), np.array(parents), np.array(joints, float), world, travel, axes, rate)


# rotations to +Y up; a camera's axes (+Y down, it looks along +Z) make who faces it face +Z
_AXES = {
    "+y": np.eye(3),
    "+z": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "-y": np.diag([1.0, -1.0, -1.0]),
}


def _up_axis(ups: Float[np.ndarray, "T 3"]) -> str:
    """The axis along which most of the trunks' up vectors lie."""
    mean = ups.mean(axis=0)
    return max(_AXES, key=lambda name: (mean * (-1 if name[0] == "-" else 1))["xyz".index(name[1])])


def _rotations(path: Path, what: str, values: np.ndarray) -> Float[np.ndarray, "T K 3 3"]:
    """Rotation matrices of [T 3K], [T K 3], [T K 3 3] or, for one frame, [3K] or [K 3] numbers."""
    values = np.array(values, float)
    if values.ndim == 4 and values.shape[0] == 1 and values.shape[-1] == 3 and values.shape[-2] != 3:
        values = values[0]
    if values.ndim == 4 and values.shape[-2:] == (3, 3):
        matrices = values
    elif values.ndim == 3 and values.shape[-1] == 3:
        matrices = None
    elif values.ndim in (1, 2) and values.size and values.shape[-1] % 3 == 0:
        values, matrices = values.reshape(-1, values.shape[-1] // 3, 3), None
    else:
        raise _rejected(path, f"{what} of shape {values.shape}")
    if not len(values) or not values.shape[1]:
        raise _rejected(path, f"no frames: {what} of shape {values.shape}")
    if len(values) > MAX_FRAMES or len(values) * values.shape[1] > MAX_ROTATIONS:
        what = f"{len(values)} frames of {values.shape[1]} joints are too many: cut it into parts"
        raise InputRejected(f"{path}: {what}", code="E_MOTION_SIZE")
    if not (np.abs(values) < 1e4).all():
        raise _rejected(path, f"{what} with numbers that are not finite, or beyond reason")
    if matrices is None:
        return rotvecs_to_matrices(values)
    if np.abs(matrices @ np.swapaxes(matrices, -1, -2) - np.eye(3)).max() > 1e-2 or (np.linalg.det(matrices) < 0).any():
        raise _rejected(path, f"{what} with matrices that are not rotations")
    return matrices


def _add_hands(names: list, parents: list, joints: list) -> None:
    """Finger joints of a flat hand, three each, nominal."""
    for side, sign in (("left", 1.0), ("right", -1.0)):
        wrist = names.index(f"{side}_wrist")
        for finger in _HAND:
            across = (FINGERS.index(finger) - 2.5) * -0.02
            for k in range(3):
                names.append(f"{side}_{finger}{k + 1}")
                parents.append(wrist if k == 0 else len(parents) - 1)
                reach = (0.03 + 0.02 * k, 0.03 + 0.02 * k) if finger == "thumb" else (0.09 + 0.03 * k, across)
                joints.append((joints[wrist][0] + sign * reach[0], joints[wrist][1], joints[wrist][2] + reach[1]))


def _rejected(path: Path, reason: str) -> InputRejected:
    return InputRejected(f"{path}: {reason}", code="E_MOTION_FORMAT")


def _short(value: object) -> str:
    """A value of the file, or an error about one, as a short printable line."""
    text = " ".join(str(value).split()) or type(value).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text[:150])
