"""Anny prepared for the body fit: its free joints, their limits, and where it has the detectors' landmarks."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from .anny import AnnyBody
from .kinematics import RiggedPoints
from .rig import (
    BODY_DIRECTIONS,
    DIRECTIONS,
    FACE_POINTS,
    LANDMARKS,
    SIDES,
    Calibration,
    FitRig,
    Lifting,
    limbs_of,
)  # fmt: skip

CALIBRATION = Path(__file__).with_name("anny_calibration.json")
LIMBS = {
    "arm": ("upperarm01.{s}", "lowerarm01.{s}", "wrist.{s}"),
    "leg": ("upperleg01.{s}", "lowerleg01.{s}", "foot.{s}"),
}


def landmark_bases() -> list[tuple[str, str]]:
    """For every landmark the key point or joint it lies at and the bone whose frame carries its offset from there."""
    rows = [("nose", "head")]
    rows += [("eye.L", "head")] * 3 + [("eye.R", "head")] * 3
    rows += [("left_ear", "head"), ("right_ear", "head"), ("nose", "head"), ("nose", "head")]
    both_sides = [
        ("{side}_shoulder", "clavicle.{s}"),
        ("{side}_elbow", "lowerarm01.{s}"),
        ("{side}_wrist", "wrist.{s}"),
        ("finger5-1.{s}", "wrist.{s}"),
        ("finger2-1.{s}", "wrist.{s}"),
        ("finger1-2.{s}", "wrist.{s}"),
        ("{side}_hip", "root"),
        ("{side}_knee", "lowerleg01.{s}"),
        ("{side}_ankle", "lowerleg01.{s}"),
        ("{side}_heel", "foot.{s}"),
        ("{side}_big_toe", "foot.{s}"),
    ]
    rows += [(b.format(side=side, s=s), o.format(s=s)) for b, o in both_sides for side, s in SIDES.items()]
    for s in SIDES.values():
        rows.append((f"wrist.{s}", f"wrist.{s}"))
        for finger in range(1, 6):
            first = f"wrist.{s}" if finger == 1 else f"metacarpal{finger - 1}.{s}"
            bones = [first, *(f"finger{finger}-{joint}.{s}" for joint in (1, 2, 3))]
            at = [*bones[1:], bones[-1]]
            rows += list(zip(at, bones, strict=True))
    return rows + [("nose", "head")] * len(FACE_POINTS)


def load_calibration(path: Path = CALIBRATION) -> tuple[Float[np.ndarray, "L 3"], Calibration]:
    """Offsets of the landmarks from their bases in metres [L 3], and the detectors' calibration."""
    values = json.loads(path.read_text(encoding="utf-8"))
    offsets = np.array(values.pop("landmark_offset_m"))
    fields = {name: np.array(value) if isinstance(value, list) else value for name, value in values.items()}
    return offsets, Calibration(**fields)


def uncalibrated() -> tuple[Float[np.ndarray, "L 3"], Calibration]:
    """Landmarks taken at face value, with plausible noise."""
    body, fine = 3 * BODY_DIRECTIONS, len(DIRECTIONS) - BODY_DIRECTIONS
    calibration = Calibration(
        sigma=np.full(LANDMARKS, 0.006),
        body_mean=np.zeros(body),
        body_gain=np.zeros((body, body)),
        body_bias=np.zeros(body),
        body_reach=1.0,
        fine_gain=np.zeros((fine, 3, 3)),
        fine_bias=np.zeros((fine, 3)),
        direction_sigma=np.full((len(DIRECTIONS), 3), 0.15),
    )
    return np.zeros((LANDMARKS, 3)), calibration


def load_lifting() -> Lifting:
    """The lifting network that ships."""
    from .lifting import lifted_directions, load_net

    return partial(lifted_directions, load_net())


