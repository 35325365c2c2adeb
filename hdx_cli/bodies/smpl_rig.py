"""SMPL and SMPL-X prepared for the body fit: free joints, their limits, and where they have the landmarks.

Where the landmarks lie is measured on Anny. Its rest body is turned limb by limb into the rest pose of the model, and
what lies on a head, hand or foot is carried over by the similarity between points that both bodies have: joints, and
extreme points of the mesh (tip of the nose, ears, crown, heel, tips of toes and fingers). Nothing here is taken from a
model file but its own geometry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

from ..geometry import matrices_to_rotvecs, rotation_between
from . import anny
from .anny_rig import CALIBRATION, anny_rig, load_calibration, load_lifting, uncalibrated
from .base import PARTS, joint_transforms, skin
from .kinematics import RiggedPoints, pose_skeleton, posed_points
from .rig import LANDMARKS, SIDES, FitRig, limbs_of
from .smpl_body import FINGERS, FITTED_SHAPES, SmplBody

LIMBS = {
    "arm": ("{side}_shoulder", "{side}_elbow", "{side}_wrist"),
    "leg": ("{side}_hip", "{side}_knee", "{side}_ankle"),
}
SHAPE_LIMIT = 3.0  # betas are in standard deviations of people
# Anny's bones for the joints of the family that lie at the same place
_SAME = {
    "hip": "upperleg01", "knee": "lowerleg01", "ankle": "foot", "collar": "clavicle", "shoulder": "upperarm01",
    "elbow": "lowerarm01", "wrist": "wrist",
}  # fmt: skip
_FINGER_NUMBER = {"thumb": 1, "index": 2, "middle": 3, "ring": 4, "pinky": 5}


def smpl_rig(model: SmplBody, lifting: bool = True, shapes: int = FITTED_SHAPES) -> FitRig:
    """Prepare a model of the family for ``fit_body``, with the calibration and the lifting network that ship.

    The first ``shapes`` betas are free.
    """
    calibration = (load_calibration() if CALIBRATION.exists() else uncalibrated())[1]
    shapes = min(shapes, len(model.blend))
    names, basis, mean, sigma, limits = _pose_parameters(model)
    return FitRig(
        model=model,
        coefficients=lambda shape: shape,
        coefficients_jacobian=lambda shape: np.eye(shapes),
        joints=model.joints.astype(float),
        joints_blend=model.joints_blend[:shapes].astype(float),
        pose_names=names,
        pose_basis=basis,
        pose_mean=mean,
        pose_sigma=sigma,
        pose_limits=limits,
        shape_mean=np.zeros(shapes),
        shape_sigma=np.ones(shapes),
        shape_limits=np.tile([-SHAPE_LIMIT, SHAPE_LIMIT], (shapes, 1)),
        landmarks=_landmarks(model, shapes),
        centre_of_mass=_centre_of_mass(model, shapes),
        limbs=limbs_of(model.joint_names, model.joints.astype(float), LIMBS, names, basis),
        calibration=calibration,
        vertex_points=lambda indices: _skinned(model, indices, shapes),
        top_and_sole=_top_and_sole(model, shapes),
        lifting=load_lifting() if lifting else None,
        pose_offset=relaxed(model),
    )


def relaxed(model: SmplBody) -> Float[np.ndarray, "J 3"]:
    """Rotation vectors [J 3] of the rest pose with the hands' own mean; zero for SMPL, whose hands are stiff."""
    turned = np.zeros((len(model.parents), 3))
    if model.family == "smplx":
        turned[25:40], turned[40:55] = model.hand_means
    return turned


# where the landmarks are


