"""Parameters of SMPL or SMPL-X that another program found in a photo: .npz, .json, .pkl and .pt of common layouts.

Read are SMPLer-X, OSX and LHM (.npz, .json: axis-angle by joint group, ``focal``), SMPLify-X (.pkl: hands as principal
components), ExPose and PIXIE (rotation matrices), 4D-Humans (``pred_smpl_params``) and WHAM (``pose`` of 72). Names are
matched without regard to case; of several frames or people the first counts. Numbers per joint may be three (a rotation
vector), six (the first two columns of the matrix, Zhou et al. 2019) or nine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ..errors import InputRejected
from ..geometry import rotvecs_to_matrices
from ..motion.pickled import read_arrays
from .smpl_body import JOINT_NAMES, SmplBody
from .smpl_files import npz_arrays, read_pickle

MAX_FILE, MAX_DEPTH = 64 * 2**20, 6
BODY = 22  # joints that all of the family have
_ROOT = ("global_orient", "root_orient", "root_pose", "global_pose", "smplx_root_pose", "pred_global_orient")
_BODY_POSE = ("body_pose", "pose_body", "smplx_body_pose", "pred_body_pose")
_WHOLE = ("pose", "poses", "fullpose", "full_pose")
_HANDS = (("left_hand_pose", "lhand_pose", "smplx_lhand_pose"), ("right_hand_pose", "rhand_pose", "smplx_rhand_pose"))
_FACE = (("jaw_pose", "pose_jaw", "smplx_jaw_pose"), ("leye_pose",), ("reye_pose",))
_BETAS = ("betas", "shape", "smplx_shape", "pred_betas")
_FOCAL = ("focal", "scaled_focal_length", "focal_length_in_px", "focal_px", "focal_length")
_FLAT = ("flat_hand_mean",)
# groups that hold the parameters, best first: those in a camera's axes before those of the world
_GROUPS = (
    "smplx_params", "smpl_params_incam", "pred_smplx_params", "pred_smpl_params", "smpl_params", "params", "smplx",
    "smpl", "smpl_params_global",
)  # fmt: skip
_KNOWN = {*_ROOT, *_BODY_POSE, *_WHOLE, *_HANDS[0], *_HANDS[1], *sum(_FACE, ()), *_BETAS, *_FOCAL, *_FLAT}
# by the axis that a trunk's up lies along: to a camera's axes (x right, y down, z away)
_TO_CAMERA = {
    "-y": np.eye(3),
    "+y": np.diag([1.0, -1.0, -1.0]),
    "+z": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
}


@dataclass(frozen=True)
class SmplParams:
    """One person as another program sees them.

    Attributes:
        body: rotations of the 22 joints that the family shares, relative to their parents; the root's in camera axes
            (x right, y down, z away) [22 3 3].
        hands: of the fingers, left and right: rotations [15 3 3], or coefficients of principal components [n], or None.
        hands_from_mean: whether rotations of fingers come on top of the model's mean hand.
        face: jaw, left and right eye [3 3 3].
        betas: shape [B], or None.
        family: whose betas they are: ``smpl`` where the pose has that model's 24 joints, else ``smplx``.
        focal_px: focal length in pixels of the photo, or None.
    """

    body: Float[np.ndarray, "22 3 3"]
    hands: tuple[np.ndarray | None, np.ndarray | None]
    hands_from_mean: bool
    face: Float[np.ndarray, "3 3 3"]
    betas: Float[np.ndarray, "B"] | None
    focal_px: float | None
    family: str


def read_params(path: Path) -> SmplParams:
    """The parameters in a file.

    Raises:
        InputRejected: it is missing, damaged, too large, or holds no pose that is known.
    """
    if not path.is_file():
        raise InputRejected(f"{path}: no such file", code="E_MISSING")
    if path.stat().st_size > MAX_FILE:
        raise InputRejected(f"{path}: larger than {MAX_FILE >> 20} MB", code="E_PARAMS_SIZE")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        content: Any = npz_arrays(path, None, 4 * MAX_FILE)
    elif suffix == ".json":
        content = _json(path)
    elif suffix in (".pkl", ".pickle"):
        content = read_pickle(path, MAX_FILE)
    elif suffix in (".pt", ".pth"):
        content = read_arrays(path)
    else:
        raise _rejected(path, "not an .npz, .json, .pkl or .pt")
    return _params(path, _found(path, content))


def joint_rotations(params: SmplParams, model: SmplBody) -> Float[np.ndarray, "J 3 3"]:
    """Rotations of the model's own joints relative to their parents; the root's in camera axes.

    Fingers that the file says nothing of keep the model's mean hand.
    """
    rotations = np.tile(np.eye(3), (len(model.parents), 1, 1))
    rotations[:BODY] = params.body
    if model.family != "smplx":
        return rotations
    rotations[22:25] = params.face
    for side, (hand, first) in enumerate(zip(params.hands, (25, 40), strict=True)):
        mean = model.hand_means[side].astype(float)
        turned = mean
        if hand is not None and hand.ndim == 1:
            turned = mean + (hand @ model.hand_components[side][: len(hand)]).reshape(15, 3)
        elif hand is not None:
            rotations[first : first + 15] = rotvecs_to_matrices(mean) @ hand if params.hands_from_mean else hand
            continue
        rotations[first : first + 15] = rotvecs_to_matrices(turned)
    return rotations


def shape_of(params: SmplParams, model: SmplBody) -> Float[np.ndarray, "S"] | None:
    """The betas that the model can take; None where they are of the other family, whose space is another."""
    if params.betas is None or params.family != model.family:
        return None
    return params.betas[: len(model.blend)]


def named_rotations(params: SmplParams) -> dict[str, Float[np.ndarray, "3 3"]]:
    """Rotations by the family's joint names, for other bodies; fingers where the file has their rotations."""
    named = dict(zip(JOINT_NAMES["smplx"], params.body, strict=False))
    for hand, first in zip(params.hands, (25, 40), strict=True):
        if hand is not None and hand.ndim == 3 and not params.hands_from_mean:
            named |= dict(zip(JOINT_NAMES["smplx"][first : first + 15], hand, strict=True))
    return named


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _rejected(path, f"not JSON ({str(error)[:100]})") from None