def anny_rig(
    model: AnnyBody,
    calibrated: tuple[Float[np.ndarray, "L 3"], Calibration] | None = None,
    lifting: bool = True,
) -> FitRig:
    """Prepare Anny for ``fit_body``: with the calibration that ships unless one is given, and the lifting network."""
    offsets, calibration = calibrated or (load_calibration() if CALIBRATION.exists() else uncalibrated())
    names, basis, mean, sigma, limits = _pose_parameters(model)
    phenotypes = {
        "gender": (0.5, 0.35), "age": (0.67, 0.12), "muscle": (0.5, 0.25), "weight": (0.5, 0.25),
        "height": (0.5, 0.15), "proportions": (0.5, 0.25),
    }  # fmt: skip
    # changes that show in profile only are held nearer to the mean than those that a front view shows
    in_profile = ("bust_girth", "belly", "buttocks")
    local_sigma = [0.2 if name in in_profile else 0.45 for name in model.shape_names[len(phenotypes) :]]
    local = len(local_sigma)
    return FitRig(
        model=model,
        coefficients=model.coefficients,
        coefficients_jacobian=model.coefficients_jacobian,
        joints=model.joints.astype(float),
        joints_blend=model.joints_blend.astype(float),
        pose_names=names,
        pose_basis=basis,
        pose_mean=mean,
        pose_sigma=sigma,
        pose_limits=limits,
        shape_mean=np.array([m for m, _ in phenotypes.values()] + [0.0] * local),
        shape_sigma=np.array([s for _, s in phenotypes.values()] + local_sigma),
        shape_limits=np.array([(0.0, 1.0)] * len(phenotypes) + [(-1.0, 1.0)] * local),
        landmarks=_landmarks(model, offsets),
        centre_of_mass=_regressed(model, ["centre_of_mass"]),
        limbs=limbs_of(model.joint_names, model.rest(model.default_shape).joints.astype(float), LIMBS, names, basis),
        calibration=calibration,
        vertex_points=lambda indices: skinned_vertices(model, indices),
        top_and_sole=_top_and_sole(model),
        lifting=load_lifting() if lifting else None,
    )


def skinned_vertices(model: AnnyBody, indices: Int[np.ndarray, "N"]) -> RiggedPoints:
    """Vertices as rigged points."""
    weights = model.weights[indices]
    point, joint = (np.ascontiguousarray(index) for index in np.nonzero(weights))
    share = weights[point, joint].astype(float)
    blend = model.blend.reshape(len(model.blend), -1, 3)[:, indices]
    return RiggedPoints(point, joint, point, share, share, model.template[indices], blend, len(indices))


def _regressed(model: AnnyBody, names: list[str]) -> RiggedPoints:
    """Regressed key points as rigged points: every entry brings its own moment."""
    asset = model.asset
    keypoints = [model.keypoint_names.index(name) for name in names]
    rows = [np.flatnonzero(asset["keypoint_index"] == keypoint) for keypoint in keypoints]
    point = np.repeat(np.arange(len(names)), [len(r) for r in rows])
    entries = np.concatenate(rows)
    return RiggedPoints(
        point=point,
        joint=asset["keypoint_joint"][entries].astype(np.int64),
        source=np.arange(len(entries)),
        mass=asset["keypoint_mass"][entries].astype(float),
        weight=np.ones(len(entries)),
        rest=asset["keypoint_moment"][entries].astype(float),
        blend=asset["keypoint_moment_blend"][entries].transpose(1, 0, 2).astype(float),
        count=len(names),
    )


def _landmarks(model: AnnyBody, offsets: Float[np.ndarray, "L 3"]) -> RiggedPoints:
    """Landmark = its key point or joint + rotation of its bone @ offset."""
    bases = landmark_bases()
    bone = [model.joint_names.index(bone) for _, bone in bases]
    regressed = [i for i, (base, _) in enumerate(bases) if base in model.keypoint_names]
    at_joint = [i for i, (base, _) in enumerate(bases) if base not in model.keypoint_names]
    joint = [model.joint_names.index(bases[i][0]) for i in at_joint]
    key = _regressed(model, [bases[i][0] for i in regressed])
    count, none = len(bases), np.zeros((len(model.blend), len(bases), 3))
    point = np.concatenate([np.array(regressed)[key.point], at_joint, np.arange(count)])
    return RiggedPoints(
        point=point,
        joint=np.concatenate([key.joint, joint, bone]).astype(np.int64),
        source=np.arange(len(point)),
        mass=np.concatenate([key.mass, np.ones(len(joint)), np.zeros(count)]),
        weight=np.ones(len(point)),
        rest=np.concatenate([key.rest, model.joints[joint], offsets]).astype(float),
        blend=np.concatenate([key.blend, model.joints_blend[:, joint], none], axis=1).astype(float),
        count=count,
    )


def _top_and_sole(model: AnnyBody) -> RiggedPoints:
    """The top of the head and the lowest points of both feet, which tell the standing height."""
    rest = model.rest(model.default_shape).vertices
    left = rest[:, 0] > 0
    lowest = [np.where(side, rest[:, 1], np.inf).argmin() for side in (left, ~left)]
    return skinned_vertices(model, np.array([rest[:, 1].argmax(), *lowest]))


