"""SMPL (Loper et al. 2015) and SMPL-X (Pavlakos et al. 2019) as body models, of a user's own file.

The package and the files are for non-commercial research alone; this is the only module that imports the package. Axes
and units are those of ``bodies.base``; the rest pose is a T-pose. Pose-dependent corrections of the shape ("pose blend
shapes") are left out: Gaussians follow by linear blend skinning in the photo and after, so that what they would add in
the photo's pose is taken up by the clothes. Expression stays at zero.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int

from ..errors import InputRejected
from .base import PARTS, RestBody
from .smpl_files import parents_of
from .store import Added, arrays_of

FITTED_SHAPES = 10  # of up to 300: what one photo can tell
FINGERS = ("index", "middle", "pinky", "ring", "thumb")
_BODY = (
    "pelvis left_hip right_hip spine1 left_knee right_knee spine2 left_ankle right_ankle spine3 left_foot right_foot "
    "neck left_collar right_collar head left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist"
).split()
JOINT_NAMES = {
    "smpl": (*_BODY, "left_hand", "right_hand"),
    "smplx": (
        *_BODY, "jaw", "left_eye", "right_eye",
        *(f"{side}_{finger}{n}" for side in ("left", "right") for finger in FINGERS for n in (1, 2, 3)),
    ),
}  # fmt: skip
_PART_OF = {
    "pelvis": "torso", "spine": "torso", "collar": "torso", "neck": "neck", "head": "head", "jaw": "head",
    "eye": "head", "shoulder": "upper_arm", "elbow": "lower_arm", "wrist": "hand", "hand": "hand", "hip": "upper_leg",
    "knee": "lower_leg", "ankle": "foot", "foot": "foot",
} | dict.fromkeys(FINGERS, "hand")  # fmt: skip


@dataclass(frozen=True)
class SmplBody:
    """A model of the family as a ``BodyModel``. Shape coefficients [S] are the first S betas, S at most ``len(blend)``.

    Attributes:
        family: ``smpl`` or ``smplx``.
        default_shape: ten zeros.
        template: vertices of the mean person [V 3]; blend: their change per beta [B V3].
        joints, joints_blend: rest joints of the mean person and their change per beta [J 3], [B J 3].
        hand_means: rotation vectors of the relaxed hand, left and right [2 15 3]; zero for SMPL, whose hands are stiff.
        hand_components: principal components of both hands' poses [2 45 45].
        uv, uv_faces: texture coordinates [U 2] and their triangles [F 3]; empty where the file has none.
    """

    name: str
    family: str
    faces: Int[np.ndarray, "F 3"]
    parents: Int[np.ndarray, "J"]
    joint_names: tuple[str, ...]
    weights: Float32[np.ndarray, "V J"]
    parts: Int[np.ndarray, "V"]
    template: Float32[np.ndarray, "V 3"]
    blend: Float32[np.ndarray, "B V3"]
    joints: Float32[np.ndarray, "J 3"]
    joints_blend: Float32[np.ndarray, "B J 3"]
    hand_means: Float32[np.ndarray, "2 15 3"]
    hand_components: Float32[np.ndarray, "2 45 45"]
    uv: Float32[np.ndarray, "U 2"]
    uv_faces: Int[np.ndarray, "G 3"]
    default_shape: Float32[np.ndarray, "S"] = field(default_factory=lambda: np.zeros(FITTED_SHAPES, np.float32))
    part_names: tuple[str, ...] = PARTS

    def rest(self, shape: Float[np.ndarray, "S"]) -> RestBody:
        """The body of betas [S] in its rest pose (T-pose), float32.

        Raises:
            InputRejected: more betas than the model file has.
        """
        if len(shape) > len(self.blend):
            raise InputRejected(f"{self.name}: {len(shape)} betas; its file has {len(self.blend)}", code="E_BODY_SHAPE")
        betas = np.asarray(shape, np.float32)
        vertices = self.template + (betas @ self.blend[: len(betas)]).reshape(-1, 3)
        return RestBody(vertices, self.joints + np.tensordot(betas, self.joints_blend[: len(betas)], 1))


def load(added: Added) -> SmplBody:
    """The body model of an added file, through the smplx package; about a second and 0.4 GB.

    Raises:
        InputRejected: the file is missing or not the one that was added.
    """
    arrays = arrays_of(added)
    return body_of(added, layer(added, arrays), arrays)


def layer(added: Added, arrays: dict[str, np.ndarray] | None = None) -> Any:
    """The smplx package's own module of an added file: ``smplx.SMPLLayer`` or ``SMPLXLayer``; its arrays may be given.

    Raises:
        InputRejected: the file is missing or not the one that was added, or the package is not installed.
    """
    arrays = arrays_of(added) if arrays is None else arrays
    try:
        import smplx
        from smplx.utils import Struct
    except ImportError:
        raise InputRejected(
            f"--body {added.name}: the smplx package is not installed", hint="pip install smplx", code="E_NO_SMPLX"
        ) from None
    with contextlib.redirect_stdout(io.StringIO()):  # it warns of files with ten betas on stdout
        if added.family == "smpl":
            return smplx.SMPLLayer("", data_struct=Struct(**arrays), num_betas=added.shapes)
        # it reads the file itself, whose sha256 and plain arrays have just been checked
        return smplx.SMPLXLayer(str(added.path), ext="npz", num_betas=added.shapes, flat_hand_mean=False)


def body_of(added: Added, module: Any, arrays: dict[str, np.ndarray]) -> SmplBody:
    """A body model of what the package's module and the file's arrays hold."""
    template = module.v_template.numpy()
    shapedirs, regressor = module.shapedirs.numpy(), module.J_regressor.numpy()
    weights = module.lbs_weights.numpy()
    names = JOINT_NAMES[added.family]
    part_of_joint = np.array([PARTS.index(part_of(name)) for name in names])
    means, components = np.zeros((2, 15, 3), np.float32), np.zeros((2, 45, 45), np.float32)
    if added.family == "smplx":
        means = np.stack([arrays[f"hands_mean{side}"] for side in "lr"]).reshape(2, 15, 3)
        components = np.stack([arrays[f"hands_components{side}"] for side in "lr"])
    faces = module.faces_tensor.numpy().astype(np.int32)
    return SmplBody(
        name=added.name,
        family=added.family,
        faces=faces,
        parents=parents_of(arrays["kintree_table"]),
        joint_names=names,
        weights=weights / weights.sum(1, keepdims=True),
        parts=part_of_joint[weights.argmax(1)],
        template=template,
        blend=np.ascontiguousarray(shapedirs.reshape(-1, shapedirs.shape[2]).T),
        joints=regressor @ template,
        joints_blend=np.einsum("jv,vas->sja", regressor, shapedirs).astype(np.float32),
        hand_means=means,
        hand_components=components,
        uv=arrays.get("vt", np.zeros((0, 2), np.float32)),
        uv_faces=arrays.get("ft", np.zeros((0, 3), np.int32)),
    )


def part_of(joint: str) -> str:
    """The body part that a joint of the family moves."""
    plain = joint.removeprefix("left_").removeprefix("right_").rstrip("0123456789")
    return _PART_OF[plain]
