"""Body models behind one protocol, and linear blend skinning.

Frames: +Y up, the person faces +Z, +X is the person's left; metres. A pose is one rotation per joint, relative to its
parent and expressed in the axes of the rest body (the SMPL convention), so that one skinning serves every model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from ..camera import Cameras


@dataclass(frozen=True)
class Body:
    """Who: the name of a body model and the shape coefficients it takes, [S]."""

    model: str
    shape: Float[np.ndarray, "S"]


@dataclass(frozen=True)
class BodyPose:
    """How: T frames of joint rotations [T J 3 3] and root translations [T 3] in metres. One photo is T = 1."""

    rotations: Float[np.ndarray, "T J 3 3"]
    translations: Float[np.ndarray, "T 3"]


@dataclass(frozen=True)
class RestBody:
    """A shaped body in its rest pose: vertices [V 3] and joint positions [J 3] in metres."""

    vertices: Float[np.ndarray, "V 3"]
    joints: Float[np.ndarray, "J 3"]


@runtime_checkable
class BodyModel(Protocol):
    """What the package needs to know of a body model.

    Attributes:
        name: as in ``--body``.
        faces: triangles [F 3], counter-clockwise from outside.
        parents: [J], -1 for the root; a parent always comes before its children.
        joint_names: [J] names of the model's own rig.
        weights: skinning weights [V J], rows sum to one.
        parts: the body part of every vertex [V]: an index into ``part_names``.
        part_names: ``PARTS`` of this module.
    """

    name: str
    faces: Int[np.ndarray, "F 3"]
    parents: Int[np.ndarray, "J"]
    joint_names: tuple[str, ...]
    weights: Float[np.ndarray, "V J"]
    parts: Int[np.ndarray, "V"]

    def rest(self, shape: Float[np.ndarray, "S"]) -> RestBody:
        """The rest body of shape coefficients [S]."""
        ...


PARTS = ("head", "neck", "torso", "upper_arm", "lower_arm", "hand", "upper_leg", "lower_leg", "foot")


@dataclass(frozen=True)
class BodyFit:
    """A body that explains a photo.

    The world of a fit: feet on y = 0, the pelvis on the y axis, gravity along -y; the photo's camera lies at azimuth 0,
    in the half plane x = 0, z > 0.

    Attributes:
        body, pose: the person; pose has T = 1.
        camera: the photo's camera (C = 1) at the photo's full size.
        scores: mean and largest landmark error in per cent of body height, silhouette IoU, body inside mask, lean in degrees, ...
    """

    body: Body
    pose: BodyPose
    camera: Cameras
    scores: dict[str, float]


def joint_transforms(
    rotations: Float[np.ndarray, "*T J 3 3"],
    joints: Float[np.ndarray, "J 3"],
    parents: Int[np.ndarray, "J"],
    translations: Float[np.ndarray, "*T 3"],
) -> Float[np.ndarray, "*T J 4 4"]:
    """Skinning transforms [... J 4 4]: rest space to posed space, per joint.

    T_j = T_parent(j) . [R_j about the rest joint h_j]; the root also takes the translation (SMPL, Loper et al. 2015, Eq. 3-4).
    """
    rotations = np.asarray(rotations)
    transforms = np.zeros((*rotations.shape[:-2], 4, 4), rotations.dtype)
    transforms[..., :3, :3] = rotations
    transforms[..., :3, 3] = joints - np.einsum("...jab,jb->...ja", rotations, joints)
    transforms[..., 3, 3] = 1.0
    for joint, parent in enumerate(parents):
        if parent >= 0:
            transforms[..., joint, :, :] = transforms[..., parent, :, :] @ transforms[..., joint, :, :]
        else:
            transforms[..., joint, :3, 3] += translations
    return transforms


def skin(
    points: Float[np.ndarray, "P 3"], weights: Float[np.ndarray, "P J"], transforms: Float[np.ndarray, "J 4 4"]
) -> tuple[Float[np.ndarray, "P 3"], Float[np.ndarray, "P 3 3"]]:
    """Linear blend skinning: posed points [P 3] and the blended linear part [P 3 3] of each point's transform."""
    blended = (weights @ transforms[:, :3].reshape(len(transforms), 12)).reshape(-1, 3, 4)
    linear = blended[..., :3]
    return np.einsum("pab,pb->pa", linear, points) + blended[..., 3], linear


def posed_vertices(model: BodyModel, body: Body, pose: BodyPose, frame: int = 0) -> Float[np.ndarray, "V 3"]:
    """Vertices [V 3] of one frame of a posed body, metres."""
    rest = model.rest(body.shape)
    transforms = joint_transforms(pose.rotations[frame], rest.joints, model.parents, pose.translations[frame])
    return skin(rest.vertices, model.weights, transforms)[0]