def _pose_parameters(model: AnnyBody):
    """Names, basis [J 3 D], mean [D], sigma [D] and limits [D 2] of the pose parameters.

    Sigmas are spreads of everyday poses about the A-pose, in radians about x (bending), y (turning), z (leaning).
    """
    at = {name: index for index, name in enumerate(model.joint_names)}
    joints = model.rest(model.default_shape).joints.astype(float)

    def direction(start: str, end: str) -> Float[np.ndarray, "3"]:
        vector = joints[at[end]] - joints[at[start]]
        return vector / np.linalg.norm(vector)

    columns: list[Float[np.ndarray, "J 3"]] = []
    names, means, sigmas, limits = [], [], [], []

    def ball(name: str, bones: list[str], sigma: tuple[float, float, float]) -> None:
        for axis in range(3):
            column = np.zeros((len(at), 3))
            column[[at[bone] for bone in bones], axis] = 1 / len(bones)
            add(f"{name}_{'xyz'[axis]}", column, sigma[axis])

    def hinge(
        name: str, bones: dict[str, np.ndarray], sigma: float, limit: tuple[float, float], mean: float = 0
    ) -> None:
        column = np.zeros((len(at), 3))
        for bone, axis in bones.items():
            column[at[bone]] = axis / np.linalg.norm(axis)
        add(name, column, sigma, limit, mean)

    def add(name: str, column: np.ndarray, sigma: float, limit=(-np.inf, np.inf), mean: float = 0.0) -> None:
        columns.append(column)
        names.append(name)
        means.append(mean)
        sigmas.append(sigma)
        limits.append(limit)

    ball("root", ["root"], (9, 9, 9))
    ball("lower_spine", ["spine05", "spine04"], (0.18, 0.15, 0.12))
    ball("middle_spine", ["spine03"], (0.18, 0.15, 0.12))
    ball("upper_spine", ["spine02", "spine01"], (0.18, 0.15, 0.12))
    ball("neck", ["neck01", "neck02", "neck03"], (0.25, 0.3, 0.2))
    ball("head", ["head"], (0.25, 0.35, 0.2))
    for side, s in SIDES.items():
        upper, fore = direction(f"upperarm01.{s}", f"lowerarm01.{s}"), direction(f"lowerarm01.{s}", f"wrist.{s}")
        thigh = direction(f"upperleg01.{s}", f"lowerleg01.{s}")
        ball(f"{side}_clavicle", [f"clavicle.{s}"], (0.12, 0.15, 0.2))
        ball(f"{side}_shoulder", [f"upperarm01.{s}"], (0.9, 0.9, 0.9))
        # Anny rests with elbows bent by 42 degrees and knees by 9: the lower limits are straight limbs
        hinge(f"{side}_elbow", {f"lowerarm01.{s}": np.cross(upper, fore)}, 0.9, (-0.75, 1.9))
        hinge(f"{side}_forearm_twist", {f"lowerarm02.{s}": fore}, 0.6, (-1.6, 1.6))
        ball(f"{side}_wrist", [f"wrist.{s}"], (0.3, 0.3, 0.2))
        ball(f"{side}_hip", [f"upperleg01.{s}"], (0.8, 0.35, 0.4))
        sideways = np.array([1.0, 0, 0]) - thigh[0] * thigh
        hinge(f"{side}_knee", {f"lowerleg01.{s}": sideways}, 0.8, (-0.15, 2.3))
        ball(f"{side}_ankle", [f"foot.{s}"], (0.35, 0.2, 0.2))
        across = joints[at[f"finger2-1.{s}"]] - joints[at[f"finger5-1.{s}"]]
        palm = np.cross(direction(f"wrist.{s}", f"finger3-1.{s}"), across) * (1 if s == "L" else -1)
        for finger in (2, 3, 4, 5):
            along = direction(f"finger{finger}-1.{s}", f"finger{finger}-3.{s}")
            bones = {f"finger{finger}-{joint}.{s}": np.cross(along, palm) for joint in (1, 2, 3)}
            hinge(f"{side}_finger{finger}_curl", bones, 0.4, (-0.25, 1.5), mean=0.25)
    basis = np.stack(columns, axis=-1)
    return tuple(names), basis, np.array(means), np.array(sigmas), np.array(limits)