def _found(path: Path, content: Any, depth: int = 0) -> dict[str, np.ndarray]:
    """The arrays of known names of the first person in nested dictionaries and lists, names in lower case."""
    if isinstance(content, list) and content and depth < MAX_DEPTH and isinstance(content[0], Mapping | list):
        return _found(path, content[0], depth + 1)
    if not isinstance(content, Mapping) or depth >= MAX_DEPTH:
        raise _rejected(path, "no parameters by name in it")
    lower = {str(name).lower(): value for name, value in content.items()}
    arrays = {}
    for name in _KNOWN & set(lower):
        value = lower[name]
        if isinstance(value, Mapping | str) or value is None:
            continue
        try:
            array = np.array(value, dtype=float)  # a copy: those of pickles cannot be written
        except (ValueError, TypeError, RecursionError, OverflowError):
            raise _rejected(path, f"{name} is not numbers") from None
        if array.size:
            if not (np.abs(array.reshape(-1)) < 1e6).all():
                raise _rejected(path, f"{name} with numbers that are not finite, or beyond reason")
            arrays[name] = array
    if {*_BODY_POSE, *_WHOLE} & set(arrays):
        meta = lower.get("meta")
        return arrays | (_found(path, meta, depth + 1) if isinstance(meta, Mapping) else {})
    for group in _GROUPS:
        if isinstance(lower.get(group), Mapping | list):
            return arrays | _found(path, lower[group], depth + 1)
    for value in lower.values():  # one person, or one frame, of several
        if isinstance(value, Mapping | list) and _holds_pose(value):
            return arrays | _found(path, value, depth + 1)
    if depth:  # cameras by themselves
        return arrays
    raise _rejected(path, f"no body_pose or pose among {', '.join(sorted(lower))[:120] or 'nothing'}")


def _holds_pose(value: Any) -> bool:
    while isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, Mapping):
        return False
    names = {str(name).lower() for name in value}
    return bool(names & {*_BODY_POSE, *_WHOLE, *_GROUPS})


