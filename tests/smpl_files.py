"""Model files in the format of SMPL and SMPL-X, made of Anny: right keys, shapes and axes, no licensed data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from hdx_cli import motion
from hdx_cli.bodies import anny
from hdx_cli.bodies.base import joint_transforms, skin
from hdx_cli.bodies.smpl_body import JOINT_NAMES
from hdx_cli.bodies.smpl_files import FAMILIES
from hdx_cli.motion.skeleton import FINGERS, skeleton

SHAPES = 10
_LIMBS = {
    "upper_leg": "hip", "lower_leg": "knee", "foot": "ankle", "toes": "foot", "clavicle": "collar",
    "upper_arm": "shoulder", "lower_arm": "elbow", "hand": "wrist",
}  # fmt: skip


def write_npz(path: Path, family: str, shapes: int = SHAPES, seed: int = 0, pose_shapes: float = 1e-3) -> Path:
    """An .npz with the keys of SMPLX_NEUTRAL.npz, pickled objects among them, as the makers' file has."""
    objects = {
        "joint2num": np.array({"Pelvis": 0}, dtype=object),
        "part2num": np.array({"global": 0}, dtype=object),
        "allow_pickle": np.array(True),
    }
    np.savez(path, **model_arrays(family, shapes, seed, pose_shapes), **objects)
    return path


def model_arrays(family: str, shapes: int = SHAPES, seed: int = 0, pose_shapes: float = 1e-3) -> dict[str, np.ndarray]:
    """The arrays of a model file: Anny in a T-pose, with ``shapes`` directions of shape."""
    kind, rng = FAMILIES[family], np.random.default_rng(seed)
    model = anny.load()
    joint_of_bone = bones_to_joints(model, family)
    shape_count = shapes if family == "smpl" else 300 if shapes > 20 else SHAPES
    bodies = [_t_posed(model, shape) for shape in _shapes(model)]
    keep, faces = decimated(bodies[0][0], model.faces, kind.vertices)
    bodies = [(vertices[keep], joints) for vertices, joints in bodies]
    vertices = bodies[0][0]
    joints = _joints(model, bodies[0][1], family)
    origin = joints[0] + (0.0, 0.35, 0.02)  # the makers' template hangs from about the breast bone
    shapedirs = np.zeros((kind.vertices, 3, shapes if family == "smpl" else 400 if shapes > 20 else 20))
    for index, (changed, _) in enumerate(bodies[1 : 1 + min(shape_count, SHAPES)]):
        shapedirs[..., index] = changed - vertices
    weights = np.zeros((kind.vertices, kind.joints))
    np.add.at(weights.T, joint_of_bone, model.weights[keep].T)
    arrays = {
        "v_template": vertices - origin,
        "shapedirs": shapedirs,
        "posedirs": pose_shapes * rng.standard_normal((kind.vertices, 3, 9 * (kind.joints - 1)), dtype=np.float32),
        "J_regressor": _regressor(vertices, joints),
        "weights": weights / weights.sum(1, keepdims=True),
        "kintree_table": np.stack([_parents(family), np.arange(kind.joints)]).astype(np.uint32),
        "f": faces.astype(np.uint32),
    }
    if family == "smplx":
        curled = np.array([0.0, 0.0, -0.2])  # fingers bend down from a T-pose
        arrays |= {"hands_meanl": np.tile(curled, 15), "hands_meanr": np.tile(-curled, 15)}
        arrays |= {f"hands_components{side}": np.linalg.qr(rng.normal(size=(45, 45)))[0] for side in "lr"}
        arrays |= {"lmk_faces_idx": np.arange(51), "lmk_bary_coords": np.full((51, 3), 1 / 3)}
        arrays |= {
            "dynamic_lmk_faces_idx": np.zeros((79, 17), int),
            "dynamic_lmk_bary_coords": np.full((79, 17, 3), 1 / 3),
        }
        arrays |= {"vt": rng.random((kind.vertices, 2)), "ft": faces.astype(np.int64)}
    return arrays


def _shapes(model: anny.AnnyBody) -> list[np.ndarray]:
    """The mean person, then one change each: the six phenotypes and four local changes."""
    shapes = [model.default_shape]
    for index in range(SHAPES):
        changed = model.default_shape.copy()
        changed[index] += (0.15, 0.1, 0.15, 0.15, 0.1, 0.15)[index] if index < 6 else 0.5
        shapes.append(changed)
    return shapes