@dataclass(frozen=True)
class _Shell:
    """A body at rest: vertices [V 3], their parts [V], and joints by the family's names."""

    vertices: Float[np.ndarray, "V 3"]
    parts: Int[np.ndarray, "V"]
    joints: dict[str, np.ndarray]

    def extreme(self, part: str, direction: tuple[float, float, float], side: str = "") -> Float[np.ndarray, "3"]:
        """The vertex of a body part that lies farthest in a direction."""
        chosen = self.parts == PARTS.index(part)
        if side:
            chosen &= (self.vertices[:, 0] > 0) == (side == "left")
        points = self.vertices[chosen]
        return points[(points @ np.array(direction)).argmax()]

    def head(self) -> Float[np.ndarray, "4 3"]:
        """Tip of the nose, ears, crown."""
        return np.stack([self.extreme("head", d) for d in ((0, -0.2, 1), (1, 0, 0), (-1, 0, 0), (0, 1, 0))])

    def hand(self, side: str) -> Float[np.ndarray, "3 3"]:
        """Wrist, tip of the fingers, tip of the thumb, for an arm held out to the side."""
        out = 1.0 if side == "left" else -1.0
        tips = [self.extreme("hand", d, side) for d in ((out, 0, 0), (0, 0, 1))]
        return np.stack([self.joints[f"{side}_wrist"], *tips])

    def foot(self, side: str) -> Float[np.ndarray, "3 3"]:
        """Ankle, heel, tip of the toes."""
        ends = [self.extreme("foot", d, side) for d in ((0, -0.5, -1), (0, 0, 1))]
        return np.stack([self.joints[f"{side}_ankle"], *ends])


def _landmarks(model: SmplBody, shapes: int) -> RiggedPoints:
    """Landmarks at a joint, with an offset in the frame of a bone, or on a vertex of one bone."""
    source, at = _posed_anny(model)
    rest = model.rest(model.default_shape)
    target = _Shell(rest.vertices.astype(float), model.parts, _named(model))
    size = np.ptp(target.vertices[:, 1]) / np.ptp(source.vertices[:, 1])
    index = {name: joint for joint, name in enumerate(model.joint_names)}
    bases: list[np.ndarray] = []
    blends: list[np.ndarray] = []
    base_joints: list[int] = []
    bones, offsets = [], []
    tree = cKDTree(target.vertices)
    places = _places(model)
    carries = {bone: _carry(source, target, *bone, model) for bone in {bone for joint, bone in places if joint is None}}
    for landmark, (joint, bone) in enumerate(places):
        if joint is None:
            group, side = bone
            place = carries[bone](at[landmark])
            vertex = int(tree.query(place)[1])
            bone = {"head": "head", "hand": f"{side}_wrist", "foot": f"{side}_ankle"}[group]
            joint_index, offset = index[bone], place - target.vertices[vertex]
            base, blend = target.vertices[vertex], model.blend.reshape(len(model.blend), -1, 3)[:shapes, vertex]
        else:
            joint_index, offset = index[joint], size * (at[landmark] - source.joints[joint])
            base, blend = target.joints[joint], model.joints_blend[:shapes, joint_index]
        bases.append(base)
        blends.append(blend)
        base_joints.append(joint_index)
        bones.append(index[bone])
        offsets.append(offset)
    count = LANDMARKS
    return RiggedPoints(
        point=np.tile(np.arange(count), 2),
        joint=np.array([*base_joints, *bones]),
        source=np.arange(2 * count),
        mass=np.repeat([1.0, 0.0], count),
        weight=np.ones(2 * count),
        rest=np.array([*bases, *offsets]).astype(float),
        blend=np.concatenate([np.stack(blends, axis=1), np.zeros((shapes, count, 3))], axis=1).astype(float),
        count=count,
    )