def _params(path: Path, arrays: Mapping[str, np.ndarray]) -> SmplParams:
    def first(names: tuple[str, ...]) -> np.ndarray | None:
        return next((arrays[name] for name in names if name in arrays), None)

    pose, root, whole = first(_BODY_POSE), first(_ROOT), first(_WHOLE)
    hands: list[np.ndarray | None] = [None, None]
    face = np.tile(np.eye(3), (3, 1, 1))
    if pose is not None:
        turned = _turns(path, "body_pose", pose, (21, 23, 22, 24))
        if len(turned) in (21, 23):
            if root is None:
                raise _rejected(path, "no global_orient beside the body_pose")
            turned = np.concatenate([_turns(path, "global_orient", root, (1,)), turned])
    elif whole is not None:
        turned = _turns(path, "pose", whole, (24, 22, 55, 52))
        if len(turned) >= 52:
            hands = [turned[-30:-15], turned[-15:]]
        if len(turned) == 55:
            face = turned[22:25]
    else:
        raise _rejected(path, "no body_pose or pose in it")
    for side, names in enumerate(_HANDS):
        given = first(names)
        if given is not None:
            hands[side] = _hand(path, given)
    for index, names in enumerate(_FACE):
        given = first(names)
        if given is not None:
            face[index] = _turns(path, names[0], given, (1,))[0]
    betas = first(_BETAS)
    if betas is not None:
        betas = betas.reshape(-1, betas.shape[-1])[0] if betas.ndim else None
    if betas is not None and (len(betas) > 300 or np.abs(betas).max() > 20):
        raise _rejected(path, "betas that are more than 300, or beyond reason")
    focal, flat = first(_FOCAL), first(_FLAT)
    focal_px = None if focal is None else float(np.mean(focal.reshape(-1)[:2]))
    body = turned[:BODY].copy()
    up = body[0, :, 1]
    axis = max(_TO_CAMERA, key=lambda name: up["xyz".index(name[1])] * (-1 if name[0] == "-" else 1))
    body[0] = _TO_CAMERA[axis] @ body[0]
    return SmplParams(
        body,
        (hands[0], hands[1]),
        flat is not None and not flat.reshape(-1)[0],
        face,
        betas,
        focal_px if focal_px is not None and focal_px > 1 else None,
        "smpl" if len(turned) == 24 else "smplx",
    )


def _turns(path: Path, what: str, values: np.ndarray, counts: tuple[int, ...]) -> Float[np.ndarray, "K 3 3"]:
    """Rotation matrices of the first frame, of one of several numbers of joints K."""
    for count in counts:
        for each in ((3, 3), (6,), (3,)):
            size = count * int(np.prod(each))
            shaped = values.shape[-len(each) - 1 :] == (count, *each)
            alone = count == 1 and values.shape[-len(each) :] == each
            if values.ndim and (values.shape[-1] == size or shaped or alone):
                one = values.reshape(-1, count, *each)[0]
                if each == (3, 3) and not _are_rotations(one):
                    continue
                return one if each == (3, 3) else _of_columns(one) if each == (6,) else rotvecs_to_matrices(one)
    raise _rejected(path, f"{what} of shape {values.shape}, or with matrices that are no rotations")


def _hand(path: Path, values: np.ndarray) -> np.ndarray:
    """Rotations [15 3 3], or principal components [n] where there are fewer numbers than rotations need."""
    if values.ndim and 1 <= values.shape[-1] < 45 and values.shape[-2:] not in ((15, 3), (15, 6), (3, 3)):
        return values.reshape(-1, values.shape[-1])[0]
    return _turns(path, "hand pose", values, (15,))


def _are_rotations(matrices: Float[np.ndarray, "K 3 3"]) -> bool:
    close = np.abs(matrices @ np.swapaxes(matrices, 1, 2) - np.eye(3)).max() < 1e-2
    return bool(close and (np.linalg.det(matrices) > 0).all())


def _of_columns(six: Float[np.ndarray, "K 6"]) -> Float[np.ndarray, "K 3 3"]:
    """Rotations from their first two columns (Zhou et al. 2019, Eq. 15)."""
    a, b = six[:, :3], six[:, 3:]
    x = a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-9)
    y = b - x * (x * b).sum(1, keepdims=True)
    y /= np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-9)
    return np.stack([x, y, np.cross(x, y)], axis=2)


def _rejected(path: Path, reason: str) -> InputRejected:
    return InputRejected(f"{path}: {reason}", code="E_PARAMS_FORMAT")