def _t_posed(model: anny.AnnyBody, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and joints in a T-pose, the pelvis where that of no shape is."""
    rest = model.rest(shape)
    pose = motion.load("t-pose", rest, model.parents, model.joint_names).pose
    transforms = joint_transforms(pose.rotations[0], rest.joints, model.parents, pose.translations[0]).astype(float)
    vertices = skin(rest.vertices.astype(float), model.weights, transforms)[0]
    joints = np.einsum("jab,jb->ja", transforms[:, :3, :3], rest.joints) + transforms[:, :3, 3]
    return vertices - joints[0], joints - joints[0]


def _parents(family: str) -> np.ndarray:
    names = JOINT_NAMES[family]
    chain = ("pelvis", "spine1", "spine2", "spine3", "neck", "head", "jaw")
    above = dict(zip(chain[1:], chain, strict=False))
    for side in ("left", "right"):
        above |= {f"{side}_{a}": f"{side}_{b}" for a, b in (("knee", "hip"), ("ankle", "knee"), ("foot", "ankle"),
                  ("shoulder", "collar"), ("elbow", "shoulder"), ("wrist", "elbow"), ("hand", "wrist"))}  # fmt: skip
        above |= {f"{side}_hip": "pelvis", f"{side}_collar": "spine3", f"{side}_eye": "head"}
        for finger in FINGERS:
            above |= {f"{side}_{finger}1": f"{side}_wrist", f"{side}_{finger}2": f"{side}_{finger}1",
                      f"{side}_{finger}3": f"{side}_{finger}2"}  # fmt: skip
    return np.array([names.index(above[name]) if name in above else 2**32 - 1 for name in names])


def bones_to_joints(model: anny.AnnyBody, family: str) -> np.ndarray:
    """For every bone of Anny the joint of the family that does its work."""
    slots = skeleton(model.joint_names, model.parents, model.rest(model.default_shape).joints.astype(float)).slots
    names, of = JOINT_NAMES[family], {}
    for slot, bones in slots.items():
        for index, bone in enumerate(bones):
            of[bone] = _joint_name(slot, index, len(bones), names)
    found = np.zeros(len(model.parents), int)
    for bone, parent in enumerate(model.parents):
        found[bone] = names.index(of[bone]) if bone in of else found[parent] if parent >= 0 else 0
    return found


def _joint_name(slot: str, index: int, count: int, names: tuple[str, ...]) -> str:
    name, _, s = slot.partition(".")
    side = {"L": "left", "R": "right", "": ""}[s]
    if name == "spine":
        return f"spine{min(3, 1 + 3 * index // count)}"
    if name in FINGERS:
        finger = f"{side}_{name}{min(index, 2) + 1}"
        return finger if finger in names else f"{side}_hand"
    return f"{side}_{_LIMBS[name]}" if name in _LIMBS else name


def _joints(model: anny.AnnyBody, bones: np.ndarray, family: str) -> np.ndarray:
    """Where the joints are: mostly at the first bone that does a joint's work."""
    names, of = JOINT_NAMES[family], bones_to_joints(model, family)
    places = np.zeros((len(names), 3))
    for index, name in enumerate(names):
        mine = np.flatnonzero(of == index)
        if len(mine):
            places[index] = bones[mine].mean(0) if name.endswith(("foot", "hand")) else bones[mine[0]]
    head = places[names.index("head")]
    for name, shift in (("jaw", (0, 0.0, 0.03)), ("left_eye", (0.03, 0.06, 0.08)), ("right_eye", (-0.03, 0.06, 0.08))):
        if name in names:
            places[names.index(name)] = head + shift
    places[0] = (places[1] + places[2]) / 2 + (0, 0.08, 0)
    places[3] = (places[0] + places[6]) / 2
    return places


def _regressor(vertices: np.ndarray, joints: np.ndarray, ring: int = 60) -> np.ndarray:
    """Rows that take vertices to joints exactly, over the nearest vertices: least norm under J = W V, sum W = 1."""
    regressor = np.zeros((len(joints), len(vertices)))
    _, near = cKDTree(vertices).query(joints, k=ring)
    for row, joint, index in zip(regressor, joints, near, strict=True):
        system = np.concatenate([vertices[index].T - joint[:, None], np.ones((1, ring))])
        row[index] = np.linalg.lstsq(system, np.array([0.0, 0, 0, 1]), rcond=None)[0]
    return regressor


def decimated(vertices: np.ndarray, faces: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which ``count`` vertices stay, and the faces over them: the shortest edges collapse, many at a time."""
    alive, faces = len(vertices), faces.astype(np.int64)
    into = np.arange(len(vertices))
    while alive > count:
        edges = np.unique(np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1), axis=0)
        ones = np.ones(len(edges))
        adjacency = sparse.coo_matrix((ones, edges.T), shape=(len(vertices),) * 2).tocsr()
        adjacency = adjacency + adjacency.T
        shared = np.asarray((adjacency @ adjacency)[edges[:, 0], edges[:, 1]]).reshape(-1)
        edges = edges[shared == 2]  # others would pinch the surface
        order = np.argsort(np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1))
        used = np.zeros(len(vertices), bool)
        for keep, gone in edges[order[: max(1, len(order) // 4)]]:
            ring = adjacency.indices[adjacency.indptr[gone] : adjacency.indptr[gone + 1]]
            if not used[keep] and not used[ring].any():
                into[gone] = keep
                used[ring] = used[gone] = True
                alive -= 1
                if alive == count:
                    break
        faces = into[faces]
        faces = faces[(faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])]
    kept = np.flatnonzero(into == np.arange(len(vertices)))
    return kept, np.searchsorted(kept, faces)