def _places(model: SmplBody) -> list[tuple[str | None, str | tuple[str, str]]]:
    """For every landmark (joint, bone that carries the offset), or (None, (head, hand or foot, side))."""
    fingered = model.family == "smplx"
    rows: list[tuple[str | None, str | tuple[str, str]]] = [(None, ("head", ""))] * 11
    for joint, bone in (("shoulder", "collar"), ("elbow", "elbow"), ("wrist", "wrist")):
        rows += [(f"{side}_{joint}", f"{side}_{bone}") for side in SIDES]
    rows += [(None, ("hand", side)) for _ in range(3) for side in SIDES]
    for joint, bone in (("hip", "pelvis"), ("knee", "knee"), ("ankle", "knee")):
        rows += [(f"{side}_{joint}", bone if bone == "pelvis" else f"{side}_{bone}") for side in SIDES]
    rows += [(None, ("foot", side)) for _ in range(2) for side in SIDES]
    for side in SIDES:
        rows.append((f"{side}_wrist", f"{side}_wrist"))
        for finger in ("thumb", "index", "middle", "ring", "pinky"):
            chain = [f"{side}_wrist", *(f"{side}_{finger}{joint}" for joint in (1, 2, 3))]
            places = zip([*chain[1:], chain[-1]], chain, strict=True)
            rows += places if fingered else [(None, ("hand", side))] * 4
    return rows + [(None, ("head", ""))] * (LANDMARKS - len(rows))


def _carry(
    source: _Shell, target: _Shell, group: str, side: str, model: SmplBody
) -> Callable[[np.ndarray], np.ndarray]:
    """The similarity that takes a head, hand or foot of one body to that of the other."""
    both = [body.head() if group == "head" else getattr(body, group)(side) for body in (source, target)]
    if group == "hand" and model.family == "smplx":
        knuckles = [f"{side}_{finger}1" for finger in FINGERS]
        both = [np.concatenate([points, [body.joints[name] for name in knuckles]])
                for points, body in zip(both, (source, target), strict=True)]  # fmt: skip
    scale, rotation, shift = _similarity(*both)
    return lambda point: scale * rotation @ point + shift


def _similarity(
    source: Float[np.ndarray, "P 3"], target: Float[np.ndarray, "P 3"]
) -> tuple[float, Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]:
    """Scale, rotation and shift that take points nearest to others (Umeyama 1991, Eq. 34-43)."""
    middle, there = source.mean(axis=0), target.mean(axis=0)
    u, singular, vt = np.linalg.svd((target - there).T @ (source - middle))
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    scale = float((singular * signs).sum() / max(((source - middle) ** 2).sum(), 1e-12))
    rotation = (u * signs) @ vt
    return scale, rotation, there - scale * rotation @ middle


def _posed_anny(model: SmplBody) -> tuple[_Shell, Float[np.ndarray, "L 3"]]:
    """Anny with its limbs along those of the model's rest body, and the landmarks on it."""
    body = anny.load()
    rig = anny_rig(body, lifting=False)
    rest = body.rest(body.default_shape)
    rotations = turned_limbs(body, rest.joints.astype(float), _named(model))
    transforms = joint_transforms(rotations, rest.joints.astype(float), body.parents, np.zeros(3))
    vertices, _ = skin(rest.vertices.astype(float), body.weights, transforms)
    posed = pose_skeleton(
        matrices_to_rotvecs(rotations), np.eye(3), rest.joints.astype(float), np.zeros(3), body.parents
    )
    landmarks = posed_points(rig.landmarks, body.coefficients(body.default_shape), posed)
    at = dict(zip(body.joint_names, posed.centres, strict=True))
    joints = {f"{side}_{name}": at[f"{bone}.{s}"] for name, bone in _SAME.items() for side, s in SIDES.items()}
    for side, s in SIDES.items():
        for finger, number in _FINGER_NUMBER.items():
            joints |= {f"{side}_{finger}{n}": at[f"finger{number}-{n}.{s}"] for n in (1, 2, 3)}
    return _Shell(vertices, body.parts, joints), landmarks


def turned_limbs(
    body: anny.AnnyBody, joints: Float[np.ndarray, "J 3"], target: dict[str, np.ndarray]
) -> Float[np.ndarray, "J 3 3"]:
    """Rotations [J 3 3] of Anny's joints that lay its limbs along those of a target with joints by name."""
    at = {name: index for index, name in enumerate(body.joint_names)}
    rotations = np.tile(np.eye(3), (len(body.parents), 1, 1))
    for side, s in SIDES.items():
        for limb in (("shoulder", "elbow", "wrist"), ("hip", "knee", "ankle")):
            above = np.eye(3)
            names = [*zip(limb, limb[1:], strict=False)]
            for start, end in names:
                bone = at[f"{_SAME[start]}.{s}"]
                have = above @ (joints[at[f"{_SAME[end]}.{s}"]] - joints[bone])
                turn = rotation_between(have, target[f"{side}_{end}"] - target[f"{side}_{start}"])
                rotations[bone] = above.T @ turn @ above
                above = turn @ above
            last = at[f"{_SAME[limb[2]]}.{s}"]
            if limb[0] == "hip":  # feet stay flat
                rotations[last] = above.T
                continue
            # hands go on as the forearm, the thumb forwards
            knuckle, little = joints[at[f"finger3-1.{s}"]], joints[at[f"finger5-1.{s}"]]
            index = joints[at[f"finger2-1.{s}"]]
            along = target[f"{side}_wrist"] - target[f"{side}_elbow"]
            turn = rotation_between(above @ (knuckle - joints[last]), along)
            along = along / np.linalg.norm(along)
            across, forward = turn @ above @ (index - little), np.array([0.0, 0.0, 1.0])
            roll = rotation_between(across - along * (along @ across), forward - along * (along @ forward))
            rotations[last] = above.T @ roll @ turn @ above
    return rotations


def _named(model: SmplBody) -> dict[str, np.ndarray]:
    return dict(zip(model.joint_names, model.joints.astype(float), strict=True))


# points of the mesh


def _skinned(model: SmplBody, indices: Int[np.ndarray, "N"], shapes: int) -> RiggedPoints:
    """Vertices as rigged points."""
    weights = model.weights[indices]
    point, joint = (np.ascontiguousarray(index) for index in np.nonzero(weights))
    share = weights[point, joint].astype(float)
    blend = model.blend.reshape(len(model.blend), -1, 3)[:shapes, indices]
    return RiggedPoints(point, joint, point, share, share, model.template[indices], blend, len(indices))


def _top_and_sole(model: SmplBody, shapes: int) -> RiggedPoints:
    """The top of the head and the lowest points of both feet, which tell the standing height."""
    left, y = model.template[:, 0] > 0, model.template[:, 1]
    lowest = [np.where(side, y, np.inf).argmin() for side in (left, ~left)]
    return _skinned(model, np.array([y.argmax(), *lowest]), shapes)


def _centre_of_mass(model: SmplBody, shapes: int) -> RiggedPoints:
    """One point: every vertex weighs its area times its distance from its bone, as limbs are cylinders."""
    corners = model.template[model.faces].astype(float)
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    area = np.bincount(model.faces.reshape(-1), np.repeat(areas, 3), len(model.template))
    joint = model.weights.argmax(1)
    children = {int(parent): child for child, parent in enumerate(model.parents)}
    start = model.joints[joint].astype(float)
    end = np.array([model.joints[children.get(j, j)] for j in range(len(model.joints))])[joint]
    along = end - start
    share = ((model.template - start) * along).sum(1) / np.maximum((along**2).sum(1), 1e-9)
    away = model.template - start - np.clip(share, 0, 1)[:, None] * along
    mass = area * np.linalg.norm(away, axis=1)
    shares = (mass / mass.sum())[:, None] * model.weights
    used = np.flatnonzero(shares.sum(0) > 1e-3)
    shares = shares[:, used] / shares[:, used].sum()
    blend = model.blend.reshape(len(model.blend), -1, 3)[:shapes]
    return RiggedPoints(
        point=np.zeros(len(used), np.int64),
        joint=used,
        source=np.arange(len(used)),
        mass=shares.sum(0),
        weight=np.ones(len(used)),
        rest=shares.T @ model.template,
        blend=np.einsum("vj,kva->kja", shares, blend).astype(float),
        count=1,
    )


# how the joints move


def _pose_parameters(model: SmplBody):
    """Names, basis [J 3 D], mean [D], sigma [D] and limits [D 2] of the pose parameters.

    Sigmas are Anny's: spreads of everyday poses about an A-pose, radians about x (bending), y (turning), z (leaning).
    """
    at, index = _named(model), {name: joint for joint, name in enumerate(model.joint_names)}
    columns: list[Float[np.ndarray, "J 3"]] = []
    names, means, sigmas, limits = [], [], [], []

    def add(name: str, turned: dict[str, np.ndarray], sigma: float, limit=(-np.inf, np.inf), mean: float = 0.0) -> None:
        column = np.zeros((len(index), 3))
        for joint, axis in turned.items():
            column[index[joint]] = axis
        columns.append(column)
        names.append(name)
        means.append(mean)
        sigmas.append(sigma)
        limits.append(limit)

    def ball(name: str, joint: str, sigma: tuple[float, float, float], mean: np.ndarray | None = None) -> None:
        for axis in range(3):
            middle = 0.0 if mean is None else mean[axis]
            add(f"{name}_{'xyz'[axis]}", {joint: np.eye(3)[axis]}, sigma[axis], mean=middle)

    ball("root", "pelvis", (9, 9, 9))
    for name, joint in (("lower_spine", "spine1"), ("middle_spine", "spine2"), ("upper_spine", "spine3")):
        ball(name, joint, (0.18, 0.15, 0.12))
    ball("neck", "neck", (0.25, 0.3, 0.2))
    ball("head", "head", (0.25, 0.35, 0.2))
    for side in SIDES:
        out = 1.0 if side == "left" else -1.0
        shoulder, elbow, wrist = (at[f"{side}_{joint}"] for joint in ("shoulder", "elbow", "wrist"))
        upper, fore = _unit(elbow - shoulder), _unit(wrist - elbow)
        thigh = _unit(at[f"{side}_knee"] - at[f"{side}_hip"])
        ball(f"{side}_clavicle", f"{side}_collar", (0.12, 0.15, 0.2))
        # arms hang, forwards a little, as Anny's do at rest
        hanging = matrices_to_rotvecs(rotation_between(upper, np.array([0.73 * out, -0.68, 0.0])))
        ball(f"{side}_shoulder", f"{side}_shoulder", (0.9, 0.9, 0.9), hanging)
        forward = np.array([0.0, 0.0, 1.0])
        add(f"{side}_elbow", {f"{side}_elbow": _unit(np.cross(fore, forward))}, 0.9, (-0.05, 2.6), 0.6)
        # half of the forearm's turn at either end, which lets the skin between them twist less
        twist = {f"{side}_elbow": fore / 2, f"{side}_wrist": fore / 2}
        add(f"{side}_forearm_twist", twist, 0.6, (-1.6, 1.6))
        ball(f"{side}_wrist", f"{side}_wrist", (0.3, 0.3, 0.2))
        ball(f"{side}_hip", f"{side}_hip", (0.8, 0.35, 0.4))
        sideways = np.array([1.0, 0.0, 0.0]) - thigh[0] * thigh
        add(f"{side}_knee", {f"{side}_knee": _unit(sideways)}, 0.8, (-0.02, 2.45), 0.1)
        ball(f"{side}_ankle", f"{side}_ankle", (0.35, 0.2, 0.2))
        if model.family == "smplx":
            across = at[f"{side}_index1"] - at[f"{side}_pinky1"]
            palm = np.cross(_unit(at[f"{side}_middle1"] - at[f"{side}_wrist"]), across) * out
            for number, finger in enumerate(("index", "middle", "ring", "pinky"), start=2):
                along = at[f"{side}_{finger}3"] - at[f"{side}_{finger}1"]
                axis = _unit(np.cross(along, palm))
                bent = {f"{side}_{finger}{joint}": axis for joint in (1, 2, 3)}
                add(f"{side}_finger{number}_curl", bent, 0.4, (-0.5, 1.5))
    basis = np.stack(columns, axis=-1)
    return tuple(names), basis, np.array(means), np.array(sigmas), np.array(limits)


def _unit(vector: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
    return vector / max(float(np.linalg.norm(vector)), 1e-9)
